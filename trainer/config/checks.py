"""Checks: what a schema cannot know. A config's text -> problems with names, parameters and model files.

They read the text itself, not the validated sections, so that everything wrong is found in one go.
"""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from model_constructor import ConfigError, Registry, build_model
from model_constructor.errors import Problem, nearest
from trainer.config.folders import Folders
from trainer.registry import (
    DATASET_BUILDER_REGISTRY,
    EVALUATION_BUILDER_REGISTRY,
    LOSS_BUILDER_REGISTRY,
    OPTIMIZER_BUILDER_REGISTRY,
    TRAINER_REGISTRY,
)
from trainer.registry.plugins import load_plugin, load_shipped_plugins
from trainer.templates import ComponentTrainer

Key = tuple[str, ...]
SLOTS: dict[Key, Registry] = {
    ("train", "trainer"): TRAINER_REGISTRY,
    ("train", "loss"): LOSS_BUILDER_REGISTRY,
    ("train", "evaluation"): EVALUATION_BUILDER_REGISTRY,
    ("data", "datamodule"): DATASET_BUILDER_REGISTRY,
}
GIVEN_TO_A_TRAINER = frozenset({"models", "optimizers", "loss", "device"})
PER_COMPONENT = ("component_params", "component_build_args", "component_optims")


def import_plugins(source: Any, folder: Path) -> tuple[list[Problem], BaseException | None]:
    """The problems of the config's plugins, which may lie in `folder`, and the exception behind the last of them."""
    load_shipped_plugins()
    if source.data.get("plugins") and str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that it hides nothing
    problems: list[Problem] = []
    cause: BaseException | None = None
    names = source.data.get("plugins")
    for position, name in enumerate(names if isinstance(names, list) else []):
        try:
            load_plugin(str(name), source.place(("plugins", position)))
        except ConfigError as error:
            problems += error.problems
            cause = error.__cause__
    return problems, cause


def check_registered(source: Any) -> list[Problem]:
    """Registered names exist, and their parameters fit their constructors."""
    optims = _mapping(source.data, ("model", "component_optims"))
    slots = {**SLOTS, **{("model", "component_optims", name): OPTIMIZER_BUILDER_REGISTRY for name in optims}}
    return [
        problem
        for key, registry in slots.items()
        for problem in _registered_problems(source, key, registry, _mapping(source.data, key))
    ]


def check_components(source: Any, folders: Folders) -> list[Problem]:
    """Model files exist and build; per-component sections name a component; whatever trains has an optimizer."""
    paths = _mapping(source.data, ("model", "component_config_paths"))
    problems = [
        Problem(f"model.{section}: there is no component '{name}'", source.key_place(key), nearest(name, paths))
        for section in PER_COMPONENT
        for name in _mapping(source.data, ("model", section))
        if name not in paths
        for key in [("model", section, name)]
    ]
    for name in paths:
        problems += _component_problems(source, folders, name)
    return problems


def parameters_of(registry: Registry, name: str) -> tuple[set[str], set[str]] | None:
    """(all, required) keywords that a config may give a component; None where they cannot be known."""
    taken = GIVEN_TO_A_TRAINER if registry is TRAINER_REGISTRY else frozenset()
    parameters = inspect.signature(registry.get(name)).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    own = [parameter for parameter in parameters if parameter.name not in taken]
    return {one.name for one in own}, {one.name for one in own if one.default is one.empty}


def _registered_problems(source: Any, key: Key, registry: Registry, given: dict[str, Any]) -> Iterator[Problem]:
    name, params = given.get("type"), given.get("params", {})
    if not isinstance(name, str):
        return
    if not registry.has(name):
        yield Problem(
            f"no {registry.kind} is called '{name}'", source.place((*key, "type")), nearest(name, registry.keys())
        )
        return
    if key == ("train", "trainer"):
        yield from _engine_key_problems(source, name)
    if registry is DATASET_BUILDER_REGISTRY or not isinstance(params, dict):
        return  # a data set's params go to `build` as they are; its factory checks them
    signature = parameters_of(registry, name)
    if signature is None:
        return
    known, required = signature
    if registry is OPTIMIZER_BUILDER_REGISTRY:
        required = required - {"total_steps"}  # the run's updates, filled in when the run is built
    for parameter in params:
        if parameter not in known:
            place = source.key_place((*key, "params", parameter))
            hint = nearest(parameter, known) or "it takes no parameters"
            yield Problem(f"{registry.kind} '{name}' has no parameter '{parameter}'", place, hint)
    for parameter in sorted(required - set(params)):
        message = f"{registry.kind} '{name}' needs the parameter '{parameter}'"
        yield Problem(message, source.place((*key, "params")), f"add `{parameter}:` under `params:`")


def _engine_key_problems(source: Any, name: str) -> Iterator[Problem]:
    """A plain trainer does its own backward and step, so what steers ours would be read by nobody."""
    component = TRAINER_REGISTRY.get(name)
    if isinstance(component, type) and issubclass(component, ComponentTrainer):
        return
    for key in ("accumulate", "clip_grad_norm", "validate_every"):
        if key in _mapping(source.data, ("train",)):
            message = f"trainer '{name}' does its own step, so train.{key} would have no effect"
            yield Problem(
                message, source.key_place(("train", key)), "remove the key, or derive the trainer from ComponentTrainer"
            )


def _component_problems(source: Any, folders: Folders, name: str) -> list[Problem]:
    text = _mapping(source.data, ("model", "component_config_paths"))[name]
    if not isinstance(text, str):
        return []
    place = source.place(("model", "component_config_paths", name))
    path = folders.find(text)
    if path is None:
        hint = f"looked for it in {folders.config} and {folders.project}"
        return [Problem(f"component '{name}': there is no file '{text}'", place, hint)]
    try:
        with torch.device("meta"):  # no memory and no time: the real build follows once all is known to be right
            params = _mapping(source.data, ("model", "component_params", name))
            plugins = source.data.get("plugins") or ()  # what the config imports, its model files may import too
            module = build_model(path, params=params, allow_imports=[name for name in plugins if isinstance(name, str)])
    except ConfigError as error:
        return [
            problem if problem.place else Problem(problem.message, place, problem.hint) for problem in error.problems
        ]
    except Exception:  # a block that cannot be made without memory; the real build says what there is to say
        return []
    frozen = _mapping(source.data, ("model", "component_build_args", name)).get("freeze") is True
    has_optimizer = name in _mapping(source.data, ("model", "component_optims"))
    if frozen or has_optimizer or not any(True for _ in module.parameters()):
        return []
    hint = f"add it under model.component_optims, or freeze it: component_build_args: {{{name}: {{freeze: true}}}}"
    return [Problem(f"component '{name}' has parameters to train and no optimizer", place, hint)]


def _mapping(data: Any, key: Key) -> dict[str, Any]:
    """The mapping at `key`, or an empty one: what is not a mapping there is the schema's problem."""
    for part in key:
        data = data.get(part) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}
