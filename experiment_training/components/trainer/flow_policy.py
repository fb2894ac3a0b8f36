"""Flow policy: what the flow-matching families share, from cameras to tokens and from noise to an action chunk.

A component `<camera>_backbone` sees the data set's `observation.images.<camera>`; `action_decoder(x_t, time, ...)`
gives the velocity at x_t. A family says what its decoder is conditioned on, and what a step minimises.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiment_training.components.loss.flow_matching import FlowMatching, Solver
from model_constructor.errors import ConfigError, Problem, nearest
from trainer.execution import wrong_execution
from trainer.templates import ComponentTrainer

STATE, IMAGES = "observation.state", "observation.images."
DECODER, BACKBONE = "action_decoder", "_backbone"


class FlowPolicyTrainer(ComponentTrainer):
    """The chunk's shape is the decoder's: its YAML declares the params `horizon` (T) and `action_dim` (A)."""

    components: tuple[str, ...] = (DECODER,)  # those that have to be there; backbones are extra
    optional: tuple[str, ...] = ()  # those that may be there
    needs_camera = False
    # Params, and the components whose files have to give each of them one value.
    agreeing: ClassVar[Mapping[str, tuple[str, ...]]] = {}

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
        ensemble_decay: float | None = None,
    ) -> None:
        super().__init__(models, optimizers, loss, device)
        self.flow = flow
        self.integration_steps, self.solver = integration_steps, solver
        self.execute_steps, self.ensemble_decay = execute_steps, ensemble_decay
        params = getattr(dict(models.items()).get(DECODER), "params", {})
        self.horizon, self.action_dim = params.get("horizon", 0), params.get("action_dim", 0)
        # By name: a checkpoint keeps no order, and tokens have to stand where they stood in training.
        self.cameras = sorted(name.removesuffix(BACKBONE) for name in models if name.endswith(BACKBONE))
        if problems := [Problem(f"{self.name}: {what}", hint=right) for what, right in self.wrong()]:
            raise ConfigError(problems)

    @property
    @abstractmethod
    def name(self) -> str:
        """The registered one."""

    @abstractmethod
    def condition(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> tuple[Any, ...]:
        """Observations -> what the decoder takes after x_t and time; `generator` draws what is random in it."""

    def chunk(self, batch: dict[str, Any]) -> Tensor:
        """The demonstrated actions [B, T, A]. They have to be as the decoder has them: a size of 1 would spread."""
        found, expected = list(batch["action"].shape[1:]), [self.horizon, self.action_dim]
        if found != expected:
            message = f"{self.name}: the data set's chunks are {found}, those of the {DECODER} {expected}"
            hint = "action_horizon of the data set is `horizon` of the components, and `action_dim` the robot's"
            raise ConfigError(Problem(message, hint=hint))
        return batch["action"]

    def velocity(self, x_t: Tensor, time: Tensor, condition: tuple[Any, ...]) -> Tensor:
        """[B, T, A], [B] -> [B, T, A]; what inference follows."""
        return self.models[DECODER](x_t, time, *condition)

    @torch.no_grad()
    def predict(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> Tensor:
        return self.draw(self.condition(batch, generator), len(batch[STATE]), generator)

    def draw(self, condition: tuple[Any, ...], size: int, generator: torch.Generator | None) -> Tensor:
        """Noise of `size` chunks, led along the velocity to [B, T, A]."""
        noise = torch.randn((size, self.horizon, self.action_dim), generator=generator, device=self.device)
        return self.flow.integrate(
            lambda x, time: self.velocity(x, time, condition), noise, self.integration_steps, self.solver
        )

    def tokens(self, batch: dict[str, Any]) -> list[Tensor]:
        """Of each camera [B, H * S, D]: what its backbone makes of its H images, oldest first."""
        seen = {camera + BACKBONE: camera for camera in self.cameras}
        return [self.of_images(name, images_of(batch, camera, name)) for name, camera in seen.items()]

    def of_images(self, component: str, images: Tensor) -> Tensor:
        """[B, H, 3, h, w] -> [B, H * S, D]: the S tokens that a component makes of each image."""
        return self.models[component](images.flatten(0, 1)).unflatten(0, images.shape[:2]).flatten(1, 2)

    def wrong(self) -> Iterator[tuple[str, str]]:
        """What does not fit, and what would."""
        for name in self.components:
            if name not in self.models:
                yield f"there is no component '{name}'", f"it trains {', '.join(self.components)}"
        for name in self.models:
            if name not in (*self.components, *self.optional) and not name.endswith(BACKBONE):
                known = (*self.components, *self.optional, "head_backbone")
                yield f"it has no use for the component '{name}'", nearest(name, known)
        if self.needs_camera and not self.cameras:
            yield "there is no camera", "a component head_backbone sees the data set's observation.images.head"
        for param, owners in self.agreeing.items():
            found = {
                name: getattr(self.models[name], "params", {}).get(param) for name in owners if name in self.models
            }
            if len(set(found.values())) > 1:
                told = ", ".join(f"{value} in the {name}" for name, value in found.items())
                yield f"{param} is {told}", "the same in all of them: see model.component_params"
        if not (self.horizon and self.action_dim):
            yield f"the {DECODER} does not say its chunk's shape", "declare `horizon` and `action_dim` under params:"
        if self.solver not in get_args(Solver):
            yield f"solver is {self.solver!r}", f"one of {', '.join(get_args(Solver))}"
        if not (type(self.integration_steps) is int and self.integration_steps >= 1):
            yield f"integration_steps is {self.integration_steps!r}", "a whole number from 1"
        yield from wrong_execution(self.execute_steps, self.ensemble_decay, self.horizon)


def images_of(batch: Mapping[str, Any], camera: str, component: str) -> Tensor:
    """What a camera saw, [B, H, 3, h, w], for the component that looks at it."""
    if (key := IMAGES + camera) in batch:
        return batch[key]
    known = [name.removeprefix(IMAGES) for name in batch if name.startswith(IMAGES) and not name.endswith("_is_pad")]
    message = f"the component {component} looks at {key}, which is not among the observations"
    raise ConfigError(Problem(message, hint=nearest(camera, known)))
