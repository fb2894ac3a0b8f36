"""What a user comes with: demonstrations as a LeRobot v3 data set, as ACT's HDF5 files, and as arrays."""

import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from simulator import STEPS, Reach

EPISODES, FPS = 30, 10


def write_recordings(folder: Path) -> None:
    """home/you/reach, where LeRobot keeps what it has downloaded; data/reach/episode_N.hdf5; data/reach.npz."""
    episodes = [demonstration(number) for number in range(EPISODES)]
    write_hdf5(folder / "data/reach", episodes)
    joined = {key: np.concatenate([one[key] for one in episodes]) for key in ("observation.state", "action")}
    np.savez(folder / "data/reach.npz", **joined)
    write_lerobot(folder / "home/you/reach", joined)


def demonstration(seed: int) -> dict[str, np.ndarray]:
    """Observations and actions [T, ...]."""
    robot = Reach()
    observation, frames = robot.reset(seed), []
    for _ in range(STEPS):
        frames.append({**observation, "action": robot.expert().astype(np.float32)})
        observation = robot.step(frames[-1]["action"])
    return {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}


def write_hdf5(root: Path, episodes: list[dict[str, np.ndarray]]) -> None:
    root.mkdir(parents=True)
    for number, episode in enumerate(episodes):
        with h5py.File(root / f"episode_{number}.hdf5", "w") as file:
            file["action"] = episode["action"]
            file["observations/qpos"] = episode["observation.state"][:, :2]
            file["observations/target"] = episode["observation.state"][:, 2:]
            file["observations/images/head"] = episode["observation.images.head"]


def write_lerobot(root: Path, joined: dict[str, np.ndarray]) -> None:
    """The numbers, as `lerobot` lays them out; importing it would take longer than the page."""
    count = np.arange(EPISODES * STEPS)
    counted = {
        "timestamp": (count % STEPS / FPS).astype(np.float32),
        "frame_index": count % STEPS,
        "episode_index": count // STEPS,
        "index": count,
        "task_index": 0 * count,
    }
    start = STEPS * np.arange(EPISODES)
    tables = {
        "data/chunk-000/file-000": {key: list(values) for key, values in {**joined, **counted}.items()},
        "meta/episodes/chunk-000/file-000": {
            "episode_index": np.arange(EPISODES),
            "dataset_from_index": start,
            "dataset_to_index": start + STEPS,
        },
        "meta/tasks": {"task_index": [0], "task": ["reach the target"]},
    }
    for name, columns in tables.items():
        path = root / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
    features = {
        key: {"dtype": str(values.dtype), "shape": list(values.shape[1:]) or [1]}
        for key, values in {**joined, **counted}.items()
    }
    sizes = {"total_frames": len(count), "total_episodes": EPISODES}
    info = {"codebase_version": "v3.0", "fps": FPS, "features": features, **sizes}
    (root / "meta/info.json").write_text(json.dumps(info))
