"""ScheduledAdamW: AdamW whose learning rate is a pure function of the number of updates done.

`schedule(group)` reads `group["updates"]` and the schedule's own numbers, and gives the values (`lr`, `betas`) of the
next update. Count and numbers live in `param_groups`, so the optimizer's state dict is the whole schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import AdamW

from model_constructor.errors import ConfigError, Problem

Group = dict[str, Any]


class ScheduledAdamW(AdamW):
    """In every group `lr` is that of the next update: it is set when the update before is done.

    torch's state-dict tools fill an optimizer's state by a step at `lr` 0; a rate set at the beginning of `step` would
    turn that into a real update.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[Group],
        schedule: Callable[[Group], Mapping[str, Any]],
        numbers: Mapping[str, Any],
        **adamw: Any,
    ) -> None:
        super().__init__(params, fused=True, **adamw)
        self._schedule = schedule
        for group in self.param_groups:
            for name, value in {**numbers, "updates": 0}.items():
                group.setdefault(name, value)
            group.update(schedule(group))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            group["updates"] += 1
            group.update(self._schedule(group))
        return loss


def check(*rules: tuple[bool, str, str]) -> None:
    """Each rule is (holds, what is wrong, what would be right); all that do not hold are reported together."""
    if problems := [Problem(message, hint=hint) for holds, message, hint in rules if not holds]:
        raise ConfigError(problems)


def check_numbers(**values: Any) -> None:
    """Every value is a number or a list of numbers; what is compared afterwards can be compared."""
    check(
        *(
            (_is_number(one), f"{name} is {value!r}", "a number, such as 1.0e-4")
            for name, value in values.items()
            for one in (value if isinstance(value, list | tuple) else [value])
        )
    )


def check_adamw(betas: tuple[float, ...], eps: float, weight_decay: float) -> None:
    check(
        (all(0 <= beta < 1 for beta in betas), f"betas are {list(betas)}", "each from 0 to below 1"),
        (eps > 0, f"eps is {eps}", "above 0"),
        (weight_decay >= 0, f"weight_decay is {weight_decay}", "0 or above"),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
