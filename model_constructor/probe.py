"""Probe: values without data. A `Probed` value holds what an expression gives in each probe; functions act on each.

A function that fails in the probes is not wrong yet: another choice of sizes, or of dtypes that nobody declared, might
run. Only what fails for every choice is refused.
"""

from __future__ import annotations

import copy
import itertools
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .sizes import PROBES, Formula, Probes, Symbols

MAX_CHOICES = 400
MAX_LEAVES = 10_000  # values that one call is given
MAX_CONFIRMED = 2**20  # elements of the arguments of a call that is repeated with real zeros
_DTYPES = (torch.int64, torch.bool, torch.complex64)  # tried where no dtype was declared and float32 does not do

# What a failure says that comes from the missing data, not from the sizes.
_NO_DATA = re.compile(r"\bmeta\b|data.dependent|fake impl|\.item\(\)|storage|device", re.IGNORECASE)
# What torch says where sizes do not fit: enough to refuse a module whose code is not known.
_SIZES = re.compile(r"\bshapes? |\bsizes? |must match|\bdim\b|dimension|channels", re.IGNORECASE)

_PRODUCTS = (operator.matmul, torch.matmul, torch.bmm, torch.mm)


class _Unknown:
    def __repr__(self) -> str:
        return "unknown"


UNKNOWN: Any = _Unknown()
UNDECIDED: Any = _Unknown()  # it runs for some sizes, but not for those of the probes


@dataclass(frozen=True, slots=True, eq=False)
class Probed:
    """One tensor or integer per probe. `sure`: the dtype was declared, or follows from what was."""

    values: tuple[Any, ...]
    sure: bool = True

    @property
    def is_tensor(self) -> bool:
        return isinstance(self.values[0], Tensor)


@dataclass(frozen=True, slots=True, eq=False)
class Maybe:
    """A value that may be None when the model runs."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """Why no choice of sizes runs."""

    reason: str


def tensor(sizes: Iterable[Probes], dtype: torch.dtype, sure: bool) -> Any:
    """A tensor of these sizes in each probe; UNDECIDED where they are too large together."""
    dims = list(sizes)
    try:
        values = tuple(torch.empty([size[probe] for size in dims], dtype=dtype) for probe in range(PROBES))
    except (RuntimeError, TypeError):  # more elements than torch can count: other sizes may do
        return UNDECIDED
    return Probed(values, sure)


def dims(value: Any) -> list[Probes] | None:
    """The sizes of a tensor, one entry per dimension; None when it has another rank in each probe."""
    shapes = [v.shape for v in (value.values if isinstance(value, Probed) else (value,) * PROBES)]
    if len({len(shape) for shape in shapes}) > 1:
        return None
    return list(zip(*shapes, strict=True))


def leaves(value: Any) -> Iterator[Any]:
    """Everything in lists, tuples, dicts and slices."""
    match value:
        case list() | tuple():
            for entry in value:
                yield from leaves(entry)
        case dict():
            yield from leaves(list(value.values()))
        case slice():
            yield from leaves((value.start, value.stop, value.step))
        case Maybe():
            yield from leaves(value.value)
        case _:
            yield value


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nest of lists with every leaf changed."""
    match value:
        case list():
            return [mapped(entry, change) for entry in value]
        case tuple():
            return tuple(mapped(entry, change) for entry in value)
        case dict():
            return {key: mapped(entry, change) for key, entry in value.items()}
        case slice():
            return slice(*(mapped(part, change) for part in (value.start, value.stop, value.step)))
        case Maybe():
            return mapped(value.value, change)
        case _:
            return change(value)


def joined(results: tuple[Any, ...], sure: bool) -> Any:
    """One value of what the probes gave."""
    first = results[0]
    if isinstance(first, Tensor):
        return Probed(results, sure) if all(isinstance(result, Tensor) for result in results) else UNKNOWN
    if isinstance(first, list | tuple):
        if any(not isinstance(result, type(first)) or len(result) != len(first) for result in results):
            return UNKNOWN
        entries = [joined(entries, sure) for entries in zip(*results, strict=True)]
        return tuple(entries) if isinstance(first, tuple) else entries
    if isinstance(first, Mapping):
        if any(not isinstance(result, Mapping) or result.keys() != first.keys() for result in results):
            return UNKNOWN
        return {key: joined(tuple(result[key] for result in results), sure) for key in first}
    if isinstance(first, int | float) and not isinstance(first, bool):
        return first if all(result == first for result in results) else Probed(results)
    if first is None or isinstance(first, bool | str | torch.dtype | torch.device):
        return first if all(result == first for result in results) else UNKNOWN
    return UNKNOWN


