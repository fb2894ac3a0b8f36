"""AdamW with the one-cycle schedule: half a cosine up to `peak_lr` and half a cosine down, beta1 moving against it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from experiment_training.components.optimizer.scheduled_adamw import (
    Group,
    ScheduledAdamW,
    check,
    check_adamw,
    check_numbers,
)
from trainer.registry import OPTIMIZER_BUILDER_REGISTRY


@OPTIMIZER_BUILDER_REGISTRY.register("adamw_cosine_schedule")
class AdamWCosineSchedule:
    """Up from `peak_lr / div_factor` for a share `pct_start` of `total_steps`, down to that over `final_div_factor`.

    `beta1` is [lowest, highest]: lowest at the peak of the rate; two equal numbers hold it constant.
    """

    def __init__(
        self,
        peak_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        beta1: Sequence[float] = (0.85, 0.95),
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        check_numbers(
            peak_lr=peak_lr,
            total_steps=total_steps,
            pct_start=pct_start,
            div_factor=div_factor,
            final_div_factor=final_div_factor,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
        )
        check(
            (peak_lr > 0, f"peak_lr is {peak_lr}", "above 0"),
            (total_steps > 1, f"total_steps is {total_steps}", "2 or more"),
            (0 < pct_start < 1, f"pct_start is {pct_start}", "between 0 and 1"),
            (div_factor >= 1, f"div_factor is {div_factor}", "1 or more"),
            (final_div_factor >= 1, f"final_div_factor is {final_div_factor}", "1 or more"),
            (
                isinstance(beta1, Sequence) and len(beta1) == 2 and beta1[0] <= beta1[1],
                f"beta1 is {beta1}",
                "[lowest, highest]",
            ),
        )
        check_adamw((*beta1, beta2), eps, weight_decay)
        self.numbers = {
            "peak_lr": peak_lr,
            "start_lr": peak_lr / div_factor,
            "end_lr": peak_lr / div_factor / final_div_factor,
            "pct_start": pct_start,
            "total_steps": total_steps,
            "beta1": tuple(beta1),
        }
        self.adamw: dict[str, Any] = {"betas": (beta1[1], beta2), "eps": eps, "weight_decay": weight_decay}

    def build(self, params: Iterable[nn.Parameter]) -> ScheduledAdamW:
        return ScheduledAdamW(params, one_cycle, self.numbers, **self.adamw)


def one_cycle(group: Group) -> dict[str, Any]:
    last = group["total_steps"] - 1
    peak = group["pct_start"] * group["total_steps"] - 1  # the update at which the rate is highest
    updates = min(group["updates"], last)
    low, high = group["beta1"]
    if updates <= peak:
        done = updates / peak if peak else 1.0
        lr, beta1 = _cosine(group["start_lr"], group["peak_lr"], done), _cosine(high, low, done)
    else:
        done = (updates - peak) / (last - peak)
        lr, beta1 = _cosine(group["peak_lr"], group["end_lr"], done), _cosine(low, high, done)
    return {"lr": lr, "betas": (beta1, group["betas"][1])}


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
