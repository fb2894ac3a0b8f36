"""Schedule-free RAdam: no schedule, because the weights that count are a running average of those that train.

The optimizer stays in train mode for ever: its own switch to the average and back rounds, and would change training.
`averaged_weights` computes the average into new tensors instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiment_training.components.optimizer.scheduled_adamw import check, check_adamw, check_numbers
from trainer.registry import OPTIMIZER_BUILDER_REGISTRY


@OPTIMIZER_BUILDER_REGISTRY.register("schedule_free_radam")
class ScheduleFreeRAdam:
    """`r` weights later updates more in the average, `weight_lr_power` those of a higher rate."""

    def __init__(
        self,
        lr: float = 0.0025,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        silent_sgd_phase: bool = True,
    ) -> None:
        check_numbers(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, r=r, weight_lr_power=weight_lr_power)
        check(
            (lr > 0, f"lr is {lr}", "above 0"),
            (
                isinstance(betas, Sequence) and len(betas) == 2 and betas[0] > 0,
                f"betas are {betas}",
                "two numbers, the first above 0",
            ),
        )
        check_adamw(tuple(betas), eps, weight_decay)
        self.arguments: dict[str, Any] = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "r": r,
            "weight_lr_power": weight_lr_power,
            "silent_sgd_phase": silent_sgd_phase,
        }

    def build(self, params: Iterable[nn.Parameter]) -> Optimizer:
        from schedulefree import RAdamScheduleFree

        optimizer = RAdamScheduleFree(params, **self.arguments)
        optimizer.train()
        return optimizer


@torch.no_grad()
def averaged_weights(optimizer: Optimizer) -> dict[nn.Parameter, Tensor]:
    """The average behind each parameter of a `schedule_free_radam`, in a tensor of its own."""
    averages = {}
    for group in optimizer.param_groups:
        beyond = 1 - 1 / group["betas"][0]  # the live weights are beta1 average + (1 - beta1) z
        for parameter in group["params"]:
            z = optimizer.state[parameter].get("z", parameter)  # no update yet: all three are equal
            averages[parameter] = parameter.lerp(z, beyond)
    return averages
