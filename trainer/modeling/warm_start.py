"""Warm start: a new run that begins with the weights and optimizer states of another (`train.load_dir`)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from model_constructor import ConfigError
from model_constructor.errors import Place, Problem, nearest
from model_constructor.weights import read_tensors
from trainer.checkpoint import MANIFEST, CheckpointError, newest_checkpoint, open_checkpoint
from trainer.modeling.problems import collected, listed, refuse
from trainer.modeling.weights import load_weights
from trainer.registry import OPTIMIZER_BUILDER_REGISTRY

if TYPE_CHECKING:
    from trainer.config import RunConfig


def warm_start(config: RunConfig, folder: Path, models: nn.ModuleDict, optimizers: Mapping[str, Optimizer]) -> None:
    """Load `{component}.pt` and `{component}_opt.pt` of a `warm_start_folder`.

    Weights fit exactly, so nothing would be left of what `init` and `weights` gave a component: either is an error.
    Of an optimizer its memory of past gradients is loaded; its settings are those of the config, and a schedule (what
    counts `updates` in its param groups) begins anew, since the run does. Raises ConfigError with every file that is
    missing and not in `train.allow_missing`, and all that does not fit.
    """
    place = config.place("train", "load_dir")
    expected = [f"{name}.pt" for name in models] + [f"{name}_opt.pt" for name in optimizers]
    allowed = config.experiment.train.allow_missing
    problems = [
        Problem(
            f"train.allow_missing: no file of this run is called '{name}'",
            config.place("train", "allow_missing", str(position)),
            nearest(name, expected),
        )
        for position, name in enumerate(allowed)
        if name not in expected
    ]
    missing = [name for name in expected if not (folder / name).is_file() and name not in allowed]
    if missing:
        hint = f"to begin without them: train.allow_missing: [{', '.join(missing)}]"
        problems.append(Problem(f"{folder} lacks {listed(missing)}", place, hint))
    for name, component in models.items():
        if (folder / f"{name}.pt").is_file():
            with collected(problems):
                load_weights(component, folder / f"{name}.pt", place, name)
                problems += _replaced(config, name)
    for name, optimizer in optimizers.items():
        if (folder / f"{name}_opt.pt").is_file():
            with collected(problems):
                _load_optimizer(config, name, optimizer, folder / f"{name}_opt.pt", place)
    refuse(problems)


def warm_start_folder(config: RunConfig) -> Path | None:
    """The folder that `train.load_dir` names, or the newest checkpoint in it; None where it names none."""
    text, place = config.experiment.train.load_dir, config.place("train", "load_dir")
    if text is None:
        return None
    folder = config.folders.find(text)
    if folder is None or not folder.is_dir():
        hint = f"looked for it in {config.folders.told}"
        raise ConfigError(Problem(f"train.load_dir: there is no folder '{text}'", place, hint))
    try:
        if (folder / MANIFEST).is_file():
            return open_checkpoint(folder).path
        newest = newest_checkpoint(folder)
    except CheckpointError as error:
        raise ConfigError(Problem(f"train.load_dir: {error}", place)) from error
    return folder if newest is None else newest.path


def _replaced(config: RunConfig, name: str) -> list[Problem]:
    """The build args of a component that set values which its file of `train.load_dir` replaces."""
    args = config.experiment.model.build_args(name)
    return [
        Problem(
            f"component '{name}': {key} would have no effect: train.load_dir has {name}.pt, which replaces every value",
            config.place("model", "component_build_args", name, key),
            f"remove the key, or, where a base file gives it, write `{key}: {nothing}`",
        )
        for key, given, nothing in (("init", args.init, "false"), ("weights", args.weights, "null"))
        if given
    ]


def _load_optimizer(config: RunConfig, name: str, optimizer: Optimizer, path: Path, place: Place | None) -> None:
    state = read_tensors(path, place)
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
        refuse_other_shapes(optimizer)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        hint = f"begin without it: remove the file, or give {name} the groups that it was saved with"
        message = f"component '{name}': {path} is of another optimizer, or of other parameter groups: {error}"
        raise ConfigError(Problem(message, place, hint)) from error
    kind = config.experiment.model.component_optims[name].type
    keywords = inspect.signature(OPTIMIZER_BUILDER_REGISTRY.get(kind)).parameters
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own if "updates" in own else _only(own, keywords))


def refuse_other_shapes(optimizer: Optimizer) -> None:
    """torch counts parameters and does not look at them: a fused kernel would write behind a moment's end."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(f"{name} is {list(value.shape)}, its parameter {list(parameter.shape)}")


def _only(settings: dict[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in names}
