"""Gaussian likelihood: numbers, and the Gaussian that is said of them -> nats that they are a surprise by."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trainer.registry import LOSS_BUILDER_REGISTRY


class GaussianNll(nn.Module):
    """-log N(target; mean, (W^T W)^-1), of each sample.

    W, which whitens target - mean, is lower triangular: `factor` below its diagonal, exp(factor) on it. In W the
    likelihood is concave, and any covariance has one.
    """

    def forward(self, target: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
        """[B, N], [B or 1, N], [N, N] -> [B]; float32 also under autocast. ValueError for shapes that do not fit."""
        size = target.shape[-1]
        if mean.shape not in (target.shape, (1, size)) or factor.shape != (size, size):
            found = f"a mean {list(mean.shape)} and a factor {list(factor.shape)}"
            raise ValueError(f"of numbers {list(target.shape)} a Gaussian is told by {found}")
        with torch.autocast(target.device.type, enabled=False):
            log_scale = factor.float().diagonal()  # [N]
            whitening = factor.float().tril(-1) + log_scale.exp().diag()
            white = (target.float() - mean.float()) @ whitening.T  # [B, N]
            return 0.5 * white.square().sum(-1) - log_scale.sum() + 0.5 * size * math.log(2 * math.pi)


@LOSS_BUILDER_REGISTRY.register("gaussian_nll")
class GaussianNllFactory:
    def build(self) -> GaussianNll:
        return GaussianNll()
