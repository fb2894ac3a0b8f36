"""Ours: a cell trained by this project's trainer and judged, as a program of its own.

python -m experiment_training.leaderboard.ours SPEC.pickle RESULT.json
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiment_training.leaderboard.contest import Cell
from experiment_training.leaderboard.judge import judged
from experiment_training.leaderboard.program import Spec, main

HERE = Path(__file__).resolve().parent


def calibrate(spec: Spec) -> float:
    return update_s(train(spec, spec.folder / "calibration"))


def update_s(run_dir: Path) -> float:
    """Mean seconds of an update, but for those of the first line of metrics."""
    from trainer.metrics import read_metrics

    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "samples_per_s" in line]
    updates = [after["step"] - before["step"] for before, after in pairwise(lines)]
    size = batch_size(run_dir)
    seconds = [count * size / line["samples_per_s"] for count, line in zip(updates, lines[1:], strict=True)]
    return sum(seconds) / sum(updates)


def recipe(cell: Cell) -> dict[str, Any]:
    """All that the cell's config says, and the architecture of each component."""
    import torch

    from model_constructor import build_model
    from trainer.config.loader import load_run_config, written_overrides

    asked = written_overrides({"train.max_steps": 1, **overrides(cell)})
    run_config = load_run_config(HERE / cell.method.base[cell.task.kind], asked)
    model, hashes = run_config.experiment.model, {}
    for name, path in model.component_config_paths.items():
        file = run_config.folders.find(path)
        assert file is not None, "a valid config names files that are there"
        with torch.device("meta"):
            component = build_model(file, params=model.component_params.get(name, {}))
        hashes[name] = component.architecture_hash
    return {"config": run_config.data, "architectures": hashes}


def train(spec: Spec, run_dir: Path) -> Path:
    import trainer

    placed = {
        "data.datamodule.params.root": str(spec.demonstrations),
        "train.max_steps": spec.updates,
        "train.save_dir": str(run_dir),
    }
    result = trainer.train(HERE / spec.cell.method.base[spec.cell.task.kind], overrides(spec.cell) | placed)
    if result.signal is not None:
        sys.exit(128 + result.signal)  # what was stopped is not judged
    return result.run_dir


def overrides(cell: Cell) -> dict[str, Any]:
    return {"seed": cell.seed, **cell.method.settings[cell.task.kind][cell.setting]}


def run(spec: Spec) -> dict[str, Any]:
    from trainer.policy import load_policy

    run_dir = train(spec, spec.folder / "run")
    policy, seconds = load_policy(run_dir), update_s(run_dir)
    return judged(
        policy,
        spec.cell,
        parameters=sum(parameter.numel() for parameter in policy.trainer.models.parameters()),
        updates=spec.updates,
        samples_per_s=batch_size(run_dir) / seconds,
        train_s=spec.updates * seconds,
    )


def batch_size(run_dir: Path) -> int:
    from model_constructor import load_config

    return load_config(run_dir / "config.yaml").data["data"]["batch_size"]


if __name__ == "__main__":
    main(calibrate, run)
