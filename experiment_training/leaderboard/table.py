"""Table: verdicts -> a table in Markdown and a plot. Seeds of a method are pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment_training.components.evaluation.metaworld import wilson_interval


@dataclass(frozen=True)
class Row:
    task: str
    method: str
    verdicts: Sequence[Mapping[str, Any]]  # one of each seed

    @property
    def successes(self) -> int:
        return sum(one["successes"] for one in self.verdicts)

    @property
    def episodes(self) -> int:
        return sum(one["episodes"] for one in self.verdicts)

    @property
    def rate(self) -> float:
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, of the pooled episodes as if all were independent; seeds share placements, so it is a little narrow."""
        return wilson_interval(self.successes, self.episodes)

    def mean(self, name: str) -> float | None:
        values = [one[name] for one in self.verdicts if name in one]
        return sum(values) / len(values) if values else None


def markdown(rows: Sequence[Row]) -> str:
    lines = [
        "| task | method | success (95 %) | each seed | training | samples/s | updates | parameters | latency |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row.interval
        each = ", ".join(f"{one['successes']}" for one in row.verdicts)
        cells = [
            row.task,
            row.method,
            f"{row.rate:.0%} ({low:.0%} to {high:.0%})",
            f"{each} of {row.episodes // len(row.verdicts)}",
        ]
        units = {
            "train_s": "{:,.0f} s",
            "samples_per_s": "{:,.0f}",
            "updates": "{:,.0f}",
            "parameters": "{:,.0f}",
            "latency_ms": "{:.1f} ms",
        }
        for name, unit in units.items():
            value = row.mean(name)
            cells.append("" if value is None else unit.format(value))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Success rates and their intervals, task beside task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row.task for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    figure = Figure(figsize=(3.2 * len(tasks) + 1.6, 0.45 * len(methods) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(all_axes, tasks, strict=True):
        for row in (one for one in rows if one.task == task):
            place, (low, high) = methods.index(row.method), row.interval
            colour = f"C{place}"
            axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=3, alpha=0.5)
            axes.plot(100 * row.rate, place, "o", color=colour)
            for one in row.verdicts if len(row.verdicts) > 1 else ():
                axes.plot(100 * one["successes"] / one["episodes"], place, "|", color="black", markersize=9)
        axes.set(title=task, xlim=(-3, 103), xlabel="success, %")
        axes.set_yticks(range(len(methods)), methods)
        axes.grid(axis="x", alpha=0.3)
    all_axes[0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
