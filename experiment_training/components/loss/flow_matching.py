"""Flow matching: actions -> points on straight paths between noise and action, their loss, and the way back.

(action, noise, time) -> (x_t, velocity); (velocity field, noise) -> action. The time distribution says where on the
path training looks, `noise_at` at which end of time the noise lies.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from experiment_training.components.loss.l2 import L2Loss
from model_constructor.errors import ConfigError, Problem
from trainer.registry import LOSS_BUILDER_REGISTRY

TimeSampler = Callable[[Tensor, torch.Generator | None], Tensor]
Solver = Literal["euler", "midpoint"]


@dataclass(frozen=True, slots=True)
class PathSample:
    x_t: Tensor  # [B, T, A] the point at `time`
    time: Tensor  # [B]
    velocity: Tensor  # [B, T, A] of the path at that point: what a network learns


class FlowMatching(nn.Module):
    """The straight path x_t = (1 - s) noise + s action, where s runs with time from the noise's end to the action's."""

    def __init__(self, time: TimeSampler, noise_at: Literal[0, 1]) -> None:
        super().__init__()
        self.sample_time = time
        self.noise_at = noise_at
        self.distance = L2Loss()

    def sample(self, action: Tensor, generator: torch.Generator | None = None) -> PathSample:
        """Actions [B, T, A] -> one point on a path to each, with fresh noise and time."""
        noise = torch.randn(action.shape, generator=generator, device=action.device)
        time = self.sample_time(action.new_empty(len(action), dtype=torch.float32), generator)
        return self.path(action, noise, time)

    def path(self, action: Tensor, noise: Tensor, time: Tensor) -> PathSample:
        """The point at `time` [B] on the path between `noise` and `action` [B, T, A]."""
        start, end = (noise, action) if self.noise_at == 0 else (action, noise)
        time_B11 = time.view(-1, *(1 for _ in action.shape[1:]))
        return PathSample((1 - time_B11) * start + time_B11 * end, time, end - start)

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Predicted and true velocity [B, T, A], valid steps [B, T] or dimensions [B, T, A] -> []."""
        return self.distance(prediction, target, valid)

    def integrate(
        self,
        velocity_fn: Callable[[Tensor, Tensor], Tensor],
        noise: Tensor,
        steps: int,
        solver: Solver = "euler",
    ) -> Tensor:
        """Follows `velocity_fn(x_t, time)` from noise to action in equal steps; [B, T, A] -> [B, T, A]."""
        delta = (1.0 if self.noise_at == 0 else -1.0) / steps
        x_t = noise
        for step in range(steps):
            time = noise.new_full((len(noise),), self.noise_at + step * delta)
            velocity = velocity_fn(x_t, time)
            if solver == "midpoint":
                velocity = velocity_fn(x_t + delta / 2 * velocity, time + delta / 2)
            x_t = x_t + delta * velocity
        return x_t


@LOSS_BUILDER_REGISTRY.register("flow_matching")
class FlowMatchingFactory:
    def __init__(self, time: str = "uniform", noise_at: Literal[0, 1] = 0) -> None:
        if noise_at not in (0, 1):
            raise ConfigError(Problem(f"noise_at is {noise_at!r}", hint="0 (noise at time 0) or 1 (noise at time 1)"))
        self.time = time_sampler(time)
        self.noise_at: Literal[0, 1] = noise_at

    def build(self) -> FlowMatching:
        return FlowMatching(self.time, self.noise_at)


def time_sampler(name: str) -> TimeSampler:
    """ "uniform", "logit_normal" or "beta(a, b)" -> a function that gives times in [0, 1] in the shape of a tensor."""
    number = r"\s*(\d+\.?\d*|\.\d+)\s*"
    if name == "uniform":
        return lambda like, generator: torch.rand(like.shape, generator=generator, device=like.device)
    if name == "logit_normal":
        return lambda like, generator: torch.randn(like.shape, generator=generator, device=like.device).sigmoid()
    if (match := re.fullmatch(rf"beta\({number},{number}\)", str(name))) and all(map(float, match.groups())):
        a, b = map(float, match.groups())
        return lambda like, generator: _beta(torch.full_like(like, a), torch.full_like(like, b), generator)
    raise ConfigError(
        Problem(f"unknown time distribution {name!r}", hint="uniform, logit_normal or beta(a, b), e.g. beta(1.5, 1)")
    )


def _beta(a: Tensor, b: Tensor, generator: torch.Generator | None) -> Tensor:
    """A Beta variable as a ratio of two Gamma variables; torch.distributions takes no generator."""
    first, second = torch._standard_gamma(a, generator=generator), torch._standard_gamma(b, generator=generator)
    return first / (first + second)
