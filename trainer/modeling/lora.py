"""LoRA (Hu et al. 2021, equation 3): a linear layer W x + b becomes W x + b + alpha / rank * B A x; only A and B train.

The layer stays the object that it was, under the name that its author gave, and gets two parameters: `q.weight`,
`q.bias`, `q.lora_A` [rank, in], `q.lora_B` [out, rank]. A and B are float32 also where the layer is not, since steps
as small as theirs are lost in bfloat16. (peft puts a wrapper in the layer's place, so that `q.weight` becomes
`q.base_layer.weight` in every file; the tests hold these lines to its results.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_constructor import select
from model_constructor.errors import Place, Problem
from trainer.modeling.problems import PlaceOf, collected, refuse

if TYPE_CHECKING:
    from trainer.config.schemas import Lora


@dataclass(frozen=True)
class LoraUpdate:
    """The forward hook that adds the update. A hook also turns off torch's fused paths, which read weights alone."""

    scale: float  # alpha / rank
    dropout: float  # of the update's input, in training

    def __call__(self, layer: Any, args: Sequence[Tensor], kwargs: Mapping[str, Tensor], output: Tensor) -> Tensor:
        x = args[0] if args else kwargs["input"]  # [..., in]
        x = F.dropout(x.to(layer.lora_A.dtype), self.dropout, layer.training)
        update = F.linear(F.linear(x, layer.lora_A), layer.lora_B)  # [..., out]
        return output + (update * self.scale).to(output.dtype)


def add_lora(component: nn.Module, lora: Lora, place: PlaceOf) -> None:
    """Give each linear layer that `targets` select an update, which is zero at first, and train nothing else.

    Raises ConfigError for a target that is no linear layer, or whose weight is used without calling the layer.
    """
    problems: list[Problem] = []
    layers: dict[str, nn.Linear] = {}
    called_otherwise = {id(one.out_proj) for one in component.modules() if isinstance(one, nn.MultiheadAttention)}
    for position, selector in enumerate(lora.targets):
        where = place("lora", "targets", str(position))
        with collected(problems):
            for name, layer in select(selector, component, where).items():
                if isinstance(layer, nn.Linear) and "weight" in layer._parameters and id(layer) not in called_otherwise:
                    layers[name] = layer
                else:
                    problems.append(_no_target(selector, name, layer, where))
    if not layers and not problems:
        problems.append(Problem("lora: its targets name no layer", place("lora", "targets")))
    refuse(problems)
    component.requires_grad_(False)
    alpha = lora.rank if lora.alpha is None else lora.alpha
    for layer in dict.fromkeys(layers.values()):  # a layer under two names has one update
        a = torch.empty(lora.rank, layer.in_features, device=layer.weight.device)
        b = torch.zeros(layer.out_features, lora.rank, device=layer.weight.device)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))  # as torch fills a linear layer
        layer.lora_A, layer.lora_B = nn.Parameter(a), nn.Parameter(b)
        layer.register_forward_hook(LoraUpdate(alpha / lora.rank, lora.dropout), with_kwargs=True)


@torch.no_grad()
def merge_lora(component: nn.Module) -> None:
    """Add every update to its weight and take A, B and the hook away: the model that the file describes, for export."""
    for layer, number, update in list(_updates(component)):
        weight: Tensor = layer.weight  # [out, in]
        weight.copy_(weight.float() + update.scale * (layer.lora_B.float() @ layer.lora_A.float()))
        del layer.lora_A, layer.lora_B, layer._forward_hooks[number], layer._forward_hooks_with_kwargs[number]


def has_lora(component: nn.Module) -> bool:
    return next(_updates(component), None) is not None


def _updates(component: nn.Module) -> Iterator[tuple[Any, int, LoraUpdate]]:
    for layer in component.modules():
        for number, hook in layer._forward_hooks.items():
            if isinstance(hook, LoraUpdate):
                yield layer, number, hook


def _no_target(selector: str, name: str, found: nn.Module | Tensor, place: Place | None) -> Problem:
    if isinstance(found, nn.Linear):
        message = f"lora: the weight of '{name}' is used without calling the layer, or computed from others"
        return Problem(message, place, "nn.MultiheadAttention does so; the block Attention calls q, k, v and out")
    message = f"lora: '{name}' is {type(found).__name__}, not a linear layer"
    inside = isinstance(found, nn.Module) and any(isinstance(one, nn.Linear) for one in found.modules())
    return Problem(message, place, f"those inside it are '{selector}.type:Linear'" if inside else "")
