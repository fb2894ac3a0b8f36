"""AveragingRAdam: RAdamScheduleFree that tells its average. A file of its own: schedulefree is imported when used."""

from __future__ import annotations

from typing import Any

import torch
from schedulefree import RAdamScheduleFree
from torch import Tensor, nn

from experiment_training.components.optimizer.groups import Group

PROGRESS = {"k", "weight_sum", "lr_max", "scheduled_lr"}  # of a group: what its updates have come to


class AveragingRAdam(RAdamScheduleFree):
    """The live weights are beta1 average + (1 - beta1) z (eq. 1 of the paper); z is kept in the state."""

    def __init__(self, groups: list[Group]) -> None:
        super().__init__(groups)
        self.train()

    @torch.no_grad()
    def averaged_parameters(self) -> dict[nn.Parameter, Tensor]:
        """The average behind each parameter, in a tensor of its own; nothing of the optimizer changes."""
        averages = {}
        for group in self.param_groups:
            beyond = 1 - 1 / group["betas"][0]
            for parameter in group["params"]:
                z = self.state[parameter].get("z", parameter)  # no update yet: all three are equal
                averages[parameter] = parameter.lerp(z, beyond)
        return averages

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Averages and their weights are those of `state_dict`; every other value stays what this one was made with."""
        made_with = [{key: group[key] for key in group.keys() - {"params", *PROGRESS}} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, values in zip(self.param_groups, made_with, strict=True):
            group.update(values)
