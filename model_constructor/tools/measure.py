"""Measure: a model run without data -> the output shape of each module, and the multiply-adds in it.

Multiply-adds are those of matrix products and convolutions, as torch's FlopCounterMode counts them; element-wise work
is not counted. The model runs in eval mode, with its optional inputs given, except those without a shape.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import ConfigError, Problem, nearest
from ..expressions import Expression, evaluate
from ..model import GraphModel
from ..shapes import infer_shapes
from ..sizes import PROBES, ROUNDED, STEPS, Probes, Symbols

LEADING = "..."  # stands for one dimension
DEFAULT_SIZES = {"B": 1, LEADING: 1}
_DTYPES = (torch.float32, torch.int64, torch.bool)  # tried in this order for inputs that declare none


@dataclass(frozen=True, slots=True)
class Measured:
    """`shapes` are in symbols, with numbers for those that were given; `note` says why nothing was counted."""

    shapes: dict[nn.Module, str]
    multiply_adds: dict[nn.Module, int]
    note: str = ""


def check_sizes(sizes: Iterable[str], symbols: Iterable[str]) -> None:
    """Raises ConfigError for a size of none of the symbols."""
    symbols = [*symbols]
    if unknown := [name for name in sizes if name not in symbols]:
        raise ConfigError(
            [Problem(f"--size: the inputs have no symbol '{name}'.", hint=nearest(name, symbols)) for name in unknown]
        )


def measure(model: GraphModel, sizes: Mapping[str, int]) -> Measured:
    """Run a model that stands on the meta device. Raises ConfigError for a size of no symbol of its inputs.

    sizes: of symbols. B is 1 if absent; nothing is counted while the size of another is absent.
    """
    block = model._block
    check_sizes(sizes, block.symbols)
    shapes = _shapes_of_blocks(model)
    without = [name for name, declared in block.inputs.items() if declared.shape is None and not declared.optional]
    if without:
        return Measured(shapes, {}, f"the input '{without[0]}' is any: nothing is known to run the model with")
    shapes |= _shapes_in_symbols(model, sizes)
    known = {**DEFAULT_SIZES, **sizes}
    missing = [symbol for symbol in _symbols(model) if symbol not in known]
    if missing:
        return Measured(shapes, {}, f"give a size: --size {' '.join(f'{symbol}=...' for symbol in missing)}")
    failures: list[Exception] = []
    for dtypes in _dtype_choices(model):
        try:
            run = _run(model, known, dtypes)
        except Exception as error:  # whatever a module raises that needs data
            failures.append(error)
            continue
        in_numbers = {m: _text([output], lambda sizes: str(sizes[0])) for m, output in run.outputs.items()}
        return Measured({**in_numbers, **shapes}, run.multiply_adds)
    reason = str(failures[0]).strip().partition("\n")[0]
    return Measured(shapes, {}, f"the model does not run without data: {type(failures[0]).__name__}: {reason}")


def _shapes_of_blocks(model: GraphModel) -> dict[nn.Module, str]:
    """What the shape pass says that the blocks return: also where the model cannot be run as a whole."""
    modules = dict(model.named_modules(remove_duplicate=False))
    rows = infer_shapes(model._block, model.params).rows
    found = {
        row.path: row.shape for row in rows if row.name == "outputs" and isinstance(modules.get(row.path), GraphModel)
    }
    of_use = {_use(modules[path]): shape for path, shape in found.items()}  # equal uses are passed once
    return {module: of_use[_use(module)] for module in modules.values() if _use(module) in of_use}


def _use(module: nn.Module) -> tuple | None:
    return (id(module._block), repr(module.params)) if isinstance(module, GraphModel) else None


def _shapes_in_symbols(model: GraphModel, sizes: Mapping[str, int]) -> dict[nn.Module, str]:
    """The output of each module, as the sizes of a few runs tell; empty if none of them succeeds."""
    for dtypes in _dtype_choices(model):
        found: list[dict[nn.Module, str]] = []
        for step in STEPS:
            if found and step not in ROUNDED:
                break
            symbols = Symbols(step)
            free = {name: symbols.take(name) for name in _symbols(model) if name not in sizes}
            probes = [{**sizes, **{name: values[i] for name, values in free.items()}} for i in range(PROBES)]
            try:
                runs = [_run(model, probe, dtypes).outputs for probe in probes]
            except Exception:  # these sizes or dtypes do not fit
                continue
            found.append({m: _text([run.get(m) for run in runs], symbols.text) for m in runs[0]})
            if not any("~" in text for text in found[-1].values()):
                return found[-1]
        if found:
            return min(found, key=lambda texts: sum("~" in text for text in texts.values()))
    return {}


class _Run(NamedTuple):
    outputs: dict[nn.Module, Any]  # of the last call of each module
    multiply_adds: dict[nn.Module, int]  # of all of its calls, with what is inside


def _run(model: GraphModel, sizes: Mapping[str, int], dtypes: Mapping[str, torch.dtype]) -> _Run:
    inputs = dict(_inputs(model, sizes, dtypes))
    with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.no_grad():
        run = _Run({}, {})
        begun: list[int] = []

        def before(module: nn.Module, args: Any) -> None:
            begun.append(counter.get_total_flops())

        def after(module: nn.Module, args: Any, output: Any) -> None:
            run.outputs[module] = output
            count = (counter.get_total_flops() - begun.pop()) // 2  # a multiply-add is two operations
            run.multiply_adds[module] = run.multiply_adds.get(module, 0) + count

        hooks = [
            hook
            for m in model.modules()
            for hook in (m.register_forward_pre_hook(before), m.register_forward_hook(after))
        ]
        try:
            model(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
    return run


def _inputs(
    model: GraphModel, sizes: Mapping[str, int], dtypes: Mapping[str, torch.dtype]
) -> Iterator[tuple[str, Tensor]]:
    values = {**model.params, **sizes}
    for name, declared in model._block.inputs.items():
        if declared.shape is not None:
            shape = [
                sizes[LEADING] if entry is None else evaluate(entry, values) if isinstance(entry, Expression) else entry
                for entry in declared.shape
            ]
            yield name, torch.empty(shape, dtype=dtypes[name], device="meta")


def _symbols(model: GraphModel) -> list[str]:
    leads = any(None in (declared.shape or ()) for declared in model._block.inputs.values())
    return [*model._block.symbols, *([LEADING] if leads else [])]


def _dtype_choices(model: GraphModel) -> Iterator[dict[str, torch.dtype]]:
    """A dtype for each input; of those that declare none, three are tried with others."""
    declared = {name: getattr(torch, entry.dtype or "float32") for name, entry in model._block.inputs.items()}
    open_ = [name for name, entry in model._block.inputs.items() if entry.dtype is None and entry.shape is not None][:3]
    for choice in itertools.product(_DTYPES, repeat=len(open_)):
        yield {**declared, **dict(zip(open_, choice, strict=True))}


def _text(values: Sequence[Any], size_text: Callable[[Probes], str]) -> str:
    """The shape of what a module gave in each run; `size_text` says what one size of all runs is."""
    first = values[0]
    if isinstance(first, Tensor):
        if len({value.ndim for value in values}) > 1:
            return "?"
        dtype = "" if first.is_floating_point() else f" {str(first.dtype).removeprefix('torch.')}"
        sizes = zip(*(value.shape for value in values), strict=True)
        return f"[{', '.join(map(size_text, sizes))}]{dtype}"
    if isinstance(first, Mapping):
        entries = (f"{key}: {_text([value[key] for value in values], size_text)}" for key in first)
        return f"{{{', '.join(entries)}}}"
    if isinstance(first, list | tuple):
        inner = ", ".join(_text(entries, size_text) for entries in zip(*values, strict=False))
        return f"[{inner}]" if isinstance(first, list) else f"({inner})"
    return "None" if first is None else type(first).__name__
