"""Losses: what a step minimises."""

from experiment_training.components.loss import flow_matching, l2

__all__ = ["flow_matching", "l2"]
