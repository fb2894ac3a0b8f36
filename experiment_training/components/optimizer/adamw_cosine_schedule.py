"""AdamW with the one-cycle schedule: half a cosine up to `peak_lr` and half a cosine down, beta1 moving against it.

Smith and Topin 2017 (arXiv 1708.07120), in the form of torch's OneCycleLR.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from experiment_training.components.optimizer.groups import (
    Group,
    Params,
    check,
    check_numbers,
    decay_rates,
    not_negative,
    parameter_groups,
    positive,
    whole,
)
from experiment_training.components.optimizer.scheduled_adamw import ScheduledAdamW
from trainer.registry import OPTIMIZER_BUILDER_REGISTRY


@OPTIMIZER_BUILDER_REGISTRY.register("adamw_cosine_schedule")
@dataclass(frozen=True)
class AdamWCosineSchedule:
    """Up from `peak_lr / div_factor` for a share `pct_start` of `total_steps`, down to that over `final_div_factor`.

    `beta1` is [lowest, highest]: lowest at the peak of the rate; two equal numbers hold it constant.
    """

    peak_lr: float
    total_steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    beta1: Sequence[float] = (0.85, 0.95)
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        check_numbers(**asdict(self))
        in_order = not isinstance(self.beta1, Sequence) or list(self.beta1) == sorted(self.beta1)
        check(
            positive("peak_lr", self.peak_lr),
            whole("total_steps", self.total_steps, 2),
            (0 < self.pct_start < 1, f"pct_start is {self.pct_start}", "between 0 and 1"),
            (self.div_factor >= 1, f"div_factor is {self.div_factor}", "1 or more"),
            (self.final_div_factor >= 1, f"final_div_factor is {self.final_div_factor}", "1 or more"),
            decay_rates("beta1", self.beta1, 2),
            (in_order, f"beta1 is {self.beta1}", "[lowest, highest]"),
            (0 <= self.beta2 < 1, f"beta2 is {self.beta2}", "from 0 to below 1"),
            positive("eps", self.eps),
            not_negative("weight_decay", self.weight_decay),
        )

    def build(self, params: Params) -> ScheduledAdamW:
        return OneCycle(parameter_groups(self, params))


class OneCycle(ScheduledAdamW):
    @staticmethod
    def schedule(group: Group) -> dict[str, Any]:
        last = group["total_steps"] - 1
        peak = group["pct_start"] * group["total_steps"] - 1  # the update at which the rate is highest
        updates = min(group["updates"], last)
        low, high = group["beta1"]
        start_lr = group["peak_lr"] / group["div_factor"]
        if updates <= peak:
            done = updates / peak if peak else 1.0
            lr, beta1 = _cosine(start_lr, group["peak_lr"], done), _cosine(high, low, done)
        else:
            done = (updates - peak) / (last - peak)
            lr, beta1 = _cosine(group["peak_lr"], start_lr / group["final_div_factor"], done), _cosine(low, high, done)
        return {"lr": lr, "betas": (beta1, group["beta2"])}


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
