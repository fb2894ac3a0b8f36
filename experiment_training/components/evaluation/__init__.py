"""Closed-loop evaluations; importing this package registers them."""

from experiment_training.components.evaluation.metaworld import MetaWorldEvaluation

__all__ = ["MetaWorldEvaluation"]
