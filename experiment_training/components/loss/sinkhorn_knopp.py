"""Sinkhorn-Knopp: predicted and demonstrated chunks of a mini-batch, with their states -> their transport distance.

Cuturi 2013 (arXiv 1306.0895), debiased as in Feydy et al. 2019 (arXiv 1810.08278, eq. 3); solved by geomloss.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from experiment_training.components.loss.l2 import expand_valid
from model_constructor.errors import ConfigError, Problem, nearest
from trainer.registry import LOSS_BUILDER_REGISTRY

BACKENDS = ("tensorized", "online", "multiscale")
USUAL_RANGE = 10.0  # of a normalised number: five standard deviations to each side


class SinkhornKnopp(nn.Module):
    """One optimal-transport problem per mini-batch: each of the B samples is a point of weight 1 / B.

    Its points are `[action chunk, sqrt(lam_state) * state]`, flattened: a prediction may be matched with the
    demonstration of another sample, and pays `lam_state` for the squared distance of their states. The cost of a pair
    is its distance for p = 1 and half its squared distance for p = 2; entropy is weighted by `blur ** p`, and `blur`
    is a distance between points. Ranks and micro-batches solve a problem each. Nothing waits for the device.
    """

    def __init__(self, lam_state: float, diameter: float | None = None, **solver: Any) -> None:
        from geomloss import SamplesLoss

        super().__init__()
        self.state_scale, self.diameter = math.sqrt(lam_state), diameter
        self.distance = SamplesLoss("sinkhorn", **solver)

    def forward(self, prediction: Tensor, target: Tensor, state: Tensor, valid: Tensor | None = None) -> Tensor:
        """[B, T, A], [B, T, A], [B, ...] -> []; float32 also under autocast. ValueError for shapes that do not fit.

        What is not `valid` ([B, T] or [B, T, A]) is zero in both chunks.
        """
        if prediction.shape != target.shape or len(state) != len(target):
            shapes = ", ".join(str(list(one.shape)) for one in (prediction, target, state))
            raise ValueError(f"prediction, target and state do not fit each other: {shapes}")
        x_BD, y_BD = self.points(prediction, state, valid), self.points(target, state, valid)
        if self.distance.backend == "multiscale" and x_BD.shape[1] > 3:
            raise ValueError(f"backend multiscale takes points of 1 to 3 numbers, and these have {x_BD.shape[1]}")
        self.distance.diameter = self.diameter or self.usual_diameter(target, state)  # geomloss would read its own
        weight_B = x_BD.new_ones(len(x_BD)) / len(x_BD)  # geomloss would copy its own from the host
        with torch.autocast(prediction.device.type, enabled=False):  # squared distances need float32
            return self.distance(weight_B, x_BD, weight_B, y_BD)

    def usual_diameter(self, chunk: Tensor, state: Tensor) -> float:
        """The diagonal of the box that points of normalised numbers lie in; to measure theirs would be a read."""
        return USUAL_RANGE * math.sqrt(chunk[0].numel() + self.state_scale**2 * state[0].numel())

    def points(self, chunk: Tensor, state: Tensor, valid: Tensor | None = None) -> Tensor:
        """[B, T, A] and [B, ...] -> [B, D], float32."""
        if valid is not None:
            chunk = torch.where(expand_valid(valid, chunk), chunk, 0.0)
        return torch.cat([chunk.float().flatten(1), self.state_scale * state.float().flatten(1)], dim=1)


@LOSS_BUILDER_REGISTRY.register("sinkhorn_knopp")
class SinkhornKnoppFactory:
    """`scaling`: the ratio of one solver step's blur to the step before: near 1 is accurate and slow.

    `diameter`: the distance the solver begins at, about that of the points farthest apart. None takes the points for
    normalised ones; a wrong one by a factor of 100 costs steps if it is too large, and some accuracy if too small.
    """

    def __init__(
        self,
        p: int = 2,
        lam_state: float = 1.0,
        blur: float = 0.05,
        debias: bool = True,
        backend: str = "tensorized",
        scaling: float = 0.5,
        diameter: float | None = None,
    ) -> None:
        rules = (
            (p in (1, 2), f"p is {p!r}", "1 (distance) or 2 (half the squared distance)"),
            (_is_number(lam_state) and lam_state >= 0, f"lam_state is {lam_state!r}", "a number, 0 or above"),
            (_is_number(blur) and blur > 0, f"blur is {blur!r}", "a number above 0"),
            (isinstance(debias, bool), f"debias is {debias!r}", "true or false"),
            (_is_number(scaling) and 0 < scaling < 1, f"scaling is {scaling!r}", "between 0 and 1"),
            (
                diameter is None or (_is_number(diameter) and diameter > 0),
                f"diameter is {diameter!r}",
                "a number above 0",
            ),
            (backend in BACKENDS, f"backend is {backend!r}", nearest(backend, BACKENDS)),
        )
        if problems := [Problem(message, hint=hint) for holds, message, hint in rules if not holds]:
            raise ConfigError(problems)
        if backend != "tensorized":
            _need_keops(backend)
        self.lam_state = lam_state
        self.solver = {
            "p": int(p),
            "blur": blur,
            "debias": debias,
            "backend": backend,
            "scaling": scaling,
            "diameter": diameter,
        }

    def build(self) -> SinkhornKnopp:
        return SinkhornKnopp(self.lam_state, **self.solver)


def _need_keops(backend: str) -> None:
    """geomloss itself would say so in the first step, as a NameError."""
    try:
        importlib.import_module("pykeops.torch")
    except Exception as error:  # it compiles when it is imported, and fails in its own ways
        hint = "pip install pykeops, which needs a C++ compiler; or backend: tensorized"
        raise ConfigError(Problem(f"backend is {backend!r}, and KeOps does not run here", hint=hint)) from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
