"""Templates: what a trainer, a dataset factory, a loss, an optimizer and an evaluation look like from outside."""

from trainer.templates.dataset import DatasetBundle, DatasetFactory
from trainer.templates.evaluation import Evaluation, EvaluationResult
from trainer.templates.loss import LossFactory
from trainer.templates.optim import OptimizerFactory
from trainer.templates.trainer import ComponentTrainer, NonFiniteGradient, StepOutput, Trainer

__all__ = [
    "ComponentTrainer",
    "DatasetBundle",
    "DatasetFactory",
    "Evaluation",
    "EvaluationResult",
    "LossFactory",
    "NonFiniteGradient",
    "OptimizerFactory",
    "StepOutput",
    "Trainer",
]
