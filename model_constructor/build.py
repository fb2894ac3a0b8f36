"""Build: a model file -> GraphModel, through the stages in their order."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .block import Block, bind_params, read_block
from .compiler import compile_class
from .config import load_config
from .construct import ANY_SIZE, Construction
from .errors import ConfigError, Problem
from .graph import Graph, build_graph
from .init import initialise
from .limits import TRUSTED, UNTRUSTED, limited, limits
from .lowering import lower
from .model import GraphModel, Member
from .name_check import check_names, unread_params
from .shapes import infer_shapes
from .source import Node
from .version1 import register_from


def build_model(
    source: str | Path | Mapping[str, Any],
    *,
    params: Mapping[str, Any] | None = None,
    overrides: str | Sequence[str] | Mapping[str, Any] = (),
    allow_imports: Sequence[str] = (),
    untrusted: bool = False,
) -> GraphModel:
    """Build the model that a YAML file describes.

    source: the file's path, or a document of plain values such as `GraphModel.spec`.
    params: values for the file's `params`, in place of its defaults.
    overrides: changes to the file itself, as `--set` has them: ["graph.h=stem(x)", "modules.head=null"], or a mapping
        from such key paths to plain values.
    allow_imports: packages that the file's `imports` may name; no file can import what is not allowed here.
    untrusted: read no variable of the environment (`${env:NAME,default}` is its default), and refuse a file that names
        files outside of its folder, or configurations and weights of others, or that is larger than what is built in
        2 s and 1 GB: 2,000 modules, 256 MiB.

    Raises ConfigError with all problems of the first stage that finds any, each with file, line and column.
    """
    overrides = [overrides] if isinstance(overrides, str) else overrides
    with limited(UNTRUSTED if untrusted else TRUSTED):
        return build_tree(load_config(source, overrides, model=True).tree, _name(source), params, allow_imports)


def compile_ir(source: str | Path | Mapping[str, Any], *, allow_imports: Sequence[str] = ()) -> Graph:
    """The checked graph of a model file, for its own params; no module is built. All else is as in `build_model`."""
    return build_graph(*_checked(load_config(source, model=True).tree, _name(source), {}, allow_imports))


def _name(source: str | Path | Mapping[str, Any]) -> str:
    return "model" if isinstance(source, Mapping) else re.sub(r"\W|^(?=\d)", "_", Path(source).stem)


def build_tree(
    tree: Node,
    name: str,
    params: Mapping[str, Any] | None = None,
    allow_imports: Sequence[str] = (),
) -> GraphModel:
    """As `build_model`, of a tree that has been read."""
    block, values = _checked(tree, name, params or {}, allow_imports)
    shapes = infer_shapes(block, values)
    _refuse_what_does_not_fit(block, shapes.bytes)
    return _construct(block, values, Construction(_finisher(), shapes.sizes, graphs=shapes.graphs))


def build_prototype(tree: Node, name: str, allow_imports: Sequence[str]) -> GraphModel:
    """A model of the class that `build_tree` would give, its sizes of no meaning: on the meta device, unchecked."""
    block, values = _checked(tree, name, {}, allow_imports)
    with torch.device("meta"):
        try:
            return _construct(block, values, Construction(_finisher(), assumed=ANY_SIZE))
        except ConfigError:  # a size that was assumed for a `_` does not do, and the true one has to be found
            shapes = infer_shapes(block, values)
            return _construct(block, values, Construction(_finisher(), shapes.sizes, graphs=shapes.graphs))


def _construct(block: Block, values: dict[str, Any], construction: Construction) -> GraphModel:
    model = construction.block(block, values)
    assert isinstance(model, GraphModel)
    return model


def _finisher() -> Callable[[Graph, dict[str, nn.Module | Member], str], GraphModel]:
    """What makes a GraphModel of a block and its members; equal uses of a block are lowered once."""
    compiled: dict[Graph, type[GraphModel]] = {}

    def finish(graph: Graph, members: dict[str, nn.Module | Member], path: str) -> GraphModel:
        if graph not in compiled:
            objects = {
                name: member.tensor if isinstance(member, Member) else member for name, member in members.items()
            }
            compiled[graph] = compile_class(graph.block, lower(graph, objects), GraphModel)
        model = compiled[graph](graph.block, graph.params, members)
        initialise(model)
        return model

    return finish


def _checked(
    tree: Node, name: str, params: Mapping[str, Any], allow_imports: Sequence[str]
) -> tuple[Block, dict[str, Any]]:
    """The declarations of a file, once what it imports is registered and its names are checked; and its params."""
    block = read_block(tree, name)
    for level in block.levels():
        if level.imports is not None:
            _import(level.imports, allow_imports)
    check_names(block)
    values = bind_params(block, params, {"": tree.place})
    in_vain = unread_params(block) & params.keys()
    problems = [
        Problem(f"nothing reads the param '{name}': to give it changes nothing.", hint=f"declared at {param.place}")
        for name, param in block.params.items()
        if name in in_vain and param.required is None  # what a file asks for has to be given
    ]
    if problems:
        raise ConfigError(problems)
    return block, values


def _refuse_what_does_not_fit(block: Block, size: int) -> None:
    """A model for another device is left to that device."""
    memory = limits().memory
    if size <= memory:
        return
    if limits().bytes is not None:
        message = f"the model takes {size / 2**20:,.0f} MiB; a file that is not trusted gets {memory / 2**20:,.0f} MiB."
        raise ConfigError(Problem(message, block.node.place))
    if torch.empty(0).device.type == "cpu":
        message = f"the model takes {size / 2**30:,.0f} GiB; this machine has {memory / 2**30:,.0f} GiB."
        raise ConfigError(Problem(message, block.node.place, "build it under torch.device('meta') to look at it"))


def _import(section: Node, allowed: Sequence[str]) -> None:
    """Import the modules that a file names, so that they can register their types and ops.

    An entry `package.module:Class` registers that class.
    """
    if not isinstance(section.value, list):
        raise ConfigError(Problem("'imports' is a list of Python modules.", section.place))
    problems = []
    for entry in section.value:
        name = entry.text.partition(":")[0]
        if not any(name == package or name.startswith(f"{package}.") for package in allowed):
            hint = f"the caller has to allow it: build_model(..., allow_imports=({name.split('.')[0]!r},))"
            problems.append(Problem(f"the import of '{name}' is not allowed.", entry.place, hint))
    if problems:
        raise ConfigError(problems)
    for entry in section.value:
        name, _, class_name = entry.text.partition(":")
        try:
            module = importlib.import_module(name)
        except (ImportError, ValueError, TypeError) as error:  # the last two for what is no module's name
            raise ConfigError(Problem(f"'{name}' cannot be imported: {error}.", entry.place)) from error
        register_from(module, class_name, entry.place)
