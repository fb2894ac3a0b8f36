"""Steps: what a forward does, as data; and sizes of tensors, which know where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

_ARITHMETIC = {"__add__": "+", "__sub__": "-", "__mul__": "*", "__floordiv__": "//", "__mod__": "%"}


class Ref(NamedTuple):
    """A value: the number of a node, and the way into what that gives."""

    node: int
    path: tuple[int | str, ...] = ()


class SizeOf(NamedTuple):
    """The size of a dimension of a value."""

    value: Ref
    dim: int


class Computed(NamedTuple):
    """A size computed from others."""

    op: str
    left: Any
    right: Any


class Sized(NamedTuple):
    """A number among the arguments of a call, and how it is computed from sizes."""

    number: int
    origin: SizeOf | Computed


class Size(int):
    """A size of a tensor, while a module runs. `recorded` is the graph in which `origin` has its meaning."""

    recorded: Recorded
    origin: Any

    @staticmethod
    def of(number: int, recorded: Recorded, origin: Any) -> Size:
        size = Size(number)
        size.recorded, size.origin = recorded, origin
        return size


def _arithmetic(name: str, symbol: str) -> None:
    plain = getattr(int, name)

    def compute(self: Size, other: Any) -> Any:
        number = plain(self, other)
        if not isinstance(other, int) or isinstance(other, bool):
            return number
        right = other.origin if isinstance(other, Size) and other.recorded is self.recorded else int(other)
        return Size.of(number, self.recorded, Computed(symbol, self.origin, right))

    def reflected(self: Size, other: Any) -> Any:
        number = getattr(int, f"__r{name[2:]}")(self, other)
        if not isinstance(other, int) or isinstance(other, bool):
            return number
        return Size.of(number, self.recorded, Computed(symbol, int(other), self.origin))

    setattr(Size, name, compute)
    setattr(Size, f"__r{name[2:]}", reflected)


for _name, _symbol in _ARITHMETIC.items():
    _arithmetic(_name, _symbol)


class Sizes(tuple):
    """`x.shape`. A torch.Size would turn its entries into plain integers."""

    def numel(self) -> int:
        result: int = 1
        for size in self:
            result = result * size
        return result


@dataclass(slots=True)
class Node:
    """A step of a forward. kind: input, tensor (a parameter or buffer), call (of a module), op, method, operator,
    item or attribute; `target` is a name, or the path of a module or tensor."""

    kind: str
    target: str
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    name: str = ""  # what the author calls the result
    optional: bool = False  # of a call: other modules of the class do without it
    arity: int = 0  # of a result that is a tuple or list


@dataclass(slots=True, eq=False)
class Recorded:
    """What one call of a module did; `outputs` is made of Refs and constants."""

    path: str
    module: nn.Module
    nodes: list[Node] = field(default_factory=list)
    values: dict[int, Ref] = field(default_factory=dict)  # by the identity of the tensor
    alive: list[Any] = field(default_factory=list)  # whose identities are in use
    inputs: dict[str, Any] = field(default_factory=dict)  # name -> the shape and dtype, or None for what is no tensor
    outputs: Any = None
    variables: dict[str, Ref] = field(default_factory=dict)  # what the author calls the parts of results

    def add(self, node: Node) -> Ref:
        self.nodes.append(node)
        return Ref(len(self.nodes) - 1)

    def bind(self, value: Any, ref: Ref) -> None:
        """The tensors in a value are known as parts of `ref` from here on."""
        if isinstance(value, Tensor):
            self.values[id(value)] = ref
            self.alive.append(value)
        elif isinstance(value, list | tuple):
            if not ref.path:
                self.nodes[ref.node].arity = len(value)
            for i, entry in enumerate(value):
                self.bind(entry, Ref(ref.node, (*ref.path, i)))
        elif isinstance(value, Mapping):
            for name, entry in value.items():
                self.bind(entry, Ref(ref.node, (*ref.path, name)))
