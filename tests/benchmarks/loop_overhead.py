"""The loop's own time per update: a model of one parameter trained by `trainer.train`, and by a bare loop beside it.

    python tests/benchmarks/loop_overhead.py [--rounds 5] [--updates 1000] [--batch-size 32]

Both gather the same batches from the same arrays in memory and train the same built model with the same loss, clipping
and AdamW. The bare loop has nothing else: next batch, zero_grad, forward, backward, clip, step. Rounds are interleaved.
Shown are the medians over rounds, and the best fifty updates of each, which say more on a busy machine. A second table
splits the trainer's update into its phases, as metrics.jsonl has them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import Dataset

from model_constructor import build_model
from trainer import train
from trainer.metrics import read_metrics
from trainer.registry import DATASET_BUILDER_REGISTRY, TRAINER_REGISTRY
from trainer.templates import ComponentTrainer, StepOutput

SAMPLES, LOG_EVERY, WARM_UP = 32_768, 50, 100
MODEL = """\
schema_version: 2
inputs: {state: [B, 1]}
modules: {net: "Linear(1, 1, bias=False)"}
outputs: net(state)
"""


class Line(Dataset):
    """action = 2 * state, in memory; a batch is one gather, and nothing is drawn, as from the column loader."""

    draws_nothing = True

    def __init__(self) -> None:
        self.state = torch.randn(SAMPLES, 1, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"state": self.state[index], "action": 2 * self.state[index]}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        state = self.state[indices]
        return {"state": state, "action": 2 * state}


class LineData:
    def build(self, opt_params: dict, params: dict) -> dict:
        return {"dataset": Line(), "norm_stats": {}}


class LineTrainer(ComponentTrainer):
    def compute_loss(self, batch: dict) -> StepOutput:
        return StepOutput(mse_loss(self.models["model"](batch["state"]), batch["action"]))


def bare_ms(model_file: Path, updates: int, batch_size: int) -> list[float]:
    """Milliseconds an update of the loop that one would write by hand, for each fifty updates."""
    model, dataset = build_model(model_file), Line()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1)).tolist()
    marks = []
    for update in range(WARM_UP + updates + 1):
        if update >= WARM_UP and update % LOG_EVERY == 0:
            marks.append(time.perf_counter())
        start = update * batch_size % (SAMPLES - batch_size)
        batch = dataset.__getitems__(order[start : start + batch_size])
        optimizer.zero_grad(set_to_none=True)
        loss = mse_loss(model(batch["state"]), batch["action"])
        loss.backward()
        clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
    return [1e3 * (end - began) / LOG_EVERY for began, end in pairwise(marks)]


def trainer_ms(model_file: Path, save_dir: Path, updates: int, batch_size: int) -> tuple[list[float], dict[str, float]]:
    """Milliseconds an update by the trainer's own clock, and its phases; the first lines are warm-up."""
    config = {
        "model": {
            "component_config_paths": {"model": str(model_file)},
            "component_optims": {
                "model": {"type": "adamw_warmup_cosine_decay", "params": {"peak_lr": 1e-3, "warmup_steps": 10}}
            },
        },
        "data": {"datamodule": {"type": "benchmark_line"}, "batch_size": batch_size},
        "train": {
            "trainer": {"type": "benchmark_line_trainer"},
            "loss": {"type": "l2_loss"},
            "max_steps": updates + WARM_UP,
            "log_every": LOG_EVERY,
            "save_dir": str(save_dir),
            "save_every_steps": 10 * (updates + WARM_UP),
        },
    }
    with contextlib.redirect_stdout(io.StringIO()):
        result = train(config)
    lines = [line for line in read_metrics(result.run_dir / "metrics.jsonl") if line["step"] > WARM_UP]
    phases = [name for name in lines[-1] if name.startswith("time/")]
    split = {name[5:-3]: statistics.fmean(line[name] for line in lines) for name in phases}
    return [1e3 * batch_size / line["samples_per_s"] for line in lines], split


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bare: list[list[float]] = []
    ours: list[list[float]] = []
    splits: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        model_file = Path(folder) / "model.yaml"
        model_file.write_text(MODEL)
        for number in range(given.rounds):
            bare.append(bare_ms(model_file, given.updates, given.batch_size))
            each, split = trainer_ms(model_file, Path(folder) / f"run_{number}", given.updates, given.batch_size)
            ours.append(each)
            splits.append(split)
    rows = {
        name: [statistics.fmean(one) for one in rounds] for name, rounds in (("bare loop", bare), ("trainer", ours))
    }
    rows["the loop's own"] = [mine - theirs for theirs, mine in zip(*rows.values(), strict=True)]
    best = [min(map(min, bare)), min(map(min, ours))]
    print("| a model of one parameter, ms an update | median | best |\n|---|---|---|")
    for (name, rounds), least in zip(rows.items(), [*best, best[1] - best[0]], strict=True):
        print(f"| {name} | {statistics.median(rounds):.3f} | {least:.3f} |")
    print()
    print("| phase of the trainer's update | ms |\n|---|---|")
    for phase in splits[0]:
        print(f"| {phase} | {statistics.median(split[phase] for split in splits):.3f} |")


if not DATASET_BUILDER_REGISTRY.has("benchmark_line"):  # the file may be loaded more than once in a process
    DATASET_BUILDER_REGISTRY.register("benchmark_line")(LineData)
    TRAINER_REGISTRY.register("benchmark_line_trainer")(LineTrainer)

if __name__ == "__main__":
    main(sys.argv[1:])
