"""Samples per second of the column store against LeRobotDataset, on the same low-dimensional set in the same run.

    python tests/benchmarks/columns.py

Random batches with a chunk of 16 actions, one process, no workers, one thread, best of three.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch

from trainer.registry import DATASET_BUILDER_REGISTRY
from trainer.registry.plugins import load_shipped_plugins

EPISODES, FRAMES, STATE, ACTION, CHUNK, FPS = 40, 80, 39, 4, 16, 80


def record(root: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        "observation.state": {"dtype": "float32", "shape": (STATE,), "names": None},
        "action": {"dtype": "float32", "shape": (ACTION,), "names": None},
    }
    dataset = LeRobotDataset.create("local/benchmark", fps=FPS, features=features, root=root, use_videos=False)
    random = np.random.default_rng(0)
    for _ in range(EPISODES):
        for _ in range(FRAMES):
            state, action = random.normal(size=STATE), random.normal(size=ACTION)
            frame = {"observation.state": state.astype(np.float32), "action": action.astype(np.float32)}
            dataset.add_frame({**frame, "task": "benchmark"})
        dataset.save_episode()
    dataset.finalize()


def best_rate(read: Callable[[list[int]], object], batch_size: int, samples: int) -> float:
    random = np.random.default_rng(1)
    batches = random.integers(0, EPISODES * FRAMES, size=(max(1, samples // batch_size), batch_size)).tolist()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        for batch in batches:
            read(batch)
        times.append(time.perf_counter() - began)
    return len(batches) * batch_size / min(times)


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "benchmark"
        record(root)
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        windows = {"action": [step / FPS for step in range(CHUNK)], "observation.state": [0.0]}
        peer = LeRobotDataset("local/benchmark", root=root, delta_timestamps=windows)
        load_shipped_plugins()
        factory = DATASET_BUILDER_REGISTRY.get("lerobot_dataset_factory")()
        params = {"repo_id": "local/benchmark", "root": str(root), "action_horizon": CHUNK}
        ours = factory.build({"project_root": Path(folder), "config_dir": Path(folder)}, params)["dataset"]

        def read_peer(batch: list[int]) -> object:
            return torch.utils.data.default_collate([peer[index] for index in batch])

        print(f"| {EPISODES * FRAMES} frames, chunk {CHUNK} | batch | samples/s | ratio |\n|---|---|---|---|")
        for batch_size in (32, 128):
            theirs = best_rate(read_peer, batch_size, 1_000)
            mine = best_rate(ours.__getitems__, batch_size, 200_000)
            print(f"| LeRobotDataset | {batch_size} | {theirs:,.0f} | 1 |")
            print(f"| column store | {batch_size} | {mine:,.0f} | {mine / theirs:,.0f} |")


if __name__ == "__main__":
    main()
