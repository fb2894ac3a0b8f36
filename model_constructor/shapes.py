"""Shapes: what every value of a graph will look like, found with no data and no memory; and the sizes that `_` needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .block import Block
from .construct import Construction, Sizes
from .graph import Graph
from .model import Member, add_members


class Skeleton(nn.Module):
    """A block whose members stand on the meta device, before it has a forward."""

    def __init__(self, graph: Graph, members: dict[str, nn.Module | Member], path: str) -> None:
        super().__init__()
        self._graph, self._path = graph, path
        add_members(self, members)


@dataclass(frozen=True, slots=True)
class Shapes:
    sizes: Sizes
    bytes: int  # of all parameters and buffers


def infer_shapes(block: Block, params: dict) -> Shapes:
    random_state = torch.get_rng_state()
    construction = Construction(Skeleton, defers=True)
    with torch.device("meta"):
        root = construction.block(block, params)
    torch.set_rng_state(random_state)
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*root.parameters(), *root.buffers()))
    return Shapes(construction.sizes, size)
