"""Params: the numbers in which the uses of a block differ, under names."""

from __future__ import annotations

import ast
import inspect
from typing import Any

from ..names import find_type
from .calls import ByMode, Key
from .entries import constants, expressions, named_calls, walk
from .forms import MISSING, BlockForm, Instance, has_name

_ROLES = {
    "out_channels": "channels", "num_features": "channels", "num_channels": "channels", "size": "dim",
    "normalized_shape": "dim", "num_heads": "heads", "p": "dropout",
}  # fmt: skip
_INFERRED = {"in_features", "in_channels"}


def find_params(form: BlockForm) -> None:
    """Say what stands for each number that differs between the instances of a block."""
    instances = form.instances
    roles = _roles(form.first)
    columns = {key: [instance.numbers[key] for instance in instances] for key in form.first.numbers}
    differing = {key: column for key, column in columns.items() if not _agree(column) and key[0] == "entry"}
    later = {key: column for key, column in columns.items() if not _agree(column) and key[0] != "entry"}
    inferred = {key for key in differing if roles[key] in _INFERRED and isinstance(roles[key], str)}
    own = [key for key in differing if key not in inferred]
    for key in [*own, *inferred]:
        known = _as_known(form, columns[key])
        if known is None and key in inferred:
            known = ast.Name("_", ast.Load())
        form.written[key] = known or _new_param(form, roles[key], columns[key], str(key[1]))
    for key, column in later.items():
        if isinstance(form.first.numbers[key], tuple):  # of sizes: they are computed
            continue
        node = form.first.calls[0].nodes[key[1]] if key[0] == "node" else None
        if any(isinstance(value, ByMode) for value in column):
            form.written[key] = _by_mode(form, column, node.target if node else "")
            continue
        form.written[key] = _as_known(form, column) or _new_param(form, "value", column, node.target if node else "")
    for name in form.first.optional:
        form.params[has_name(name)] = [instance.optional[name] for instance in instances]


def _by_mode(form: BlockForm, column: list[Any], member: str) -> ast.expr:
    """`dropout if training else 0.0`, of which the first is a param."""
    parts = [one if isinstance(one, ByMode | type(MISSING)) else ByMode(one, one) for one in column]
    trees = []
    for side in ("training", "otherwise"):
        values = [one if one is MISSING else getattr(one, side) for one in parts]
        known: Any = next(value for value in values if value is not MISSING)
        same = ast.Constant(known) if _agree(values) else _as_known(form, values)
        trees.append(same or _new_param(form, "dropout", values, member))
    return ast.IfExp(ast.Name("training", ast.Load()), *trees)


def _agree(column: list[Any]) -> bool:
    known = [value for value in column if value is not MISSING]
    return all(value == known[0] and type(value) is type(known[0]) for value in known)


def _as_known(form: BlockForm, column: list[Any]) -> ast.expr | None:
    """A number as a param that is there, or a multiple of it."""
    for name, values in form.params.items():
        pairs = [(value, known) for value, known in zip(column, values, strict=True) if value is not MISSING]
        if all(type(value) is type(known) and value == known for value, known in pairs):
            return ast.Name(name, ast.Load())
    for name, values in form.params.items():
        pairs = [(value, known) for value, known in zip(column, values, strict=True) if value is not MISSING]
        if not all(type(value) is int and type(known) is int and known for value, known in pairs):
            continue
        times = {value / known for value, known in pairs}
        if len(times) == 1 and len({known for _, known in pairs}) > 1 and (factor := times.pop()) in range(2, 9):
            return ast.BinOp(ast.Constant(int(factor)), ast.Mult(), ast.Name(name, ast.Load()))
    return None


def _new_param(form: BlockForm, role: str, column: list[Any], member: str) -> ast.expr:
    """A param for a number, under the name of the author's own attribute if it has one.

    role: what the number is called where it is given, to the member of the block that is called `member`.
    """
    values = _without_missing(column)
    for name in vars(form.first.module):
        if name.startswith("_") or name == "training":
            continue
        known = [vars(instance.module).get(name) for instance in form.instances]
        if all(type(a) is type(b) and a == b for a, b in zip(known, values, strict=True)):
            role = name
            break
    name = _ROLES.get(role, role)
    name = name if _unique(name, form) == name else _unique(f"{member.replace('.', '_')}_{name}", form)
    form.params[name] = values
    return ast.Name(name, ast.Load())


def _without_missing(column: list[Any]) -> list[Any]:
    known = [value for value in column if value is not MISSING]
    common = max(known, key=known.count)
    return [common if value is MISSING else value for value in column]


def _unique(name: str, form: BlockForm) -> str:
    taken = {*form.params, *form.first.entries, *form.first.calls[0].inputs}
    return next(one for one in (name, *(f"{name}_{i}" for i in range(2, 1000))) if one not in taken)


def _roles(instance: Instance) -> dict[Key, str]:
    """What each number of the entries is called where it is given."""
    roles: dict[Key, str] = {}
    for name, entry in instance.entries.items():
        found: dict[int, str] = {}
        for kind, call in named_calls(entry):
            _name_arguments(kind, call, found)
        for tree in expressions(entry):
            if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult):
                found[id(tree.right)] = "depth"
        for k, constant in enumerate(constants(entry)):
            roles["entry", name, k] = found.get(id(constant), "size")
    return roles


def _name_arguments(name: str, call: ast.Call, found: dict[int, str]) -> None:
    kind = find_type(name)
    names = list(inspect.signature(kind).parameters) if kind is not None else []
    pairs = [*zip(names, call.args, strict=False), *((one.arg, one.value) for one in call.keywords)]
    for argument, value in pairs:
        for part in walk(value):
            found.setdefault(id(part), str(argument))
