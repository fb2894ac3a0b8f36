"""Batch norm whose statistics and weights stay what they were loaded as."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenBatchNorm(nn.Module):
    """Batch norm in eval (Ioffe & Szegedy 2015, algorithm 2), always; what it holds are buffers, which never train.

    For backbones that are trained with batches too small for statistics (He et al. 2017, section 3.1, and DETR, ACT).
    It loads the weights of nn.BatchNorm*d.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(features))
        self.register_buffer("bias", torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, features, ...] -> the same shape."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # pyrefly: ignore
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # a BatchNorm counts them; here nothing reads them
        super()._load_from_state_dict(state_dict, prefix, *args)
