"""Weights: a file of named tensors -> the parameters and buffers of a component."""

import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from model_constructor import ConfigError
from model_constructor.errors import Place, Problem, nearest
from trainer.modeling.problems import listed

HOW_TO_FIT = "`weights: {path: ..., strict: false}` loads what fits and leaves the rest as it was initialised"


def load_weights(component: nn.Module, path: Path, place: Place | None, name: str, *, strict: bool = True) -> None:
    """Load a state dict, `.safetensors` or a `.pt` that holds tensors alone; each in the component's own dtype.

    strict: every tensor of the file has one of the same name and shape in the component, and the other way round;
    otherwise what fits is loaded and the rest is told in one line. Raises ConfigError, also where nothing fits.
    """
    given = read_state_dict(path, place)
    own = component.state_dict()
    wrong_shape = {key for key in given.keys() & own.keys() if given[key].shape != own[key].shape}
    fitting = {key: value for key, value in given.items() if key not in wrong_shape}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta")  # a check loads into no memory
        result = component.load_state_dict(fitting, strict=False)  # which knows the names of older files, too
    missing = [key for key in result.missing_keys if key not in wrong_shape]
    if own and not fitting.keys() - {*result.unexpected_keys}:
        hint = nearest(min(own), given)
        raise ConfigError(Problem(f"component '{name}': {path} holds none of its tensors", place, hint))
    problems = list(_differences(missing, result.unexpected_keys, sorted(wrong_shape), given, own))
    if problems and strict:
        hint = _hint(missing, result.unexpected_keys)
        raise ConfigError([Problem(f"component '{name}': {path} {problem}", place, hint) for problem in problems])
    if problems and not any(one.is_meta for one in own.values()):
        print(f"component '{name}': {path} " + "; it ".join(problems), flush=True)


def read_file(path: Path, place: Place | None) -> Any:
    """Tensors and plain values, on the CPU. Nothing in a file is ever run."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        is_zip = zipfile.is_zipfile(path)  # what torch writes; it can be read where it lies
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # of what is no file of tensors, a reader raises whatever it stumbles over
        message = f"{path} is damaged, or holds something else than tensors; nothing of it was run"
        raise ConfigError(Problem(message, place, _first_line(error))) from error


def read_state_dict(path: Path, place: Place | None) -> dict[str, Tensor]:
    """The tensors of a file by their names."""
    state = read_file(path, place)
    if isinstance(state, dict) and all(isinstance(one, Tensor) for one in state.values()):
        return state
    entries = listed([str(key) for key in state]) if isinstance(state, dict) else type(state).__name__
    hint = f"it holds {entries}; save the state dict of the component alone"
    raise ConfigError(Problem(f"{path} is no state dict: names and tensors", place, hint))


def _differences(
    missing: list[str], unexpected: list[str], wrong_shape: list[str], given: dict[str, Tensor], own: dict[str, Tensor]
) -> Iterator[str]:
    if missing:
        yield f"lacks {listed(missing)}"
    if unexpected:
        yield f"has besides {listed(unexpected)}"
    if wrong_shape:
        shapes = [f"{key} {list(given[key].shape)} for {list(own[key].shape)}" for key in wrong_shape]
        yield f"has other shapes: {listed(shapes)}"


def _hint(missing: list[str], unexpected: list[str]) -> str:
    if any(key.endswith(".lora_A") for key in unexpected):
        return "the file holds LoRA matrices: continue from it by train.load_dir, or merge them before saving"
    if missing and unexpected:
        return nearest(missing[0], unexpected)
    return HOW_TO_FIT


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]
