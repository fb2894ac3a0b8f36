"""Initialise: the values that parameters begin with where nothing else has set them."""

import torch
from torch import nn

from model_constructor.init import given_parameters

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@torch.no_grad()
def initialise(component: nn.Module) -> None:
    """Xavier for linear maps and attention (Glorot & Bengio 2010, equation 16), Kaiming for convolutions (He et al.
    2015, equation 10), ones and zeros for norms, zero biases. What a file's `init` filled or a type loaded stays."""
    given = given_parameters(component)
    for module in component.modules():
        own = {name: one for name, one in module._parameters.items() if one is not None and one not in given}
        if isinstance(module, nn.Linear):
            weights, fill = ("weight",), nn.init.xavier_uniform_
        elif isinstance(module, nn.MultiheadAttention):  # one packed projection, or three of different widths
            weights, fill = ATTENTION_WEIGHTS, nn.init.xavier_uniform_
        elif isinstance(module, nn.modules.conv._ConvNd):
            weights, fill = ("weight",), _kaiming_normal
        elif isinstance(module, NORMS):
            weights, fill = ("weight",), nn.init.ones_
        else:
            continue
        for name, parameter in own.items():
            if name in weights:
                fill(parameter)
            elif name in ("bias", "in_proj_bias"):
                nn.init.zeros_(parameter)


def _kaiming_normal(weight: torch.Tensor) -> torch.Tensor:
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")
