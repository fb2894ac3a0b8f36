"""Compiler: the Python syntax tree of a block -> a function, and one class per distinct function.

Nothing is interpreted when the model runs, and every position in the function is one of the YAML file.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .block import Block, tuple_length

_classes: dict[tuple, type] = {}
_functions: dict[tuple, Callable[..., Any]] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """A function of a block: its tree (positions in the YAML file), the file, and the globals it reads."""

    tree: ast.FunctionDef
    file: str
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
