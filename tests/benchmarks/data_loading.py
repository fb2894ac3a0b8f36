"""Samples per second of the column loader against LeRobotDataset, on the same data sets in the same run.

    python tests/benchmarks/data_loading.py [--threads 1] [--rounds 5]

Random batches of 32 with a chunk of 16 actions and one observation; one process, no workers, the same video decoder,
no decoded frame kept. Both read the same batch right after one another; the ratio is the median over the rounds.
Images and videos are textured frames of 240 x 320, videos encoded as lerobot does. The last line is the time from the
folder to normalisation statistics for a video set of 10,000 frames.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch

from trainer.registry import DATASET_BUILDER_REGISTRY
from trainer.registry.plugins import load_shipped_plugins

CHUNK, BATCH, FPS = 16, 32, 30
CAMERA = "observation.images.front"
KINDS = {"low-dim": None, "image": "image", "video": "video"}


def record(root: Path, kind: str | None, episodes: int, frames: int, size: tuple[int, int] = (240, 320)) -> None:
    """`size` is height and width."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": (39,), "names": None},
        "action": {"dtype": "float32", "shape": (4,), "names": None},
    }
    random = np.random.default_rng(0)
    coarse = random.integers(0, 192, (size[0] // 4, size[1] // 4, 3), dtype=np.uint8)
    texture = np.concatenate([coarse.repeat(8, axis=0).repeat(8, axis=1)] * 2, axis=1)
    if kind is not None:
        features[CAMERA] = {"dtype": kind, "shape": (*size, 3), "names": ["height", "width", "channels"]}
    dataset = LeRobotDataset.create("local/benchmark", FPS, features, root=root, use_videos=kind == "video")
    for _ in range(episodes):
        for number in range(frames):
            frame = {key: random.normal(size=features[key]["shape"]).astype(np.float32) for key in list(features)[:2]}
            if kind is not None:
                row, column = number % size[0], 3 * number % size[1]
                noise = random.integers(0, 16, (*size, 3), dtype=np.uint8)
                frame[CAMERA] = texture[row : row + size[0], column : column + size[1]] + noise
            dataset.add_frame({**frame, "task": "benchmark"})
        dataset.save_episode()
    dataset.finalize()


def build(root: Path, kind: str | None) -> dict[str, Any]:
    load_shipped_plugins()
    params = {"root": str(root), "action_horizon": CHUNK} | ({"video_backend": "pyav"} if kind == "video" else {})
    factory = DATASET_BUILDER_REGISTRY.get("lerobot_dataset_factory")()
    return factory.build({"project_root": root, "config_dir": root}, params)


def seconds_of(read: Any, batches: list[list[int]]) -> float:
    began = time.perf_counter()
    for batch in batches:
        read(batch)
    return time.perf_counter() - began


def compare(root: Path, kind: str | None, rounds: int) -> tuple[float, float, float]:
    """Samples per second of LeRobotDataset and of the column loader, and the median of their ratios."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    windows = {"action": [step / FPS for step in range(CHUNK)], "observation.state": [0.0]}
    peer = LeRobotDataset("local/benchmark", root=root, delta_timestamps=windows, video_backend="pyav")
    ours = build(root, kind)["dataset"]
    random, theirs_s, ours_s = np.random.default_rng(1), [], []
    repeats = 200 if kind is None else 1  # of our batch: too fast for the clock
    for _ in range(rounds + 1):
        batch = random.integers(0, len(ours), size=BATCH).tolist()
        theirs_s.append(
            seconds_of(lambda one: torch.utils.data.default_collate([peer[index] for index in one]), [batch])
        )
        ours_s.append(seconds_of(ours.__getitems__, [batch] * repeats) / repeats)
    ratios = [theirs / mine for theirs, mine in zip(theirs_s[1:], ours_s[1:], strict=True)]  # the first warms up
    return BATCH / median(theirs_s[1:]), BATCH / median(ours_s[1:]), median(ratios)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of torch, and hence of decoding [1]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=60, help="per episode; there are 8 episodes [60]")
    parser.add_argument("--statistics-frames", type=int, default=10_000)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    import datasets

    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        datasets.disable_progress_bars()
        rows = []
        for name, kind in KINDS.items():
            record(Path(folder) / name, kind, 8, options.frames)
            rows.append((name, *compare(Path(folder) / name, kind, options.rounds)))
        long = Path(folder) / "long"
        record(long, "video", 10, options.statistics_frames // 10, size=(64, 64))
        began = time.perf_counter()
        build(long, "video")
        statistics_s = time.perf_counter() - began
    print(f"\n| batch {BATCH}, chunk {CHUNK} | LeRobotDataset, samples/s | column loader, samples/s | ratio |")
    print("|---|---|---|---|")
    for name, theirs, mine, ratio in rows:
        print(f"| {name} | {theirs:,.0f} | {mine:,.0f} | {ratio:,.1f} |")
    print(f"\nstatistics of {options.statistics_frames:,} frames of video: {statistics_s:.2f} s")


if __name__ == "__main__":
    main()
