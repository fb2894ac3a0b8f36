"""AdamW with a linear warm-up from `start_lr` to `peak_lr`, then half a cosine down to `end_lr`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

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


@OPTIMIZER_BUILDER_REGISTRY.register("adamw_warmup_cosine_decay")
@dataclass(frozen=True)
class AdamWWarmupCosineDecay:
    """`total_steps` updates, of which the first `warmup_steps` climb; after the last one the rate stays at `end_lr`."""

    peak_lr: float
    total_steps: int
    start_lr: float = 0.0
    end_lr: float = 0.0
    warmup_steps: int = 0
    betas: Sequence[float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        check_numbers(**asdict(self))
        check(
            positive("peak_lr", self.peak_lr),
            not_negative("start_lr", self.start_lr),
            not_negative("end_lr", self.end_lr),
            whole("total_steps", self.total_steps, 1),
            whole("warmup_steps", self.warmup_steps, 0),
            (
                self.warmup_steps <= max(self.total_steps, 0),
                f"warmup_steps is {self.warmup_steps}, total_steps is {self.total_steps}",
                "total_steps is the number of updates of the run unless given: lower warmup_steps, or train longer",
            ),
            decay_rates("betas", self.betas, 2),
            positive("eps", self.eps),
            not_negative("weight_decay", self.weight_decay),
        )

    def build(self, params: Params) -> ScheduledAdamW:
        return WarmupCosineDecay(parameter_groups(self, params))


class WarmupCosineDecay(ScheduledAdamW):
    @staticmethod
    def schedule(group: Group) -> dict[str, float]:
        updates, warmup = group["updates"], group["warmup_steps"]
        start, peak, end = group["start_lr"], group["peak_lr"], group["end_lr"]
        if updates < warmup:
            return {"lr": start + (peak - start) * updates / warmup}
        done = min((updates - warmup) / max(group["total_steps"] - warmup, 1), 1.0)
        return {"lr": end + (peak - end) * (1 + math.cos(math.pi * done)) / 2}
