"""Mixture-of-experts terms: a router's logits -> what keeps it small, and what keeps its experts equally busy.

They are added to a step's own loss, e.g. to `gated_velocity_loss`. Logits are [..., E]: E experts, any number of tokens
before them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model_constructor.errors import ConfigError, Problem
from trainer.registry import LOSS_BUILDER_REGISTRY


class RouterZLoss(nn.Module):
    """coefficient * mean over tokens of logsumexp(logits)^2: Zoph et al. 2022 (arXiv 2202.08906), eq. 5 and 6."""

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient

    def forward(self, logits: Tensor, valid: Tensor | None = None) -> Tensor:
        """Logits [..., E], valid tokens [...] -> []; float32 also under autocast."""
        tokens_NE, share_N = _tokens(logits, valid)
        return self.coefficient * (share_N * tokens_NE.logsumexp(dim=-1).square()).sum()


class SwitchLoadBalancingLoss(nn.Module):
    """coefficient * E * sum over experts of f * P: Fedus et al. 2021 (arXiv 2101.03961), eq. 4 to 6.

    f is the share of the tokens whose first choice an expert is (no gradient), P the mean of its probability. The least
    value is the coefficient, at a uniform router. Both are means over the tokens given: ranks and micro-batches are
    balanced each by itself, as in the paper, so two processes are not equal to one with the doubled batch.
    """

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient

    def forward(self, logits: Tensor, valid: Tensor | None = None) -> Tensor:
        """Logits [..., E], valid tokens [...] -> []; float32 also under autocast."""
        tokens_NE, share_N = _tokens(logits, valid)
        experts = logits.shape[-1]
        fraction_E = (share_N[:, None] * nn.functional.one_hot(tokens_NE.argmax(dim=-1), experts)).sum(dim=0)
        probability_E = (share_N[:, None] * tokens_NE.softmax(dim=-1)).sum(dim=0)
        return self.coefficient * experts * (fraction_E * probability_E).sum()


def gated_velocity_loss(velocities: Tensor, target: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
    """The experts' squared errors over the valid steps of a chunk, by the gate's weights; the mean over chunks.

    Velocities [B, E, T, A], target [B, T, A], weights [B, E], valid steps [B, T] -> []; float32 also under autocast.
    Each expert is compared with the target itself, so that experts compete for chunks instead of mending each other's
    errors: Jacobs et al. 1991 (Adaptive mixtures of local experts, Neural Computation 3), eq. 1.2.
    """
    if velocities[:, 0].shape != target.shape or valid.shape != target.shape[:2]:
        shapes = ", ".join(str(list(one.shape)) for one in (velocities, target, valid))
        raise ValueError(f"velocities, target and valid do not fit each other: {shapes}")
    valid_B1T = valid[:, None]
    # masked before it is squared: 0 * NaN is NaN, in the loss and in its gradient
    difference_BETA = torch.where(valid_B1T[..., None], velocities.float() - target.float()[:, None], 0.0)
    errors_BE = difference_BETA.square().mean(dim=-1).sum(dim=-1) / valid_B1T.sum(dim=-1).clamp(min=1)
    return (weights * errors_BE).sum(dim=-1).mean()


def _tokens(logits: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits [..., E] -> float32 [N, E], and the share [N] that each token has in a mean: 0 if it is not valid."""
    tokens = logits.shape[:-1]
    if valid is None:
        valid = torch.ones(tokens, dtype=torch.bool, device=logits.device)
    if valid.dtype != torch.bool or valid.shape != tokens:
        raise ValueError(f"`valid` is {valid.dtype} {list(valid.shape)}, the tokens are {list(tokens)}")
    # masked before anything is computed: 0 * NaN is NaN, in the loss and in its gradient
    kept = torch.where(valid[..., None], logits.float(), 0.0)
    return kept.flatten(0, -2), (valid / valid.sum().clamp(min=1)).flatten()


@LOSS_BUILDER_REGISTRY.register("router_z_loss")
class RouterZLossFactory:
    def __init__(self, coefficient: float = 1e-3) -> None:
        self.coefficient = _checked(coefficient)

    def build(self) -> RouterZLoss:
        return RouterZLoss(self.coefficient)


@LOSS_BUILDER_REGISTRY.register("switch_load_balancing_loss")
class SwitchLoadBalancingLossFactory:
    def __init__(self, coefficient: float = 1e-2) -> None:
        self.coefficient = _checked(coefficient)

    def build(self) -> SwitchLoadBalancingLoss:
        return SwitchLoadBalancingLoss(self.coefficient)


def _checked(coefficient: float) -> float:
    if type(coefficient) not in (int, float) or not (coefficient >= 0 and math.isfinite(coefficient)):
        raise ConfigError(Problem(f"coefficient is {coefficient!r}", hint="a number, 0 or above"))
    return float(coefficient)
