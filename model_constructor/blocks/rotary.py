"""Rotary position embedding: queries and keys turned by an angle that grows with their position (Su et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RotaryEmbedding(nn.Module):
    """Turns the two halves of each vector against each other, by angles position * base ** (-2i / E).

    RoFormer (Su et al. 2021, section 3.2.2), in the layout of Llama and Gemma: entry i forms a pair with entry
    i + E / 2 (RoFormer itself pairs neighbours; the same up to a fixed order of the entries). It has no state.
    The product of a turned query and a turned key depends on the distance of their positions alone.
    """

    def __init__(self, base: float = 10_000.0) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """x [..., T, E], E even -> the same shape and dtype; the angles are computed in float32.

        positions: [T], or [B, T] for each member of a batch x [B, ..., T, E]; 0 to T - 1 if absent.
        """
        return rotate(x, *rotation(x, positions, self.base))


def rotation(x: Tensor, positions: Tensor | None, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, E / 2] or [B, 1..., T, E / 2] that turn x [B, ..., T, E]."""
    width = x.shape[-1]
    if width % 2:
        raise ValueError(f"rotary positions turn pairs of entries; a width of {width} is odd")
    if positions is None:
        positions = torch.arange(x.shape[-2], device=x.device)
    exponents = torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width
    angles = positions[..., None] * base**-exponents
    while 2 < angles.ndim < x.ndim:
        angles = angles[:, None]  # over the dimensions between batch and time, such as heads
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
