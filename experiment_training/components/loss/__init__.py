"""Losses: what a step minimises."""

from experiment_training.components.loss import act, flow_matching, gaussian_nll, l2, mixture_of_experts, sinkhorn_knopp

__all__ = ["act", "flow_matching", "gaussian_nll", "l2", "mixture_of_experts", "sinkhorn_knopp"]
