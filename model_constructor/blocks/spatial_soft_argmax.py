"""Where each feature map is active, as a point (Levine et al. 2016, section 5.1; Finn et al. 2016, section V-A)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SpatialSoftArgmax(nn.Module):
    """The mean position of each map under the softmax of its values over the image.

    temperature: divides the values; a small one approaches the position of the maximum.
    learned: makes the temperature a parameter.
    """

    def __init__(self, temperature: float = 1.0, *, learned: bool = False) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature {temperature} is not positive")
        self.temperature = nn.Parameter(torch.tensor(float(temperature))) if learned else temperature

    def forward(self, maps: Tensor) -> Tensor:
        """maps [..., H, W] -> [..., 2]: x from -1 (left) to 1 (right), y from -1 (top) to 1 (bottom), by float32."""
        height, width = maps.shape[-2:]
        weights = (maps.float() / self.temperature).flatten(-2).softmax(-1).unflatten(-1, (height, width))
        x = (weights.sum(-2) * torch.linspace(-1, 1, width, device=maps.device)).sum(-1)
        y = (weights.sum(-1) * torch.linspace(-1, 1, height, device=maps.device)).sum(-1)
        return torch.stack([x, y], dim=-1).to(maps.dtype)
