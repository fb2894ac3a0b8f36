"""ScheduledAdamW: AdamW whose learning rate is a pure function of the number of updates done.

Count and numbers of the schedule live in `param_groups`, so the optimizer's state dict is the whole schedule.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from experiment_training.components.optimizer.groups import Group

# At the first instance of a class torch wraps its `step` in hooks and a mark for the profiler. Those of the subclass
# are enough: the mark alone takes 0.2 ms of an update.
_is_wrapped = getattr(AdamW.step, "hooked", False)
_adamw_step = getattr(AdamW.step, "__wrapped__", AdamW.step) if _is_wrapped else AdamW.step

FUSED_DEVICES = {"cpu", "cuda"}  # one kernel for all parameters of a device and dtype


class ScheduledAdamW(AdamW):
    """In every group `lr` is that of the next update: it is set when the update before is done.

    torch's state-dict tools fill an optimizer's state by a step at `lr` 0; a rate set at the beginning of `step` would
    turn that into a real update.
    """

    def __init__(self, groups: list[Group]) -> None:
        parameters = [parameter for group in groups for parameter in group["params"]]
        fused = all(one.device.type in FUSED_DEVICES and one.is_floating_point() for one in parameters)
        super().__init__([{**group, "updates": 0} for group in groups], fused=fused)
        for group in self.param_groups:
            group.update(self.schedule(group))

    @staticmethod
    @abstractmethod
    def schedule(group: Group) -> Mapping[str, Any]:
        """A group's numbers and its count of `updates` -> its values (`lr`, `betas`) in the next update."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _adamw_step(self, closure)
        for group in self.param_groups:
            group["updates"] += 1
            group.update(self.schedule(group))
        return loss

    def divided_step(self, divisor: Tensor) -> None:
        """A step by gradients / `divisor` []. The fused kernel divides while it reads them, as for a GradScaler."""
        if all(group["fused"] for group in self.param_groups):
            self.grad_scale = divisor
            try:
                self.step()
            finally:
                del self.grad_scale
            return
        parameters = (one for group in self.param_groups for one in group["params"])
        torch._foreach_div_([one.grad for one in parameters if one.grad is not None], divisor)
        self.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Moments and update counts are those of `state_dict`; every other value stays what this one was made with.

        So a run that goes on under other numbers follows them from its first update.
        """
        made_with = [{key: group[key] for key in group.keys() - {"params", "updates"}} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, values in zip(self.param_groups, made_with, strict=True):
            group.update(values)
            group.update(self.schedule(group))
