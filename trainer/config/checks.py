"""Checks: what a schema cannot know. A config's text -> problems with plugins, registered names and their parameters.

They read the text itself, not the validated sections, so that everything wrong is found in one go.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model_constructor import ConfigError, Registry
from model_constructor.errors import Problem, nearest
from trainer.config.messages import dotted
from trainer.config.parameters import Signature
from trainer.config.unread_keys import Key, is_component_trainer, mapping_at
from trainer.registry import (
    DATASET_BUILDER_REGISTRY,
    EVALUATION_BUILDER_REGISTRY,
    LOSS_BUILDER_REGISTRY,
    OPTIMIZER_BUILDER_REGISTRY,
    TRAINER_REGISTRY,
)
from trainer.registry.plugins import load_plugin, load_shipped_plugins

__all__ = ["check_registered", "import_plugins", "is_component_trainer", "unchecked_params"]

SLOTS: dict[Key, Registry] = {
    ("train", "trainer"): TRAINER_REGISTRY,
    ("train", "loss"): LOSS_BUILDER_REGISTRY,
    ("train", "evaluation"): EVALUATION_BUILDER_REGISTRY,
    ("data", "datamodule"): DATASET_BUILDER_REGISTRY,
}


def import_plugins(source: Any, folder: Path) -> tuple[list[Problem], BaseException | None]:
    """The problems of the config's plugins, which may lie in `folder`, and the exception behind the last of them."""
    load_shipped_plugins()
    if source.data.get("plugins") and str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that it hides nothing
    problems: list[Problem] = []
    cause: BaseException | None = None
    names = source.data.get("plugins")
    for position, name in enumerate(names if isinstance(names, list) else [names]):
        if not isinstance(name, str):
            continue  # the schema says so
        try:
            load_plugin(name, source.place(("plugins", position)))
        except ConfigError as error:
            problems += error.problems
            cause = error.__cause__
    return problems, cause


def check_nones(source: Any) -> list[Problem]:
    """Texts `None` that nobody quoted: in YAML that is no null."""
    problems, waiting = [], [source.tree]
    for node in waiting:
        if node.value == "None" and not node.style:
            problems.append(Problem("YAML reads None as text", node.place, "write null, or 'None' for the text"))
        waiting += [entry for _, entry in node.entries()]
    return problems


def check_registered(source: Any) -> list[Problem]:
    """Registered names exist, and their parameters fit their constructors, by name and by type."""
    return [problem for key, registry in _slots(source) for problem in _registered_problems(source, key, registry)]


def unchecked_params(source: Any) -> list[str]:
    """Keys of a valid config whose names nobody can check: a component takes them as `**kwargs`."""
    return [
        dotted((*key, "params", name))
        for key, registry in _slots(source)
        if registry is not DATASET_BUILDER_REGISTRY and mapping_at(source.data, key)
        for signature in [Signature(registry, mapping_at(source.data, key)["type"])]
        if signature.takes_all
        for name in mapping_at(source.data, (*key, "params"))
        if name not in signature.parameters
    ]


def _slots(source: Any) -> list[tuple[Key, Registry]]:
    """Where a config names a registered component."""
    optims = mapping_at(source.data, ("model", "component_optims"))
    return [*SLOTS.items(), *((("model", "component_optims", name), OPTIMIZER_BUILDER_REGISTRY) for name in optims)]


def _registered_problems(source: Any, key: Key, registry: Registry) -> Iterator[Problem]:
    given = mapping_at(source.data, key)
    name, params = given.get("type"), given.get("params", {})
    if not isinstance(name, str):
        return
    if not registry.has(name):
        hint = nearest(name, registry.keys())
        yield Problem(f"no {registry.kind} is called '{name}'", source.place((*key, "type")), hint)
        return
    if registry is DATASET_BUILDER_REGISTRY or not isinstance(params, dict):
        return  # a data set's params go to `build` as they are; its factory checks them
    signature = Signature(registry, name)
    yield from signature.problems(source, (*key, "params"), params)
    for selector, own in mapping_at(given, ("groups",)).items():
        yield from signature.problems(source, (*key, "groups", selector), own if isinstance(own, dict) else {})
    filled_in = ["total_steps"] if registry is OPTIMIZER_BUILDER_REGISTRY else []  # with the run's updates
    yield from signature.missing(source, (*key, "params"), [*params, *filled_in])
