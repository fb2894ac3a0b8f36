"""ACT's loss: predicted actions, and the posterior of the latent -> L1 + kl_weight * KL (Zhao et al. 2023, alg. 1).

Both terms are means over the samples of a batch, so a step's weight is its batch size. As in the published code, and in
lerobot, padded actions count as errors of zero.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model_constructor.errors import ConfigError, Problem
from trainer.registry import LOSS_BUILDER_REGISTRY


class ActTerms(NamedTuple):
    """Each []."""

    loss: Tensor
    l1: Tensor
    kl: Tensor  # 0 without a posterior


class ActLoss(nn.Module):
    def __init__(self, kl_weight: float) -> None:
        super().__init__()
        self.kl_weight = kl_weight

    def forward(
        self,
        prediction: Tensor,  # [B, T, A]
        target: Tensor,  # [B, T, A]
        is_pad: Tensor,  # [B, T] behind the episode's end
        mean: Tensor | None = None,  # [B, L] of the latent's posterior; None in eval mode, and without a VAE
        log_variance: Tensor | None = None,  # [B, L]
    ) -> ActTerms:
        """In float32, also under autocast. ValueError for shapes that do not fit."""
        if prediction.shape != target.shape:  # broadcasting would compare every sample with every other
            raise ValueError(f"the prediction is {list(prediction.shape)} and its target {list(target.shape)}")
        error = prediction.float() - target.float()
        l1 = error.masked_fill(is_pad.unsqueeze(-1), 0.0).abs().mean()
        if mean is None or log_variance is None:
            return ActTerms(l1, l1, torch.zeros_like(l1))
        mean, log_variance = mean.float(), log_variance.float()
        # Kingma & Welling 2014, appendix B: KL of N(mean, variance) from N(0, 1), summed over the latent's dimensions
        kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1).mean()
        return ActTerms(l1 + self.kl_weight * kl, l1, kl)


@LOSS_BUILDER_REGISTRY.register("act_loss")
class ActLossFactory:
    def __init__(self, kl_weight: float = 10.0) -> None:
        if type(kl_weight) not in (int, float) or not 0 <= kl_weight < math.inf:
            raise ConfigError(Problem(f"kl_weight is {kl_weight!r}", hint="a number from 0; 10 is ACT's"))
        self.kl_weight = kl_weight

    def build(self) -> ActLoss:
        return ActLoss(self.kl_weight)
