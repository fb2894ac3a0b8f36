"""A component that has what build args speak of: repeated blocks, dropout, batch statistics, a buffer, a Param."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml

from model_constructor import GraphModel, build_model
from model_constructor.errors import Place

TOWER = """\
schema_version: 2
params: {dim: 8, depth: 3, dropout: 0.2}
inputs: {x: [B, dim]}
blocks:
  layer:
    params: {dim: int, dropout: float}
    inputs: {h: [B, dim]}
    modules:
      q: Linear(dim, dim)
      mlp: Linear(dim, 4 * dim) >> GELU() >> Dropout(dropout) >> Linear(4 * dim, dim)
      norm: BatchNorm1d(dim)
    outputs: h + q(norm(h)) + mlp(h)
modules:
  token: Param(dim, init=normal)
  scale: Buffer(ones(1))
  layers: layer(**params) * depth
  head: Linear(dim, 2)
outputs: head(layers(x * scale + token))
"""


@pytest.fixture
def build_tower() -> Callable[..., GraphModel]:
    def build(seed: int = 0, **params: Any) -> GraphModel:
        torch.manual_seed(seed)
        return build_model(yaml.safe_load(TOWER), params=params)

    return build


@pytest.fixture
def tower(build_tower: Callable[..., GraphModel]) -> GraphModel:
    return build_tower()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(16, 8, generator=torch.Generator().manual_seed(1))  # [B, dim]


@pytest.fixture
def place() -> Callable[..., Place]:
    """Says which key was asked for."""
    return lambda *key: Place(".".join(key) or "section", 1, 1)
