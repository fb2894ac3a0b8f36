"""Tap: the values inside a running model, by the names of the file.

While a tap is open, each block with a node that it selects runs a second compiled function, which returns these nodes
too; what modules return comes by forward hooks. While none is open, nothing of this is there.
"""

from __future__ import annotations

import ast
import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from .compiler import Compiled
from .errors import ConfigError, Problem, nearest
from .model import GraphModel
from .selectors import parse_selector


class Taps(Mapping[str, Any]):
    """Name -> value. What was computed more than once since the tap was opened has the list of its values, in order."""

    def __init__(self, selected: list[str]) -> None:
        self.selected = selected
        self._values: defaultdict[str, list[Any]] = defaultdict(list)

    def record(self, name: str, value: Any) -> None:
        self._values[name].append(value)

    def __getitem__(self, name: str) -> Any:
        if name in self._values:
            values = self._values[name]
            return values[0] if len(values) == 1 else list(values)
        if name in self.selected:
            raise KeyError(f"'{name}' has not been computed since the tap was opened")
        raise KeyError(f"'{name}' is not tapped; {nearest(name, self.selected)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclasses.dataclass(frozen=True, slots=True)
class _Node:
    """A node of the graph of `owner`."""

    owner: GraphModel
    name: str


@dataclasses.dataclass(slots=True, eq=False)
class _Listener:
    """What one tap records of one block: its nodes, each with the name it is recorded by."""

    taps: Taps
    nodes: list[tuple[str, str]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True, eq=False)
class _Tapped:
    """A block with open taps, and the forward that was set on the instance before, if any was."""

    before: Any
    listeners: list[_Listener] = dataclasses.field(default_factory=list)


_tapped: WeakKeyDictionary[GraphModel, _Tapped] = WeakKeyDictionary()


@contextmanager
def open_taps(model: GraphModel, selectors: tuple[str, ...]) -> Iterator[Taps]:
    """As `GraphModel.tap`."""
    found = _find(model, selectors)
    taps = Taps(list(found))
    hooks = []
    mine: defaultdict[GraphModel, _Listener] = defaultdict(lambda: _Listener(taps))
    for path, value in found.items():
        if isinstance(value, _Node):
            mine[value.owner].nodes.append((value.name, path))
        else:
            hooks.append(value.register_forward_hook(_recorder(taps, path)))
    for owner, listener in mine.items():
        _tapped.setdefault(owner, _Tapped(owner.__dict__.get("forward"))).listeners.append(listener)
        _choose_forward(owner)
    try:
        yield taps
    finally:
        for hook in hooks:
            hook.remove()
        for owner, listener in mine.items():
            _tapped[owner].listeners.remove(listener)
            _choose_forward(owner)


def _find(model: GraphModel, selectors: tuple[str, ...]) -> dict[str, _Node | nn.Module]:
    found: dict[str, _Node | nn.Module] = {}
    problems = []
    for selector in selectors:
        try:
            named = parse_selector(selector).find(model, _entries)
        except ConfigError as error:
            problems += error.problems
            continue
        callable_ones = {path: value for path, value in named.items() if not _only_holds(value)}
        if named and not callable_ones:
            hint = f"tap its members: {selector}[*]"
            problems.append(Problem(f"'{selector}' only holds modules, and is not called.", hint=hint))
        found |= callable_ones
    if problems:
        raise ConfigError(problems)
    return found


def _entries(value: _Node | nn.Module) -> Iterator[tuple[str, _Node | nn.Module]]:
    """The nodes and modules that a module itself holds."""
    if isinstance(value, GraphModel):
        stored = {part.id for part in ast.walk(value._compiled.tree) if isinstance(part, ast.Name) and _is_store(part)}
        for statement in value._block.graph.values():
            yield from ((name, _Node(value, name)) for name in statement.targets if name in stored and name != "_")
    if isinstance(value, nn.Module):
        yield from value._modules.items()  # pyrefly: ignore


def _is_store(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _only_holds(value: _Node | nn.Module) -> bool:
    return isinstance(value, nn.Module) and type(value).forward is nn.Module.forward


def _recorder(taps: Taps, path: str):
    return lambda module, arguments, result: taps.record(path, result)


def _choose_forward(owner: GraphModel) -> None:
    """Give the block a forward that returns what its listeners ask for, or the one it had if there are none."""
    listeners = _tapped[owner].listeners
    if not listeners:
        before = _tapped.pop(owner).before
        del owner.__dict__["forward"]
        if before is not None:
            owner.__dict__["forward"] = before
        return
    names = sorted({name for listener in listeners for name, _ in listener.nodes})
    function = _with_nodes(type(owner)._compiled, names).function()

    def forward(*arguments: Any, **keywords: Any) -> Any:
        result, values = function(owner, *arguments, **keywords)
        for listener in listeners:
            for name, path in listener.nodes:
                listener.taps.record(path, values[name])
        return result

    forward.taps = listeners  # pyrefly: ignore  # by which copies and pickles know it, and leave it out
    owner.__dict__["forward"] = forward


def _with_nodes(compiled: Compiled, names: list[str]) -> Compiled:
    """The function that returns (what it returned, {node: value}). A node's name is never bound to anything else."""
    *body, last = compiled.tree.body
    assert isinstance(last, ast.Return) and last.value is not None
    nodes = ast.Dict([ast.Constant(name) for name in names], [ast.Name(name, ast.Load()) for name in names])
    value = ast.copy_location(ast.Tuple([last.value, nodes], ast.Load()), last.value)
    returned = ast.copy_location(ast.Return(value), last)
    tree = ast.FunctionDef(compiled.tree.name, compiled.tree.args, [*body, returned], [], None)
    return dataclasses.replace(compiled, tree=ast.fix_missing_locations(ast.copy_location(tree, compiled.tree)))
