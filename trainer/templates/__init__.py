"""Templates: what a trainer, a dataset factory, a loss, an optimizer and an evaluation look like from outside."""

from trainer.templates.dataset import DatasetBundle, DatasetFactory
from trainer.templates.evaluation import Evaluation, EvaluationResult
from trainer.templates.loss import LossFactory
from trainer.templates.optim import OptimizerFactory
from trainer.templates.trainer import Batch, ComponentTrainer, NonFiniteGradient, Seed, StepOptions, StepOutput, Trainer

__all__ = [
    "Batch",
    "ComponentTrainer",
    "DatasetBundle",
    "DatasetFactory",
    "Evaluation",
    "EvaluationResult",
    "LossFactory",
    "NonFiniteGradient",
    "OptimizerFactory",
    "Seed",
    "StepOptions",
    "StepOutput",
    "Trainer",
]
