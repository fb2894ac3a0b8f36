"""Naive flow-matching policy: (state, images, actions) -> loss of the predicted velocity; (state, images) -> actions.

Components: a `<camera>_backbone(image) -> tokens` for each camera, `info_embedder(state, tokens) -> context` and
`action_decoder(x_t, time, context) -> velocity`. No latent: what is random in an action comes from the noise alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from experiment_training.components.trainer.flow_matching import FlowMatchingTrainer
from experiment_training.components.trainer.flow_policy import DECODER, STATE
from trainer.registry import TRAINER_REGISTRY


@TRAINER_REGISTRY.register("naive_flow_matching_policy_trainer")
class NaiveFlowMatchingPolicyTrainer(FlowMatchingTrainer):
    """Loss and params are those of `flow_matching_trainer`; the policy sees."""

    name = "naive_flow_matching_policy_trainer"
    components = ("info_embedder", DECODER)
    needs_camera = True

    def condition(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> tuple[Tensor]:
        tokens = torch.cat(self.tokens(batch), dim=1)  # [B, S, D] camera after camera
        return (self.models["info_embedder"](batch[STATE], tokens),)
