"""ScheduledAdamW: AdamW whose learning rate is a pure function of the number of updates done.

Count and numbers of the schedule live in `param_groups`, so the optimizer's state dict is the whole schedule.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from operator import itemgetter
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
_state = itemgetter("exp_avg", "exp_avg_sq", "step")


class ScheduledAdamW(AdamW):
    """In every group `lr` is that of the next update: it is set when the update before is done.

    torch's state-dict tools fill an optimizer's state by a step at `lr` 0; a rate set at the beginning of `step` would
    turn that into a real update.

    A step gives what torch's gives, to the bit. Around its fused kernel torch sorts all tensors by device and dtype,
    and on a CPU makes a tensor of the 1 that it adds to each count: for 1 million parameters in 100 tensors that takes
    two thirds of the kernel's own time. Where nothing has to be sorted, the kernel is called at once.
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
        # who sets `found_inf`, a GradScaler, has torch take the counts back
        is_plain = closure is None and not hasattr(self, "found_inf") and not torch.compiler.is_compiling()
        tensors = [_for_the_kernel(group, self.state) for group in self.param_groups] if is_plain else [None]
        loss = _adamw_step(self, closure) if None in tensors else self._fused_step(tensors)
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

    def _fused_step(self, tensors: list[Any]) -> None:
        self._cuda_graph_capture_health_check()
        divisor: Tensor | None = getattr(self, "grad_scale", None)
        for group, (parameters, gradients, means, squares, counts) in zip(self.param_groups, tensors, strict=True):
            device = counts[0].device
            if device.type == "cpu":
                torch._foreach_add_(counts, torch.ones(()), alpha=1)
            else:
                torch._foreach_add_(counts, 1)
            torch._fused_adamw_(
                parameters,
                gradients,
                means,
                squares,
                [],  # what amsgrad keeps
                counts,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=group["maximize"],
                grad_scale=None if divisor is None else divisor.to(device, non_blocking=True),
            )

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
    """Parameters, gradients, both moments and counts. None where torch has to look at each of them: before the first
    step, where a gradient is missing or sparse, where devices or dtypes are mixed, and for what no kernel call does."""
    if not group["fused"] or group["amsgrad"] or group["capturable"] or group["differentiable"]:
        return None
    parameters = group["params"]
    gradients = [one.grad for one in parameters]
    own = [state for one in parameters if (state := states.get(one))]
    if (
        not group["decoupled_weight_decay"]
        or not 0 < len(own) == len(parameters)
        or any(one is None or one.is_sparse for one in gradients)
        or len({(one.device, one.dtype) for one in parameters}) > 1
    ):
        return None
    return parameters, gradients, *zip(*map(_state, own), strict=True)
