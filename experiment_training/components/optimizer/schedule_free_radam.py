"""Schedule-free RAdam: no schedule, because the weights that count are a running average of those that train.

Defazio et al. 2024 (arXiv 2405.15682). The optimizer stays in train mode for ever: its own switch to the average and
back rounds, and would change training. `averaged_parameters` computes the average into new tensors instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from experiment_training.components.optimizer.groups import (
    Params,
    check,
    check_numbers,
    decay_rates,
    not_negative,
    parameter_groups,
    positive,
)
from trainer.registry import OPTIMIZER_BUILDER_REGISTRY

if TYPE_CHECKING:
    from experiment_training.components.optimizer.averaging_radam import AveragingRAdam


@OPTIMIZER_BUILDER_REGISTRY.register("schedule_free_radam")
@dataclass(frozen=True)
class ScheduleFreeRAdam:
    """`r` weights later updates more in the average, `weight_lr_power` those of a higher rate.

    With `silent_sgd_phase` the first updates, before the second moment can be trusted, change no weight (4 of them at
    the default `betas`); without it they are those of plain SGD.
    """

    lr: float = 0.0025
    betas: Sequence[float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    r: float = 0.0
    weight_lr_power: float = 2.0
    silent_sgd_phase: bool = True

    def __post_init__(self) -> None:
        silent = self.silent_sgd_phase
        check((isinstance(silent, bool), f"silent_sgd_phase is {silent!r}", "true or false"))
        check_numbers(**{name: value for name, value in asdict(self).items() if name != "silent_sgd_phase"})
        check(
            positive("lr", self.lr),
            decay_rates("betas", self.betas, 2),
            positive("eps", self.eps),
            not_negative("weight_decay", self.weight_decay),
            not_negative("r", self.r),
            not_negative("weight_lr_power", self.weight_lr_power),
        )
        first, second = self.betas
        check(
            (first > 0, f"betas is {list(self.betas)}", "the first above 0: the average is divided by it"),
            (
                second > 0.6,
                f"betas is {list(self.betas)}",
                "the second above 0.6: below, RAdam never trusts its moment",
            ),
        )

    def build(self, params: Params) -> AveragingRAdam:
        from experiment_training.components.optimizer.averaging_radam import AveragingRAdam

        return AveragingRAdam(parameter_groups(self, params))
