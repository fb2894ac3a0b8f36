"""ScheduledAdamW: AdamW whose learning rate is a pure function of the number of updates done.

Count and numbers of the schedule live in `param_groups`, so the optimizer's state dict is the whole schedule.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from operator import attrgetter, itemgetter
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
TORCHS_OWN = ("amsgrad", "capturable", "differentiable")  # a group that asks for one of these takes torch's own path

gradient_of = attrgetter("grad")
state_of = itemgetter("exp_avg", "exp_avg_sq", "step")


class ScheduledAdamW(AdamW):
    """In every group `lr` is that of the next update: it is set when the update before is done.

    torch's state-dict tools fill an optimizer's state by a step at `lr` 0; a rate set at the beginning of `step` would
    turn that into a real update.

    A step does what torch's does, to the bit. Around the fused kernel torch sorts all tensors by device and dtype and
    counts one up for each parameter apart, which for a small model on a CPU takes two thirds of the kernel's own time.
    Here a group whose tensors need no sorting goes to the kernel as it is, and its counts are views of one vector.
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
        loss = None
        if closure is not None or hasattr(self, "found_inf") or not self._has_stepped_in_one():
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

    @torch.no_grad()
    def _has_stepped_in_one(self) -> bool:
        """Each group by one call of the kernel; False, and nothing done, where torch has to look at each tensor."""
        self._cuda_graph_capture_health_check()
        ready = [_for_the_kernel(group, self.state) for group in self.param_groups]
        if None in ready:
            return False
        for group, (*tensors, together) in zip(self.param_groups, filter(None, ready), strict=True):
            together.add_(1)
            torch._fused_adamw_(
                *tensors,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=group["maximize"],
                grad_scale=getattr(self, "grad_scale", None),
            )
        return True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Moments and update counts are those of `state_dict`; every other value stays what this one was made with.

        So a run that goes on under other numbers follows them from its first update.
        """
        made_with = [{key: group[key] for key in group.keys() - {"params", "updates"}} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, values in zip(self.param_groups, made_with, strict=True):
            group.update(values)
            group.update(self.schedule(group))


def _for_the_kernel(group: Group, states: Mapping[Tensor, dict[str, Tensor]]) -> tuple[Any, ...] | None:
    """The lists of tensors that the kernel takes, and the vector that the counts among them are views of; None before
    the first step, where a gradient is missing, and where devices or dtypes are mixed."""
    parameters = group["params"]
    gradients = [*map(gradient_of, parameters)]
    own = [state for one in parameters if (state := states.get(one))]
    is_whole = len(own) == len(parameters) and all(one is not None for one in gradients)
    if not group["fused"] or not is_whole or any(map(group.get, TORCHS_OWN)):
        return None
    means, squares, counts = zip(*map(state_of, own), strict=True)
    together = counts[0]._base
    if together is None or len(together) != len(counts) or any(one._base is not together for one in counts):
        if len({(one.device, one.dtype) for one in parameters}) > 1:
            return None
        together = torch.stack(counts)
        counts = together.unbind()
        for state, count in zip(own, counts, strict=True):
            state["step"] = count
    return parameters, gradients, means, squares, [], counts, together
