"""Entries: what stands under `modules`, as syntax trees; the numbers in it, and lists of members that are alike."""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..names import find_type, type_names
from .calls import Key

Entry = Any  # ast.expr, or a list or dict of entries


@dataclass(frozen=True, slots=True)
class PerMember:
    """Numbers that differ between the members of a list."""

    values: tuple[Any, ...]


def as_list(entries: list[Entry], *, in_chain: bool) -> Entry:
    """Members as `A() * n` where they differ in numbers alone, as a chain where they may be one, or as a list."""
    alike = len({blank(entry) for entry in entries}) == 1 and isinstance(entries[0], ast.Call)
    is_block = alike and named_calls(entries[0])[0][0] not in type_names()
    if alike and len(entries) > 1 and (is_block or len({ast.dump(entry) for entry in entries}) == 1):
        columns = zip(*(constants(entry) for entry in entries), strict=True)
        differing = [tuple(one.value for one in column) for column in columns]
        if sum(is_looked_up(values) for values in differing if not same(values)) < 2:
            member = copy.deepcopy(entries[0])
            for constant, values in zip(constants(member), differing, strict=True):
                constant.value = values[0] if same(values) else PerMember(values)  # pyrefly: ignore
            return ast.BinOp(member, ast.Mult(), ast.Constant(len(entries)))
    if in_chain:
        chain = entries[0]
        for entry in entries[1:]:
            chain = ast.BinOp(chain, ast.RShift(), entry)
        return chain if len(entries) > 1 else [chain]
    return entries


def by_index(values: tuple) -> ast.expr:
    """The numbers of the members of a list, as an expression of `index`."""
    first, *rest = values
    index = "index"
    if all(type(value) is bool for value in values):
        for text, fits in (
            ("index == 0", lambda i: i == 0), ("index > 0", lambda i: i > 0),
            (f"index == {len(values) - 1}", lambda i: i == len(values) - 1),
            (f"index < {len(values) - 1}", lambda i: i < len(values) - 1),
            ("index % 2 == 0", lambda i: i % 2 == 0), ("index % 2 == 1", lambda i: i % 2 == 1),
        ):  # fmt: skip
            if all(value == fits(i) for i, value in enumerate(values)):
                return ast.parse(text, mode="eval").body
    if len(set(rest)) == 1:
        return ast.parse(f"{first!r} if {index} == 0 else {rest[0]!r}", mode="eval").body
    if all(type(value) is int for value in values):
        step = values[1] - first
        if all(value == first + step * i for i, value in enumerate(values)):
            start = f"{first} + " if first else ""
            return ast.parse(f"{start}{f'{step} * ' if step != 1 else ''}{index}", mode="eval").body
        if (
            first
            and values[1] % first == 0
            and all(value == first * (values[1] // first) ** i for i, value in enumerate(values))
        ):
            return ast.parse(f"{first} * {values[1] // first} ** {index}", mode="eval").body
    if len(values) > 2 and all(value == values[i % 2] for i, value in enumerate(values)):
        return ast.parse(f"{first!r} if {index} % 2 == 0 else {values[1]!r}", mode="eval").body
    return ast.parse(f"{list(values)!r}[{index}]", mode="eval").body


def is_looked_up(values: tuple) -> bool:
    """Whether the numbers follow no rule of their position."""
    return isinstance(by_index(values), ast.Subscript)


def same(values: tuple) -> bool:
    return all(value == values[0] and type(value) is type(values[0]) for value in values)


def blank(entry: Entry) -> str:
    if isinstance(entry, ast.expr):
        twin = copy.deepcopy(entry)
        for constant in constants(twin):
            constant.value = "#" if isinstance(constant.value, PerMember) else f"#{type(constant.value).__name__}"
        return ast.dump(twin)
    if isinstance(entry, dict):
        return repr({name: blank(one) for name, one in entry.items()})
    return repr([blank(one) for one in entry])


def constants(entry: Entry) -> list[ast.Constant]:
    """The numbers of an entry, in order."""
    if isinstance(entry, ast.expr):
        return [
            part
            for part in walk(entry)
            if isinstance(part, ast.Constant) and isinstance(part.value, bool | int | float | PerMember)
        ]
    below = entry.values() if isinstance(entry, dict) else entry
    return [constant for one in below for constant in constants(one)]


def walk(tree: ast.AST) -> Iterator[ast.AST]:
    yield tree
    for child in ast.iter_child_nodes(tree):
        yield from walk(child)


def expressions(entry: Entry) -> Iterator[ast.expr]:
    if isinstance(entry, ast.expr):
        yield entry
    else:
        for one in entry.values() if isinstance(entry, dict) else entry:
            yield from expressions(one)


def named_calls(entry: Entry) -> list[tuple[str, ast.Call]]:
    """Each call of a type, block or function in an entry, with the name that it calls."""
    parts = (part for tree in expressions(entry) for part in walk(tree) if isinstance(part, ast.Call))
    return [(part.func.id, part) for part in parts if isinstance(part.func, ast.Name)]


def entry_numbers(entries: Mapping[str, Entry]) -> dict[Key, Any]:
    return {
        ("entry", name, k): constant.value
        for name, entry in entries.items()
        for k, constant in enumerate(constants(entry))
    }


def defaults_of(name: str) -> dict[str, Any]:
    """The arguments of a type that have a default."""
    kind = find_type(name)
    parameters = inspect.signature(kind).parameters if kind is not None else {}
    return {key: one.default for key, one in parameters.items() if one.default is not one.empty}
