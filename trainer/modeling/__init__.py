"""Modeling: component model files -> the modules that train, and the optimizers that step them."""

from trainer.modeling.build_args import apply_build_args
from trainer.modeling.factories import build_components
from trainer.modeling.lora import merge_lora
from trainer.modeling.table import Component, describe_components

__all__ = [
    "Component",
    "apply_build_args",
    "build_components",
    "describe_components",
    "merge_lora",
]
