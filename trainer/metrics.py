"""Metrics: numbers of each step, summed on the device -> lines of metrics.jsonl, a progress bar, a loss curve."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from trainer.checkpoint import CheckpointError, writing
from trainer.templates.trainer import Batch

PLAIN_LINES = 10  # about how many progress lines a run prints where no terminal shows a bar,
PLAIN_SECONDS = 60  # and how long it is silent at most


class MetricWindow:
    """Means since the last reading. Adding waits for nothing; reading is one copy from the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor | float]) -> None:
        for name, value in metrics.items():
            value = torch.as_tensor(value).detach().float()
            self._sums[name] = self._sums[name].add_(value) if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        if not self._sums:
            return {}
        values = torch.stack([total.reshape(()) for total in self._sums.values()]).tolist()
        means = {name: value / self._counts[name] for name, value in zip(self._sums, values, strict=True)}
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        return {"sums": {name: total.cpu().clone() for name, total in self._sums.items()}, "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._sums = {name: total.to(device) for name, total in state["sums"].items()}
        self._counts = dict(state["counts"])


class MetricsFile:
    """metrics.jsonl: one JSON object per line, each with the `step` it was written after."""

    def __init__(self, path: Path, keep_until_step: int) -> None:
        """Lines after `keep_until_step` belong to updates that are done again; they are cut."""
        kept = [line for line in read_metrics(path) if line["step"] <= keep_until_step]
        beside = path.with_name(f".tmp-{path.name}")
        self._path = path
        with writing(path.parent):
            beside.write_text("".join(f"{json.dumps(line)}\n" for line in kept))
            os.replace(beside, path)
            self._file = path.open("a")

    def write(self, line: Mapping[str, Any]) -> None:
        with writing(self._path.parent):
            self._file.write(f"{json.dumps(line)}\n")
            self._file.flush()

    def flush_to_disk(self) -> None:
        """Before each checkpoint: the lines up to its step are to outlive whatever it outlives."""
        with writing(self._path.parent):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics.jsonl; a last line that a killed run left unfinished is not one."""
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_text(errors="replace").splitlines(keepends=True), start=1):
        if not text.endswith("\n"):
            continue
        try:
            line = json.loads(text)
            lines.append({**line, "step": int(line["step"])})
        except (ValueError, TypeError, KeyError):
            raise CheckpointError(f"{path}:{number} is not a line of metrics: {text.strip()[:60]}") from None
    return lines


class ProgressBar:
    """What a person watches: a bar in a terminal, a few plain lines elsewhere."""

    def __init__(self, name: str, step: int, total: int | None) -> None:
        self._total, self._step = total, step
        self._next_line: tuple[float, float] = (step, 0.0)  # the update, or the moment, whichever comes first
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            counted = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {remaining}" if total else "{n_fmt} {elapsed}"
            shown = f"{name[:12]} " + counted + "{postfix}"
            self._bar = tqdm(initial=step, total=total, bar_format=shown, dynamic_ncols=True)

    def advance(self) -> None:
        self._step += 1
        if self._bar is not None:
            self._bar.update()

    def show(self, line: Mapping[str, Any]) -> None:
        text = summary(line)
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif self._step >= self._next_line[0] or time.monotonic() >= self._next_line[1] or self._step == self._total:
            every = self._total / PLAIN_LINES if self._total else math.inf
            self._next_line = (self._step + every, time.monotonic() + PLAIN_SECONDS)
            print(f"step {self._step}{f'/{self._total}' if self._total else ''}  {text}", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def summary(line: Mapping[str, Any]) -> str:
    """`loss 0.0312 lr 9.8e-04 4012/s wait 1%`: short enough for a bar in 80 columns."""
    rate = max(line["lr"].values(), default=0.0)
    loss = f"loss {line['loss']:.4g} " if "loss" in line else ""
    return f"{loss}lr {rate:.1e} {line['samples_per_s']:.0f}/s wait {line['data_wait']:.0%}"


class Stopwatch:
    """Samples per second and the share of time spent waiting for data, since the last lap."""

    def __init__(self) -> None:
        self._began, self._samples, self._waited = time.perf_counter(), 0, 0.0

    def count(self, batch: Batch) -> None:
        self._samples += next(len(value) for value in batch.values())

    def lap(self, waited: float) -> dict[str, float]:
        now = time.perf_counter()
        seconds = max(now - self._began, 1e-9)
        lap = {"samples_per_s": self._samples / seconds, "data_wait": (waited - self._waited) / seconds}
        self._began, self._samples, self._waited = now, 0, waited
        return {name: round(value, 4) for name, value in lap.items()}


def draw_loss(run_dir: Path, title: str) -> Path | None:
    """metrics.jsonl -> loss.png: the logged loss, smoothed too, and the validation loss where there is one."""
    from matplotlib.figure import Figure

    lines = read_metrics(run_dir / "metrics.jsonl")
    trained = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    validated = [(line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line]
    if not trained:
        return None
    steps, losses = zip(*trained, strict=True)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, label="training loss")
    axes.plot(steps, _smoothed(losses), color="tab:blue", label="smoothed")
    if validated:
        axes.plot(*zip(*validated, strict=True), "o-", color="tab:orange", markersize=3, label="validation loss")
    if min(losses) > 0:
        axes.set_yscale("log")
    axes.set(xlabel="update", ylabel="loss", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    path = run_dir / "loss.png"
    with writing(run_dir):
        figure.savefig(path, dpi=120)
    return path


def _smoothed(values: tuple[float, ...]) -> list[float]:
    """The mean over each value's neighbours, a fortieth of the run to either side: smooth, and it does not lag."""
    reach = max(1, len(values) // 40)
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
