"""Flow-matching trainer: (observations, actions) -> loss of the predicted velocity; (observations, noise) -> actions.

Components: `observation_embedder(state) -> context` and `action_decoder(x_t, time, context) -> velocity`, by position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiment_training.components.loss.flow_matching import FlowMatching, Solver
from model_constructor.errors import ConfigError, Problem
from trainer.registry import TRAINER_REGISTRY
from trainer.templates import ComponentTrainer, StepOutput

COMPONENTS = {"observation_embedder", "action_decoder"}


@TRAINER_REGISTRY.register("flow_matching_trainer")
class FlowMatchingTrainer(ComponentTrainer):
    """The chunk's shape is the decoder's: its YAML declares the params `horizon` (T) and `action_dim` (A)."""

    def __init__(
        self,
        models: nn.ModuleDict,
        optimizers: Mapping[str, Optimizer],
        loss: FlowMatching,
        device: torch.device | str,
        integration_steps: int = 10,
        solver: Solver = "euler",
        execute_steps: int | None = None,
    ) -> None:
        super().__init__(models, optimizers, loss, device)
        self.flow = loss
        self.integration_steps, self.solver, self.execute_steps = integration_steps, solver, execute_steps
        params = getattr(dict(models.items()).get("action_decoder"), "params", {})
        self.horizon, self.action_dim = params.get("horizon", 0), params.get("action_dim", 0)
        if problems := [Problem(f"flow_matching_trainer: {what}", hint=right) for what, right in self._wrong()]:
            raise ConfigError(problems)

    def compute_loss(self, batch: dict[str, Any]) -> StepOutput:
        valid = ~batch["action_is_pad"]  # [B, T] steps behind an episode's end are not learned
        path = self.flow.sample(batch["action"])
        velocity = self.models["action_decoder"](path.x_t, path.time, self._context(batch))  # [B, T, A]
        return StepOutput(self.flow(velocity, path.velocity, valid), weight=valid.sum())

    @torch.no_grad()
    def predict(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> Tensor:
        context = self._context(batch)
        shape = (len(batch["observation.state"]), self.horizon, self.action_dim)
        noise = torch.randn(shape, generator=generator, device=self.device)  # [B, T, A]
        decoder = self.models["action_decoder"]
        return self.flow.integrate(
            lambda x, time: decoder(x, time, context), noise, self.integration_steps, self.solver
        )

    def _context(self, batch: dict[str, Any]) -> Tensor:
        return self.models["observation_embedder"](batch["observation.state"])

    def _wrong(self) -> Iterator[tuple[str, str]]:
        for name in COMPONENTS - self.models.keys():
            yield f"there is no component '{name}'", "it trains an observation_embedder and an action_decoder"
        if not (self.horizon and self.action_dim):
            yield (
                "the action_decoder does not say its chunk's shape",
                "declare `horizon` and `action_dim` under params:",
            )
        if not isinstance(self.flow, FlowMatching):
            yield f"it cannot train with {type(self.flow).__name__}", "loss: {type: flow_matching}"
        if self.solver not in get_args(Solver):
            yield f"solver is {self.solver!r}", f"one of {', '.join(get_args(Solver))}"
        for name, most in {"integration_steps": None, "execute_steps": self.horizon}.items():
            value = getattr(self, name)
            if value is not None and not (type(value) is int and 1 <= value <= (most or value)):
                yield f"{name} is {value!r}", f"a whole number from 1{f' to {most}' if most else ''}"
