"""Registries: the names a train config may use -> the classes that stand behind them."""

from model_constructor import Registry

TRAINER_REGISTRY = Registry("trainer")
DATASET_BUILDER_REGISTRY = Registry("dataset factory")
OPTIMIZER_BUILDER_REGISTRY = Registry("optimizer")
LOSS_BUILDER_REGISTRY = Registry("loss")
EVALUATION_BUILDER_REGISTRY = Registry("evaluation")

__all__ = [
    "DATASET_BUILDER_REGISTRY",
    "EVALUATION_BUILDER_REGISTRY",
    "LOSS_BUILDER_REGISTRY",
    "OPTIMIZER_BUILDER_REGISTRY",
    "TRAINER_REGISTRY",
]
