"""Trainers: what a step minimises, one method of the field per file."""

from experiment_training.components.trainer import act, flow_matching

__all__ = ["act", "flow_matching"]
