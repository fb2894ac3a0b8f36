"""Point reach: a small task made in memory, for trying an experiment out without a recording.

A point walks past an obstacle to a target, on its left or on its right: demonstrations have two modes. The state says
where the point is; the target is seen by cameras alone. Items are like those of a LeRobot data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiment_training.components.dataloader.params import COUNT, TEXTS, Rule, check_params
from trainer.data.cameras import Camera
from trainer.data.columns import ColumnDataset, Columns
from trainer.data.episodes import held_out
from trainer.registry import DATASET_BUILDER_REGISTRY

FPS, FRAMES = 10, 24
SPEED, NOISE = 0.25, 0.02  # of a frame: the share of an action that is walked, and what is added to it
COLOURS = ((230, 60, 60), (60, 200, 60), (60, 90, 230))  # target, obstacle, point

PARAMS: dict[str, Rule] = {
    "episodes": COUNT,
    "cameras": TEXTS,
    "image_size": COUNT,
    "action_horizon": COUNT,
    "obs_proprio_history": COUNT,
    "obs_images_history": COUNT,
    "seed": (lambda value: type(value) is int and value >= 0, "a whole number from 0"),
}


@DATASET_BUILDER_REGISTRY.register("point_reach")
class PointReachFactory:
    """`episodes` [20] of 24 frames; `cameras` [head] see the plane from above, each turned by 90 degrees more.

    `image_size` [32] in pixels; `action_horizon`, `obs_proprio_history` [1] and `obs_images_history` [1] in frames.
    """

    def build(self, opt_params: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        check_params("point_reach", params, PARAMS, needed=("action_horizon",))
        cameras = params.get("cameras", ["head"])
        columns = demonstrations(
            params.get("episodes", 20), cameras, params.get("image_size", 32), params.get("seed", 0)
        )
        windows: dict[str, Sequence[int]] = {"action": range(params["action_horizon"])}
        windows["observation.state"] = range(1 - params.get("obs_proprio_history", 1), 1)
        windows |= dict.fromkeys(columns.cameras, range(1 - params.get("obs_images_history", 1), 1))
        held = held_out(columns.episodes, opt_params.get("validation"))
        dataset = ColumnDataset(columns, windows, [episode for episode in columns.episodes if episode not in held])
        bundle = {"dataset": dataset, "norm_stats": dataset.statistics(), "fingerprint": dataset.fingerprint}
        return bundle | ({"validation_dataset": ColumnDataset(columns, windows, held)} if held else {})


def demonstrations(episodes: int, cameras: Sequence[str], image_size: int, seed: int) -> Columns:
    """Every second episode passes the obstacle on its left; the plane is [-1, 1] x [-1, 1]."""
    random = np.random.default_rng(seed)
    start_E2 = np.stack([random.uniform(-0.9, -0.6, episodes), random.uniform(-0.3, 0.3, episodes)], 1)
    target_E2 = np.stack([random.uniform(0.6, 0.9, episodes), random.uniform(-0.6, 0.6, episodes)], 1)
    side_E = np.where(np.arange(episodes) % 2, 1.0, -1.0)
    way_E2 = np.stack([np.zeros(episodes), 0.6 * side_E], 1)  # beside the obstacle, which is at 0, 0
    positions, actions = [start_E2], []
    for frame in range(FRAMES):
        goal_E2 = way_E2 if frame < FRAMES // 2 else target_E2
        actions.append(goal_E2 - positions[-1])
        positions.append(positions[-1] + SPEED * actions[-1] + NOISE * random.normal(size=(episodes, 2)))
    state = torch.tensor(np.stack(positions[:-1], 1).reshape(-1, 2), dtype=torch.float32)  # [F, 2]
    action = torch.tensor(np.stack(actions, 1).reshape(-1, 2), dtype=torch.float32)  # [F, 2]
    target = torch.tensor(target_E2, dtype=torch.float32).repeat_interleave(FRAMES, 0)  # [F, 2]
    start = torch.arange(episodes) * FRAMES
    numbers = {
        "observation.state": state,
        "action": action,
        "frame_index": torch.arange(FRAMES).repeat(episodes),
        "episode_index": torch.arange(episodes).repeat_interleave(FRAMES),
    }
    views: dict[str, Camera] = {
        f"observation.images.{name}": View(state, target, image_size, quarter_turns=number)
        for number, name in enumerate(cameras)
    }
    content = hashlib.sha256(state.numpy().tobytes() + repr((list(cameras), image_size)).encode()).hexdigest()
    texts = {"task": ["reach the target"] * len(state)}
    return Columns(Path("point_reach"), FPS, numbers, texts, start, start + FRAMES, views, content)


class View:
    """One camera above the plane: squares for target, obstacle and point, on black."""

    def __init__(self, point: Tensor, target: Tensor, size: int, quarter_turns: int) -> None:
        self.point, self.target = point, target  # [F, 2]
        self.size, self.quarter_turns = size, quarter_turns

    def read(self, frames: Sequence[int]) -> Tensor:
        pictures = torch.zeros(len(frames), 3, self.size, self.size, dtype=torch.uint8)
        half = max(1, self.size // 16)
        for picture, frame in zip(pictures, frames, strict=True):
            places = (self.target[frame], torch.zeros(2), self.point[frame])
            for place, colour in zip(places, COLOURS, strict=True):
                row, column = ((place.clamp(-1, 1) + 1) / 2 * (self.size - 1)).round().int().tolist()
                rows, columns = (slice(max(0, at - half), at + half + 1) for at in (row, column))
                picture[:, rows, columns] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
        return pictures.rot90(self.quarter_turns, (2, 3)).contiguous()

    def file(self, frame: int) -> Path:
        return Path(__file__)  # pictures are drawn, by this
