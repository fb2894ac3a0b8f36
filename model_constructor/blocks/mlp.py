"""The feed-forward part of a transformer layer, plain and gated."""

from __future__ import annotations

from torch import Tensor, nn


class MLP(nn.Module):
    """Two linear layers with an activation between them (Vaswani et al. 2017, section 3.3).

    hidden [4 * dim], out [dim], activation [GELU()].
    """

    def __init__(
        self, dim: int, hidden: int | None = None, out: int | None = None, *, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        hidden = 4 * dim if hidden is None else hidden
        self.fc1 = nn.Linear(dim, hidden)
        self.activation = activation or nn.GELU()
        self.fc2 = nn.Linear(hidden, dim if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., dim] -> [..., out]."""
        return self.fc2(self.activation(self.fc1(x)))


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)): SwiGLU with SiLU, GEGLU with GELU (Shazeer 2020, section 2, equation 6).

    hidden [8 * dim / 3, rounded down, as many weights as a plain MLP of 4 * dim], out [dim], activation [SiLU()].
    """

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        out: int | None = None,
        *,
        activation: nn.Module | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        hidden = 8 * dim // 3 if hidden is None else hidden
        self.gate = nn.Linear(dim, hidden, bias=bias)
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.activation = activation or nn.SiLU()
        self.down = nn.Linear(hidden, dim if out is None else out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., dim] -> [..., out]."""
        return self.down(self.activation(self.gate(x)) * self.up(x))
