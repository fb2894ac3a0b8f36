"""Record: the scripted expert of Meta-World -> demonstrations, as a LeRobot v3 data set on disk.

python -m experiment_training.quickstart.record [--root FOLDER] [--episodes 50] [--seed 0] [--noise 0.1]
"""

import argparse
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from experiment_training.components.evaluation.episode import (
    CONTROL_RATE_HZ,
    HELD_OUT_SEED,
    PLACEMENTS_PER_SEED,
    STATE,
    Episode,
    make_environment,
    placements,
    run_episode,
    simulator,
)

TASK = "pick-place-v3"
REPO_ID = "local/pick_place"
MAX_STEPS = 250
LINGER = 10  # steps recorded after success, so that the policy also learns to stay at the goal
ATTEMPTS = 10
SUMMARY = "recording.json"  # written last: a folder that has it is a whole recording
FEATURES = {
    STATE: {"dtype": "float32", "shape": (39,), "names": None},
    "action": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]},
}


class RecordingError(Exception):
    """The demonstrations cannot be recorded, or what lies in their place is something else."""


class Expert:
    """The policy that the package ships, as an `Actor`."""

    def __init__(self, task: str) -> None:
        simulator()
        from metaworld.policies import ENV_POLICY_MAP

        warnings.filterwarnings("ignore", message="Constant.s. may be too high")  # it says so at every strong action
        self.policy = ENV_POLICY_MAP[task]()

    def reset(self) -> None: ...

    def select_action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        return self.policy.get_action(observation[STATE].astype(np.float64))


def record(root: Path, episodes: int = 50, seed: int = 0, noise: float = 0.1) -> str:
    """Record into `root`, or find there what was asked for; returns one line that says which."""
    if seed == HELD_OUT_SEED:
        raise RecordingError(f"seed {seed} draws the placements held out for the evaluation: choose another seed")
    settings = {"task": TASK, "episodes": episodes, "seed": seed, "noise": noise}
    _remove_abandoned(root)
    if root.exists():
        frames = _recorded_frames(root, settings)
        return f"demonstrations: {episodes} episodes, {frames} frames, reused from {root}"

    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished_folder(root, os.getpid())
    started = time.perf_counter()
    try:
        frames = _write(unfinished, demonstrate(episodes, seed, noise), episodes)
        (unfinished / SUMMARY).write_text(json.dumps(settings | {"frames": frames}, indent=2) + "\n")
        unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    seconds = time.perf_counter() - started
    return f"demonstrations: {episodes} episodes, {frames} frames, recorded in {seconds:.0f} s at {root}"


def demonstrate(episodes: int, seed: int, noise: float) -> Iterator[Episode]:
    """Successful episodes only. Noise moves what is executed; what is kept is the expert's answer to where that led."""
    environment, expert = make_environment(TASK), Expert(TASK)
    generator = np.random.default_rng(seed)

    def disturb(action: np.ndarray) -> np.ndarray:
        return action + noise * generator.normal(size=action.shape)

    for index in range(episodes):
        placement = placements(TASK, seed)[index % PLACEMENTS_PER_SEED]
        for _ in range(ATTEMPTS):
            episode = run_episode(environment, placement, expert, max_steps=MAX_STEPS, linger=LINGER, disturb=disturb)
            if episode.success:
                break
        else:
            raise RecordingError(
                f"the expert failed {ATTEMPTS} times on placement {index} with noise {noise}: lower --noise (0.1 works)"
            )
        yield episode
    environment.close()


def _write(root: Path, episodes: Iterator[Episode], total: int) -> int:
    """Store the episodes with the `lerobot` package; returns the number of frames."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when lerobot is imported: a recording asks no server
    from datasets import disable_progress_bars, enable_progress_bars
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from tqdm import tqdm

    frames = 0
    disable_progress_bars()  # one bar per episode otherwise
    try:
        dataset = LeRobotDataset.create(REPO_ID, CONTROL_RATE_HZ, FEATURES, root=root, use_videos=False)
        for episode in tqdm(episodes, "recording demonstrations", total, unit="episode", leave=False, disable=None):
            for state, action in zip(episode.states, episode.actions, strict=True):
                dataset.add_frame({STATE: state, "action": action, "task": TASK})
            dataset.save_episode()
            frames += len(episode.actions)
        dataset.finalize()  # without it the parquet files have no footer
    finally:
        enable_progress_bars()
    return frames


def _recorded_frames(root: Path, settings: Mapping[str, object]) -> int:
    """The number of frames of the recording at `root`, which must be whole and made with `settings`."""
    import pyarrow.parquet as parquet

    way_out = "remove that folder (`make clean-runs`), or choose another with --root"
    try:
        summary = dict(json.loads((root / SUMMARY).read_text()))
        stored = sum(parquet.read_metadata(file).num_rows for file in sorted(root.glob("data/*/*.parquet")))
    except (OSError, TypeError, ValueError) as error:
        raise RecordingError(f"{root} holds no whole recording ({error}): {way_out}") from None
    if stored != summary.get("frames"):
        raise RecordingError(f"{root} holds {stored} of the {summary.get('frames')} frames recorded: {way_out}")
    different = [
        f"{key} {summary.get(key)} instead of {asked}" for key, asked in settings.items() if summary.get(key) != asked
    ]
    if different:
        raise RecordingError(f"{root} was recorded with {', '.join(different)}: {way_out}")
    return stored


def _unfinished_folder(root: Path, process: int | str) -> Path:
    return root.with_name(f".{root.name}.recording-{process}")


def _remove_abandoned(root: Path) -> None:
    """Remove what recordings that were killed have left beside `root`."""
    for folder in root.parent.glob(_unfinished_folder(root, "*").name):
        process = folder.name.rpartition("-")[2]
        if process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def project_root() -> Path:
    here = Path(__file__).resolve()
    return next((folder for folder in here.parents if (folder / "pyproject.toml").is_file()), Path.cwd())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiment_training.quickstart.record", description=__doc__)
    parser.add_argument("--root", type=Path, default=project_root() / "runs/quickstart/demonstrations")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the placements and of the noise")
    parser.add_argument("--noise", type=float, default=0.1, help="standard deviation, on the executed action")
    given = parser.parse_args(arguments)
    if given.episodes < 1 or given.noise < 0:
        parser.error("--episodes must be at least 1 and --noise at least 0")
    try:
        print(record(given.root, given.episodes, given.seed, given.noise))
    except (RecordingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was recorded", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
