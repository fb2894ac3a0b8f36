"""Trainers: what a step minimises, one method of the field per file."""

from experiment_training.components.trainer import act, flow_matching
from experiment_training.components.trainer.imitation_learning.cfg_vqvae_flow_matching import (
    cfg_vqvae_flow_matching_trainer,
)
from experiment_training.components.trainer.imitation_learning.mutual_information_estimator import (
    mutual_information_estimator_trainer,
)
from experiment_training.components.trainer.imitation_learning.naive_flow_matching_policy import (
    naive_flow_matching_policy_trainer,
)
from experiment_training.components.trainer.imitation_learning.variational_flow_matching_policy import (
    variational_flow_matching_policy_trainer,
)
from experiment_training.components.trainer.imitation_learning.vfp_single_expert import vfp_single_expert_trainer

__all__ = [
    "act",
    "cfg_vqvae_flow_matching_trainer",
    "flow_matching",
    "mutual_information_estimator_trainer",
    "naive_flow_matching_policy_trainer",
    "variational_flow_matching_policy_trainer",
    "vfp_single_expert_trainer",
]
