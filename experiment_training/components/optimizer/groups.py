"""Groups: what `build` is given -> torch parameter groups that hold every keyword of their factory.

A factory here is a frozen dataclass: its fields are the keywords of the config, checked when it is made. A group dict
names those that differ for its parameters, and is checked as the factory itself is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from torch import nn

from model_constructor.errors import ConfigError, Problem, nearest

Group = dict[str, Any]
Params = Iterable[nn.Parameter] | Iterable[Group]
"""Parameters, or groups such as `{"params": [...], "peak_lr": 1.0e-5}`."""
Rule = tuple[bool, str, str]
"""Holds, what is wrong (begins with the name of the parameter it speaks of), what would be right."""


def parameter_groups(factory: Any, params: Params) -> list[Group]:
    """One group per dict, or one for all parameters. ConfigError for everything wrong in all of them."""
    given = list(params)
    if not (given and isinstance(given[0], dict)):
        return [{"params": given, **asdict(factory)}]
    groups, problems = [], []
    for number, group in enumerate(given):
        assert isinstance(group, dict) and "params" in group, "groups are dicts that hold `params`"
        try:
            own = _overridden(factory, {name: value for name, value in group.items() if name != "params"})
        except ConfigError as error:
            problems += [Problem(f"{one.message} (group {number})", one.place, one.hint) for one in error.problems]
        else:
            groups.append({"params": list(group["params"]), **asdict(own)})
    if problems:
        raise ConfigError(problems)
    return groups


def _overridden(factory: Any, values: dict[str, Any]) -> Any:
    known = [field.name for field in fields(factory)]
    if problems := [
        Problem(f"{name} is no parameter of this optimizer", hint=nearest(name, known))
        for name in values
        if name not in known
    ]:
        raise ConfigError(problems)
    return replace(factory, **values)


def check(*rules: Rule) -> None:
    """All rules that do not hold are reported together."""
    if problems := [Problem(message, hint=hint) for holds, message, hint in rules if not holds]:
        raise ConfigError(problems)


def check_numbers(**values: Any) -> None:
    """Every value is a number or a list of numbers; what is compared afterwards can be compared."""
    check(
        *(
            (all(map(_is_number, _listed(value))), f"{name} is {_shown(value)}", "a number, such as 1.0e-4")
            for name, value in values.items()
        )
    )


def positive(name: str, value: float) -> Rule:
    return value > 0, f"{name} is {value}", "above 0"


def not_negative(name: str, value: float) -> Rule:
    return value >= 0, f"{name} is {value}", "0 or above"


def whole(name: str, value: float, least: int) -> Rule:
    return isinstance(value, int) and value >= least, f"{name} is {value}", f"a whole number, {least} or more"


def decay_rates(name: str, value: Any, count: int) -> Rule:
    """`count` decay rates of running averages, as a list."""
    holds = isinstance(value, Sequence) and len(value) == count and all(0 <= one < 1 for one in value)
    return holds, f"{name} is {_shown(value)}", f"{count} numbers, each from 0 to below 1"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _shown(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)
