"""A router that sends each token to k of many experts (Shazeer et al. 2017, section 2.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoisyTopKGate(nn.Module):
    """softmax(keep the k largest of (gate(x) + normal noise * softplus(noise(x)))): equations 3 to 5 of the paper.

    The noise is drawn in training alone. Both layers begin at zero, so that all experts begin with the same load.
    """

    def __init__(self, dim: int, experts: int, k: int = 2) -> None:
        super().__init__()
        if not 1 <= k <= experts:
            raise ValueError(f"k {k} is not from 1 to the number of experts, {experts}")
        self.k = k
        self.gate = nn.Linear(dim, experts, bias=False)
        self.noise = nn.Linear(dim, experts, bias=False)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.noise.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [..., dim] -> weights [..., experts], chosen [..., k], logits [..., experts].

        weights: what each expert's result counts; k of them are not zero, and they sum to 1.
        chosen: the experts with a weight, the heaviest first.
        logits: gate(x), before the noise; what the losses of balance and the z-loss are made of.
        """
        logits = self.gate(x)
        scores = logits + torch.randn_like(logits) * F.softplus(self.noise(x)) if self.training else logits
        kept, chosen = scores.topk(self.k, dim=-1)
        weights = torch.full_like(scores, -torch.inf).scatter(-1, chosen, kept).softmax(-1)
        return weights, chosen, logits
