"""One small data set, recorded by lerobot itself; the oracle that reads it is `LeRobotDataset`."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

FPS = 10
EPISODE_LENGTHS = (7, 3, 11, 2, 6)
FEATURES = {
    "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    "observation.state": {"dtype": "float32", "shape": (4,), "names": None},
    "observation.gripper": {"dtype": "float32", "shape": (1,), "names": None},
    "observation.contact": {"dtype": "bool", "shape": (1,), "names": None},
    "observation.pose": {"dtype": "float64", "shape": (2, 3), "names": None},
    "counter": {"dtype": "int32", "shape": (2,), "names": None},
    "subtask_index": {"dtype": "int64", "shape": (1,), "names": None},
    "note": {"dtype": "string", "shape": (1,), "names": None},
}


def record(dataset, episode, length, rng):
    for frame in range(length):
        dataset.add_frame(
            {
                "action": rng.normal(size=2).astype(np.float32),
                "observation.state": rng.normal(size=4).astype(np.float32),
                "observation.gripper": rng.normal(size=1).astype(np.float32),
                "observation.contact": np.array([frame % 2 == 0]),
                "observation.pose": rng.normal(size=(2, 3)),
                "counter": np.array([frame, episode], dtype=np.int32),
                "subtask_index": np.array([frame % 2]),
                "note": f"episode {episode} frame {frame}",
                "task": f"task {length % 2}",
            }
        )
    dataset.save_episode()


@pytest.fixture(scope="session")
def recording(tmp_path_factory):
    """(a finished data set, the same set as it lay on disk before it was finalized)"""
    import datasets
    import pandas as pd
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    folder = tmp_path_factory.mktemp("lerobot")
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    dataset = LeRobotDataset.create("local/small", FPS, FEATURES, root=folder / "set", use_videos=False)
    rng = np.random.default_rng(0)
    for episode, length in enumerate(EPISODE_LENGTHS):
        record(dataset, episode, length, rng)
    shutil.copytree(folder / "set", folder / "half_written")  # what a killed recorder leaves behind
    dataset.finalize()
    subtasks = pd.DataFrame({"subtask_index": [0, 1]}, index=["reach", "grasp"])
    subtasks.to_parquet(folder / "set/meta/subtasks.parquet")
    return folder / "set", folder / "half_written"


@pytest.fixture
def root(recording) -> Path:
    """The finished set; read only."""
    return recording[0]


@pytest.fixture
def copy(recording, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(recording[0], tmp_path / "set"))


@pytest.fixture
def oracle(recording):
    """Frame offsets per key (and episodes) -> lerobot's own data set."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    def make(windows, episodes=None):
        delta_timestamps = {key: [offset / FPS for offset in offsets] for key, offsets in windows.items()}
        return LeRobotDataset(
            "local/small", root=recording[0], delta_timestamps=delta_timestamps or None, episodes=episodes
        )

    return make


PICTURE_FPS = 30
PICTURE_LENGTHS = (5, 2, 8)
CAMERAS = {"observation.images.front": (64, 96), "observation.images.wrist": (72, 80)}  # height, width


def textured(rng, height, width):
    """A picture that no codec finds easy, and that differs from all others."""
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
    return (coarse // 2 + rng.integers(0, 128, (height, width, 3))).astype(np.uint8)


def record_pictures(root, kind, vcodec="libsvtav1", video_files_size_in_mb=None):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        "action": {"dtype": "float32", "shape": (2,), "names": None},
        "observation.state": {"dtype": "float32", "shape": (3,), "names": None},
    }
    names = ["height", "width", "channels"]
    features |= {key: {"dtype": kind, "shape": (*size, 3), "names": names} for key, size in CAMERAS.items()}
    use_videos = kind == "video"
    dataset = LeRobotDataset.create(
        "local/pictures", PICTURE_FPS, features, root=root, use_videos=use_videos, vcodec=vcodec
    )
    dataset.meta.update_chunk_settings(video_files_size_in_mb=video_files_size_in_mb)
    rng = np.random.default_rng(0)
    for length in PICTURE_LENGTHS:
        for _ in range(length):
            numbers = {key: rng.normal(size=features[key]["shape"]) for key in ("action", "observation.state")}
            frame = {key: value.astype(np.float32) for key, value in numbers.items()}
            dataset.add_frame({**frame, **{key: textured(rng, *size) for key, size in CAMERAS.items()}, "task": "see"})
        dataset.save_episode()
    dataset.finalize()


@pytest.fixture(scope="session")
def picture_sets(tmp_path_factory):
    """name -> root: images in parquet, all episodes in one AV1 file per camera, one H.264 file per episode."""
    import datasets

    folder = tmp_path_factory.mktemp("pictures")
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    record_pictures(folder / "image", "image")
    record_pictures(folder / "av1", "video")
    record_pictures(folder / "h264", "video", "h264", video_files_size_in_mb=1e-6)
    return {name: folder / name for name in ("image", "av1", "h264")}


@pytest.fixture
def picture_oracle(picture_sets):
    """(name of a set, frame offsets per key, episodes) -> lerobot's own data set."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    def make(name, windows, episodes=None, video_backend="pyav"):
        delta_timestamps = {key: [offset / PICTURE_FPS for offset in offsets] for key, offsets in windows.items()}
        return LeRobotDataset(
            "local/pictures",
            root=picture_sets[name],
            delta_timestamps=delta_timestamps or None,
            episodes=episodes,
            video_backend=video_backend,
        )

    return make
