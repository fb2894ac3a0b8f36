"""LossFactory: constructor keywords -> the module that measures what a step minimises."""

from typing import Protocol

from torch import nn


class LossFactory(Protocol):
    """`train.loss.params` are the keywords of the constructor."""

    def build(self) -> nn.Module: ...
