"""Model: what a block becomes, an ordinary nn.Module with the author's names and a compiled forward."""

from __future__ import annotations

import ast
import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling

from .block import Block
from .compiler import Compiled, Held
from .failure import explain, trace_begins
from .interpolation import escaped
from .source import Node, dump, read_text
from .version1 import rename_weights

if TYPE_CHECKING:
    from .tap import Taps


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
    _returns: ClassVar[Held | None]  # what it returns; None for one value, and where that is not known
    _compiled: ClassVar[Compiled]

    def __init__(self, block: Block, params: Mapping[str, Any], members: Mapping[str, nn.Module | Member]) -> None:
        super().__init__()
        self._block = block
        self.params = dict(params)  # the value of every param of the block
        add_members(self, members)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_dynamo_compiling() and trace_begins():
            return nn.Module.__call__(self, *args, **kwargs)
        try:
            return nn.Module.__call__(self, *args, **kwargs)
        except Exception as error:
            if not is_dynamo_compiling():
                explain(error, self)
            raise

    @property
    def spec(self) -> dict[str, Any]:
        """A document of plain values that builds the same model: one file, its params as they are here."""
        return {"schema_version": 2, **_document(self._block, self.params, self._block.visible_blocks(), {})}

    @property
    def code(self) -> str:
        """The compiled Python of this model and of every block in it, each once, innermost first."""
        classes: dict[type, str] = {}
        for module in self.modules():
            if isinstance(module, GraphModel):
                classes.setdefault(type(module), module._block.name)
        parts = (part for kind, name in reversed(classes.items()) for part in _class_code(kind, name))
        return "\n\n\n".join(dict.fromkeys(parts))

    @property
    def architecture_hash(self) -> str:
        """SHA-256, in hexadecimal, of what the model computes: of its graph and modules, not of its weights.

        Names of nodes, params and blocks, order of nodes, comments and files do not count, nor do initial values.
        Names of inputs and modules do, and any op, constant, argument or wire, and what is a node of its own.
        """
        from .architecture import architecture_hash

        return architecture_hash(self._block, self.params)

    def tap(self, *selectors: str) -> AbstractContextManager[Taps]:
        """The values inside the model, while the context is open:

            with model.tap("h", "layers[*].a", "head") as taps:
                model(x)
            taps["layers.0.a"]

        selectors: of nodes of the graph, also in inner blocks, and of modules (what they return). Nodes of a block
        without modules have no path. A name that was computed more than once has the list of its values. The values are
        the tensors themselves, with their gradients. Raises ConfigError for a selector that names nothing.
        """
        from .tap import open_taps

        return open_taps(self, selectors)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.yaml`, the specification, and `model.safetensors`, the weights, into a folder; no code.

        A file that is there is replaced when the new one is complete. Raises ConfigError for a model that its
        specification does not describe any more, because modules were exchanged.
        """
        from .saving import save

        save(self, folder)

    @staticmethod
    def from_pretrained(
        folder: str | Path, *, device: torch.device | str | None = None, allow_imports: Sequence[str] = ()
    ) -> GraphModel:
        """The model that `save_pretrained` wrote, in training mode, each weight in the dtype it was saved in.

        device: where the weights are read to, without a second copy on the way; the default device if None.
        allow_imports: as for `build_model`. Raises ConfigError where the files are damaged or do not fit each other.
        """
        from .saving import load

        return load(folder, device, allow_imports)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> GraphModel:
        """What the file gives a value has it again after `to_empty` from the meta device; see `init.restore`."""
        from .init import restore

        on_meta = {name for name, tensor in _tensors(self) if tensor.is_meta}
        super()._apply(fn, recurse)
        left = {name for name, tensor in _tensors(self) if name in on_meta and not tensor.is_meta}
        if left:
            restore(self, left)
        return self

    def _load_from_state_dict(self, state_dict, prefix, metadata, *rest) -> None:  # pyrefly: ignore[bad-override]
        """Checkpoints of version 1 load, too: their keys begin with `graph_modules.`.

        A model that leaves the meta device by `assign=True` has the Buffers that no state dict holds where its weights
        are; see `init.compute_buffers`.
        """
        from .init import compute_buffers

        rename_weights(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, metadata, *rest)
        device = next((value.device for value in state_dict.values() if isinstance(value, torch.Tensor)), None)
        if metadata.get("assign_to_params_buffers") and device is not None:
            compute_buffers(self, device)

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModel:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        memo[id(self._block)] = self._block  # declarations are never changed
        twin.__dict__ = copy.deepcopy(self._untapped(), memo)
        return twin

    def __reduce__(self):
        # A pickle carries data: the class is compiled again from the specification, never loaded as code.
        state = {key: value for key, value in self._untapped().items() if key != "_block"}
        return _rebuild, (self._block.name, dump(self.spec)), state

    def _untapped(self) -> dict[str, Any]:
        """The attributes without what an open tap has set, and without compiled code, which would call this model."""
        own = {key: value for key, value in self.__dict__.items() if key != "_compiled_call_impl"}
        return {key: value for key, value in own.items() if key != "forward" or not hasattr(value, "taps")}


def add_members(owner: nn.Module, members: Mapping[str, nn.Module | Member]) -> None:
    for name, member in members.items():
        if isinstance(member, nn.Module):
            owner.add_module(name, member)
        elif member.is_buffer:
            owner.register_buffer(name, member.tensor, persistent=member.persistent)
        else:
            owner.register_parameter(name, member.tensor)  # pyrefly: ignore


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers, what is shared under each of its names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


@lru_cache(maxsize=128)
def _prototype(name: str, text: str) -> GraphModel:
    """A model of the class that a specification describes, one for all that ask; its sizes mean nothing."""
    from .build import build_prototype

    # What the file imports has to be imported already: a pickle opens no door that its reader did not open.
    return build_prototype(read_text(text, f"<{name}>"), name, allow_imports=tuple(sys.modules))


def _rebuild(name: str, text: str) -> GraphModel:
    """An instance of the class of a specification, without its state."""
    known = _prototype(name, text)
    instance = type(known).__new__(type(known))
    nn.Module.__init__(instance)
    instance._block = known._block
    return instance


def _document(
    block: Block, params: Mapping[str, Any], blocks: Mapping[str, Block], around: Mapping[str, Block]
) -> dict[str, Any]:
    """A block as plain values, with the blocks inside it and those that are known `around` it.

    Blocks from files stand in it whole, with their schema_version and scope. A block that means another one by a name
    than the document does at its place holds that one itself.
    """
    assert isinstance(block.node.value, dict)
    own = {key: node.plain for key, node in block.node.value.items()}
    document: dict[str, Any] = {"imports": own["imports"]} if "imports" in own else {}
    if params or "params" in own:
        document["params"] = escaped(dict(params)) or own["params"]
    document["inputs"] = own.get("inputs") or {}
    known = {**around, **blocks}
    for name, inner in blocks.items():
        meant = {} if inner.parent is None else inner.parent.visible_blocks()
        hidden = {other: one for other, one in meant.items() if known.get(other) is not one and one is not inner}
        version = {"schema_version": 2} if inner.parent is None else {}
        inside = _document(inner, {}, {**hidden, **inner.blocks}, {} if inner.parent is None else known)
        document.setdefault("blocks", {})[name] = version | inside
    rest = ("modules", "graph", "outputs", "init")
    return {**document, **{key: _expressions(block.node.value[key]) for key in rest if own.get(key) is not None}}


def _expressions(node: Node) -> Any:
    """What a section holds: `False` in it is an expression, which YAML takes for its own false."""
    if isinstance(node.value, bool):
        return node.text
    if isinstance(node.value, list):
        return [_expressions(entry) for entry in node.value]
    if isinstance(node.value, dict):
        return {key: _expressions(entry) for key, entry in node.value.items()}
    return node.value


def _class_code(kind: type, name: str) -> Iterator[str]:
    """The functions that a class calls, and the class."""
    compiled: Compiled = kind._compiled  # pyrefly: ignore
    for helper in compiled.helpers:
        yield from helper.listings()
    header = ast.ClassDef(name, [_name("GraphModel")], [], [compiled.tree], [])
    yield ast.unparse(ast.fix_missing_locations(header))


def _name(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())
