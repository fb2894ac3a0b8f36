"""Saving: a model as two files, `model.yaml` (its specification) and `model.safetensors` (its weights); no code.

What two names share is stored once, under the first. Buffers that are not persistent are not stored: their values are
computed again from the specification.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils.weak import WeakTensorKeyDictionary

from .build import build_model
from .errors import ConfigError, Problem, nearest
from .init import compute_buffers
from .model import GraphModel
from .names import DTYPES
from .source import dump

MODEL_FILE = "model.yaml"
WEIGHTS_FILE = "model.safetensors"
SHOWN = 10  # names in a message


def save(model: GraphModel, folder: str | Path) -> None:
    """As `GraphModel.save_pretrained`."""
    folder = Path(folder)
    named = model.state_dict(keep_vars=True)
    unsized = [name for name, tensor in named.items() if is_lazy(tensor)]
    if unsized:
        raise ConfigError(Problem(f"sizes are not known yet: {_list(unsized)}.", hint="call the model once"))
    build = partial(build_model, model.spec, allow_imports=tuple(sys.modules))
    expected = _laid_out(build, torch.device("cpu")).state_dict(keep_vars=True)
    problems = list(_differences(_looks(expected), _looks(named), "the model"))
    if problems:
        hint = "it has been changed since it was built, so that its specification does not describe it any more"
        raise ConfigError([Problem(problem.message, hint=hint) for problem in problems])
    absent = [name for name, tensor in named.items() if tensor.is_meta]
    if absent:
        raise ConfigError(Problem(f"there is nothing to save on the meta device: {_list(absent)}."))
    first: dict[Tensor, str] = {}
    same_as = {name: first[tensor] for name, tensor in named.items() if first.setdefault(tensor, name) != name}
    computed = {name: buffer for name, buffer in model.named_buffers() if name not in named}
    metadata = {
        "format": "pt",
        "architecture_hash": model.architecture_hash,
        "same_as": json.dumps(same_as),
        "computed": json.dumps({name: str(buffer.dtype).removeprefix("torch.") for name, buffer in computed.items()}),
    }
    weights = apart({name: tensor for tensor, name in first.items()})
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / WEIGHTS_FILE, lambda path: save_file(weights, path, metadata))
    _replace(folder / MODEL_FILE, lambda path: path.write_text(dump(model.spec), encoding="utf-8"))


def load(folder: str | Path, device: torch.device | str | None, allow_imports: Sequence[str]) -> GraphModel:
    """As `GraphModel.from_pretrained`."""
    model_file, weights_file = Path(folder) / MODEL_FILE, Path(folder) / WEIGHTS_FILE
    device = torch.get_default_device() if device is None else torch.device(device)
    build = partial(build_model, model_file, allow_imports=allow_imports)
    model = _laid_out(build, device)
    expected = model.state_dict(keep_vars=True)
    try:
        with safe_open(weights_file, "pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            same_as, computed = _names(metadata["same_as"]), _names(metadata["computed"])
            names = {**{name: name for name in file.keys()}, **same_as}  # noqa: SIM118
            stored: Looks = {name: _stored_looks(file.get_slice(first)) for name, first in names.items()}
            problems = list(_differences(_looks(expected), stored, str(weights_file)))
            if not problems and metadata["architecture_hash"] != model.architecture_hash:
                message = f"{weights_file}: these are weights of another architecture than that of {model_file}."
                problems = [Problem(message, hint="one of the two files has been changed or replaced")]
            if problems:
                raise ConfigError(problems)
            weights = {first: _as(expected[first], file.get_tensor(first)) for first in {*names.values()}}
    except FileNotFoundError:
        raise ConfigError(Problem(f"{weights_file}: there is no such file.")) from None
    except KeyError as error:
        message = f"{weights_file}: its metadata has no {error}; save_pretrained has not written it."
        raise ConfigError(Problem(message)) from None
    except (SafetensorError, OSError, ValueError) as error:
        message = f"{weights_file}: the file is damaged, or no safetensors: {error}."
        raise ConfigError(Problem(message)) from error
    for name in expected:
        _put(model, name, weights[names[name]])
    _compute_buffers(model, computed, device, build)
    return model


def _names(text: str) -> dict[str, str]:
    names = json.loads(text)
    if not isinstance(names, dict) or not all(isinstance(value, str) for value in names.values()):
        raise ValueError("its metadata holds no names")
    return names


# what a model holds, and what a file does

# name -> shape (None where any will do), and whether it holds floating-point numbers
Looks = dict[str, tuple[list[int] | None, bool]]


def _looks(named: dict[str, Tensor]) -> Looks:
    return {
        name: (None if is_lazy(tensor) else list(tensor.shape), tensor.dtype.is_floating_point)
        for name, tensor in named.items()
    }


def _stored_looks(stored: Any) -> tuple[list[int] | None, bool]:
    return stored.get_shape(), stored.get_dtype().startswith(("F", "BF"))


def _differences(expected: Looks, found: Looks, what: str) -> Iterator[Problem]:
    """All that hinders loading what is found in place of what is expected."""
    missing, unexpected = (list(a.keys() - b.keys()) for a, b in ((expected, found), (found, expected)))
    if missing:
        yield Problem(f"{what}: missing: {_list(missing)}.", hint=nearest(min(missing), unexpected))
    if unexpected:
        yield Problem(f"{what}: the specification has no {_list(unexpected)}.", hint=nearest(min(unexpected), missing))
    for name in expected.keys() & found.keys():
        (shape, floating), (found_shape, found_floating) = expected[name], found[name]
        if shape is not None and shape != found_shape:
            yield Problem(f"{what}: '{name}' has the shape {found_shape}; the specification says {shape}.")
        elif floating != found_floating:
            kinds = ("integers", "floating-point numbers")
            yield Problem(f"{what}: '{name}' holds {kinds[found_floating]}; it should hold {kinds[floating]}.")


def _list(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in sorted(names)[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def apart(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with memory of its own, as the file has it; copied only where it shares memory with another."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in named.items():
        storage = tensor.untyped_storage()
        is_whole = tensor.is_contiguous() and storage.nbytes() == tensor.numel() * tensor.element_size()
        alone = is_whole and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        apart[name] = tensor.detach() if alone else tensor.detach().clone(memory_format=torch.contiguous_format)
    return apart


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside its place and move it there, so that a crash leaves the old one or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


# into a model on the meta device


def _laid_out(build: Callable[[], GraphModel], device: torch.device) -> GraphModel:
    """A model whose parameters have no values. What else its types make has them, on `device`, if one of them asks."""
    try:
        with torch.device("meta"):
            return build()
    except ConfigError:  # some constructor asks for values
        with values_but_no_parameters(device):
            return build()


def _as(expected: Tensor, tensor: Tensor) -> Tensor:
    """A parameter where one is expected, trained where that one is."""
    return nn.Parameter(tensor, expected.requires_grad) if isinstance(expected, nn.Parameter) else tensor


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, key = name.rpartition(".")
    module = model.get_submodule(owner)
    tensors: dict[str, Any] = module._parameters if key in module._parameters else module._buffers
    tensors[key] = tensor


def _compute_buffers(
    model: GraphModel, dtypes: dict[str, str], device: torch.device, build: Callable[[], GraphModel]
) -> None:
    """Give the buffers that are not stored their values: ours by their expressions, those of modules by building again.

    dtypes: those the buffers had when the model was saved.
    """
    compute_buffers(model, device)
    waiting = [name for name, buffer in model.named_buffers(remove_duplicate=False) if buffer.is_meta]
    if waiting:
        with values_but_no_parameters(device):
            built = build()
        for name in waiting:
            _put(model, name, built.get_buffer(name))
    for name in dict(model.named_buffers(remove_duplicate=False)).keys() & dtypes.keys():
        if dtypes[name] in DTYPES:
            _put(model, name, model.get_buffer(name).to(getattr(torch, dtypes[name])))


@contextmanager
def values_but_no_parameters(device: torch.device) -> Iterator[None]:
    """What is made inside has its values, on a device; parameters are dropped as soon as they are registered."""
    # Types that load pretrained weights do not on the meta device; so that is what they are told. (Of a device
    # without a number, get_default_device would make a tensor to see.)
    with torch.random.fork_rng(devices=[]), torch.device("meta", 0), _BuffersOn(device), _parameters_on_meta():
        yield


class _BuffersOn(TorchFunctionMode):
    """Inside `torch.device("meta")`: tensors are made on this device after all, unless the call names another."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _device_constructors():
            kwargs["device"] = kwargs.get("device") or self.device
        return func(*args, **kwargs)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters that this thread registers go to the meta device at once; buffers are what they are."""
    thread = threading.get_ident()
    moved = WeakTensorKeyDictionary()  # a tensor under two names stays one parameter

    def move(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if threading.get_ident() != thread or parameter is None or parameter.is_meta:
            return None
        if parameter not in moved:
            moved[parameter] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        return moved[parameter]

    handle = register_module_parameter_registration_hook(move)  # pyrefly: ignore  # it may return a parameter
    try:
        yield
    finally:
        handle.remove()
