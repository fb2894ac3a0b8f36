"""Compiler: the Python syntax tree of a block -> a function, and one class per distinct function.

Nothing is interpreted when the model runs, and every position in the function is one of the YAML file.
"""

from __future__ import annotations

import ast
import linecache
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .block import Block, tuple_length
from .source import SourceFile

_classes: dict[tuple, type] = {}
_functions: dict[tuple, Callable[..., Any]] = {}


class Listing:
    """The text that tracebacks of a function show: the file of its block, and behind it what else its expressions
    come from (a base file, an override), since a function has one file only.
    """

    def __init__(self, main: SourceFile) -> None:
        self.lines: list[str] = []
        self.lines_before = {main: 0}  # of each source in the listing
        self._append(main)

    def add(self, source: SourceFile) -> int:
        """How many lines stand before those of `source`."""
        if source not in self.lines_before:
            self.lines.append(f"# {source.name}")
            self.lines_before[source] = len(self.lines)
            self._append(source)
        return self.lines_before[source]

    def _append(self, source: SourceFile) -> None:
        self.lines += source.lines if source.lines[-1] else source.lines[:-1]  # what is behind the last line end

    def remember(self) -> str:
        """The file name under which tracebacks show the text as it is now, even if a file has changed since."""
        main, *others = dict.fromkeys(source.name for source in self.lines_before)
        name = f"{main} with {', '.join(others)}" if others else main
        lines = [f"{line}\n" for line in self.lines]
        known = linecache.cache.get(name)
        if known is not None and (len(known) != 4 or known[2] != lines):
            name = f"{name}@{zlib.crc32(''.join(lines).encode()):08x}"
        linecache.cache[name] = (0, None, lines, name)  # no mtime: never taken for stale
        return name


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """A function of a block: its tree (positions in the listing), the listing, and the globals it reads."""

    block: Block
    tree: ast.FunctionDef
    listing: Listing
    file: str  # what tracebacks call the listing
    scope: dict[str, Any]
    helpers: tuple[Compiled, ...]  # blocks without modules, compiled to functions of their own
    needs_training: bool

    @property
    def code(self) -> str:
        return "\n\n\n".join([*(helper.code for helper in self.helpers), ast.unparse(self.tree)])

    def key(self) -> tuple:
        scope = tuple(sorted((name, id(value)) for name, value in self.scope.items()))
        return (self.file, ast.dump(self.tree, include_attributes=True), scope)

    def function(self) -> Callable[..., Any]:
        """The compiled function; equal trees give the same function object."""
        key = self.key()
        if key not in _functions:
            module = ast.Module(body=[self.tree], type_ignores=[])
            scope = dict(self.scope)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # `1 is None` is what its author wrote
                exec(compile(module, self.file, "exec"), scope)
            _functions[key] = scope[self.tree.name]
        return _functions[key]


def compile_class(block: Block, compiled: Compiled, base: type) -> type:
    """A subclass of `base` whose `forward` is the compiled function. Equal functions of a block share one class."""
    returns = tuple_length(block.outputs)
    key = (base, block.name, tuple(block.inputs), returns, compiled.key())
    if key not in _classes:
        members = {
            "__module__": base.__module__,
            "__doc__": f"The block '{block.name}' of {block.node.source.name}.",
            "forward": compiled.function(),
            "inputs": tuple(block.inputs),
            "_returns": returns,
            "_compiled": compiled,
        }
        _classes[key] = type(block.name, (base,), members)
    return _classes[key]
