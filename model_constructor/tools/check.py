"""`model-constructor check`: everything that is wrong in model files, or the shapes of what is right."""

from __future__ import annotations

import argparse
import os.path
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..block import Block, Value, expressions
from ..errors import ConfigError, Place, Problem
from ..model import GraphModel
from ..name_check import unread_params
from ..shapes import Row, Shapes, infer_shapes
from .arguments import add_imports, add_overrides, add_untrusted, build_without_memory
from .table import cut, folded, table, terminal_width
from .watch import watch

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))


class _Written(NamedTuple):
    block: Block
    text: str


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "check",
        help="say everything that is wrong in model files, or show the shape of every node",
        description="Say everything that is wrong in model files. Of a file in which nothing is, show the shape of "
        "every node, of the model and of each distinct use of a block; of several files, a line each. "
        "No weights are made.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    add_overrides(parser)
    add_imports(parser)
    add_untrusted(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="say only what is wrong")
    parser.add_argument("--watch", action="store_true", help="check again whenever a file changes, until Ctrl-C")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    if given.watch:
        return watch(given.files, lambda: print("ok" if _check(given) == 0 and given.quiet else ""))
    return _check(given)


def _check(given: argparse.Namespace) -> int:
    status = 0
    for path in given.files:
        try:
            model = build_without_memory(path, given)
            shapes = infer_shapes(model._block, model.params)
        except ConfigError as error:
            print(error, file=sys.stderr)
            status = 1
            continue
        if given.quiet:
            continue
        before = f"{path}  " if len(given.files) > 1 else f"{shape_table(model, shapes, str(Path(path)))}\n\n"
        notes = "".join(f"{note.place}  {note.message}\n" for note in (*shapes.notes, *_unread(model._block)))
        print(f"{before}{notes}{_total(model, shapes)}: no problems")
    return status


def _unread(block: Block) -> Iterator[Problem]:
    for level in block.levels():
        for name in sorted(unread_params(level)):
            yield Problem(f"nothing reads the param '{name}'.", level.params[name].place)


def _total(model: GraphModel, shapes: Shapes) -> str:
    size, unit = next((shapes.bytes / u, name) for u, name in _UNITS if shapes.bytes >= u or u == 1)
    return f"{sum(p.numel() for p in model.parameters()):,} parameters, {size:.{int(unit != 'bytes')}f} {unit}"


def shape_table(model: GraphModel, shapes: Shapes, path: str) -> str:
    """Node, shape, expression and line: of the model, then of each distinct use of a block."""
    written = written_at(model._block)
    titles: dict[int, str] = {}  # by the number of the row that they stand above
    lines: list[list[str]] = []
    for title, rows in _sections(model, shapes, written):
        home = rows[0].place.file if title else path
        titles[len(lines)] = (title or path) + (f"  in {os.path.normpath(home)}" if home != path else "")
        names: list[str] = []
        for row, after in zip(rows, [*rows[1:], None], strict=True):
            names.append(row.name)
            if after and (after.place, after.shape) == (row.place, row.shape):  # `k, v: ...`
                continue
            elsewhere = "" if row.place.file == home else f"{os.path.basename(row.place.file)}:"
            lines.append([f"  {', '.join(names)}", row.shape, written[row.place].text, f"{elsewhere}{row.place.line}"])
            names = []
    text = table(lines, right=(3,)).splitlines()
    for number, title in reversed(titles.items()):
        text[number:number] = ["", cut(title, terminal_width())] if number else [cut(title, terminal_width())]
    return "\n".join(text)


def _sections(model: GraphModel, shapes: Shapes, written: Mapping[Place, _Written]) -> Iterator[tuple[str, list[Row]]]:
    """The rows of each distinct use of a block, and whose they are; those of the model come first, without a title."""
    modules = {p: m for p, m in model.named_modules(remove_duplicate=False) if isinstance(m, GraphModel)}
    of_call: dict[tuple[Place, str], list[str]] = {}
    for path, module in modules.items():
        of_call.setdefault((module._block.node.place, call_text(module._block, module.params)), []).append(path)
    alike: dict[tuple, list[str]] = {}  # what is the same in some uses -> the paths of these
    for path, block, rows in uses(shapes.rows, written):
        home, module = block.node.place, modules.get(path)
        call = ""
        if module is not None and module._block.node.place == home:
            call = call_text(module._block, module.params)
        paths = alike.setdefault((home, call, tuple((row.name, row.shape, row.place) for row in rows)), [])
        paths += [] if path in paths else [path]
    ways = Counter((home, call) for home, call, _ in alike)
    for (home, call, said), paths in alike.items():
        if call and ways[home, call] == 1:
            paths = of_call[home, call]  # the pass runs the first of equal modules only
        name = written[said[0][2]].block.name
        title = f"{folded(paths)}  {call}" if call else f"{name}, called by {folded(paths) or 'the model'}"
        yield "" if call and paths == [""] else title, [Row(paths[0], *row) for row in said]


def uses(rows: Iterable[Row], written: Mapping[Place, _Written]) -> list[tuple[str, Block, list[Row]]]:
    """The rows of a use stand in its order, but those of what it calls stand between them."""
    uses: list[tuple[str, Block, list[Row]]] = []
    current: dict[tuple[str, Place], list[Row]] = {}
    for row in rows:
        block = written[row.place].block
        key = (row.path, block.node.place)
        if key not in current or any(row.name == known.name for known in current[key]):  # a use has no name twice
            current[key] = []
            uses.append((row.path, block, current[key]))
        current[key].append(row)
    return uses


def call_text(block: Block, params: Mapping[str, Any]) -> str:
    """One use of a block as its constructor would be written out."""
    return f"{block.name}({', '.join(f'{name}={value!r}' for name, value in params.items())})"


def written_at(root: Block) -> dict[Place, _Written]:
    """What is written at the place of each row."""
    found: dict[Place, _Written] = {}
    for block in root.levels():
        assert block.outputs is not None
        first = next(expressions(block.outputs), None)
        found[first.place() if first else block.node.place] = _Written(block, value_text(block.outputs))
        found |= {declared.place: _Written(block, "input") for declared in block.inputs.values()}
        found |= {statement.place: _Written(block, value_text(statement.value)) for statement in block.graph.values()}
    return found


def value_text(value: Value) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {value_text(entry)}' for name, entry in value.items())}}}"
    return " ".join(value.text.split())
