"""Sinusoidal embedding of times and positions (Vaswani et al. 2017, section 3.5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """Cosines and sines of a value at dim / 2 geometric frequencies, 1 to 1 / max_period (Vaswani et al. 2017, 3.5)."""

    def __init__(self, dim: int, max_period: float = 10_000.0) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim {dim} is odd; half of it are cosines, half sines")
        self.dim = dim
        self.max_period = max_period

    def forward(self, x: Tensor) -> Tensor:
        """x [...] -> [..., dim], cosines first, computed in float32; of x's dtype, or float32 of whole numbers."""
        half = self.dim // 2
        exponents = torch.arange(half, device=x.device, dtype=torch.float32) / half
        angles = x[..., None] * torch.exp(-math.log(self.max_period) * exponents)
        embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return embedding.to(x.dtype) if x.is_floating_point() else embedding
