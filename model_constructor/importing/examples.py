"""Examples: the inputs that a module is run with, from their declarations."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, Problem, nearest
from .recording import record
from .steps import Recorded

LEADING_SIZE = 2  # of a symbol that leads a shape
WRAPPED = "layers"  # what a container is called in the module around it


class Examples:
    """A module in eval mode, and tensors to run it with. `sizes` are two choices of the symbols."""

    def __init__(self, module: nn.Module, inputs: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        self.declared = dict(inputs)
        self.prefix = ""
        self.module = copy.deepcopy(module).eval()
        self.note = ""
        if isinstance(module, nn.Sequential):  # its names are numbers, which a file has in lists alone
            self.module, self.prefix = _Wrapped(self.module).eval(), f"{WRAPPED}."
            self.note = f"\nThe state dict has '{self.prefix}' before the names of the module's own."
        self._check()
        order = inspect.signature(self.module.forward).parameters
        self.declared = {name: inputs[name] for name in [*order, *inputs] if name in inputs}
        first = self._first_sizes(sizes)
        self._run(first)
        self.sizes = [first, self._other_sizes(first)]

    def values(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
        """Random inputs of these sizes: normal numbers, indices that the module's tables have, or truth values."""
        generator = torch.Generator().manual_seed(seed)
        values = {}
        for name, declared in self.declared.items():
            shape = [sizes.get(entry, entry) for entry in _shape(declared)]
            dtype = getattr(torch, declared.get("dtype", "float32")) if isinstance(declared, Mapping) else torch.float32
            if dtype is torch.bool:
                values[name] = torch.rand(shape, generator=generator) < 0.8
            elif dtype.is_floating_point:
                values[name] = torch.randn(shape, generator=generator).to(dtype)
            else:
                values[name] = torch.randint(0, self._rows(), shape, generator=generator, dtype=dtype)
        return values

    def _run(self, sizes: Mapping[str, int]) -> None:
        """What the module raises is its own, with a note of what it was given."""
        values = self.values(sizes)
        try:
            with torch.no_grad():
                self.module(**values)
        except Exception as error:
            given = ", ".join(f"{name} {list(value.shape)}" for name, value in values.items())
            error.add_note(f"while the module was run in eval mode with {given}")
            raise

    def training(self) -> list[Recorded]:
        """What a copy of the module does in training mode; nothing if it fails there."""
        try:
            return record(copy.deepcopy(self.module).train(), self.values(self.sizes[0]))[0]
        except Exception:  # of what is made for eval mode alone
            return []

    def _rows(self) -> int:
        tables = (one.num_embeddings for one in self.module.modules() if isinstance(one, nn.Embedding))
        return min(tables, default=2)

    def _check(self) -> None:
        parameters = inspect.signature(self.module.forward).parameters
        problems = []
        for name, declared in self.declared.items():
            if name not in parameters and not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
                message = f"the forward of {type(self.module).__name__} has no argument '{name}'."
                problems.append(Problem(message, hint=nearest(name, parameters)))
            shape = _shape(declared)
            if not isinstance(shape, list | tuple) or not all(
                (isinstance(entry, int) and entry >= 0) or (isinstance(entry, str) and entry.isidentifier())
                for entry in shape
            ):
                message = f"the shape of '{name}' is a list of numbers and symbols; this is {shape!r}."
                problems.append(Problem(message, hint="x: [B, 3, 224, 224]"))
            dtype = declared.get("dtype", "float32") if isinstance(declared, Mapping) else "float32"
            if not isinstance(getattr(torch, str(dtype), None), torch.dtype):
                problems.append(Problem(f"no dtype is called '{dtype}'.", hint="x: {shape: [B, T], dtype: int64}"))
        missing = [
            name
            for name, one in parameters.items()
            if one.default is one.empty
            and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
            and name not in self.declared
        ]
        problems += [Problem(f"the forward needs '{n}': declare its shape.", hint=f"{n}: [B, ...]") for n in missing]
        if problems:
            raise ConfigError(problems)

    def _first_sizes(self, given: Mapping[str, int]) -> dict[str, int]:
        shapes = [_shape(declared) for declared in self.declared.values()]
        symbols = dict.fromkeys(entry for shape in shapes for entry in shape if isinstance(entry, str))
        leading = {shape[0] for shape in shapes if shape and isinstance(shape[0], str)}
        known = {symbol: given.get(symbol, LEADING_SIZE if symbol in leading else None) for symbol in symbols}
        problems = [
            Problem(f"the inputs have no symbol '{s}'.", hint=nearest(s, symbols)) for s in given if s not in symbols
        ]
        problems += [
            Problem(f"how large is '{s}'? Give one size to run with.") for s, size in known.items() if size is None
        ]
        if problems:
            raise ConfigError(problems)
        return {symbol: size for symbol, size in known.items() if size is not None}

    def _other_sizes(self, first: dict[str, int]) -> dict[str, int]:
        """Other sizes that the module takes, of as many symbols as it can be: one more of what leads, else twice."""
        leading = {_shape(declared)[0] for declared in self.declared.values() if _shape(declared)}
        more = {symbol: size + 1 if symbol in leading else 2 * size for symbol, size in first.items()}
        tries = [more, *({**first, symbol: more[symbol]} for symbol in more)]
        failure = None
        for sizes in tries if more else ():
            try:
                self._run(sizes)
            except Exception as error:  # whatever the module raises that is made for other sizes
                failure = error
                continue
            fixed = [symbol for symbol in sizes if sizes[symbol] == first[symbol]]
            if not fixed:
                return sizes
            wanted = ", ".join(f"{symbol} as a number ({first[symbol]})" for symbol in fixed)
            raise ConfigError(
                Problem(f"the module does not run with other sizes: {failure}.", hint=f"declare {wanted}")
            )
        if more:
            raise ConfigError(Problem(f"the module does not run with other sizes: {failure}.", hint="declare numbers"))
        return first


class _Wrapped(nn.Module):
    """A container under a name."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _shape(declared: Any) -> Any:
    return declared.get("shape") if isinstance(declared, Mapping) else declared
