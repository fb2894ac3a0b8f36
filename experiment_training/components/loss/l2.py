"""L2: prediction and target -> mean squared error over what is valid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.registry import LOSS_BUILDER_REGISTRY


class L2Loss(nn.Module):
    """`valid` masks steps [B, T] or single dimensions [B, T, A]; the valid count is the denominator.

    A trainer tells `valid.sum()` as the weight of its step, so that the mean over micro-batches, ranks and validation
    batches is the mean over what is valid in all of them.
    """

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """[B, T, A] and [B, T, A] -> []; float32 also under autocast. ValueError for shapes that do not fit."""
        if prediction.shape != target.shape:  # broadcasting would compare every sample with every other
            raise ValueError(f"the prediction is {list(prediction.shape)} and its target {list(target.shape)}")
        error = prediction.float() - target.float()
        if valid is None:
            return error.square().mean()
        valid = expand_valid(valid, error)
        # masked before the square: 0 * NaN is NaN, in the loss and in its gradient
        return torch.where(valid, error, 0.0).square().sum() / valid.sum().clamp(min=1)


def expand_valid(valid: Tensor, like: Tensor) -> Tensor:
    """A mask of samples [B], steps [B, T] or dimensions [B, T, A] in the shape of `like` [B, T, A]."""
    if valid.dtype != torch.bool or valid.shape != like.shape[: valid.ndim]:
        raise ValueError(
            f"`valid` is {valid.dtype} {list(valid.shape)}; a mask of {list(like.shape)} is torch.bool in the shape of "
            f"{list(like.shape[:2])} (steps) or {list(like.shape)} (dimensions)"
        )
    return valid.view(*valid.shape, *(1,) * (like.ndim - valid.ndim)).expand_as(like)


@LOSS_BUILDER_REGISTRY.register("l2_loss")
class L2LossFactory:
    def build(self) -> L2Loss:
        return L2Loss()
