"""Flow policy: what the flow-matching families share, from cameras to tokens and from noise to an action chunk.

A component `<camera>_backbone` sees the data set's `observation.images.<camera>`; `action_decoder(x_t, time, ...)`
gives the velocity at x_t. A family says what its decoder is conditioned on, and what a step minimises.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiment_training.components.loss.flow_matching import FlowMatching, Solver
from model_constructor.errors import ConfigError, Problem, nearest
from trainer.templates import ComponentTrainer

STATE, IMAGES = "observation.state", "observation.images."
DECODER, BACKBONE = "action_decoder", "_backbone"


class FlowPolicyTrainer(ComponentTrainer):
    """The chunk's shape is the decoder's: its YAML declares the params `horizon` (T) and `action_dim` (A)."""

    components: tuple[str, ...] = (DECODER,)  # those that have to be there; backbones are extra

    def __init__(
        self,
        models: nn.ModuleDict,
        optimizers: Mapping[str, Optimizer],
        loss: nn.Module,
        device: torch.device | str,
        flow: FlowMatching,
        integration_steps: int,
        solver: Solver,
        execute_steps: int | None,
    ) -> None:
        super().__init__(models, optimizers, loss, device)
        self.flow = flow
        self.integration_steps, self.solver, self.execute_steps = integration_steps, solver, execute_steps
        params = getattr(dict(models.items()).get(DECODER), "params", {})
        self.horizon, self.action_dim = params.get("horizon", 0), params.get("action_dim", 0)
        self.cameras = [name.removesuffix(BACKBONE) for name in models if name.endswith(BACKBONE)]
        if problems := [Problem(f"{self.name}: {what}", hint=right) for what, right in self.wrong()]:
            raise ConfigError(problems)

    @property
    @abstractmethod
    def name(self) -> str:
        """The registered one."""

    @abstractmethod
    def condition(self, batch: dict[str, Any]) -> tuple[Any, ...]:
        """Observations -> what the decoder takes after x_t and time."""

    def velocity(self, x_t: Tensor, time: Tensor, condition: tuple[Any, ...]) -> Tensor:
        """[B, T, A], [B] -> [B, T, A]; what inference follows."""
        return self.models[DECODER](x_t, time, *condition)

    @torch.no_grad()
    def predict(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> Tensor:
        condition = self.condition(batch)
        shape = (len(batch[STATE]), self.horizon, self.action_dim)
        noise = torch.randn(shape, generator=generator, device=self.device)  # [B, T, A]
        return self.flow.integrate(
            lambda x, time: self.velocity(x, time, condition), noise, self.integration_steps, self.solver
        )

    def tokens(self, batch: dict[str, Any]) -> list[Tensor]:
        """Of each camera [B, H * S, D]: what its backbone makes of its H images, oldest first."""
        return [self._seen(camera, batch) for camera in self.cameras]

    def _seen(self, camera: str, batch: dict[str, Any]) -> Tensor:
        key = IMAGES + camera
        if key not in batch:
            known = [name.removeprefix(IMAGES) for name in batch if name.startswith(IMAGES)]
            known = [name for name in known if not name.endswith("_is_pad")]
            message = f"{self.name}: there is a component {camera}{BACKBONE}, and the data set has no {key}"
            raise ConfigError(Problem(message, hint=nearest(camera, known)))
        images = batch[key]  # [B, H, 3, h, w]
        return self.models[camera + BACKBONE](images.flatten(0, 1)).unflatten(0, images.shape[:2]).flatten(1, 2)

    def wrong(self) -> Iterator[tuple[str, str]]:
        """What does not fit, and what would."""
        for name in self.components:
            if name not in self.models:
                yield f"there is no component '{name}'", f"it trains {', '.join(self.components)}"
        for name in self.models:
            if name not in self.components and not name.endswith(BACKBONE):
                yield f"it has no use for the component '{name}'", nearest(name, (*self.components, "head_backbone"))
        if not (self.horizon and self.action_dim):
            yield f"the {DECODER} does not say its chunk's shape", "declare `horizon` and `action_dim` under params:"
        if self.solver not in get_args(Solver):
            yield f"solver is {self.solver!r}", f"one of {', '.join(get_args(Solver))}"
        for name, most in {"integration_steps": None, "execute_steps": self.horizon}.items():
            value = getattr(self, name)
            if value is not None and not (type(value) is int and 1 <= value <= (most or value)):
                yield f"{name} is {value!r}", f"a whole number from 1{f' to {most}' if most else ''}"
