"""Trainers: what a step minimises, one method of the field per file."""

from experiment_training.components.trainer import flow_matching

__all__ = ["flow_matching"]
