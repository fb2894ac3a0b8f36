"""Parameters: the keywords of a registered component -> what a config may give it, checked before anything is built."""

import inspect
from collections import abc
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_json

from model_constructor import Registry
from model_constructor.errors import Problem, nearest
from trainer.config.messages import Key, problems_of
from trainer.registry import TRAINER_REGISTRY

GIVEN_TO_A_TRAINER = frozenset({"models", "optimizers", "loss", "device"})
PLAIN = (int, float, bool, str, NoneType, list, tuple, dict, object, Any)
OF_PLAIN = (Union, UnionType, list, tuple, dict, abc.Sequence, abc.Mapping)
STRICT = ConfigDict(strict=True, allow_inf_nan=False)


class Signature:
    """What a component may be given. `takes_all`: by `**kwargs`, whose names nobody can know."""

    def __init__(self, registry: Registry, name: str) -> None:
        self.registry, self.name = registry, name
        self.parameters, self.takes_all = _own_parameters(registry, name)

    @property
    def required(self) -> set[str]:
        return {one.name for one in self.parameters.values() if one.default is one.empty}

    def problems(self, source: Any, key: Key, given: Mapping[str, Any]) -> Iterator[Problem]:
        """Unknown names and wrong types among the params `given`, which stand at `key`."""
        for name in given:
            if (parameter := self.parameters.get(name)) is not None:
                yield from _type_problems(parameter, source, (*key, name))
            elif not self.takes_all:
                hint = nearest(name, self.parameters) or "it takes no parameters"
                message = f"{self.registry.kind} '{self.name}' has no parameter '{name}'"
                yield Problem(message, source.key_place((*key, name)), hint)

    def missing(self, source: Any, key: Key, given: Sequence[str]) -> Iterator[Problem]:
        for name in sorted(self.required - {*given}):
            message = f"{self.registry.kind} '{self.name}' needs the parameter '{name}'"
            yield Problem(message, source.place(key), f"add `{name}:` under `params:`")


def _own_parameters(registry: Registry, name: str) -> tuple[dict[str, inspect.Parameter], bool]:
    component = registry.get(name)
    try:
        signature = inspect.signature(component, eval_str=True)
    except Exception:  # an annotation that exists for type checkers alone: then names are checked, types are not
        signature = inspect.signature(component)
    taken = GIVEN_TO_A_TRAINER if registry is TRAINER_REGISTRY else frozenset()
    own = {one.name: one for one in signature.parameters.values() if one.name not in taken}
    named = {key: one for key, one in own.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    return named, any(one.kind is one.VAR_KEYWORD for one in own.values())


def _type_problems(parameter: inspect.Parameter, source: Any, key: Key) -> list[Problem]:
    """A value is held to an annotation that is made of plain types; YAML's lists stand for tuples, too."""
    annotation = parameter.annotation
    if not _is_plain(annotation):
        return []
    kind: Any = annotation | None if parameter.default is None else annotation
    value = source.data
    for part in key:
        value = value[part]
    try:
        TypeAdapter(kind, config=STRICT).validate_json(to_json(value, inf_nan_mode="constants"))
    except ValidationError as error:
        return problems_of(error, kind, source, key)
    return []


def _is_plain(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return True
    if get_origin(annotation) in OF_PLAIN:
        return all(one is Ellipsis or _is_plain(one) for one in get_args(annotation))
    return annotation in PLAIN
