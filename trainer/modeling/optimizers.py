"""Optimizers: `model.component_optims` -> one optimizer per component that trains; together they take every parameter
that trains exactly once.

`groups` gives parts of a component params of their own. Each group is built by the component's factory from the params
with the group's laid over them, and becomes a param group of the one optimizer. So a factory only ever sees its own
keywords and a list of parameters, and what it derives from them (a schedule's first rate) is the group's own, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from model_constructor import ConfigError, select_parameters
from model_constructor.errors import Place, Problem
from trainer.modeling.problems import PlaceOf, collected, listed, refuse
from trainer.registry import OPTIMIZER_BUILDER_REGISTRY

if TYPE_CHECKING:
    from trainer.config import RunConfig, schemas

REST = None  # the group of what no selector names

Groups = dict[str | None, dict[str, nn.Parameter]]  # selector -> its trainable parameters, by qualified name


def build_optimizers(config: RunConfig, models: nn.ModuleDict, planned: int | None) -> dict[str, Optimizer]:
    """One per component that has something to train; the entry of any other is skipped.

    planned: the run's updates, for a `total_steps` that is not given. Raises ConfigError with all problems.
    """
    optimizers: dict[str, Optimizer] = {}
    problems = list(_shared_parameters(config, models))
    for name, component in models.items():
        entry = config.experiment.model.component_optims.get(name)
        place = partial(config.place, "model", "component_optims", name)
        with collected(problems):
            groups = parameter_groups(component, name, entry, place)
            if groups:
                assert entry is not None
                optimizers[name] = _build(entry, groups, planned, place)
    refuse(problems)
    if not optimizers:
        message = "nothing trains: every component is frozen or has no parameters"
        raise ConfigError(Problem(message, config.place("model", "component_build_args")))
    return optimizers


def parameter_groups(component: nn.Module, name: str, entry: schemas.Optimizer | None, place: PlaceOf) -> Groups:
    """The trainable parameters, each in one group; none for a component that has nothing to train.

    Raises ConfigError for a component that trains and has no entry, for selectors that select one parameter twice,
    or nothing that trains.
    """
    trainable = {key: one for key, one in component.named_parameters() if one.requires_grad}
    if not trainable:
        return {}
    if entry is None:
        hint = f"add it under model.component_optims, or freeze it: component_build_args: {{{name}: {{freeze: true}}}}"
        message = f"component '{name}' has parameters to train and no optimizer: {listed([*trainable])}"
        raise ConfigError(Problem(message, place(), hint))
    problems: list[Problem] = []
    owners: dict[nn.Parameter, str] = {}
    groups: Groups = {}
    for selector in entry.groups:
        where = place("groups", selector)
        with collected(problems):
            selected = select_parameters(selector, component, where)
            own = {key: one for key, one in selected.items() if one.requires_grad}
            if not own:
                raise ConfigError(Problem(f"'{selector}' selects nothing that trains", where, f"of '{name}'"))
            twice = {key: owners[one] for key, one in own.items() if one in owners}
            if twice:
                message = f"'{selector}' and '{next(iter(twice.values()))}' both select {listed([*twice])}"
                raise ConfigError(Problem(message, where, "each parameter belongs to one group"))
            owners |= dict.fromkeys(own.values(), selector)
            groups[selector] = own
    refuse(problems)
    rest = {key: one for key, one in trainable.items() if one not in owners}
    return {REST: rest, **groups} if rest else groups


def _build(entry: schemas.Optimizer, groups: Groups, planned: int | None, place: PlaceOf) -> Optimizer:
    given = {**_total_steps(entry, planned, place), **entry.params}
    problems: list[Problem] = []
    built: list[Optimizer] = []
    for selector, parameters in groups.items():
        own = {} if selector is REST else entry.groups[selector]
        where = partial(_param_place, place, selector, own)
        with collected(problems):
            built.append(_built(entry.type, {**given, **own}, [*parameters.values()], where))
            if own != {key: given.get(key) for key in own} and _is_plain(built[-1], entry.type, given, where):
                message = f"optimizer '{entry.type}' keeps {listed([*own])} for all its parameters alike"
                raise ConfigError(Problem(message, where(next(iter(own))), "it cannot differ between groups"))
            problems += _left_out(entry.type, built[-1], parameters, place)
    refuse(problems)
    first, *others = built
    for other in others:
        for group in other.param_groups:
            first.add_param_group(group)
    return first


def _built(
    kind: str, params: Mapping[str, Any], parameters: list[nn.Parameter], where: Callable[[str], Place | None]
) -> Optimizer:
    """What the factory makes; what it finds wrong is told at the param that its message begins with."""
    try:
        return OPTIMIZER_BUILDER_REGISTRY.get(kind)(**params).build(parameters)
    except ConfigError as error:
        problems = [Problem(one.message, one.place or where(one.message), one.hint) for one in error.problems]
        raise ConfigError(problems) from error
    except Exception as error:
        error.add_note(f"while building the optimizer that {where('') or 'the config'} asks for")
        raise


def _param_place(place: PlaceOf, selector: str | None, own: Mapping[str, Any], message: str) -> Place | None:
    name = message.partition(" ")[0]
    if selector is not REST and name in own:
        return place("groups", selector, name)
    return place("params", name) if name else place()


def _is_plain(optimizer: Optimizer, kind: str, params: Mapping[str, Any], where: Callable[[str], Place | None]) -> bool:
    """Whether the optimizer steps its parameters as one built from the entry's own params would."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    return repr(_settings(optimizer)) == repr(_settings(_built(kind, params, parameters, where)))


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _left_out(
    kind: str, optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], place: PlaceOf
) -> Iterator[Problem]:
    taken = {one for group in optimizer.param_groups for one in group["params"]}
    left = [name for name, one in parameters.items() if one not in taken]
    if left:
        yield Problem(f"optimizer '{kind}' does not take {listed(left)}", place(), "freeze them, or choose another")


def _total_steps(entry: schemas.Optimizer, planned: int | None, place: PlaceOf) -> dict[str, int]:
    signature = inspect.signature(OPTIMIZER_BUILDER_REGISTRY.get(entry.type)).parameters
    if "total_steps" not in signature or "total_steps" in entry.params:
        return {}
    if planned is not None:
        return {"total_steps": planned}
    if signature["total_steps"].default is inspect.Parameter.empty:
        message = f"optimizer '{entry.type}' needs total_steps, and a run that only the clock ends has none"
        raise ConfigError(Problem(message, place(), "give total_steps, train.max_steps or train.epoch"))
    return {}


def _shared_parameters(config: RunConfig, models: nn.ModuleDict) -> Iterator[Problem]:
    """Two components with one parameter would have it stepped twice, and saved twice."""
    owners: dict[nn.Parameter, str] = {}
    for name, component in models.items():
        for key, parameter in component.named_parameters():
            owner = owners.setdefault(parameter, f"{name}.{key}")
            if owner.partition(".")[0] != name and parameter.requires_grad:
                place = config.place("model", "component_config_paths", name)
                message = f"'{owner}' and '{name}.{key}' are one parameter, which two optimizers would step"
                yield Problem(message, place, "build what shares a parameter as one component")
