"""Flow matching: actions -> points on paths between noise and action, their loss, and the way back.

(action, noise, time) -> (x_t, velocity); (velocity field, noise) -> action. `noise_at` says at which end of time the
noise lies, the time distribution where on the path training looks.

pi0 (Black et al. 2024, arXiv 2410.24164, appendix B) is `{time: "beta(1.5, 1)", noise_at: 1, cutoff: 0.999}`: its
density of the time tau since the noise is Beta((s - tau) / s; 1.5, 1) with s = 0.999, so noisy points are seen more
often. The paper puts the noise at 0 and its published code at 1; in time as that code counts it, t = 1 - tau, the
same density is t = 0.999 u + 0.001 with u from Beta(1.5, 1). With the noise at 0 it is written "beta(1, 1.5)".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from experiment_training.components.loss.flow_path import Path, TimeSampler, path_named, time_sampler
from experiment_training.components.loss.l2 import L2Loss
from model_constructor.errors import ConfigError, Problem
from trainer.registry import LOSS_BUILDER_REGISTRY

Solver = Literal["euler", "midpoint", "heun2", "heun3", "rk4"]
"""euler and midpoint are ours; the others come from the `flow_matching` package, which is imported only then."""


@dataclass(frozen=True, slots=True)
class PathSample:
    x_t: Tensor  # [B, T, A] the point at `time`
    time: Tensor  # [B]
    velocity: Tensor  # [B, T, A] of the path at that point: what a network learns


class FlowMatching(nn.Module):
    """x_t = alpha(s) action + sigma(s) noise, where s runs with time from the noise's end to the action's.

    Training looks at s from 0 to `cutoff`.
    """

    def __init__(self, path: Path, time: TimeSampler, noise_at: Literal[0, 1], cutoff: float) -> None:
        super().__init__()
        self.point_at = path
        self.sample_time = time
        self.noise_at = noise_at
        self.cutoff = cutoff
        self.distance = L2Loss()

    def sample(self, action: Tensor, generator: torch.Generator | None = None) -> PathSample:
        """Actions [B, T, A] -> one point on a path to each, with fresh noise and time."""
        noise = torch.randn(action.shape, generator=generator, device=action.device)
        time = self.sample_time(action.new_empty(len(action), dtype=torch.float32), generator)
        return self.path(action, noise, self._turned(self.cutoff * self._turned(time)))

    def path(self, action: Tensor, noise: Tensor, time: Tensor) -> PathSample:
        """The point at `time` [B] on the path between `noise` and `action` [B, T, A]."""
        alpha_B11, sigma_B11, d_alpha_B11, d_sigma_B11 = self._at(time, action.ndim)
        velocity = d_alpha_B11 * action + d_sigma_B11 * noise
        return PathSample(alpha_B11 * action + sigma_B11 * noise, time, -velocity if self.noise_at else velocity)

    def action_ahead(self, point: PathSample, velocity: Tensor) -> Tensor:
        """What lies at the path's end if it runs through the point with this velocity, [B, T, A] -> [B, T, A].

        The two lines of `path` solved for the action; on a straight path x_t + (1 - t) velocity, with the noise at 0.
        """
        alpha_B11, sigma_B11, d_alpha_B11, d_sigma_B11 = self._at(point.time, velocity.ndim)
        velocity = -velocity if self.noise_at else velocity
        return (d_sigma_B11 * point.x_t - sigma_B11 * velocity) / (d_sigma_B11 * alpha_B11 - sigma_B11 * d_alpha_B11)

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Predicted and true velocity [B, T, A], valid steps [B, T] or dimensions [B, T, A] -> []; see `L2Loss`."""
        return self.distance(prediction, target, valid)

    def integrate(
        self,
        velocity_fn: Callable[[Tensor, Tensor], Tensor],
        noise: Tensor,
        steps: int,
        solver: Solver = "euler",
    ) -> Tensor:
        """Follows `velocity_fn(x_t, time)` from noise to action in equal steps; [B, T, A] -> [B, T, A]."""
        if solver not in ("euler", "midpoint"):
            return self._integrate_with_package(velocity_fn, noise, steps, solver)
        delta = (1.0 if self.noise_at == 0 else -1.0) / steps
        x_t = noise
        for step in range(steps):
            time = noise.new_full((len(noise),), self.noise_at + step * delta)
            velocity = velocity_fn(x_t, time)
            if solver == "midpoint":
                velocity = velocity_fn(x_t + delta / 2 * velocity, time + delta / 2)
            x_t = x_t + delta * velocity
        return x_t

    def _integrate_with_package(
        self, velocity_fn: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int, solver: str
    ) -> Tensor:
        from flow_matching.solver import ODESolver

        times = torch.linspace(self.noise_at, 1 - self.noise_at, steps + 1, dtype=noise.dtype, device=noise.device)
        field = ODESolver(lambda x, t: velocity_fn(x, t.expand(len(x))))
        end = field.sample(noise, None, solver, time_grid=times, enable_grad=torch.is_grad_enabled())
        assert isinstance(end, Tensor)
        return end

    def _at(self, time: Tensor, ndim: int) -> tuple[Tensor, ...]:
        """alpha, sigma and their derivatives at `time` [B], each [B, 1, 1]."""
        return tuple(one.view(-1, *(1,) * (ndim - 1)) for one in self.point_at(self._turned(time)))

    def _turned(self, time: Tensor) -> Tensor:
        """Time -> time since the noise, and back."""
        return 1 - time if self.noise_at else time


@LOSS_BUILDER_REGISTRY.register("flow_matching")
class FlowMatchingFactory:
    def __init__(
        self, path: str = "straight", time: str = "uniform", noise_at: Literal[0, 1] = 0, cutoff: float = 1.0
    ) -> None:
        made: dict[str, Any] = {}
        problems = []
        if type(noise_at) is not int or noise_at not in (0, 1):
            problems.append(Problem(f"noise_at is {noise_at!r}", hint="0 (noise at time 0) or 1 (noise at time 1)"))
        if type(cutoff) not in (int, float) or not 0 < cutoff <= 1:
            problems.append(Problem(f"cutoff is {cutoff!r}", hint="above 0, and at most 1: the whole path"))
        for name, read, text in (("path", path_named, path), ("time", time_sampler, time)):
            try:
                made[name] = read(text)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        self.arguments: dict[str, Any] = {**made, "noise_at": noise_at, "cutoff": float(cutoff)}

    def build(self) -> FlowMatching:
        return FlowMatching(**self.arguments)
