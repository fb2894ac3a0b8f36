"""`model-constructor eject`: a model as a Python module that does not need this package, compared with the model."""

from __future__ import annotations

import argparse
import ast
import itertools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..build import build_model
from ..equality import equal
from ..errors import ConfigError, Problem
from ..model import GraphModel
from .arguments import add_imports, add_overrides, add_sizes, build_without_memory, refuse_output
from .measure import LEADING, _dtype_choices, _inputs, _symbols, check_sizes
from .printer import module_text
from .standalone import Standalone

MAX_BYTES = 2 * 2**30  # of weights; a larger model is compared without them
_SIZES = (2, 3, 4, 8, 16, 32, 64, 96, 224)  # that symbols of the inputs are tried with


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "eject",
        help="write a model as a Python module that does not need this package",
        description="Write a model as a Python module that does not need this package: a class for each distinct "
        "block, with the same names, weights and outputs. It is compared with the model before it is written.",
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("output", metavar="OUT.py", type=Path)
    parser.add_argument("--force", action="store_true", help="replace OUT.py if it is there")
    add_overrides(parser)
    add_sizes(parser, "sizes of symbols of the inputs, for the comparison; found by trying if they are not given")
    add_imports(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    if given.output.suffix != ".py":
        raise ConfigError(Problem(f"{given.output}: the name of a Python module ends in .py."))
    refuse_output(given.output, given.force)
    model = build_without_memory(given.file, given)
    sheet = Standalone(model)
    text = module_text(sheet, Path(given.file).name)
    proof = _Proof(given, model, text, sheet.name).run()
    given.output.write_text(text, encoding="utf-8")
    lines = len(text.splitlines())
    print(f"written: {given.output}, {lines} lines; class {sheet.name}; it imports {', '.join(_imported(text))}")
    if sheet.written_in:
        print(f"written in, since the graph or a size depends on them: {sheet.written_in}")
    print(proof)
    return 0


def _imported(text: str) -> list[str]:
    """The packages that a module imports, besides Python's own."""
    found = set()
    for part in ast.walk(ast.parse(text)):
        if isinstance(part, ast.Import):
            found |= {alias.name for alias in part.names}
        elif isinstance(part, ast.ImportFrom):
            found.add(str(part.module))
    return sorted({name.partition(".")[0] for name in found} - sys.stdlib_module_names)


class _Proof:
    """The comparison of a model with the class that was written: names, first values, outputs, and buffers then."""

    def __init__(self, given: argparse.Namespace, model: GraphModel, text: str, name: str) -> None:
        self.given = given
        self.model = model  # on the meta device
        self.namespace: dict[str, Any] = {"__name__": given.output.stem}
        exec(compile(text, str(given.output), "exec"), self.namespace)
        self.kind = self.namespace[name]

    def run(self) -> str:
        with torch.random.fork_rng(devices=[]):
            return self.compared()

    def compared(self) -> str:
        size = sum(t.numel() * t.element_size() for t in self.model.state_dict().values())
        if size > MAX_BYTES:
            with torch.device("meta"):
                count = self.same_state(self.model, self.kind(), values=False)
            left = f"not values and outputs, of {size / 2**30:.1f} GiB; smaller params, by --set, are compared whole"
            return f"equal: {count} tensors by name and shape, {left}"
        torch.manual_seed(0)
        given = {"overrides": self.given.overrides, "allow_imports": self.given.allow_import}
        ours = build_model(self.given.file, **given)
        torch.manual_seed(0)
        theirs = self.kind()
        count = self.same_state(ours, theirs)
        with torch.no_grad():  # so that no zero hides what it is multiplied with
            for tensor in ours.state_dict().values():
                if tensor.is_floating_point():  # little, so that deep networks stay finite; variances stay positive
                    tensor += 0.02 * torch.randn_like(tensor) if tensor.ndim > 1 else 0.1 * torch.rand_like(tensor)
        theirs.load_state_dict(ours.state_dict())
        return f"equal: {count} tensors by name, shape and first value; {self.outputs(ours, theirs)}"

    def same_state(self, ours: nn.Module, theirs: nn.Module, values: bool = True) -> int:
        own, other = _state(ours), _state(theirs)
        if [*own] != [*other]:
            differ = next((a, b) for a, b in itertools.zip_longest(own, other) if a != b)
            raise self.failure(f"where the model has the tensor {differ[0]}, it has {differ[1]}")
        for name, tensor in own.items():
            kinds = [_kind(one) for one in (tensor, other[name])]
            if kinds[0] != kinds[1]:
                raise self.failure(f"{name} is {kinds[1]}; in the model it is {kinds[0]}")
            if values and not equal(tensor, other[name]):
                raise self.failure(f"{name} begins with other values, of the same seed")
        return len(own)

    def outputs(self, ours: GraphModel, theirs: nn.Module) -> str:
        without = [name for name, d in self.model._block.inputs.items() if d.shape is None and not d.optional]
        if without:
            return f"outputs are not compared: the input '{without[0]}' is any"
        found = next(self.runs(), None)
        if found is None:
            return "outputs are not compared: no sizes are known that it runs with; give them by --size"
        sizes, inputs = found
        count = 0
        for mode, names in itertools.product((False, True), self.choices(inputs)):
            values = {name: inputs[name] for name in names}
            results = []
            for model in (ours.train(mode), theirs.train(mode)):
                torch.manual_seed(1)
                try:
                    results.append(model(**values))
                    count += model is theirs
                except Exception as error:  # of the model's own: an input may be needed after all
                    results.append(type(error))
            if not equal(*results):
                how = f"{'train' if mode else 'eval'} mode, of the inputs {', '.join(names)}"
                raise self.failure(f"its output differs, in {how}: {results[1]!r:.200}, and {results[0]!r:.200}")
        if not count:
            return "outputs are not compared: it fails with all values that were tried"
        self.same_state(ours, theirs)  # what training has counted
        shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
        return f"outputs in eval and train mode to the last bit, in {count} calls{f' with {shown}' if shown else ''}"

    def choices(self, inputs: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
        """All inputs, only those that are needed, and all but one."""
        optional = [name for name in inputs if self.model._block.inputs[name].optional]
        left_out = [set(), {*optional}, *({name} for name in optional)]
        return [*dict.fromkeys(tuple(name for name in inputs if name not in out) for out in left_out)]

    def runs(self) -> Iterator[tuple[dict[str, int], dict[str, Tensor]]]:
        """Sizes of the symbols that the model runs with, and inputs of these sizes."""
        known = dict(self.given.size)
        check_sizes(known, self.model._block.symbols)
        symbols = [name for name in _symbols(self.model) if name not in known]
        tables = [
            {"B": 2, LEADING: 2, **{s: size + i * d for i, s in enumerate(symbols) if s not in ("B", LEADING)}}
            for size in _SIZES
            for d in (size, 1, 0)
        ]
        for table, dtypes in itertools.product(tables, _dtype_choices(self.model)):
            sizes = {**{name: table[name] for name in symbols}, **known}
            inputs = dict(_inputs(self.model, sizes, dtypes))
            try:
                with torch.device("meta"), torch.no_grad():
                    self.model.eval()(**inputs)
            except Exception:  # these sizes or dtypes do not fit
                continue
            yield sizes, {name: _random(tensor) for name, tensor in inputs.items()}

    def failure(self, what: str) -> ConfigError:
        message = f"{self.given.file}: the module that would be written is not the model: {what}."
        return ConfigError(Problem(message, hint="nothing was written"))


def _random(like: Tensor) -> Tensor:
    if like.is_floating_point():
        return torch.randn(like.shape, dtype=like.dtype)
    if like.dtype == torch.bool:
        return torch.rand(like.shape) < 0.7
    return torch.randint(0, 2, like.shape, dtype=like.dtype)


def _state(module: nn.Module) -> dict[str, Tensor]:
    """All tensors, also those that are not saved."""
    saved = module.state_dict(keep_vars=True)
    return {**saved, **{name: tensor for name, tensor in module.named_buffers() if name not in saved}}


def _kind(tensor: Tensor) -> str:
    trains = ", trained" if tensor.requires_grad else ""
    return f"{[*tensor.shape]} {str(tensor.dtype).removeprefix('torch.')}{trains}"
