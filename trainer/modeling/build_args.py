"""Build args: what `model.component_build_args` makes of a component that its model file describes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from model_constructor import ConfigError
from model_constructor.errors import Problem
from trainer.modeling.dtype import set_dtype
from trainer.modeling.freeze import freeze
from trainer.modeling.initialise import initialise
from trainer.modeling.lora import add_lora
from trainer.modeling.problems import PlaceOf, collected, refuse
from trainer.modeling.recompute import recompute_repeated_blocks
from trainer.modeling.weights import load_weights

if TYPE_CHECKING:
    from trainer.config.schemas import BuildArgs, Weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def prepare_component(
    component: nn.Module, name: str, args: BuildArgs, find: Callable[[str], Path | None], place: PlaceOf
) -> None:
    """In the order that makes them independent: values, tensors, what trains, how it runs.

    find: a file that the config names, or None. place: where a key below the component's section stands. On the meta
    device the same is checked and nothing is computed. Raises ConfigError with all that is wrong.
    """
    problems: list[Problem] = []
    if args.init:
        initialise(component)
    with collected(problems):
        _load(component, name, args.weights, find, place)
    with collected(problems):
        apply_build_args(component, args, place)
    with collected(problems):
        if args.freeze is True and args.lora is not None:
            hint = "lora alone keeps the component's own weights as they are"
            raise ConfigError(Problem("freeze: true leaves nothing to lora", place("freeze"), hint))
        if args.freeze:
            freeze(component, None if args.freeze is True else args.freeze, place)
    with collected(problems):
        if args.gradient_checkpointing:
            recompute_repeated_blocks(component, place)
    refuse(problems)
    if args.compile:
        component.compile()  # in place: no name in a state dict changes


def apply_build_args(component: nn.Module, args: BuildArgs, place: PlaceOf = lambda *_: None) -> None:
    """Give the component's tensors the names and dtypes that a checkpoint of it has: what comes before loading one."""
    if args.dtype is not None:
        set_dtype(component, DTYPES[args.dtype])
    if args.lora is not None:
        add_lora(component, args.lora, place)


def _load(
    component: nn.Module,
    name: str,
    weights: str | Weights | None,
    find: Callable[[str], Path | None],
    place: PlaceOf,
) -> None:
    if weights is None:
        return
    if isinstance(weights, str):
        text, strict, where = weights, True, place("weights")
    else:
        text, strict, where = weights.path, weights.strict, place("weights", "path")
    path = find(text)
    if path is None or not path.is_file():
        hint = "a path begins at the config's folder, else at the project's"
        raise ConfigError(Problem(f"component '{name}': there is no file '{text}'", where, hint))
    load_weights(component, path, where, name, strict=strict)
