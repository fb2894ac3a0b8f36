"""Component checks: model files exist and build, and what the config asks of a component fits it."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from model_constructor import ConfigError, build_model
from model_constructor.errors import Problem, nearest
from trainer.config.folders import Folders
from trainer.config.schemas import BuildArgs, Optimizer
from trainer.config.unread_keys import mapping_at
from trainer.modeling.build_args import prepare_component
from trainer.modeling.optimizers import parameter_groups
from trainer.modeling.problems import PlaceOf

PER_COMPONENT = ("component_params", "component_build_args", "component_optims")


def check_components(source: Any, folders: Folders) -> list[Problem]:
    """Per-component keys name a component; model files exist and build; whatever trains has an optimizer."""
    paths = mapping_at(source.data, ("model", "component_config_paths"))
    problems = [
        Problem(
            f"model.{section}: there is no component '{name}'", source.key_place(key), _way_out(source, name, paths)
        )
        for section in PER_COMPONENT
        for name in mapping_at(source.data, ("model", section))
        if name not in paths
        for key in [("model", section, name)]
    ]
    averaged = mapping_at(source.data, ("train", "ema")).get("components")
    problems += [
        Problem(f"train.ema: there is no component '{name}'", source.place(key), nearest(name, paths))
        for position, name in enumerate(averaged if isinstance(averaged, list) else [])
        if isinstance(name, str) and name not in paths
        for key in [("train", "ema", "components", position)]
    ]
    for name in paths:
        problems += _component_problems(source, folders, name)
    return problems


def _way_out(source: Any, name: str, paths: Mapping[str, Any]) -> str:
    """What to do about an entry of a component that is not there."""
    with suppress(ConfigError):  # it never was there
        *_, last = source.history(("model", "component_config_paths", name))
        if last.how == "removed":
            return f"{last.place} takes the component away: write `{name}: null` here too"
    return nearest(name, paths)


def _component_problems(source: Any, folders: Folders, name: str) -> list[Problem]:
    text = mapping_at(source.data, ("model", "component_config_paths"))[name]
    if not isinstance(text, str):
        return []
    place = source.place(("model", "component_config_paths", name))
    path = folders.find(text)
    if path is None:
        hint = f"looked for it in {folders.told}"
        return [Problem(f"component '{name}': there is no file '{text}'", place, hint)]
    params = mapping_at(source.data, ("model", "component_params", name))
    try:
        with torch.device("meta"):  # no memory and no time: the real build follows once all is known to be right
            plugins = source.data.get("plugins") or ()  # what the config imports, its model files may import too
            module = build_model(path, params=params, allow_imports=[name for name in plugins if isinstance(name, str)])
    except ConfigError as error:
        if params:
            place = source.place(("model", "component_params", name))  # what the file does not know comes from here
        return [
            problem if problem.place else Problem(problem.message, place, problem.hint) for problem in error.problems
        ]
    except Exception:  # a block that cannot be made without memory; the real build says what there is to say
        return []
    return _training_problems(source, folders, name, module)


def _training_problems(source: Any, folders: Folders, name: str, module: nn.Module) -> list[Problem]:
    """What its build args and its optimizer ask of a component, tried on one that holds no numbers."""

    def place_in(section: str) -> PlaceOf:
        return lambda *key: source.place(("model", section, name, *key))

    optims = mapping_at(source.data, ("model", "component_optims"))
    try:
        args = BuildArgs.model_validate(mapping_at(source.data, ("model", "component_build_args", name)))
        entry = Optimizer.model_validate(optims[name]) if name in optims else None
    except ValidationError:
        return []  # what the schema has to say comes first
    try:
        prepare_component(module, name, args, folders.find, place_in("component_build_args"))
        parameter_groups(module, name, entry, place_in("component_optims"))
    except ConfigError as error:
        return [*error.problems]
    return []
