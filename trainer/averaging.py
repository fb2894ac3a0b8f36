"""Averaging: weights that follow the trained ones smoothly; they are what validation, evaluation and export use.

Two kinds: an exponential moving average (`train.ema`), kept here, and the average that a schedule-free optimizer keeps
in its state (`averaged_parameters()`). Either way the live weights stay as they are. torch's AveragedModel would copy
whole components, frozen parts too, and has no warm-up.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from model_constructor import ConfigError
from model_constructor.errors import Problem, nearest
from trainer.config import RunConfig
from trainer.config.schemas import Ema


class Averages:
    """`ema` names the components with a moving average; those of schedule-free optimizers are found by themselves."""

    def __init__(
        self,
        models: nn.ModuleDict,
        optimizers: Mapping[str, Optimizer],
        ema: Mapping[str, Ema] | None = None,
    ) -> None:
        self._ema = dict(ema or {})
        self._updates = 0
        self._parameters = {
            name: {key: one for key, one in models[name].named_parameters() if one.requires_grad} for name in self._ema
        }
        self._averages = {
            name: {key: one.detach().float().clone() for key, one in own.items()}
            for name, own in self._parameters.items()
        }
        self._schedule_free: dict[str, Any] = {
            name: one for name, one in optimizers.items() if hasattr(one, "averaged_parameters")
        }

    @property
    def components(self) -> list[str]:
        return [*self._averages, *self._schedule_free]

    @torch.no_grad()
    def update(self) -> None:
        """After each optimizer update. Buffers are not averaged: who uses the average uses them as they are."""
        self._updates += 1
        for name, averages in self._averages.items():
            live = [one.float() for one in self._parameters[name].values()]
            torch._foreach_lerp_(list(averages.values()), live, 1.0 - decay_at(self._updates, self._ema[name]))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the components have their averaged weights; the live tensors are put aside, not copied."""
        averaged = {
            self._parameters[name][key]: average.to(self._parameters[name][key].dtype)
            for name, own in self._averages.items()
            for key, average in own.items()
        }
        for optimizer in self._schedule_free.values():
            averaged |= optimizer.averaged_parameters()
        live = {parameter: parameter.data for parameter in averaged}
        try:
            for parameter, average in averaged.items():
                parameter.data = average
            yield
        finally:
            for parameter, own in live.items():
                parameter.data = own

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates, "averages": self._averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._updates = state["updates"]
        for name, own in self._averages.items():
            for key, average in own.items():
                average.copy_(state["averages"][name][key])


def decay_at(update: int, ema: Ema) -> float:
    """`decay`, after a warm-up in which the first weights are soon forgotten: (1 + n) / (10 + n), as in TensorFlow's
    ExponentialMovingAverage with `num_updates`."""
    return min(ema.decay, (1 + update) / (10 + update)) if ema.warmup else ema.decay


def averages_of(config: RunConfig, models: nn.ModuleDict, optimizers: Mapping[str, Optimizer]) -> Averages:
    """What `train.ema` asks for; a component that has nothing to average is an error."""
    ema = config.experiment.train.ema
    if ema is None:
        return Averages(models, optimizers)
    free = [name for name, one in optimizers.items() if hasattr(one, "averaged_parameters")]
    named = [name for name in optimizers if name not in free] if ema.components is None else ema.components
    problems = []
    for position, name in enumerate(named):
        place = config.place("train", "ema", "components", str(position))
        if name in free:
            problems.append(Problem(f"'{name}' is trained schedule-free, which averages by itself", place))
        elif name not in optimizers:
            problems.append(Problem(f"train.ema: '{name}' is frozen", place, nearest(name, optimizers)))
    if not named:
        message = "train.ema has nothing to average: every optimizer is schedule-free, which averages by itself"
        problems.append(Problem(message, config.place("train", "ema"), "remove train.ema"))
    if problems:
        raise ConfigError(problems)
    return Averages(models, optimizers, dict.fromkeys(named, ema))
