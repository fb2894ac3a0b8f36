"""AdamW with a linear warm-up from `start_lr` to `peak_lr`, then half a cosine down to `end_lr`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import nn

from experiment_training.components.optimizer.scheduled_adamw import (
    Group,
    ScheduledAdamW,
    check,
    check_adamw,
    check_numbers,
)
from trainer.registry import OPTIMIZER_BUILDER_REGISTRY


@OPTIMIZER_BUILDER_REGISTRY.register("adamw_warmup_cosine_decay")
class AdamWWarmupCosineDecay:
    """`total_steps` updates, of which the first `warmup_steps` climb; after the last one the rate stays at `end_lr`."""

    def __init__(
        self,
        peak_lr: float,
        total_steps: int,
        start_lr: float = 0.0,
        end_lr: float = 0.0,
        warmup_steps: int = 0,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        self.numbers = {
            "peak_lr": peak_lr,
            "start_lr": start_lr,
            "end_lr": end_lr,
            "warmup_steps": warmup_steps,
            "total_steps": total_steps,
        }
        check_numbers(**self.numbers, betas=betas, eps=eps, weight_decay=weight_decay)
        check(
            (peak_lr > 0, f"peak_lr is {peak_lr}", "above 0"),
            (start_lr >= 0, f"start_lr is {start_lr}", "0 or above"),
            (end_lr >= 0, f"end_lr is {end_lr}", "0 or above"),
            (total_steps > 0, f"total_steps is {total_steps}", "1 or more"),
            (
                0 <= warmup_steps <= total_steps,
                f"warmup_steps is {warmup_steps}, total_steps is {total_steps}",
                "total_steps is the number of updates of the run unless given: lower warmup_steps, or train longer",
            ),
            (isinstance(betas, Sequence) and len(betas) == 2, f"betas are {betas}", "two numbers"),
        )
        check_adamw(tuple(betas), eps, weight_decay)
        self.adamw = {"betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}

    def build(self, params: Iterable[nn.Parameter]) -> ScheduledAdamW:
        return ScheduledAdamW(params, warmup_cosine_decay, self.numbers, **self.adamw)


def warmup_cosine_decay(group: Group) -> dict[str, float]:
    updates, warmup = group["updates"], group["warmup_steps"]
    if updates < warmup:
        return {"lr": group["start_lr"] + (group["peak_lr"] - group["start_lr"]) * updates / warmup}
    done = min((updates - warmup) / max(group["total_steps"] - warmup, 1), 1.0)
    return {"lr": group["end_lr"] + (group["peak_lr"] - group["end_lr"]) * (1 + math.cos(math.pi * done)) / 2}
