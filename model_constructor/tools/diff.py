"""`model-constructor diff`: what is different between two models, and what becomes of the weights of the first."""

from __future__ import annotations

import argparse
import ast
import copy
import json
import math
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ..block import Block, Input, Value, expressions
from ..errors import ConfigError
from ..model import GraphModel
from ..shapes import infer_shapes
from ..weights import fit_weights
from .arguments import add_imports, add_overrides, add_sizes, build_without_memory
from .measure import check_sizes, measure
from .table import folded, numberless, short, table

SECTIONS = ("params", "inputs", "modules", "graph", "outputs", "init")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "diff",
        help="show what is different between two models, and which tensors of a checkpoint still load",
        description="Show what is different between two models: what is written, parameters, multiply-adds, and what "
        "becomes of the tensors of a checkpoint of A in B. No weights are made. The exit status is 0 where both "
        "compute the same and begin with the same values, 1 where they do not, and 2 where a file is wrong.",
    )
    parser.add_argument("before", metavar="A")
    parser.add_argument("after", metavar="B", help="may be A again, with other values by --set")
    add_overrides(parser, "set values of B, as in --set params.depth=2")
    add_sizes(parser)
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    add_imports(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    try:
        before = build_without_memory(given.before, argparse.Namespace(**{**vars(given), "overrides": []}))
        after = build_without_memory(given.after, given)
        found = compare(before, after, dict(given.size))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        overrides = f"  --set {' '.join(given.overrides)}" if given.overrides else ""
        print(f"- {given.before}\n+ {given.after}{overrides}\n\n{as_text(found)}")
    return 0 if found["equal"] else 1


def compare(before: GraphModel, after: GraphModel, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What is different between two models that stand on the meta device, as plain values.

    sizes: of symbols, for the multiply-adds. Raises ConfigError for a size of no symbol of either.
    """
    check_sizes(sizes, {*before._block.symbols, *after._block.symbols})
    models = (before, after)
    counted = [measure(model, {k: v for k, v in sizes.items() if k in model._block.symbols}) for model in models]
    same = before.architecture_hash == after.architecture_hash
    return {
        "equal": same and _initial(before) == _initial(after),
        "same_architecture": same,
        "blocks": _blocks(before, after),
        "outputs": [_output(model) for model in models],
        "parameters": [sum(parameter.numel() for parameter in model.parameters()) for model in models],
        "multiply_adds": [one.multiply_adds.get(model) for model, one in zip(models, counted, strict=True)],
        "note": next((one.note for one in counted if one.note), ""),
        "tensors": _tensors(before, after),
    }


# what is written


def _blocks(before: GraphModel, after: GraphModel) -> dict[str, Any]:
    """Block -> section -> name -> its text before and after, where these differ; of a block that only one has, None."""
    old, new = dict(_levels(before._block)), dict(_levels(after._block))
    found: dict[str, Any] = {}
    for path in {**old, **new}:
        if path in old and path in new:
            values = [before.params, after.params] if path == "" else [{}, {}]
            renamed, texts = _aligned(*(_written(level[path], v) for level, v in zip((old, new), values, strict=True)))
            changes: dict[str, Any] = {"renamed": renamed} if renamed else {}
            for section in SECTIONS:
                one, other = (text[section] for text in texts)
                pairs = {name: [one.get(name), other.get(name)] for name in {**one, **other}}
                changes |= {section: pairs} if (pairs := {n: p for n, p in pairs.items() if p[0] != p[1]}) else {}
            found |= {path: changes} if changes else {}
        else:
            found[path] = "new" if path in new else "gone"
    return found


def _levels(block: Block, path: str = "") -> Iterator[tuple[str, Block]]:
    yield path, block
    for name, inner in block.blocks.items():
        yield from _levels(inner, f"{path}.{name}" if path else name)


def _written(block: Block, params: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Section -> name -> text, without spaces and quotes that say nothing."""
    assert block.outputs is not None
    defaults = {name: one.default if one.required else repr(one.default) for name, one in block.params.items()}
    return {
        "params": defaults | {name: repr(value) for name, value in params.items()},
        "inputs": {name: _input(declared) for name, declared in block.inputs.items()},
        "modules": {name: _text(value) for name, value in block.modules.items()},
        "graph": {key: _text(statement.value) for key, statement in block.graph.items()},
        "outputs": {"": _text(block.outputs)},
        "init": {name: _text(value) for name, value in block.init.items()},
    }


def _input(declared: Input) -> str:
    sizes = ("..." if one is None else str(one) if isinstance(one, int) else _text(one) for one in declared.shape or ())
    shape = "any" if declared.shape is None else f"[{', '.join(sizes)}]"
    return " ".join(filter(None, (shape, declared.dtype, "optional" if declared.optional else "")))


def _text(value: Value) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name!r}: {_text(entry)}' for name, entry in value.items())}}}"
    return ast.unparse(value.tree)


def _aligned(old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, str], tuple[dict[str, Any], dict[str, Any]]]:
    """Nodes that only have other names, and the texts of both, the old one with the names of the new one."""
    renamed: dict[str, str] = {}
    while True:
        gone = {text: key for key, text in old["graph"].items() if key not in new["graph"]}
        come = {text: key for key, text in new["graph"].items() if key not in old["graph"]}
        both = [(gone[text], come[text]) for text in gone if text in come]
        if not both:
            return renamed, (old, new)
        was, is_ = both[0]
        names = dict(zip(_targets(was), _targets(is_), strict=False))
        renamed[was] = is_
        graph = {is_ if key == was else key: _renamed(text, names) for key, text in old["graph"].items()}
        old = {**old, "graph": graph, "outputs": {"": _renamed(old["outputs"][""], names)}}


