"""Params: what the parameters of a dataset factory have to satisfy, and where the paths among them lead."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from model_constructor.errors import ConfigError, Problem, nearest

Rule = tuple[Callable[[Any], Any], str]  # (what a value has to satisfy, what would be right)

TEXT: Rule = (lambda value: isinstance(value, str) and bool(value), "a text")
COUNT: Rule = (lambda value: type(value) is int and value > 0, "a whole number from 1")
STEPS: Rule = (lambda value: type(value) is int, "a whole number of steps; negative: into the past")
RATE: Rule = (lambda value: type(value) in (int, float) and 0 < value < float("inf"), "steps per second, above 0")
TEXTS: Rule = (
    lambda value: isinstance(value, list) and all(isinstance(one, str) and one for one in value),
    "a list of texts",
)
EPISODES: Rule = (
    lambda value: isinstance(value, list) and value and all(type(one) is int for one in value),
    "a list of episode indices; leave it out to use all",
)


def check_params(factory: str, params: Mapping[str, Any], rules: Mapping[str, Rule], needed: tuple[str, ...]) -> None:
    """ConfigError with all that is wrong: unknown names, values that break their rule, needed ones that are missing."""
    problems = [
        Problem(f"{factory} has no parameter '{name}'", hint=nearest(name, rules))
        for name in params
        if name not in rules
    ]
    problems += [
        Problem(f"{name} is {params[name]!r}", hint=right)
        for name, (holds, right) in rules.items()
        if name in params and not holds(params[name])
    ]
    problems += [
        Problem(f"{factory} needs the parameter '{name}'", hint=rules[name][1]) for name in needed if name not in params
    ]
    if problems:
        raise ConfigError(problems)


def rooted(path: str, opt_params: Mapping[str, Any], exists: Callable[[Path], Any] = Path.exists) -> Path:
    """A path as written: seen from the config's folder if it is there, else from the project."""
    written = Path(path).expanduser()
    beside_config = Path(opt_params["config_dir"]) / written  # joining an absolute path gives that path
    return beside_config if exists(beside_config) else Path(opt_params["project_root"]) / written
