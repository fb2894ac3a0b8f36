"""Model: what a block becomes, an ordinary nn.Module with the author's names and a compiled forward."""

from __future__ import annotations

import ast
import copy
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn

from .block import Block
from .compiler import Compiled
from .source import dump, read_text


class Namespace(nn.Module):
    """Only holds its entries, so that their keys in a state dict get its name in front."""


class Member:
    """A parameter or buffer on its way into the module that will hold it."""

    def __init__(self, tensor: torch.Tensor, *, is_buffer: bool = False, persistent: bool = True) -> None:
        self.tensor = tensor
        self.is_buffer = is_buffer
        self.persistent = persistent


class GraphModel(nn.Module):
    """A network component built from YAML. Each distinct block has a subclass of its own, made by the compiler."""

    inputs: ClassVar[tuple[str, ...]]  # names of the forward's arguments, in order
    _returns: ClassVar[int | None]  # the length of the tuple it returns; None for one value or a dict
    _compiled: ClassVar[Compiled]

    def __init__(self, block: Block, params: Mapping[str, Any], members: Mapping[str, nn.Module | Member]) -> None:
        super().__init__()
        self._block = block
        self.params = dict(params)  # the value of every param of the block
        add_members(self, members)

    @property
    def spec(self) -> dict[str, Any]:
        """A document of plain values that builds the same model: one file, its params as they are here."""
        return {"schema_version": 2, **_document(self._block, self.params, self._block.visible_blocks())}

    @property
    def code(self) -> str:
        """The compiled Python of this model and of every block in it, each once, innermost first."""
        classes: dict[type, str] = {}
        for module in self.modules():
            if isinstance(module, GraphModel):
                classes.setdefault(type(module), module._block.name)
        return "\n\n\n".join(_class_code(kind, name) for kind, name in reversed(classes.items()))

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModel:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        memo[id(self._block)] = self._block  # declarations are never changed
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin

    def __reduce__(self):
        # A pickle carries data: the class is compiled again from the specification, never loaded as code.
        state = {key: value for key, value in self.__dict__.items() if key != "_block"}
        return _rebuild, (self._block.name, dump(self.spec)), state


def add_members(owner: nn.Module, members: Mapping[str, nn.Module | Member]) -> None:
    for name, member in members.items():
        if isinstance(member, nn.Module):
            owner.add_module(name, member)
        elif member.is_buffer:
            owner.register_buffer(name, member.tensor, persistent=member.persistent)
        else:
            owner.register_parameter(name, member.tensor)  # pyrefly: ignore


@cache
def _prototype(name: str, text: str) -> GraphModel:
    from .build import build_tree

    with torch.device("meta"):
        # What the file imports has to be imported already: a pickle opens no door that its reader did not open.
        return build_tree(read_text(text, f"<{name}>"), name, allow_imports=tuple(sys.modules))


def _rebuild(name: str, text: str) -> GraphModel:
    """An instance of the class of a specification, without its state."""
    prototype = _prototype(name, text)
    instance = type(prototype).__new__(type(prototype))
    nn.Module.__init__(instance)
    instance._block = prototype._block
    return instance


def _document(block: Block, params: Mapping[str, Any], blocks: Mapping[str, Block]) -> dict[str, Any]:
    """A block as plain values; blocks from files stand in it whole, with their schema_version and scope."""
    assert isinstance(block.node.value, dict)
    own = {key: node.plain for key, node in block.node.value.items()}
    document: dict[str, Any] = {"imports": own["imports"]} if "imports" in own else {}
    if params or "params" in own:
        document["params"] = dict(params) or own["params"]
    document["inputs"] = own.get("inputs") or {}
    if blocks:
        document["blocks"] = {
            name: ({"schema_version": 2} if inner.parent is None else {}) | _document(inner, {}, inner.blocks)
            for name, inner in blocks.items()
        }
    rest = ("modules", "graph", "outputs")
    return {**document, **{key: own[key] for key in rest if own.get(key) is not None}}


def _class_code(kind: type, name: str) -> str:
    compiled: Compiled = kind._compiled  # pyrefly: ignore
    header = ast.ClassDef(name, [_name("GraphModel")], [], [compiled.tree], [])
    helpers: Iterator[str] = (helper.code for helper in compiled.helpers)
    return "\n\n\n".join([*helpers, ast.unparse(ast.fix_missing_locations(header))])


def _name(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())
