"""The feed-forward part of a transformer layer (Vaswani et al. 2017, section 3.3)."""

from __future__ import annotations

from torch import Tensor, nn


class MLP(nn.Module):
    """Two linear layers with an activation between them. hidden [4 * dim], out [dim], activation [GELU()]."""

    def __init__(
        self, dim: int, hidden: int | None = None, out: int | None = None, *, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        hidden = hidden or 4 * dim
        self.fc1 = nn.Linear(dim, hidden)
        self.activation = activation or nn.GELU()
        self.fc2 = nn.Linear(hidden, out or dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., dim] -> [..., out]."""
        return self.fc2(self.activation(self.fc1(x)))