def apply(function: Callable[..., Any], args: Any, kwargs: Any, symbols: Symbols, trusted: bool) -> Any:
    """What the function gives in every probe, UNKNOWN, or a Failure. `trusted`: its code is torch's or ours."""
    found = list(itertools.islice(leaves((args, kwargs)), MAX_LEAVES + 1))
    if len(found) > MAX_LEAVES or any(leaf is UNKNOWN for leaf in found):
        return UNKNOWN
    sure = all(leaf.sure for leaf in found if isinstance(leaf, Probed))
    probes = PROBES if any(isinstance(leaf, Probed) for leaf in found) else 1
    try:
        results = tuple(_call(function, args, kwargs, _taken(probe)) for probe in range(probes))
    except Exception as error:
        return _Doubt(function, args, kwargs, symbols, trusted).settle(error, found)
    if probes == 1:
        return results[0] if isinstance(results[0], Tensor) else joined(results * PROBES, sure)
    return joined(results, sure)


def _taken(probe: int) -> Callable[[Any], Any]:
    return lambda leaf: leaf.values[probe] if isinstance(leaf, Probed) else leaf


def _call(function: Callable[..., Any], args: Any, kwargs: Any, change: Callable[[Any], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they would speak of the sizes of the probes
        return function(*mapped(list(args), change), **mapped(dict(kwargs), change))


@dataclass(slots=True)
class _Doubt:
    """A call that failed, and the search for a choice with which it runs."""

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    symbols: Symbols
    trusted: bool

    def settle(self, error: Exception, found: list[Any]) -> Any:
        if isinstance(error, NotImplementedError) or _NO_DATA.search(str(error)):
            return UNKNOWN
        if not self.trusted and not _SIZES.search(str(error)):
            return UNKNOWN
        unsure = [leaf for leaf in found if isinstance(leaf, Probed) and leaf.is_tensor and not leaf.sure]
        for dtypes in itertools.product((None, *_DTYPES), repeat=min(len(unsure), 4)):
            changed = {id(leaf): dtype for leaf, dtype in zip(unsure, dtypes, strict=False) if dtype}
            if not changed:
                continue
            try:
                results = tuple(
                    _call(self.function, self.args, self.kwargs, self._typed(changed, probe)) for probe in range(PROBES)
                )
            except Exception:  # as wrong as the first
                continue
            return joined(results, sure=False)
        if any(self._runs(choice) for choice in self._choices(found)):
            return UNDECIDED
        if self._runs_with_data(found):
            return UNKNOWN
        return Failure(self._reason())

    def _typed(self, dtypes: Mapping[int, torch.dtype], probe: int) -> Callable[[Any], Any]:
        taken = _taken(probe)
        return lambda leaf: taken(leaf).to(dtypes[id(leaf)]) if id(leaf) in dtypes else taken(leaf)

    def _runs(self, choice: Mapping[str, int]) -> bool:
        try:
            _call(self.function, self.args, self.kwargs, lambda leaf: self._resized(leaf, choice))
        except Exception as error:  # one that speaks of missing data decides nothing
            return isinstance(error, NotImplementedError) or bool(_NO_DATA.search(str(error)))
        return True

    def _resized(self, leaf: Any, choice: Mapping[str, int]) -> Any:
        if not isinstance(leaf, Probed):
            return leaf
        if not leaf.is_tensor:
            return self._size(leaf.values, choice)
        first = leaf.values[0]
        return torch.empty([self._size(sizes, choice) for sizes in dims(leaf) or ()], dtype=first.dtype)

    def _size(self, sizes: Probes, choice: Mapping[str, int]) -> int:
        """The size under a choice; one that is no formula of the symbols is chosen like a symbol."""
        formula = self.symbols.formula(sizes)
        if formula is None:
            return choice[str(sizes)]
        size = formula.at(choice)
        if size is None:
            raise ValueError("these sizes of the symbols give no whole number")
        return size

    def _choices(self, found: list[Any]) -> Iterator[dict[str, int]]:
        """Sizes for the symbols in the arguments: those at hand in the call, and some of every kind."""
        names: set[str] = set()
        formulae: list[Formula] = []
        constants = {1, 2, 720, 2048}
        numbers: list[int] = []
        for leaf in found:
            for sizes in (dims(leaf) or ()) if isinstance(leaf, Probed | Tensor) and _is_tensor(leaf) else ():
                formula = self.symbols.formula(sizes)
                names |= formula.symbols() if formula else {str(sizes)}
                formulae += [formula] if formula else []
                if formula and not formula.terms:
                    constants.add(sizes[0])
            if isinstance(leaf, Probed) and not leaf.is_tensor:
                formula = self.symbols.formula(leaf.values)
                names |= formula.symbols() if formula else {str(leaf.values)}
            if type(leaf) is int and leaf > 0:
                numbers.append(leaf)
        shared = self._batch(found)
        owner = self.function if isinstance(self.function, nn.Module) else None
        for module in owner.modules() if owner is not None else ():
            attributes = (value for key, value in vars(module).items() if not key.startswith("_"))
            numbers += [number for value in attributes for number in leaves(value) if type(number) is int]
            numbers += [size for parameter in module.parameters(recurse=False) for size in parameter.shape]
        constants |= set(numbers) | {sum(numbers), math.prod(numbers[:6])}
        solved = [s for f in formulae for s in _solved(f, constants | set(numbers))]
        sizes = sorted({size for size in (*constants, *solved) if 0 < size <= 2**24})
        if not names:
            return
        order = sorted(names)
        for size in sizes:
            yield {name: 720 if name in shared else size for name in order}
        spread = (((720,) if name in shared else sizes) for name in order)
        yield from (
            dict(zip(order, chosen, strict=True))
            for chosen in itertools.islice(itertools.product(*spread), MAX_CHOICES)
        )

    def _batch(self, found: list[Any]) -> set[str]:
        """Symbols that two matrices share run along both: a product that needs one of them to be a number is a slip."""
        if self.function not in _PRODUCTS:
            return set()
        arguments = [leaf for leaf in found if isinstance(leaf, Probed | Tensor) and _is_tensor(leaf)]
        formulae = [[self.symbols.formula(size) for size in dims(argument) or ()] for argument in arguments]
        symbols = [{s for formula in entries if formula for s in formula.symbols()} for entries in formulae]
        return set.intersection(*symbols) if len(symbols) == 2 else set()

    def _runs_with_data(self, found: list[Any]) -> bool:
        """Whether it is only the missing data that fails: the call once more, with zeros, where that is cheap."""
        smallest = dict.fromkeys([*self.symbols.sizes], 2)
        numbers = [leaf for leaf in found if type(leaf) is int]
        try:
            arguments = [self._resized(leaf, smallest) for leaf in found]
        except (KeyError, ValueError):
            arguments = [_taken(0)(leaf) for leaf in found]
        elements = sum(a.numel() for a in arguments if isinstance(a, Tensor)) + math.prod(abs(n) + 1 for n in numbers)
        module = self.function if isinstance(self.function, nn.Module) else None
        elements += sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0
        if elements > MAX_CONFIRMED:
            return False

        def real(leaf: Any) -> Any:
            try:
                value = self._resized(leaf, smallest)
            except (KeyError, ValueError):
                value = _taken(0)(leaf)
            return torch.zeros(value.shape, dtype=value.dtype, device="cpu") if isinstance(value, Tensor) else value

        try:
            with torch.device("cpu"):
                function = copy.deepcopy(module).to_empty(device="cpu") if module is not None else self.function
                _call(function, self.args, self.kwargs, real)
        except Exception:
            return False
        return True

    def _reason(self) -> str:
        """What the failure says in the probes, its numbers put as formulae where they differ."""
        said = []
        for probe in range(PROBES):
            try:
                _call(self.function, self.args, self.kwargs, _taken(probe))
            except Exception as error:
                lines = " ".join(line.strip() for line in str(error).strip().split("\n")[:3])
                said.append(lines[:300] or type(error).__name__)
        parts = [re.split(r"(\d+)", text) for text in said]
        if len(parts) < PROBES or len({len(part) for part in parts}) > 1:
            return said[0].rstrip(".") if said else "it fails"
        text = ""
        for pieces in zip(*parts, strict=True):
            numbers = tuple(int(piece) for piece in pieces) if all(piece.isdigit() for piece in pieces) else ()
            text += self.symbols.text(numbers) if len(set(numbers)) > 1 else pieces[0]
        return text.rstrip(".")


def _solved(formula: Formula, constants: Iterable[int]) -> Iterator[int]:
    """For which sizes of its one symbol a formula is one of the numbers at hand: 7 * T is 84 for T = 12."""
    if len(formula.terms) == 1 and len(formula.terms[0][1]) == 1:
        ((coefficient, _),) = formula.terms
        for number in constants:
            size = (number - formula.constant) / coefficient
            if size.denominator == 1 and size > 0:
                yield int(size)


def _is_tensor(leaf: Any) -> bool:
    return leaf.is_tensor if isinstance(leaf, Probed) else True
