"""Dtype: a component whose parameters and buffers are held in another precision than its neighbours'.

Its neighbours notice nothing: at its door every floating-point input is cast to its dtype, and every output back to
float32. What trains in bfloat16 is stepped in bfloat16, without a float32 copy: a step below 1/256 of a weight is lost.
So this is for what is frozen (or trained by LoRA, whose matrices stay float32); `train.precision: bf16` computes in
bfloat16 and keeps the weights that it steps in float32.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def set_dtype(component: nn.Module, dtype: torch.dtype) -> None:
    component.to(dtype)
    if dtype is not torch.float32:
        component.register_forward_pre_hook(CastInputs(dtype), with_kwargs=True)
        component.register_forward_hook(cast_outputs)


@dataclass(frozen=True)
class CastInputs:
    dtype: torch.dtype

    def __call__(self, component: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return cast(args, self.dtype), cast(kwargs, self.dtype)


def cast_outputs(component: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    return cast(output, torch.float32)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """The floating-point tensors in `value` as `dtype`, whatever tuples, lists and dicts they stand in."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(cast(one, dtype) for one in value)
    if isinstance(value, dict):
        return {key: cast(one, dtype) for key, one in value.items()}
    return value
