"""Film: one episode -> an animation, or a plot of its paths where there is no OpenGL.

The animation is rendered by this file run as a program of its own: whatever an OpenGL driver does (hang, crash,
complain at exit), it does there. So nothing here imports the rest of the project.
"""

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

if TYPE_CHECKING:
    from experiment_training.components.evaluation.episode import Episode

HEIGHT, WIDTH = 240, 320
MAX_FRAMES = 96
FRAME_MS = 50  # an episode lasts about a second; shown at a quarter of its speed
LAST_FRAME_MS = 1200
RENDER_LIMIT_S = 120


def film_episode(episode: "Episode", output_dir: Path, name: str = "rollout") -> Path:
    """Write `<name>.gif`, or `<name>.png` and one line that says why; of an earlier rollout nothing stays."""
    output_dir.mkdir(parents=True, exist_ok=True)
    animation, plot = output_dir / f"{name}.gif", output_dir / f"{name}.png"
    reason = _render_elsewhere(episode, animation)
    if reason is None:
        plot.unlink(missing_ok=True)
        return animation
    animation.unlink(missing_ok=True)
    plot_paths(episode, plot)
    print(f"no animation, for want of OpenGL ({reason}): drew the paths of hand, object and goal in {plot}")
    return plot


def plot_paths(episode: "Episode", path: Path) -> None:
    """The episode from above and from the side, in metres."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from experiment_training.components.evaluation.episode import GOAL, HAND, OBJECT

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    views = (("from above", 0, 1), ("from the side", 1, 2))
    for axes, (title, across, up) in zip(figure.subplots(1, 2), views, strict=True):
        for name, part, color in (("hand", HAND, "tab:blue"), ("object", OBJECT, "tab:orange")):
            points = episode.states[:, part]  # [K, 3]
            axes.plot(points[:, across], points[:, up], color=color, label=name)
            axes.plot(points[0, across], points[0, up], "o", color=color)
            axes.plot(points[-1, across], points[-1, up], "s", color=color)
        goal = episode.states[-1, GOAL]
        axes.plot(goal[across], goal[up], "*", color="tab:green", markersize=16, label="goal")
        axes.set(title=title, xlabel=f"{'xyz'[across]} (m)", ylabel=f"{'xyz'[up]} (m)", aspect="equal")
        axes.set_adjustable("datalim")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    outcome = "success" if episode.success else "no success"
    figure.suptitle(f"one rollout, {len(episode.states)} steps, {outcome} (circle: start, square: end)")
    figure.savefig(path, dpi=110)


def _render_elsewhere(episode: "Episode", animation: Path) -> str | None:
    """Render in a process of its own; None, or in a few words why it could not be done."""
    environment = dict(os.environ)
    if sys.platform == "linux":
        environment.setdefault("MUJOCO_GL", "egl")  # the one that needs no screen
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "scene.npz"
        np.savez(scene, **vars(episode.scene))
        unfinished = animation.with_name(f".{animation.name}.{os.getpid()}")
        # -P: the folder of this file stays off sys.path, so that its metaworld.py shadows nothing.
        command = [sys.executable, "-P", str(Path(__file__).resolve()), str(scene), str(unfinished)]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RENDER_LIMIT_S)
            if done.returncode == 0 and unfinished.exists():
                unfinished.replace(animation)
                return None
        except subprocess.TimeoutExpired:
            return f"the renderer gave no answer in {RENDER_LIMIT_S} s"
        finally:
            unfinished.unlink(missing_ok=True)
    return done.stdout.strip() or f"the renderer ended with code {done.returncode}"


def render(scene_file: Path, animation: Path) -> None:
    """Scene -> GIF, through MuJoCo's own renderer."""
    from PIL import Image

    mujoco: Any = importlib.import_module("mujoco")  # its names come from an extension without types
    scene = np.load(scene_file)
    model = mujoco.MjModel.from_xml_path(str(scene["model_path"]))
    model.body_pos[:] = scene["body_positions"]
    model.site_pos[:] = scene["site_positions"]
    object_geom = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, "objGeom")
    if object_geom >= 0:  # the package draws it as red as the arm
        model.geom_matid[object_geom] = -1
        model.geom_rgba[object_geom] = (1.0, 0.75, 0.0, 1.0)
    data = mujoco.MjData(model)
    camera = mujoco.MjvCamera()
    camera.lookat[:] = (0.0, 0.74, 0.15)
    camera.distance, camera.azimuth, camera.elevation = 0.85, 215, -22

    joint_positions = scene["joint_positions"]  # [K, joints]
    count = min(MAX_FRAMES, len(joint_positions))
    frames = []
    with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
        for step in np.linspace(0, len(joint_positions) - 1, count).round().astype(int):
            data.qpos[:] = joint_positions[step]
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            # Shadows and reflections take two thirds of the time where the processor draws.
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
            frames.append(Image.fromarray(renderer.render()))
    # One palette for all frames, so that what stands still costs nothing; maximal coverage keeps small bright things.
    palette = frames[len(frames) // 2].quantize(256, method=Image.Quantize.MAXCOVERAGE)
    first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [FRAME_MS] * len(rest) + [LAST_FRAME_MS]
    first.save(animation, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def main(scene_file: Path, animation: Path) -> NoReturn:
    """Render, or print in one line why not. Ends at once: a driver has nothing left to say after that."""
    try:
        render(scene_file, animation)
    except Exception as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0], flush=True)
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
