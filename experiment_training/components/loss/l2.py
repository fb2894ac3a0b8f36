"""L2: prediction and target -> mean squared error over what is valid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.registry import LOSS_BUILDER_REGISTRY


class L2Loss(nn.Module):
    """`valid` masks steps [B, T] or single dimensions [B, T, A]; the valid count is the denominator."""

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """[B, T, A] and [B, T, A] -> []; float32 also under autocast."""
        error = prediction.float() - target.float()
        if valid is None:
            return error.square().mean()
        if valid.ndim < error.ndim:
            valid = valid.unsqueeze(-1)
        valid = valid.expand_as(error)
        # masked before the square: 0 * NaN is NaN, in the loss and in its gradient
        return torch.where(valid, error, 0.0).square().sum() / valid.sum().clamp(min=1)


@LOSS_BUILDER_REGISTRY.register("l2_loss")
class L2LossFactory:
    def build(self) -> L2Loss:
        return L2Loss()
