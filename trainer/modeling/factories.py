"""Factories: `model` of the config -> an nn.ModuleDict of named components, each as its build args say."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from model_constructor import build_model
from model_constructor.errors import Problem
from trainer.modeling.build_args import prepare_component
from trainer.modeling.problems import collected, refuse

if TYPE_CHECKING:
    from trainer.config import RunConfig


def build_components(config: RunConfig) -> nn.ModuleDict:
    """Every component, on the CPU, from `seed` alone: equal on every process and machine.

    Raises ConfigError with the problems of all components.
    """
    seed = config.experiment.seed
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # and what a plugin's own block may draw from
    random.seed(seed)
    model = config.experiment.model
    components = nn.ModuleDict()
    problems: list[Problem] = []
    for name, text in model.component_config_paths.items():
        path = config.folders.find(text)
        assert path is not None, "the config's checks found every component file"
        with collected(problems):
            params = model.component_params.get(name, {})
            components[name] = build_model(path, params=params, allow_imports=config.experiment.plugins)
            place = partial(config.place, "model", "component_build_args", name)
            prepare_component(components[name], name, model.build_args(name), config.folders.find, place)
    refuse(problems)
    return components
