"""Record: the scripted expert of Meta-World -> demonstrations, as a LeRobot v3 data set on disk.

python -m experiment_training.quickstart.record [--root FOLDER] [--task pick-place-v3] [--episodes 50] [--seed 0]
    [--noise 0.1] [--image-size 64] [--processes 2]
"""

import argparse
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiment_training.components.evaluation.episode import (
    CONTROL_RATE_HZ,
    ENV_STATE,
    HELD_OUT_SEED,
    IMAGE,
    PROPRIO,
    STATE,
    SURROUNDINGS,
    Episode,
    check_task,
    simulator,
)
from experiment_training.components.evaluation.rollouts import Rollouts
from model_constructor import ConfigError

TASK = "pick-place-v3"
MAX_STEPS = 250
LINGER = 10  # steps recorded after success, so that the policy also learns to stay at the goal
ATTEMPTS = 10
SUMMARY = "recording.json"  # written last: a folder that has it is a whole recording
ACTION = {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]}


class RecordingError(Exception):
    """The demonstrations cannot be recorded, or what lies in their place is something else."""


class Expert:
    """The policy that the package ships, as an `Actor`. It sees the whole state."""

    def __init__(self, task: str) -> None:
        simulator()
        from metaworld.policies import ENV_POLICY_MAP

        warnings.filterwarnings("ignore", message="Constant.s. may be too high")  # it says so at every strong action
        self.policy = ENV_POLICY_MAP[task]()

    def reset(self, seed: int | None = None) -> None: ...

    def select_action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        return self.policy.get_action(observation[STATE].astype(np.float64))


@dataclass(frozen=True)
class Recording:
    """What is recorded; `noise` moves what is executed, and what is kept is the expert's answer to where that led."""

    episodes: int = 50
    task: str = TASK
    seed: int = 0  # of the placements and of the noise
    noise: float = 0.1  # standard deviation
    image_size: int | None = None  # pixels; None: the whole state and no images
    environment_state: bool = False  # the surroundings once more, under the key that lerobot's policies read

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        if self.image_size is None:
            sizes = {STATE: 39} | ({ENV_STATE: len(SURROUNDINGS)} if self.environment_state else {})
            numbers = {key: {"dtype": "float32", "shape": (size,), "names": None} for key, size in sizes.items()}
            return {**numbers, "action": ACTION}
        picture = {
            "dtype": "image",
            "shape": (self.image_size, self.image_size, 3),
            "names": ["height", "width", "channels"],
        }
        return {STATE: {"dtype": "float32", "shape": (4,), "names": None}, IMAGE: picture, "action": ACTION}

    def frames(self, episode: Episode) -> Iterator[dict[str, Any]]:
        """Rows of the data set."""
        for step, (state, action) in enumerate(zip(episode.states, episode.actions, strict=True)):
            frame = {STATE: state, "action": action, "task": self.task}
            if episode.images is not None:
                frame |= {STATE: state[PROPRIO], IMAGE: episode.images[step]}
            elif self.environment_state:
                frame |= {ENV_STATE: state[SURROUNDINGS]}
            yield frame


def record(root: Path, recording: Recording, processes: int = 1) -> str:
    """Record into `root`, or find there what was asked for; returns one line that says which."""
    if recording.seed == HELD_OUT_SEED:
        message = f"seed {recording.seed} draws the placements held out for the evaluation: choose another seed"
        raise RecordingError(message)
    check_task(recording.task)
    settings = asdict(recording)
    _remove_abandoned(root)
    if root.exists():
        frames = _recorded_frames(root, settings)
        return f"demonstrations: {recording.episodes} episodes, {frames} frames, reused from {root}"

    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished_folder(root, os.getpid())
    started = time.perf_counter()
    try:
        frames = _write(unfinished, recording, demonstrate(recording, processes))
        (unfinished / SUMMARY).write_text(json.dumps(settings | {"frames": frames}, indent=2) + "\n")
        unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    seconds = time.perf_counter() - started
    return f"demonstrations: {recording.episodes} episodes, {frames} frames, recorded in {seconds:.0f} s at {root}"


def demonstrate(recording: Recording, processes: int = 1) -> Iterator[Episode]:
    """Successful episodes only: where the expert fails at a placement, the next one takes its place."""
    rollouts = Rollouts(
        recording.task, recording.seed, MAX_STEPS, LINGER, recording.image_size, True, recording.noise, ATTEMPTS
    )
    expert = Expert(recording.task)
    tried = succeeded = 0
    while succeeded < recording.episodes:
        indices = range(tried, tried + recording.episodes - succeeded)
        if indices.stop > 2 * recording.episodes:
            raise RecordingError(
                f"the expert failed at {tried - succeeded} of {tried} placements, {ATTEMPTS} times each, "
                f"with noise {recording.noise}: lower --noise"
            )
        for episode in rollouts.run(expert, indices, processes):
            tried += 1
            if episode.success:
                succeeded += 1
                yield episode


def _write(root: Path, recording: Recording, episodes: Iterator[Episode]) -> int:
    """Store the episodes with the `lerobot` package; returns the number of frames."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when lerobot is imported: a recording asks no server
    from datasets import disable_progress_bars, enable_progress_bars
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from tqdm import tqdm

    frames = 0
    disable_progress_bars()  # one bar per episode otherwise
    try:
        name = f"local/{recording.task.removesuffix('-v3').replace('-', '_')}"
        dataset = LeRobotDataset.create(name, CONTROL_RATE_HZ, recording.features, root=root, use_videos=False)
        total = recording.episodes
        for episode in tqdm(episodes, "recording demonstrations", total, unit="episode", leave=False, disable=None):
            for frame in recording.frames(episode):
                dataset.add_frame(frame)
            dataset.save_episode()
            frames += len(episode.actions)
        dataset.finalize()  # without it the parquet files have no footer
    finally:
        enable_progress_bars()
    return frames


def _recorded_frames(root: Path, settings: Mapping[str, object]) -> int:
    """The number of frames of the recording at `root`, which must be whole and made with `settings`."""
    import pyarrow.parquet as parquet

    way_out = "remove that folder, or record into another"
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
    parser.add_argument("--task", default=TASK, help="of Meta-World")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the placements and of the noise")
    parser.add_argument("--noise", type=float, default=0.1, help="standard deviation, on the executed action")
    parser.add_argument("--image-size", type=int, help="record a camera of this many pixels, and of the state the hand")
    parser.add_argument("--processes", type=int, default=1, help="episodes at once")
    given = parser.parse_args(arguments)
    if given.episodes < 1 or given.noise < 0 or given.processes < 1 or (given.image_size or 1) < 1:
        parser.error("--episodes, --processes and --image-size must be at least 1, and --noise at least 0")
    try:
        recording = Recording(given.episodes, given.task, given.seed, given.noise, given.image_size)
        print(record(given.root, recording, given.processes))
    except (RecordingError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was recorded", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
