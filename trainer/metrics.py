"""Metrics: numbers of each step, summed on the device -> lines of metrics.jsonl, a progress bar, a picture."""

import json
import math
import os
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from trainer.checkpoint import CheckpointError, writing
from trainer.curves import draw
from trainer.distributed import World
from trainer.files import TEMPORARY, replace_text

CPU = torch.device("cpu")
ALONE = World()
ROWS = 64  # steps whose metrics are added up at once

PLAIN_LINES = 10  # about how many progress lines a run prints where no terminal shows a bar,
PLAIN_SECONDS = 60  # and how long it is silent at most


class MetricWindow:
    """Means since the last reading, weighted by what each step's loss is a mean over.

    Adding waits for nothing and copies once: the metrics of a step and its weight become one row [M + 1], kept with
    those of the same names. Every so many rows are added up in float64; reading is one copy from the device.
    """

    def __init__(self) -> None:
        self._device = CPU  # from the first metric on another device on, that one
        self._rows: dict[tuple[str, ...], list[Tensor]] = {}  # each [M + 1], the weight last
        self._sums: dict[tuple[str, ...], Tensor] = {}  # [M + 1]: weighted sums, sum of weights

    @torch.no_grad()
    def add(self, metrics: Mapping[str, Tensor | float], weight: Tensor | float = 1.0) -> None:
        """Each metric is one number; `weight` is that of the whole update on this rank."""
        for value in (weight, *metrics.values()):
            if isinstance(value, Tensor) and value.is_cuda:
                self._device = value.device
                break
        names = tuple(metrics)
        given = [*metrics.items(), ("weight", weight)]
        row = torch.stack([_number(name, value, self._device) for name, value in given])
        rows = self._rows.setdefault(names, [])
        rows.append(row)
        if len(rows) == ROWS:
            self._sums[names] = self._summed(names)
            rows.clear()

    def read(self, world: World = ALONE) -> dict[str, float]:
        """The means over all steps since the last reading, and over all ranks that emitted a metric; then empty.

        With several processes every rank calls it at the same updates; the ranks may hold different names.
        """
        sums = {names: self._summed(names) for names in self._rows}
        self._rows, self._sums = {}, {}
        values = torch.cat(list(sums.values())).tolist() if sums else []
        own: dict[str, tuple[float, float]] = {}  # name -> weighted sum, weight
        for names in sums:
            row, values = values[: len(names) + 1], values[len(names) + 1 :]
            for name, value in zip(names, row[:-1], strict=True):
                total, weight = own.get(name, (0.0, 0.0))
                own[name] = total + value, weight + row[-1]
        everywhere = world.gather(own)
        every_name = dict.fromkeys(name for one in everywhere for name in one)
        return {name: _mean([one[name] for one in everywhere if name in one]) for name in every_name}

    def _summed(self, names: tuple[str, ...]) -> Tensor:
        """All that was added under these names, [M + 1]."""
        sums = self._sums.get(names, torch.zeros(len(names) + 1, dtype=torch.float64, device=self._device))
        if not self._rows[names]:
            return sums
        rows = torch.stack([row.to(self._device, torch.float64) for row in self._rows[names]])  # [N, M + 1]
        return sums.to(self._device) + torch.cat([rows[:, :-1] * rows[:, -1:], rows[:, -1:]], dim=1).sum(dim=0)

    def state_dict(self) -> dict[str, Any]:
        """What this rank has added and not read; nothing is added up for it, which would round differently."""
        return {
            "order": [list(names) for names in self._rows],  # that of the sums over all of them
            "rows": [(list(names), torch.stack(rows).cpu()) for names, rows in self._rows.items() if rows],
            "sums": [(list(names), sums.cpu()) for names, sums in self._sums.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._device = device
        self._sums = {tuple(names): sums.to(device) for names, sums in state["sums"]}
        self._rows = {tuple(names): [] for names in state["order"]}
        self._rows |= {tuple(names): list(rows.to(device).unbind()) for names, rows in state["rows"]}


def _number(name: str, value: Tensor | float, device: torch.device) -> Tensor:
    """One number on the device, without waiting for it."""
    if not isinstance(value, Tensor):
        return torch.full((), value, device=device)
    if value.ndim:
        if value.numel() != 1:
            raise ValueError(f"the metric '{name}' has shape {list(value.shape)}; a metric is one number")
        value = value.reshape(())
    return value if value.device == device else value.to(device, non_blocking=True)


def _mean(parts: list[tuple[float, float]]) -> float:
    total, weight = sum(total for total, _ in parts), sum(weight for _, weight in parts)
    return total / weight if weight else math.nan


class MetricsFile:
    """metrics.jsonl: one JSON object per line, each with the `step` it was written after."""

    def __init__(self, path: Path, keep_until_step: int, owed: Collection[str] = ()) -> None:
        """Lines after `keep_until_step` belong to updates that are done again, and so do those of that step which hold
        what is `owed` ("validation", "evaluation"); they are cut."""
        kept = [line for line in read_metrics(path) if line["step"] <= keep_until_step]
        kept = [line for line in kept if line["step"] < keep_until_step or not _is_one_of(line, owed)]
        self._path = path
        with writing(path.parent):
            replace_text(path, "".join(f"{json.dumps(line)}\n" for line in kept))
            self._file = path.open("ab", buffering=0)  # of a line that finds no room nothing is left for `close`

    def write(self, line: Mapping[str, Any]) -> None:
        rest = f"{json.dumps(plain_numbers(line), allow_nan=False)}\n".encode()
        with writing(self._path.parent):
            while rest:
                rest = rest[self._file.write(rest) :]

    def flush_to_disk(self) -> None:
        """Before each checkpoint: the lines up to its step are to outlive whatever it outlives."""
        with writing(self._path.parent):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _is_one_of(line: Mapping[str, Any], kinds: Collection[str]) -> bool:
    return any(name.startswith(f"{kind}_") or name.startswith(f"{kind}/") for name in line for kind in kinds)


def plain_numbers(line: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity and no NaN: such a number is null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }


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
        if is_screen():
            counted = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {remaining}" if total else "{n_fmt} {elapsed}"
            shown = name[:8].replace("{", "{{").replace("}", "}}") + " " + counted + "{postfix}"
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

    def tell(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def is_screen() -> bool:
    """Whether a bar can be drawn over and over; a terminal without a size (a container's, a recorder's) shows none."""
    return sys.stderr.isatty() and min(os.get_terminal_size(sys.stderr.fileno())) > 0


def summary(line: Mapping[str, Any]) -> str:
    """`loss 0.0312 lr 9.8e-04 4012/s wait 1%`: short enough for a bar in 80 columns."""
    rates = [value for name, value in line.items() if name.startswith("lr/")]
    parts = [
        f"loss {line['loss']:.4g}" if "loss" in line else "",
        f"lr {max(rates):.1e}" if rates else "",
        f"{_short(line['samples_per_s'])}/s" if "samples_per_s" in line else "",
        f"wait {line['data_wait']:.0%}" if "data_wait" in line else "",
    ]
    return " ".join(part for part in parts if part)


def _short(number: float) -> str:
    return f"{number:.0f}" if number < 1e4 else tqdm.format_sizeof(number)


def draw_curves(run_dir: Path, title: str, at_most_every_s: float = 0.0) -> Path | None:
    """metrics.jsonl -> loss.png, replaced whole; None as long as no loss is logged.

    A picture that is younger than `at_most_every_s` stands: drawing takes a third of a second.
    """
    path, beside = run_dir / "loss.png", run_dir / f"{TEMPORARY}loss.png"
    with writing(run_dir):
        if path.exists() and 0 <= time.time() - path.stat().st_mtime < at_most_every_s:
            return path
        if not draw(read_metrics(run_dir / "metrics.jsonl"), beside, title):
            return None
        os.replace(beside, path)
    return path
