"""Selectors: one way to name modules and parameters, wherever some of them are meant.

| selector | names |
|---|---|
| `layers[0].q`, `layers.0.q` | what stands at this path |
| `layers[*].q` | the same in every member of a list |
| `*` | any one name |
| `**` | any number of names, also none |
| `type:Linear` | any module below of this class: a class of torch, a registered type, or a block |

A selector may go on behind a type, and a type may stand behind a path: `type:Attention.q`, `layers[*].type:Linear`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .errors import ConfigError, Place, Problem, nearest
from .names import TYPES, find_type

MAX_STEPS = 100
_NAME = r"[^\s.\[\]*:]+"
_PART = re.compile(rf"(\*\*|\*|(?:type:)?{_NAME})?((?:\[(?:[0-9]+|\*)\])*)")
_FORMS = "a selector is a path such as layers[0].q, with [*], * for one name, ** for any number, or type:Linear"


def select(selector: str, module: nn.Module, place: Place | None = None) -> dict[str, nn.Module | Tensor]:
    """The modules, parameters and buffers that a selector names, by their qualified names, in the order of `module`.

    What stands under two names is found under both. Raises ConfigError (at `place`) for what is no selector, and for
    one that names nothing. An empty list of modules is no error: `layers[*].q` then names nothing, rightly.
    """
    return parse_selector(selector, place).find(module, _entries)


def select_parameters(selector: str, module: nn.Module, place: Place | None = None) -> dict[str, nn.Parameter]:
    """The parameters that a selector names, and those in the modules that it names: each once, in order.

    Raises ConfigError as `select` does, and where nothing that is named holds a parameter.
    """
    found = select(selector, module, place)
    parameters: dict[str, nn.Parameter] = {}
    for name, value in found.items():
        inside = value.named_parameters(name) if isinstance(value, nn.Module) else [(name, value)]
        parameters |= {name: value for name, value in inside if isinstance(value, nn.Parameter)}
    if found and not parameters:
        name, value = next(iter(found.items()))
        hint = f"'{name}' is a {'module without any' if isinstance(value, nn.Module) else 'buffer'}"
        raise ConfigError(Problem(f"'{selector}' selects no parameter.", place, hint))
    first_names = {id(value): name for name, value in reversed(parameters.items())}
    return {name: value for name, value in parameters.items() if first_names[id(value)] == name}


@dataclass(frozen=True, slots=True)
class Selector:
    """`steps`: each takes one name of a path, except `**`. A type is `**` and a step that asks for the class."""

    text: str
    steps: tuple[str, ...]
    place: Place | None

    def find(self, root: Any, entries: Callable[[Any], Iterable[tuple[str, Any]]]) -> dict[str, Any]:
        """What the selector names below `root`, parents first; `entries` gives the named entries of a value."""
        found: dict[str, Any] = {}
        may_be_empty = False
        waiting = [("", root, self._reached({0}))]  # a path, its value, and how many steps can have led to it
        while waiting:
            path, value, counts = waiting.pop()
            if len(self.steps) in counts:
                found[path] = value
            below = list(entries(value))
            if isinstance(value, nn.ModuleList) and not below:
                may_be_empty |= any(self._could_go_on(n, root) for n in counts)
            for name, entry in reversed(below):
                after = {n if self.steps[n] == "**" else n + 1 for n in counts if self._takes(n, name, entry)}
                if after:
                    waiting.append((f"{path}.{name}" if path else name, entry, self._reached(after)))
        if not found and not (may_be_empty and self._names_types(root)):
            hint = nearest(self.text, self._known(root, entries)) or "there is nothing to select"
            raise ConfigError(Problem(f"'{self.text}' selects nothing.", self.place, hint))
        return found

    def _could_go_on(self, n: int, root: Any) -> bool:
        """Whether step `n` could name something in a list that is empty. `**` enters every list: a name behind it has
        to be one of the file's, so that a misspelt one is told."""
        step, after = (*self.steps[n : n + 2], "", "")[:2]
        names = _declared(root) if step == "**" and re.fullmatch(_NAME, after) else None
        return "*" in step and (names is None or after in names)

    def _reached(self, counts: set[int]) -> set[int]:
        """With each `**` also what follows it, since it may stand for no name."""
        reached = set(counts)
        for n, step in enumerate(self.steps):
            if step == "**" and n in reached:
                reached.add(n + 1)
        return reached

    def _takes(self, n: int, name: str, entry: Any) -> bool:
        if n == len(self.steps):
            return False
        step = self.steps[n]
        if step == "[*]":
            return name.isdecimal()
        if step.startswith("type:"):
            return isinstance(entry, nn.Module) and _is_a(entry, step.removeprefix("type:"))
        return step in ("*", "**", name)

    def _names_types(self, root: Any) -> bool:
        """Whether the types that are asked for are types or blocks at all, since nothing of them is there."""
        block = getattr(root, "_block", None)
        blocks = {level.name for level in block.levels()} if block is not None else set()
        asked = [step.removeprefix("type:") for step in self.steps if step.startswith("type:")]
        return all(name in blocks or find_type(name) is not None for name in asked)

    def _known(self, root: Any, entries: Callable[[Any], Iterable[tuple[str, Any]]]) -> set[str]:
        """What could have been written in place of a selector that names nothing, in the same form."""
        everything = parse_selector("**").find(root, entries)
        if "type:" in self.text:
            return {
                f"type:{type(value).__name__}"
                for path, value in everything.items()
                if path and isinstance(value, nn.Module)
            }
        number = "[*]" if "*" in self.text else r"[\1]"
        return {re.sub(r"\.([0-9]+)(?=\.|$)", number, path) for path in everything if path}


def parse_selector(text: str, place: Place | None = None) -> Selector:
    """Raises ConfigError, at `place`, for what is no selector."""
    steps: list[str] = []
    for part in text.split("."):
        match = _PART.fullmatch(part)
        if not part or match is None:
            raise ConfigError(Problem(f"'{text}' is no selector.", place, _FORMS))
        name, numbers = match.groups()
        if name and name.startswith("type:"):
            steps.append("**")
        steps += [name] if name else []
        steps += ["[*]" if number == "*" else number for number in re.findall(r"\[(.+?)\]", numbers)]
    if len(steps) > MAX_STEPS:
        raise ConfigError(Problem(f"a selector has at most {MAX_STEPS} steps.", place))
    return Selector(text, tuple(steps), place)


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """The parameters, buffers and modules that a module itself holds."""
    if isinstance(value, nn.Module):
        own = {**value._parameters, **value._buffers, **value._modules}
        yield from ((name, entry) for name, entry in own.items() if entry is not None)


def _declared(root: Any) -> set[str] | None:
    """The names of modules and values on any level of the file that `root` is from, and the usual ones of parameters;
    None for a module that is of no file."""
    block = getattr(root, "_block", None)
    if block is None:
        return None
    while block.parent is not None:
        block = block.parent
    names = {"weight", "bias"}
    for level in block.levels():
        names |= level.values() | _names_in(level.modules)
    return names


def _names_in(value: Any) -> set[str]:
    """The names of modules, also those inside namespaces and lists."""
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {*(value if isinstance(value, dict) else ())}.union(*map(_names_in, below))


def _is_a(module: nn.Module, name: str) -> bool:
    """Whether the module is of the class of this name, or of one derived from it."""
    registered = TYPES.get(name) if TYPES.has(name) else None
    return any(kind is registered or kind.__name__ == name for kind in type(module).__mro__)
