"""Members: the modules of namespaces, lists and chains, by their paths, and which of them expressions read."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from .block import Block, Value
from .errors import ConfigError, Problem
from .expressions import Expression, evaluate, links
from .limits import limits

ModulePath = tuple[str, ...]  # of a module below the block, by names and `[numbers]`

NEVER_TRAIN = "it would hold parameters that never train: call it, or remove it"


def unnamed_members(
    block: Block, module: str, leaves: Sequence[ModulePath], read: Mapping[str, set[ModulePath]]
) -> Iterator[Problem]:
    """Members of a list, chain or namespace that nothing reads, though it reads others of them by their paths."""
    paths = read.get(module, set())
    entered = {path[:length] for path in paths for length in range(1, len(path) + 1)}
    for leaf in leaves if paths else ():
        if leaf not in entered and not paths.intersection(leaf[:length] for length in range(1, len(leaf))):
            name = ".".join(leaf).replace(".[", "[")
            yield Problem(f"nothing uses the module '{name}'.", block.module_places[module], NEVER_TRAIN)


def read_paths(walks: Iterable[Iterable[ast.AST]]) -> dict[str, set[ModulePath]]:
    """What dotted paths the parts of expressions read, by their first name and each as far as it is written out:
    `a.b[i].c` is the path a.b, and `a[0].c` is a.[0].c."""
    read: dict[str, set[ModulePath]] = {}
    for walk in walks:
        parts = list(walk)
        inside = {id(part.value) for part in parts if isinstance(part, ast.Attribute | ast.Subscript)}
        for part in parts:
            if id(part) in inside:
                continue  # it goes on
            names: list[str] = []
            while isinstance(part, ast.Attribute | ast.Subscript):
                name = part.attr if isinstance(part, ast.Attribute) else _number(part.slice)
                if name in ("", "scan", "map"):  # any member, or all of them
                    names = []
                else:
                    names.insert(0, name)
                part = part.value
            if isinstance(part, ast.Name):
                read.setdefault(part.id, set()).add((part.id, *names))
    return read


def _number(tree: ast.expr) -> str:
    """`[2]` of an index that is written out; "" of any other."""
    return f"[{tree.value}]" if isinstance(tree, ast.Constant) and type(tree.value) is int else ""


def member_paths(path: ModulePath, value: Value, params: Mapping[str, Any]) -> Iterator[ModulePath]:
    """The entries of a namespace, list or chain, by their paths; any other module is its own leaf.

    A list whose length depends on others than these params is one, too.
    """
    if isinstance(value, Expression):
        yield from _written_paths(path, value, value.tree, params)
        return
    entries = value.items() if isinstance(value, dict) else ((f"[{i}]", entry) for i, entry in enumerate(value))
    for name, entry in entries:
        yield from member_paths((*path, name), entry, params)


def _written_paths(
    path: ModulePath, expression: Expression, tree: ast.expr, params: Mapping[str, Any]
) -> Iterator[ModulePath]:
    match tree:
        case ast.List():
            below = tree.elts
        case ast.BinOp(op=ast.RShift()):
            below = links(tree)
        case ast.BinOp(op=ast.Mult(), left=ast.Call() | ast.BinOp(op=ast.RShift()) | ast.IfExp()):
            count = _count(expression, tree.right, params)
            if count is None:
                yield path
                return
            below = [tree.left] * count
        case _:  # lists of lists are one, too
            yield path
            return
    for i, entry in enumerate(below):
        yield from _written_paths((*path, f"[{i}]"), expression, entry, params)


def _count(expression: Expression, tree: ast.expr, params: Mapping[str, Any]) -> int | None:
    """How many members a list has; None where that is not known, or no number of members."""
    count = None
    with suppress(ConfigError):  # told where the list is built
        count = evaluate(expression, params, tree)
    return count if type(count) is int and 0 <= count <= limits().repeats else None
