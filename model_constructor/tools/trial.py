"""Trial: inputs that a model runs with, found by trying where its file says nothing of their shapes."""

from __future__ import annotations

import argparse
import ast
import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..block import expressions
from ..errors import ConfigError
from ..model import GraphModel
from ..names import DTYPES
from ..source import read_text

MAX_TRIALS = 3000
SIDES = (32, 8, 16, 28, 64, 84, 96, 128, 224, 4)  # of images, or lengths
BATCH = 2


class Sample(NamedTuple):
    """The shape and dtype of an input."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"{list(self.shape)}" + ("" if self.dtype.is_floating_point else f" {self.dtype}".replace("torch.", ""))

    def random(self) -> Tensor:
        if self.dtype.is_floating_point:
            return torch.randn(self.shape, dtype=self.dtype)
        return torch.randint(2, self.shape).to(self.dtype)


def sample(text: str) -> tuple[str, Sample]:
    """An input of a command, declared as in a model file: `x: [2, 3, 64, 64]`, `x: {shape: [2, 5], dtype: int64}`."""
    try:
        document = read_text(text, "--input").plain
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    (name, declared), *more = document.items() if isinstance(document, dict) and document else [("", None)]
    full = declared if isinstance(declared, dict) else {"shape": declared}
    shape, dtype = full.get("shape"), full.get("dtype", "float32")
    sizes = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if more or not sizes or dtype not in DTYPES or full.keys() - {"shape", "dtype"}:
        message = f"'{text}' is not written as 'x: [2, 3, 64, 64]', or 'x: {{shape: [2, 5], dtype: int64}}'"
        raise argparse.ArgumentTypeError(message)
    return name, Sample(tuple(shape), getattr(torch, dtype))


def find_inputs(model: GraphModel, given: Mapping[str, Sample]) -> dict[str, Sample] | None:
    """A shape for each input with which the model runs; None where none of those tried does."""
    if {*model.inputs} <= given.keys():
        return {name: given[name] for name in model.inputs}  # what fails then, fails where the model is run
    choices = [[given[name]] if name in given else list(_candidates(model, name)) for name in model.inputs]
    lazy = any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers()))
    for device in ("cpu",) if lazy else ("meta", "cpu"):  # a module may ask for values
        twin = copy.deepcopy(model).eval().to(device)
        for chosen in itertools.islice(itertools.product(*choices), MAX_TRIALS):
            inputs = dict(zip(model.inputs, chosen, strict=True))
            if _runs(copy.deepcopy(twin) if lazy else twin, inputs, device):
                return inputs
    return None


def _runs(model: GraphModel, inputs: Mapping[str, Sample], device: str) -> bool:
    try:
        with torch.no_grad(), torch.device(device):
            model(**{name: one.random() for name, one in inputs.items()})
    except Exception:  # whatever a module raises for a shape that is not its own
        return False
    return True


def _candidates(model: GraphModel, name: str) -> Iterator[Sample]:
    """Shapes that the modules would take that are called with an input, or if there are none, all modules."""
    block = model._block
    values = [*(statement.value for statement in block.graph.values()), *([block.outputs] if block.outputs else [])]
    called = [
        call.func.id
        for value in values
        for expression in expressions(value)
        for call in ast.walk(expression.tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and any(
            isinstance(part, ast.Name) and part.id == name for part in (*call.args, *(k.value for k in call.keywords))
        )
    ]
    direct = [model.get_submodule(callee) for callee in called if callee in model._modules]
    found = [shape for module in direct for shape in _shapes(next(_leaves(module), module))]
    if not found:
        found = [shape for module in model.modules() for shape in _shapes(module)]
    yield from dict.fromkeys([*found, *(Sample(shape) for shape in ((BATCH, 8), (BATCH, 5, 8), (BATCH, 3, 32, 32)))])


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    yield from (one for one in module.modules() if not any(one.children()) and any(_shapes(one)))


def _shapes(module: nn.Module) -> Iterator[Sample]:
    """What a module of torch takes."""
    sizes: Any = None
    for attribute in ("in_features", "input_size", "embed_dim", "normalized_shape", "d_model"):
        sizes = sizes or getattr(module, attribute, None)
    if isinstance(module, nn.Embedding):
        yield Sample((BATCH, 5), torch.int64)
    elif isinstance(module, nn.modules.conv._ConvNd | nn.modules.batchnorm._NormBase | nn.GroupNorm):
        channels = getattr(module, "in_channels", 0) or getattr(module, "num_features", 0) or 3
        rank = _rank(module)
        yield from (Sample((BATCH, channels, *[side] * rank)) for side in SIDES)
    elif sizes:
        last = tuple(sizes) if isinstance(sizes, list | tuple) else (sizes,)
        yield from (Sample((BATCH, *last)), Sample((BATCH, 5, *last)))


def _rank(module: nn.Module) -> int:
    return next((int(digit) for digit in type(module).__name__ if digit.isdigit()), 2)
