"""Path and time: names in a config -> where a point lies between noise and action, and how often training looks there.

A point is alpha(s) action + sigma(s) noise, where s in [0, 1] is the time that passed since the noise.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model_constructor.errors import ConfigError, Problem

Path = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""s [B] -> alpha, sigma and their derivatives by s, each [B]."""
TimeSampler = Callable[[Tensor, torch.Generator | None], Tensor]
"""A tensor of the wanted shape -> times in [0, 1] in that shape."""

PACKAGE_PATHS = {
    "cosine": ("CosineScheduler", (0,)),
    "linear_vp": ("LinearVPScheduler", (0,)),
    "polynomial": ("PolynomialConvexScheduler", (1,)),
    "vp": ("VPScheduler", (0, 2)),
}
"""Name -> class of the `flow_matching` package, and how many numbers it takes."""
PATH_NAMES = "straight, cosine, linear_vp, polynomial(n), vp or vp(beta_min, beta_max)"
EDGE = 1e-5  # the package's paths may be infinitely fast at s = 0 and s = 1


def straight(s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """alpha = s, sigma = 1 - s: Lipman et al. 2023 (arXiv 2210.02747), eq. 22, with sigma_min = 0."""
    one = torch.ones_like(s)
    return s, 1 - s, one, -one


def path_named(text: str) -> Path:
    """The name of a path -> the path. All but "straight" come from the `flow_matching` package, imported only then."""
    if text == "straight":
        return straight
    name, numbers = _call(text)
    scheduler, counts = PACKAGE_PATHS.get(name, ("", ()))
    if len(numbers) not in counts or not all(number > 0 for number in numbers):
        raise ConfigError(Problem(f"path is {text!r}", hint=PATH_NAMES))
    try:
        from flow_matching.path import scheduler as package
    except ImportError as error:
        hint = "pip install flow-matching (licensed CC BY-NC 4.0), or path: straight"
        raise ConfigError(Problem(f"path is {text!r}, which needs the flow_matching package", hint=hint)) from error
    return partial(_scheduled, getattr(package, scheduler)(*numbers))


def _scheduled(schedule: Callable[[Tensor], Any], s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    at = schedule(s.clamp(EDGE, 1 - EDGE))
    return at.alpha_t, at.sigma_t, at.d_alpha_t, at.d_sigma_t


def time_sampler(text: str) -> TimeSampler:
    """One of "uniform", "logit_normal" (the sigmoid of a standard normal variable) and "beta(a, b)".

    Functions of this file, not closures: a policy travels to the processes that evaluate it.
    """
    name, numbers = _call(text)
    if (name, numbers) == ("uniform", ()):
        return _uniform
    if (name, numbers) == ("logit_normal", ()):
        return _logit_normal
    if name == "beta" and len(numbers) == 2 and all(number > 0 for number in numbers):
        return partial(_beta, *numbers)
    raise ConfigError(Problem(f"time is {text!r}", hint="uniform, logit_normal or beta(a, b), e.g. beta(1.5, 1)"))


def _call(text: object) -> tuple[str, tuple[float, ...]]:
    """Text such as "beta(1.5, 1)" -> ("beta", (1.5, 1.0)), or "uniform" -> ("uniform", ())."""
    number = r"\s*(?:\d+\.?\d*|\.\d+)\s*"
    match = re.fullmatch(rf"(\w+)(?:\(({number}(?:,{number})*)\))?", str(text))
    if match is None:
        return "", ()
    return match[1], tuple(float(one) for one in (match[2] or "").split(",") if one.strip())


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=like.device)


def _logit_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device).sigmoid()


def _beta(a: float, b: float, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """A Beta variable as a ratio of two Gamma variables; torch.distributions takes no generator."""
    first, second = (torch._standard_gamma(torch.full_like(like, one), generator=generator) for one in (a, b))
    return first / (first + second)
