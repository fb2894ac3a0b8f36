"""OptimizerFactory: constructor keywords, then parameters -> a torch optimizer."""

from collections.abc import Iterable
from typing import Protocol

from torch import nn
from torch.optim import Optimizer


class OptimizerFactory(Protocol):
    """`component_optims.<c>.params` are the keywords of the constructor.

    A schedule is a pure function of the update count and lives in the optimizer's `param_groups`: whoever trains
    calls `step()` and nothing else; gradients are dropped without its `zero_grad()`. A constructor that takes
    `total_steps` gets the run's number of updates for it when the config leaves it out.

    An optimizer may have a method `divided_step(divisor)`: its step by gradients that are first divided by a number
    [] on their device. Where gradients are clipped, it is called in place of `step()`.
    """

    def build(self, params: Iterable[nn.Parameter]) -> Optimizer: ...
