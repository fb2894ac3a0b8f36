"""Forms: a block as the modules have it that are its instances."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .calls import Key
from .entries import Entry
from .steps import Recorded

MISSING = object()  # of a number in an optional part that an instance does without


@dataclass(slots=True, eq=False)
class Instance:
    """One module that becomes a use of a block: what it did in each of its calls, and what it holds."""

    path: str
    module: nn.Module
    calls: list[Recorded]
    entries: dict[str, Entry]
    numbers: dict[Key, Any] = field(default_factory=dict)
    optional: dict[str, bool] = field(default_factory=dict)  # module -> whether this instance has it


@dataclass(slots=True, eq=False)
class BlockForm:
    """A distinct block: its instances, of which the first stands for the form of all."""

    name: str
    instances: list[Instance]
    params: dict[str, list[Any]] = field(default_factory=dict)  # name -> a value per instance
    written: dict[Key, ast.expr] = field(default_factory=dict)  # what stands for a number that differs

    @property
    def first(self) -> Instance:
        return self.instances[0]


def has_name(module: str) -> str:
    """The param that says whether an instance of a block has an optional module."""
    return f"has_{module}"
