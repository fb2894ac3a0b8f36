"""Ours: a cell trained by this project's trainer and judged, as a program of its own.

python -m experiment_training.leaderboard.ours SPEC.pickle RESULT.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiment_training.leaderboard.contest import Cell
from experiment_training.leaderboard.judge import judged
from experiment_training.leaderboard.program import Spec, main

HERE = Path(__file__).resolve().parent


def calibrate(spec: Spec) -> float:
    """Seconds of an update."""
    from trainer.metrics import read_metrics

    run_dir = train(spec, spec.folder / "calibration")
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "samples_per_s" in line]
    return batch_size(run_dir) / lines[-1]["samples_per_s"]


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
    return trainer.train(HERE / spec.cell.method.base[spec.cell.task.kind], overrides(spec.cell) | placed).run_dir


def overrides(cell: Cell) -> dict[str, Any]:
    return {"seed": cell.seed, **cell.method.settings[cell.task.kind][cell.setting]}


def run(spec: Spec) -> dict[str, Any]:
    from trainer.metrics import read_metrics
    from trainer.policy import load_policy

    run_dir = train(spec, spec.folder / "run")
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "samples_per_s" in line]
    rate = len(lines) / sum(1 / line["samples_per_s"] for line in lines)  # of lines with as many samples each
    policy = load_policy(run_dir)
    return judged(
        policy,
        spec.cell,
        parameters=sum(parameter.numel() for parameter in policy.trainer.models.parameters()),
        updates=spec.updates,
        samples_per_s=rate,
        train_s=spec.updates * batch_size(run_dir) / rate,
    )


def batch_size(run_dir: Path) -> int:
    from model_constructor import load_config

    return load_config(run_dir / "config.yaml").data["data"]["batch_size"]


if __name__ == "__main__":
    main(calibrate, run)
