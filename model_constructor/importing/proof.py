"""Proof: a model file beside the module that it was written from, tensor by tensor and output by output."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..build import build_tree
from ..equality import same_entries
from ..errors import ConfigError, Problem
from ..model import GraphModel
from ..source import read_text
from .examples import Examples
from .recording import tensors_in

TOLERANCE = 1e-5  # of an output, beside the largest of its entries


@dataclass(frozen=True, slots=True)
class Imported:
    """A model file and what was compared. The model has the module's weights.

    difference: the largest of an output in eval mode. in_training: the same in training mode, of the outputs and of the
    buffers after them, from the same seed; None where the module fails there.
    """

    text: str
    model: GraphModel
    tensors: int
    difference: float
    in_training: float | None


def prove(text: str, examples: Examples) -> Imported:
    """Build the file and compare. Raises ConfigError where the module and the file differ."""
    model = build_tree(read_text(text, "<imported>"), "imported")
    module = examples.module
    wanted, found = ({name: t.shape for name, t in one.state_dict().items()} for one in (module, model))
    if wanted != found:
        differing = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
        shapes = (f"{name}: {_shape(wanted.get(name))} there, {_shape(found.get(name))} here" for name in differing)
        raise ConfigError([Problem(f"the tensors are not those of the module: {line}.") for line in shapes])
    model.load_state_dict(module.state_dict())
    model.eval()
    trials = [examples.values(sizes, seed) for seed, sizes in enumerate(examples.sizes, 1)]
    difference = max(_difference(module, model, values) for values in trials)
    if not difference <= TOLERANCE:
        message = f"the file does not compute what the module does: the largest difference is {difference:.3g}."
        hint = "a tensor that is changed in place while another name still reads it is the usual reason"
        raise ConfigError(Problem(message, hint=hint))
    twins = [copy.deepcopy(one).train() for one in (module, model)]
    try:
        in_training = _difference(twins[0], twins[1], trials[0])
    except Exception:  # what is made for eval mode alone
        in_training = None
    else:
        states = [one.state_dict() for one in twins]
        in_training = max([in_training, *(_apart(states[0][name], states[1][name]) for name in states[0])])
    return Imported(text, model, len(wanted), difference, in_training)


def _difference(module: nn.Module, model: Any, values: Mapping[str, Tensor]) -> float:
    """The largest difference of two outputs from the same seed, beside the largest entry where that is above 1."""
    outputs = []
    for one, given in ((module, values), (model, dict(zip(model.inputs, values.values(), strict=True)))):
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(list(tensors_in(one(**{name: value.clone() for name, value in given.items()}))))
    if len(outputs[0]) != len(outputs[1]):
        return float("inf")
    return max((_apart(*pair) for pair in zip(*outputs, strict=True)), default=0.0)


def _apart(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    differ = ~same_entries(one, other)
    if not differ.any():
        return 0.0
    one, other = one.double(), other.double()
    size = one.where(one.isfinite(), 0.0).abs().max().clamp(min=1)
    return float(((one - other)[differ].abs().max() / size).nan_to_num(float("inf")))


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(list(shape))
