"""Ours: a cell trained by this project's trainer and judged, as a program of its own.

python -m experiment_training.leaderboard.ours SPEC.pickle RESULT.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiment_training.leaderboard.judge import judged
from experiment_training.leaderboard.program import Spec, main

HERE = Path(__file__).resolve().parent


def calibrate(spec: Spec) -> float:
    """Seconds of an update."""
    from trainer.metrics import read_metrics

    run_dir = train(spec, spec.folder / "calibration")
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "samples_per_s" in line]
    return batch_size(run_dir) / lines[-1]["samples_per_s"]


def train(spec: Spec, run_dir: Path) -> Path:
    import trainer

    cell = spec.cell
    overrides = {
        "data.datamodule.params.root": str(spec.demonstrations),
        "seed": cell.seed,
        "train.max_steps": spec.updates,
        "train.save_dir": str(run_dir),
        **cell.method.settings[cell.task.kind][cell.setting],
    }
    return trainer.train(HERE / cell.method.base[cell.task.kind], overrides).run_dir


def run(spec: Spec) -> dict[str, Any]:
    from trainer.checkpoint import newest_checkpoint
    from trainer.metrics import read_metrics
    from trainer.policy import load_policy

    run_dir = train(spec, spec.folder / "run")
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "samples_per_s" in line]
    checkpoint = newest_checkpoint(run_dir)
    assert checkpoint is not None, "a run that ended has saved"
    parameters = sum(tensor.numel() for name in checkpoint.components for tensor in checkpoint.tensors(name).values())
    rate = len(lines) / sum(1 / line["samples_per_s"] for line in lines)  # of lines with as many samples each
    return judged(
        load_policy(run_dir),
        spec.cell,
        processes=spec.processes,
        parameters=parameters,
        updates=spec.updates,
        samples_per_s=rate,
        train_s=spec.updates * batch_size(run_dir) / rate,
    )


def batch_size(run_dir: Path) -> int:
    from model_constructor import load_config

    return load_config(run_dir / "config.yaml").data["data"]["batch_size"]


if __name__ == "__main__":
    main(calibrate, run)
