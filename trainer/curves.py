"""Curves: lines of metrics -> one picture of the loss, and below it gradient norms and learning rates, if logged."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

POINTS = 2000  # more than a picture's width shows
Lines = Sequence[Mapping[str, Any]]
Points = tuple[list[int], list[float]]  # updates, values


def draw(lines: Lines, path: Path, title: str) -> bool:
    """Write the picture; False, and nothing is written, where no loss is logged."""
    from matplotlib.figure import Figure

    steps, losses = points(lines, "loss")
    if not steps:
        return False
    below = {"gradient norm": named(lines, "grad_norm/"), "learning rate": named(lines, "lr/")}
    below = {label: names for label, names in below.items() if names}
    figure = Figure(figsize=(8, 7 if below else 4.5), layout="constrained")
    top, *rest = figure.subplots(1 + len(below), sharex=True, height_ratios=[3] + [1.2] * len(below), squeeze=False)[
        :, 0
    ]
    top.plot(steps, losses, color="tab:blue", alpha=0.3, label="training loss")
    top.plot(steps, smoothed(losses), color="tab:blue", label="smoothed")
    validated = points(lines, "validation_loss")
    if validated[0]:
        top.plot(*validated, "o-", color="tab:orange", markersize=3, label="validation loss")
    top.set_ylabel("loss")
    top.set_title(title, parse_math=False)
    set_scale(top, [*losses, *validated[1]])
    for axes, (label, names) in zip(rest, below.items(), strict=True):
        for name, component in names.items():
            axes.plot(*points(lines, name), linewidth=1, label=component)
        axes.set(ylabel=label)
        if label == "gradient norm":
            set_scale(axes, [value for name in names for value in points(lines, name)[1]])
    for axes in (top, *rest):
        axes.grid(alpha=0.3, which="major")
        axes.legend(fontsize="small", loc="upper right", ncols=3)
    (rest or [top])[-1].set(xlabel="update")
    figure.savefig(path, dpi=120, format="png")
    return True


def points(lines: Lines, name: str) -> Points:
    """The updates at which a metric was logged, and its values; of a long run every so many."""
    logged = [(line["step"], line[name]) for line in lines if is_finite(line.get(name))]
    every = max(1, len(logged) // POINTS)
    logged = logged[(len(logged) - 1) % every :: every]  # the last one is among them
    return [step for step, _ in logged], [value for _, value in logged]


def named(lines: Lines, prefix: str) -> dict[str, str]:
    """Metric -> component, for all that begin like this."""
    names = dict.fromkeys(name for line in lines for name in line if name.startswith(prefix))
    return {name: name.removeprefix(prefix) for name in names}


def set_scale(axes: Any, values: Iterable[float]) -> None:
    """Logarithmic, where all values have a logarithm."""
    if min(values, default=0.0) > 0:
        axes.set_yscale("log")


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean over each value's neighbours, a fortieth of the run to either side: smooth, and it does not lag."""
    reach = max(1, len(values) // 40)
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
