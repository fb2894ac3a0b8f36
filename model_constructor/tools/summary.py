"""`model-constructor summary`: the modules of a model with their output shapes, parameters and multiply-adds."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..model import GraphModel, Namespace
from .arguments import add_imports, add_overrides, add_sizes, build_without_memory, levels
from .measure import Measured, measure
from .table import short, table

_AUTHORED = (GraphModel, Namespace, nn.ModuleList, nn.Sequential)  # what is inside them stands in the file


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "summary",
        help="show the modules of a model: output shapes, parameters, multiply-adds",
        description="Show the modules of a model as its file has them. Equal neighbours are one line, with the numbers "
        "of one of them. Multiply-adds are those of matrix products and convolutions. No weights are made.",
    )
    parser.add_argument("file", metavar="FILE")
    add_overrides(parser)
    add_sizes(parser)
    parser.add_argument("--depth", type=levels, metavar="N", help="show N levels, also of what is inside a type")
    add_imports(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    model = build_without_memory(given.file, given)
    measured = measure(model, dict(given.size))
    print(module_table(model, measured, given.depth, Path(given.file).name))
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    print(f"\n{total:,} parameters, {f'{total - frozen:,} of them' if frozen else 'all'} trainable")
    if measured.note:
        print(f"multiply-adds are not counted: {measured.note}")
    else:
        sizes = {name: dict(given.size).get(name, 1) for name in model._block.symbols}  # only B may be missing
        of = f" for {', '.join(f'{name}={size}' for name, size in sizes.items())}" if sizes else ""
        print(f"{measured.multiply_adds[model]:,} multiply-adds{of}")
    return 0


@dataclass(frozen=True, slots=True)
class _Line:
    """A module, or a parameter of a block."""

    name: str
    kind: str
    shape: str
    parameters: int
    trainable: int
    multiply_adds: int
    below: tuple[_Line, ...] = ()


def module_table(model: GraphModel, measured: Measured, depth: int | None, name: str) -> str:
    """A line per module: name, type or block, output, parameters, those that train if not all do, multiply-adds."""
    root = replace(_line(name, model, measured, depth), kind="")
    all_train = all(parameter.requires_grad for parameter in model.parameters())
    counted = bool(measured.multiply_adds)
    header = ["module", "", "output", "parameters", "trainable", "multiply-adds"]
    columns = [0, 1, 2, 3, *([] if all_train else [4]), *([5] if counted else [])]
    rows = [[cells[i] for i in columns] for cells in (header, *_rows(root, 0))]
    return table(rows, right=range(3, len(columns)))


def _rows(line: _Line, level: int) -> Iterator[list[str]]:
    cells = [
        short(line.parameters) if line.parameters else "",
        short(line.trainable) if line.parameters else "",
        short(line.multiply_adds) if line.multiply_adds else "",
    ]
    yield [f"{'  ' * level}{line.name}", line.kind, line.shape, *cells]
    for below in line.below:
        yield from _rows(below, level + 1)


def _line(name: str, module: nn.Module, measured: Measured, depth: int | None) -> _Line:
    below: tuple[_Line, ...] = ()
    if depth != 0 and (depth is not None or isinstance(module, _AUTHORED)):
        below = tuple(_folded(_entries(module, measured, None if depth is None else depth - 1)))
    return _Line(
        name,
        _kind(module),
        measured.shapes.get(module, ""),
        sum(p.numel() for p in module.parameters()),
        sum(p.numel() for p in module.parameters() if p.requires_grad),
        multiply_adds(module, measured),
        below,
    )


def _kind(module: nn.Module) -> str:
    if isinstance(module, GraphModel):
        return module._block.name
    return "" if isinstance(module, Namespace) else type(module).__name__


def multiply_adds(module: nn.Module, measured: Measured) -> int:
    """Of a list or namespace, which is not called itself, the sum of what it holds."""
    if module in measured.multiply_adds:
        return measured.multiply_adds[module]
    return sum(multiply_adds(child, measured) for child in module.children())


def _entries(module: nn.Module, measured: Measured, depth: int | None) -> Iterator[_Line]:
    """What a module holds, in the order of its file."""
    own: dict[str, Any] = dict(module._modules)
    if isinstance(module, GraphModel | Namespace):
        own |= {**module._parameters, **module._buffers}
    order = list(module._block.modules) if isinstance(module, GraphModel) else list(own)
    for name in order:
        entry = own.get(name)
        if isinstance(entry, nn.Module):
            yield _line(name, entry, measured, depth)
        elif isinstance(entry, Tensor):
            kind = "Param" if isinstance(entry, nn.Parameter) else "Buffer"
            count = entry.numel() if kind == "Param" else 0
            shape = f"[{', '.join(map(str, entry.shape))}]"
            yield _Line(name, kind, shape, count, count if entry.requires_grad else 0, 0)


def _folded(lines: Iterator[_Line]) -> Iterator[_Line]:
    """Equal neighbours of a list as one line."""
    for _, group in itertools.groupby(lines, lambda line: replace(line, name="") if line.name.isdecimal() else line):
        alike = list(group)
        first, last = alike[0], alike[-1]
        if len(alike) == 1:
            yield first
        else:
            yield replace(first, name=f"{first.name}-{last.name}", kind=f"{len(alike)} x {first.kind}")
