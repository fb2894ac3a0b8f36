"""A data set for the reference run, recorded by lerobot itself: `python record.py ROOT`."""

import os
import sys
from pathlib import Path

import numpy as np

EPISODES, LENGTH = 12, 10


def record(root: Path) -> None:
    """One camera, a video of 64 x 64; the actions follow the states."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    datasets.config.HF_DATASETS_CACHE = root.parent / "cache"
    features = {name: {"dtype": "float32", "shape": (2,), "names": None} for name in ("action", "observation.state")}
    video = {"dtype": "video", "shape": (64, 64, 3), "names": ["height", "width", "channels"]}
    features["observation.images.top"] = video
    dataset = LeRobotDataset.create("local/reference", 10, features, root=root)
    world = np.random.default_rng(0)
    for _ in range(EPISODES):
        for _ in range(LENGTH):
            state = world.normal(size=2).astype(np.float32)
            image = world.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            numbers = {"observation.state": state, "action": 2 * state}
            dataset.add_frame({**numbers, "observation.images.top": image, "task": "follow"})
        dataset.save_episode()
    dataset.finalize()


if __name__ == "__main__":
    record(Path(sys.argv[1]))
