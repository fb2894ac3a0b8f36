"""Build: a model file -> GraphModel, through the stages in their order."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .block import Block, bind_params, read_block
from .compiler import compile_class
from .construct import Construction
from .errors import ConfigError, Problem
from .graph import Graph, check_names
from .lowering import lower
from .model import GraphModel, Member
from .shapes import infer_shapes
from .source import Node, dump, read_file, read_text


def build_model(
    source: str | Path | Mapping[str, Any],
    *,
    params: Mapping[str, Any] | None = None,
    allow_imports: Sequence[str] = (),
) -> GraphModel:
    """Build the model that a YAML file describes.

    source: the file's path, or a document of plain values such as `GraphModel.spec`.
    params: values for the file's `params`, in place of its defaults.
    allow_imports: packages that the file's `imports` may name; no file can import what is not allowed here.

    Raises ConfigError with all problems of the first stage that finds any, each with file, line and column.
    """
    if isinstance(source, Mapping):
        return build_tree(read_text(dump(dict(source)), "<specification>"), "model", Path(), params, allow_imports)
    name = re.sub(r"\W|^(?=\d)", "_", Path(source).stem)
    return build_tree(read_file(source), name, Path(source).parent, params, allow_imports)


def build_tree(
    tree: Node,
    name: str,
    base: Path = Path(),
    params: Mapping[str, Any] | None = None,
    allow_imports: Sequence[str] = (),
) -> GraphModel:
    """As `build_model`, of a tree that has been read; `base` is the folder its paths are relative to."""
    block = read_block(tree, name, base)
    for level in block.levels():
        if level.imports is not None:
            _import(level.imports, allow_imports)
    check_names(block)
    values = bind_params(block, params or {}, {"": tree.place})
    forward_shapes = infer_shapes(block, values)
    _refuse_what_does_not_fit(block, forward_shapes.bytes)
    compiled: dict[Graph, type[GraphModel]] = {}

    def finish(graph: Graph, members: dict[str, nn.Module | Member], path: str) -> GraphModel:
        if graph not in compiled:
            objects = {
                name: member.tensor if isinstance(member, Member) else member for name, member in members.items()
            }
            compiled[graph] = compile_class(graph.block, lower(graph, objects), GraphModel)
        return compiled[graph](graph.block, graph.params, members)

    model = Construction(finish, forward_shapes.sizes).block(block, values)
    assert isinstance(model, GraphModel)
    return model


def _refuse_what_does_not_fit(block: Block, size: int) -> None:
    """A model for another device is left to that device."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if torch.get_default_device().type == "cpu" and size > memory:
        message = f"the model takes {size / 2**30:,.0f} GiB; this machine has {memory / 2**30:,.0f} GiB."
        raise ConfigError(Problem(message, block.node.place, "build it under torch.device('meta') to look at it"))


def _import(section: Node, allowed: Sequence[str]) -> None:
    """Import the modules that a file names, so that they can register their types and ops."""
    if not isinstance(section.value, list):
        raise ConfigError(Problem("'imports' is a list of Python modules.", section.place))
    problems = []
    for entry in section.value:
        name = entry.text
        if not any(name == package or name.startswith(f"{package}.") for package in allowed):
            hint = f"the caller has to allow it: build_model(..., allow_imports=({name.split('.')[0]!r},))"
            problems.append(Problem(f"the import of '{name}' is not allowed.", entry.place, hint))
    if problems:
        raise ConfigError(problems)
    for entry in section.value:
        try:
            importlib.import_module(entry.text)
        except (ImportError, ValueError, TypeError) as error:  # the last two for what is no module's name
            raise ConfigError(Problem(f"'{entry.text}' cannot be imported: {error}.", entry.place)) from error
