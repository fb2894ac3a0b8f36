"""Peer: a cell trained by `lerobot-train` as it is, and judged, as a program of its own.

python -m experiment_training.leaderboard.peer SPEC.pickle RESULT.json
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from experiment_training.components.evaluation.episode import ENV_STATE, IMAGE, STATE, SURROUNDINGS
from experiment_training.leaderboard.contest import Cell
from experiment_training.leaderboard.judge import judged
from experiment_training.leaderboard.program import Spec, main

WARM_UP = 10  # updates
FLOOR = 1e-4  # of a key's largest spread, as in our trainer's normalisation
NORMALIZATION = {  # beside their own: the environment's state, which their defaults leave as it is
    "act": {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ENV": "MEAN_STD", "ACTION": "MEAN_STD"},
    "diffusion": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX"},
}


class LeRobotActor:
    """A checkpoint of lerobot, loaded where it first acts: it travels to other processes as a path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: tuple[Any, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "loaded": None}

    def reset(self, seed: int | None = None) -> None:
        import torch

        if self.loaded is None:
            self.loaded = load(self.folder)
        if seed is not None:
            torch.manual_seed(seed)
        self.loaded[0].reset()

    def select_action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        import torch
        from lerobot.utils.control_utils import predict_action

        assert self.loaded is not None, "reset() comes first"
        policy, before, after = self.loaded
        seen = dict(observation)
        if IMAGE not in seen:
            seen[ENV_STATE] = seen[STATE][SURROUNDINGS]
        return predict_action(seen, policy, torch.device("cpu"), before, after, use_amp=False).squeeze(0).numpy()


def load(folder: Path) -> tuple[Any, ...]:
    """Policy, and what its observations and its actions go through."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config).eval()
    return policy, *make_pre_post_processors(config, pretrained_path=str(folder))


def calibrate(spec: Spec) -> float:
    """Seconds of an update."""
    return statistics.fmean(train(spec, spec.folder / "calibration")[WARM_UP:])


def recipe(cell: Cell) -> dict[str, Any]:
    """What the table's cell does not say of itself."""
    return {"normalization": NORMALIZATION[setting(cell)["policy.type"]], "floor": FLOOR, "lerobot": version("lerobot")}


def floored(stats: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """Dimensions that hardly move keep their size, as in our trainer; divided by their spread they would be noise."""
    for one in (one for key, one in stats.items() if key != IMAGE):
        still = one["std"] < FLOOR * one["std"].max()
        one["std"] = np.where(still, 1.0, one["std"])
        one["min"] = np.where(still, one["mean"] - 1, one["min"])
        one["max"] = np.where(still, one["mean"] + 1, one["max"])
    return stats


def train(spec: Spec, run_dir: Path) -> list[float]:
    """Seconds of each update but the first."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from lerobot.datasets import lerobot_dataset
    from lerobot.scripts import lerobot_train
    from lerobot.utils.logging_utils import MetricsTracker

    ends: list[float] = []
    step = MetricsTracker.step

    def marked_step(self: MetricsTracker) -> None:
        step(self)
        ends.append(time.perf_counter())

    MetricsTracker.step = marked_step
    data: Any = lerobot_dataset
    load_stats = data.load_stats
    data.load_stats = lambda root: floored(load_stats(root))
    sys.argv = ["lerobot-train", *(f"--{name}={text(value)}" for name, value in arguments(spec, run_dir).items())]
    lerobot_train.main()
    return np.diff(ends).tolist()


def setting(cell: Cell) -> dict[str, Any]:
    return {**cell.method.base[cell.task.kind], **cell.method.settings[cell.task.kind][cell.setting]}


def arguments(spec: Spec, run_dir: Path) -> dict[str, Any]:
    cell, given = spec.cell, setting(spec.cell)
    return {
        "output_dir": run_dir,
        "dataset.repo_id": "local/demonstrations",
        "dataset.root": spec.demonstrations,
        "policy.device": "cpu",
        "policy.push_to_hub": False,
        "policy.normalization_mapping": NORMALIZATION[given["policy.type"]],
        "wandb.enable": False,
        "eval_freq": 0,
        "num_workers": 0,
        "seed": cell.seed,
        "steps": spec.updates,
        "save_freq": spec.updates,
        "log_freq": 100,
        **given,
    }


def text(value: Any) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, Path) else json.dumps(value)


def run(spec: Spec) -> dict[str, Any]:
    seconds = train(spec, spec.folder / "run")
    actor = LeRobotActor(spec.folder / "run/checkpoints/last/pretrained_model")
    parameters = sum(one.numel() for one in load(actor.folder)[0].parameters())
    mean_s = statistics.fmean(seconds)
    return judged(
        actor,
        spec.cell,
        parameters=parameters,
        updates=spec.updates,
        samples_per_s=setting(spec.cell)["batch_size"] / mean_s,
        train_s=mean_s * spec.updates,
    )


if __name__ == "__main__":
    main(calibrate, run)
