"""Compiler: the Python syntax tree of a block -> a function, and one class per distinct function.

Nothing is interpreted when the model runs, and every position in the function is one of the YAML file.
"""

from __future__ import annotations

import ast
import linecache
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any
from weakref import WeakValueDictionary

from .block import Block
from .source import SourceFile

Held = tuple[str, int | None]  # "tuple", "list" or "dict", and how many values it holds, if that is known

# As long as a model uses them.
_classes: WeakValueDictionary[tuple, type] = WeakValueDictionary()
_functions: WeakValueDictionary[tuple, Callable[..., Any]] = WeakValueDictionary()


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
    returns: Held | None
    needs_training: bool
    device_name: str  # of the argument with which a helper is given the device of what it creates; "" if it has none

    def listings(self) -> Iterator[str]:
        """The code of the functions it calls, and its own."""
        for helper in self.helpers:
            yield from helper.listings()
        yield ast.unparse(self.tree)

    def function(self) -> Callable[..., Any]:
        """The compiled function; equal trees give the same function object."""
        module = ast.Module(body=[self.tree], type_ignores=[])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # `1 is None` is what its author wrote
            code = compile(module, self.file, "exec")
        values = tuple(sorted((name, id(value)) for name, value in self.scope.items()))
        key = (self.file, _identity(code), values)
        function = _functions.get(key)
        if function is None:
            scope = dict(self.scope)
            exec(code, scope)
            _functions[key] = function = scope[self.tree.name]
        return function


def compile_class(block: Block, compiled: Compiled, base: type) -> type:
    """A subclass of `base` whose `forward` is the compiled function. Equal functions of a block share one class."""
    forward = compiled.function()
    key = (base, block.name, tuple(block.inputs), forward)
    kind = _classes.get(key)
    if kind is None:
        members = {
            "__module__": base.__module__,
            "__doc__": f"The block '{block.name}' of {block.node.source.name}.",
            "forward": forward,
            "inputs": tuple(block.inputs),
            "_returns": compiled.returns,
            "_compiled": compiled,
        }
        _classes[key] = kind = type(block.name, (base,), members)
    return kind


def _identity(code: CodeType) -> tuple:
    """What two code objects that do the same at the same places have in common."""
    constants = (_identity(c) if isinstance(c, CodeType) else (type(c), repr(c)) for c in code.co_consts)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return code.co_code, code.co_firstlineno, code.co_linetable, names, *constants
