"""Model: what a block becomes, an ordinary nn.Module with the author's names and a compiled forward."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
import yaml
from torch import nn

from .block import Block
from .compiler import Compiled


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
    returns: ClassVar[int | None]  # the length of the tuple it returns; None for one value or a dict
    compiled: ClassVar[Compiled]

    def __init__(self, block: Block, params: Mapping[str, Any], members: Mapping[str, nn.Module | Member]) -> None:
        super().__init__()
        self.block = block
        self.params = dict(params)  # the value of every param of the block
        add_members(self, members)

    @property
    def spec(self) -> dict[str, Any]:
        """A document of plain values that builds the same model: one file, its params as they are here."""
        return {"schema_version": 2, **_document(self.block, self.params, self.block.visible_blocks())}

    @property
    def code(self) -> str:
        """The compiled Python of this model and of every block in it, each once, innermost first."""
        classes: dict[type, str] = {}
        for module in self.modules():
            if isinstance(module, GraphModel):
                classes.setdefault(type(module), module.block.name)
        return "\n\n\n".join(_class_code(kind, name) for kind, name in reversed(classes.items()))

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModel:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        memo[id(self.block)] = self.block  # declarations are never changed
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin

    def __reduce__(self):
        # A pickle carries data: the class is compiled again from the specification, never loaded as code.
        state = {key: value for key, value in self.__dict__.items() if key != "block"}
        return _rebuild, (yaml.safe_dump(self.spec, sort_keys=False),), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)


def add_members(owner: nn.Module, members: Mapping[str, nn.Module | Member]) -> None:
    for name, member in members.items():
        if isinstance(member, nn.Module):
            owner.add_module(name, member)
        elif member.is_buffer:
            owner.register_buffer(name, member.tensor, persistent=member.persistent)
        else:
            owner.register_parameter(name, member.tensor)  # pyrefly: ignore


def _rebuild(text: str) -> GraphModel:
    """An instance of the class of a specification, without its state."""
    from .build import build_model

    if text not in _rebuilt:
        with torch.device("meta"):
            _rebuilt[text] = build_model(yaml.safe_load(text))
    twin = _rebuilt[text]
    instance = type(twin).__new__(type(twin))
    nn.Module.__init__(instance)
    instance.block = twin.block
    return instance


_rebuilt: dict[str, GraphModel] = {}


def _document(block: Block, params: Mapping[str, Any], blocks: Mapping[str, Block]) -> dict[str, Any]:
    assert isinstance(block.node.value, dict)
    own = {key: node.plain for key, node in block.node.value.items() if key not in ("schema_version", "blocks")}
    document: dict[str, Any] = {}
    if "imports" in own:
        document["imports"] = own.pop("imports")
    if params or block.params:
        document["params"] = dict(params) or own["params"]
    own.pop("params", None)
    document["inputs"] = own.pop("inputs", {})
    if blocks:
        document["blocks"] = {name: _document(inner, {}, inner.blocks) for name, inner in blocks.items()}
    return {**document, **own}


def _class_code(kind: type, name: str) -> str:
    compiled: Compiled = kind.compiled  # pyrefly: ignore
    header = ast.ClassDef(name, [_name("GraphModel")], [], [compiled.tree], [])
    helpers: Iterator[str] = (helper.code for helper in compiled.helpers)
    return "\n\n\n".join([*helpers, ast.unparse(ast.fix_missing_locations(header))])


def _name(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())