def _targets(key: str) -> list[str]:
    return [name.strip() for name in key.split(",")]


def _renamed(text: str, names: Mapping[str, str]) -> str:
    tree = ast.parse(text)
    for part in ast.walk(tree):
        if isinstance(part, ast.Name):
            part.id = names.get(part.id, part.id)
    return ast.unparse(tree)


def _initial(model: GraphModel) -> list[str]:
    """Everything that gives initial values, with the params that it uses filled in."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, GraphModel):
            block = module._block
            given = [(name, one.tree) for name, value in block.init.items() for one in expressions(value)]
            given += [(name, tree) for name, value in block.modules.items() for tree in _initialisers(value)]
            found += [f"{path} {name}: {_with_values(tree, module.params)}" for name, tree in given]
    return found


def _initialisers(value: Value) -> Iterator[ast.expr]:
    """Of the parameters in a module, as in `Param(3, init=normal)`."""
    for expression in expressions(value):
        for part in ast.walk(expression.tree):
            if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id == "Param":
                yield from (keyword.value for keyword in part.keywords if keyword.arg == "init")
                yield from (value for value in part.args if isinstance(value, ast.List))  # Param([1.0, 2.0])


def _with_values(tree: ast.expr, values: Mapping[str, Any]) -> str:
    tree = copy.deepcopy(tree)
    for part in ast.walk(tree):
        if isinstance(part, ast.Name) and part.id in values:
            part.id = repr(values[part.id])
    return ast.unparse(tree)


# what becomes of weights


def _output(model: GraphModel) -> str:
    rows = infer_shapes(model._block, model.params).rows
    return next((row.shape for row in rows if (row.path, row.name) == ("", "outputs")), "")


def _tensors(before: GraphModel, after: GraphModel) -> dict[str, list[dict[str, Any]]]:
    """What becomes of each tensor of a checkpoint: it loads, has another size, is new, or nothing needs it."""
    found: dict[str, list[dict[str, Any]]] = {"load": [], "resize": [], "new": [], "orphaned": []}
    for one in fit_weights(after, before.state_dict()).tensors:
        if one.status == "shape differs":
            found["resize"].append({"name": one.ours, "shapes": [one.their_shape, one.shape]})
        elif one.status == "unexpected":
            found["orphaned"].append({"name": one.theirs, "shape": one.their_shape})
        else:
            kind = "new" if one.status in ("missing", "handled") else "load"
            found[kind].append({"name": one.ours, "shape": one.shape})
    return found


# as text


def as_text(found: Mapping[str, Any]) -> str:
    """What `compare` found, for a reader."""
    if found["equal"]:
        head = "They compute the same, and begin with the same values"
        head += "; they are written differently:" if found["blocks"] else "."
    elif found["same_architecture"]:
        head = "They compute the same from the same weights, and begin with other values:"
    else:
        head = ""
    parts = [head, *(_block_text(path, changes) for path, changes in found["blocks"].items())]
    if not found["equal"]:
        parts += [_numbers(found), _tensor_text(found["tensors"])]
    return "\n\n".join(filter(None, parts))


def _block_text(path: str, changes: str | Mapping[str, Any]) -> str:
    if isinstance(changes, str):
        return f"{'+' if changes == 'new' else '-'} block {path}"
    lines = [f"block {path}"] if path else []
    for section, entries in changes.items():
        lines += [section] if section != "outputs" else []
        for name, entry in entries.items():
            if section == "renamed":
                lines.append(f"    {name} -> {entry}")
            elif section == "params" and None not in entry:
                lines.append(f"    {name}: {' -> '.join(entry)}")
            else:
                signed = zip("-+", entry, strict=True)
                start = f"  {{}} {name}" if section != "outputs" else "{} outputs"
                lines += [f"{start.format(sign)}: {text}" for sign, text in signed if text is not None]
    return "\n".join(lines)


def _numbers(found: Mapping[str, Any]) -> str:
    rows = [["", "before", "after", ""]]
    for name in ("parameters", "multiply_adds"):
        one, other = found[name]
        if one is not None and other is not None:
            change = f"{other - one:+,}  {(other - one) / one:+.1%}" if one and other != one else ""
            rows.append([name.replace("_", "-"), f"{one:,}", f"{other:,}", change])
    text = table(rows, right=(1, 2, 3))
    if found["outputs"][0] != found["outputs"][1]:
        text += f"\noutputs  {found['outputs'][0]} -> {found['outputs'][1]}"
    return text + (f"\nmultiply-adds are not counted: {found['note']}" if found["note"] else "")


def _tensor_text(tensors: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{len(found)} {kind}" for kind, found in tensors.items() if found)
    known = {one["name"] for kind in ("load", "resize", "new") for one in tensors[kind]}
    old = {one["name"] for kind in ("load", "resize", "orphaned") for one in tensors[kind]}
    alike: dict[tuple, list[str]] = {}
    for one in tensors["resize"]:
        alike.setdefault((numberless(one["name"]), *map(str, map(list, one["shapes"]))), []).append(one["name"])
    rows = [["resize", folded(names), f"{was} -> {is_}"] for (_, was, is_), names in alike.items()]
    rows += _gathered("new", tensors["new"], known) + _gathered("orphaned", tensors["orphaned"], old)
    return f"of the tensors of a checkpoint of A, in B: {counts}" + (f"\n{table(rows)}" if rows else "")


def _gathered(label: str, tensors: list[dict[str, Any]], known: Collection[str]) -> list[list[str]]:
    """A line for the modules of which all tensors are among these; those that differ in numbers alone together."""
    names = {one["name"]: one["shape"] for one in tensors}
    others = {prefix for name in known if name not in names for prefix in _prefixes(name)}
    below: dict[str, list[str]] = {}
    for name in names:
        below.setdefault(next((prefix for prefix in _prefixes(name) if prefix not in others), name), []).append(name)
    alike: dict[tuple, list[str]] = {}
    for path, inside in below.items():
        size = sum(math.prod(names[name] or ()) for name in inside)
        alike.setdefault((numberless(path), len(inside), size), []).append(path)
    rows = []
    for (_, count, size), paths in alike.items():
        total = f"{len(paths) * count} tensors, " if len(paths) * count > 1 else ""
        rows.append([label, folded(paths), f"{total}{short(len(paths) * size)} values"])
    return rows


def _prefixes(name: str) -> list[str]:
    """The modules that a tensor is in, from the outside, and the tensor."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
