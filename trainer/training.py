"""Training: a train config -> a finished run. What the command line and `trainer.train` both call."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.banner import banner, dry_run
from trainer.build import build_run
from trainer.config import load_run_config, written_overrides
from trainer.loop import TrainResult, is_over, train_run, try_one_batch
from trainer.state import Progress, choose_start, restore


def train(
    config: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None, resume: str = "none"
) -> TrainResult:
    """Train what a config file (or a mapping like one) describes; `overrides` are `{"train.max_steps": 20}`."""
    return run_training(config, written_overrides(overrides or {}), resume)


def run_training(config: str | Path | Mapping[str, Any], overrides: Sequence[str], resume: str) -> TrainResult:
    run_config = load_run_config(config, overrides)
    start = choose_start(run_config, resume)
    run = build_run(run_config)
    progress = Progress() if start is None else restore(run, start)
    if start is not None and is_over(run, progress):
        print(f"{run_config.save_dir} is trained already: {progress.step} updates, {start.path}", flush=True)
        return TrainResult(run_config.save_dir, start.path, progress.step, {})
    try_one_batch(run)
    print(banner(run, progress), flush=True)
    return train_run(run, progress)


def run_dry(config: str | Path, overrides: Sequence[str]) -> None:
    """Everything but the training: build, show, one step, nothing written."""
    run = build_run(load_run_config(config, overrides))
    try_one_batch(run)
    print(dry_run(run), flush=True)
