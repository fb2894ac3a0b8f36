"""Flow-matching trainer: (observations, actions) -> loss of the predicted velocity; (observations, noise) -> actions.

Components: `observation_embedder(state) -> context` and `action_decoder(x_t, time, context) -> velocity`, by position;
with a `<camera>_backbone` or several, the embedder also takes the tokens of each, in the order of names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiment_training.components.loss.flow_matching import FlowMatching, Solver
from experiment_training.components.trainer.flow_policy import DECODER, STATE, FlowPolicyTrainer
from trainer.registry import TRAINER_REGISTRY
from trainer.templates import StepOutput


@TRAINER_REGISTRY.register("flow_matching_trainer")
class FlowMatchingTrainer(FlowPolicyTrainer):
    name = "flow_matching_trainer"
    components = ("observation_embedder", DECODER)

    def __init__(
        self,
        models: nn.ModuleDict,
        optimizers: Mapping[str, Optimizer],
        loss: FlowMatching,
        device: torch.device | str,
        integration_steps: int = 10,
        solver: Solver = "euler",
        execute_steps: int | None = None,
        ensemble_decay: float | None = None,
    ) -> None:
        options = (integration_steps, solver, execute_steps, ensemble_decay)
        super().__init__(models, optimizers, loss, device, loss, *options)

    def compute_loss(self, batch: dict[str, Any]) -> StepOutput:
        valid = ~batch["action_is_pad"]  # [B, T] steps behind an episode's end are not learned
        path = self.flow.sample(self.chunk(batch))
        velocity = self.velocity(path.x_t, path.time, self.condition(batch))  # [B, T, A]
        return StepOutput(self.flow(velocity, path.velocity, valid), weight=valid.sum())

    def condition(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> tuple[Tensor]:
        return (self.models["observation_embedder"](batch[STATE], *self.tokens(batch)),)

    def wrong(self) -> Iterator[tuple[str, str]]:
        yield from super().wrong()
        if not isinstance(self.flow, FlowMatching):
            yield f"it cannot train with {type(self.flow).__name__}", "loss: {type: flow_matching}"
