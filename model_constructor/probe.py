"""Probe: values without data. A `Probed` value holds what an expression gives in each probe; functions act on each.

A function that fails in the probes is not wrong yet: another choice of sizes, or of dtypes that nobody declared, might
run. Only what fails for every choice is refused.
"""

from __future__ import annotations

import dis
import itertools
import math
import operator
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .sizes import PROBES, STEPS, Probes, Symbols

MAX_CHOICES = 300  # of sizes that are tried for a call that fails,
MAX_AGAIN = 30  # and where the run of another table has tried so many before
MAX_UNSURE = 3  # tensors for which every combination of dtypes is tried
MAX_LISTS = 40  # of numbers, that are compared for them
MAX_TARGETS = 60  # single numbers
MAX_SIZE = 2**24  # of a symbol
BUMP = 2**6 * 3**2 * 5 * 7  # two sizes with this between them show how fast a number grows, also behind strides
MAX_LEAVES = 10_000  # values that one call is given
_DTYPES = (
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.bfloat16,
)  # tried where no dtype was declared and float32 does not do

# What a failure says that comes from the missing data, not from the sizes.
_NO_DATA = re.compile(r"\bmeta\b|data.dependent|fake impl|\.item\(\)|storage|device", re.IGNORECASE)
# What torch says where sizes do not fit: enough to refuse a module whose code is not known.
_SIZES = re.compile(r"\bshapes? |\bsizes? |must match|\bdim\b|dimension|channels", re.IGNORECASE)

Choice = dict[str, int]  # a size for each symbol

# What torch says where dtypes do not fit: other sizes would not help.
_DTYPE = re.compile(r"dtype|scalar type|\b(Float|Long|Int|Bool|Complex)", re.IGNORECASE)

_PRODUCTS = (operator.matmul, torch.matmul, torch.bmm, torch.mm)


class _Unknown:
    def __repr__(self) -> str:
        return "unknown"


UNKNOWN: Any = _Unknown()


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
class Undecided:
    """It runs for some sizes, as for these of the symbols, but not for those of the probes."""

    sizes: Choice


@dataclass(frozen=True, slots=True)
class Failure:
    """Why no choice of sizes runs."""

    reason: str


def tensor(sizes: Iterable[Probes], dtype: torch.dtype, sure: bool) -> Any:
    """A tensor of these sizes in each probe; Undecided where they are too large together."""
    dims = list(sizes)
    try:
        values = tuple(torch.empty([size[probe] for size in dims], dtype=dtype) for probe in range(PROBES))
    except (RuntimeError, TypeError):  # more elements than torch can count: other sizes may do
        return Undecided({})
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
    """What the function gives in every probe; UNKNOWN, Undecided or a Failure. `trusted`: torch's code, or ours."""
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
        if _needs_data(error) or not (self.trusted or _is_torchs(error)):
            return UNKNOWN
        unsure = {id(leaf): leaf for leaf in found if isinstance(leaf, Probed) and leaf.is_tensor and not leaf.sure}
        ways: dict[str, dict[int, torch.dtype]] = {}  # other dtypes, by what they fail with
        tried = min(len(unsure), MAX_UNSURE if self._is_first else 1)
        for dtypes in itertools.product((None, *_DTYPES), repeat=tried):
            changed = {leaf: dtype for leaf, dtype in zip(unsure, dtypes, strict=False) if dtype}
            try:
                return joined(tuple(self._given(_taken(probe), changed) for probe in range(PROBES)), sure=False)
            except Exception as other:
                ways.setdefault(str(other), changed)
        ways = {said: dtypes for said, dtypes in ways.items() if not _DTYPE.search(said)} or ways
        for said, dtypes in ways.items():
            for choice in self._choices(found, said):
                if self._runs(choice, dtypes):
                    changed = {
                        s: choice[s] for s, sizes in self.symbols.sizes.items() if choice.get(s, sizes[0]) != sizes[0]
                    }
                    return Undecided(changed)
        return Failure(self._reason())

    @property
    def _is_first(self) -> bool:
        return self.symbols.table == STEPS[0]

    def _given(self, taken: Callable[[Any], Any], dtypes: Mapping[int, torch.dtype]) -> Any:
        """The call with other values for its leaves."""

        def change(leaf: Any) -> Any:
            return taken(leaf).to(dtypes[id(leaf)]) if id(leaf) in dtypes else taken(leaf)

        return _call(self.function, self.args, self.kwargs, change)

    def _runs(self, choice: Choice, dtypes: Mapping[int, torch.dtype]) -> bool:
        try:
            self._given(partial(self._resized, choice=choice), dtypes)
        except Exception as error:
            return _needs_data(error)
        return True

    def _resized(self, leaf: Any, choice: Choice) -> Any:
        if not isinstance(leaf, Probed) or not (sizes := [self._size(sizes, choice) for sizes in _sizes(leaf)]):
            return _taken(0)(leaf)
        return torch.empty(sizes, dtype=leaf.values[0].dtype) if leaf.is_tensor else sizes[0]

    def _size(self, sizes: Probes, choice: Choice) -> int:
        size = self.symbols.formula(sizes).at(choice)
        if size is None:
            raise ValueError("these sizes of the symbols give no whole number")
        return size

    def _choices(self, found: list[Any], said: str) -> Iterator[Choice]:
        """Sizes with which the call may run. The numbers it is about are made equal, by the one size of a symbol that
        does it: first with the sizes of a probe for the other symbols, then with the same size for all, which is a
        number of the call, of what it `said`, or a small or round one."""
        modules = self.function.modules() if isinstance(self.function, nn.Module) else ()
        lists = [*filter(None, _lists([self.args, self.kwargs, [vars(part) for part in modules]]))]
        formulae = [self.symbols.formula(sizes) for entries in lists for sizes in entries]
        start = {symbol: self.symbols.sizes[symbol][0] for formula in formulae for symbol in formula.symbols()}
        at_hand = {int(formula.constant) for formula in formulae if not formula.terms}
        at_hand |= {int(digits) for digits in re.findall(r"\d{1,9}", said)}
        near = {1, 2, 3, 4, 720} | {n + more for n in at_hand for more in (0, 1)} | {n * n for n in at_hand}
        targets = sorted(n for n in near if 0 < n <= MAX_SIZE)[:MAX_TARGETS]
        shared = self._batch(found)
        names = [name for name in start if name not in shared]
        alike = [start | dict.fromkeys(names, n) for n in targets]
        solved = (self._solved(choice, names, lists[:MAX_LISTS], targets) for choice in (start, *alike))
        seen: set[tuple[int, ...]] = set()
        for choice in itertools.chain(next(solved), alike, itertools.chain.from_iterable(solved)) if names else ():
            if len(seen) == (MAX_CHOICES if self._is_first else MAX_AGAIN):
                return
            if tuple(choice.values()) not in seen:
                seen.add(tuple(choice.values()))
                yield choice

    def _solved(
        self, start: Choice, names: list[str], lists: list[list[Probes]], targets: list[int]
    ) -> Iterator[Choice]:
        """The choices in which one list of numbers is like another, and those in which one number is."""
        try:
            here = self._numbers(start, lists) + targets
            there = {name: self._numbers({**start, name: start[name] + BUMP}, lists) + targets for name in names}
        except ValueError:
            return
        ends = list(itertools.accumulate(len(sizes) + 2 for sizes in lists))

        def size(name: str, one: int, other: int) -> int:
            """The size of a symbol that makes two numbers equal, which are taken to be linear in it; 0 if none does."""
            slope = (there[name][one] - here[one]) - (there[name][other] - here[other])
            found = start[name] - (here[one] - here[other]) * BUMP // slope if slope else 0
            return found if 0 < found <= MAX_SIZE else 0

        for one, other in itertools.permutations(range(len(lists)), 2):
            choice = dict(start)
            for back in range(min(len(lists[one]), len(lists[other]))):  # shapes are compared from the last size
                i, j = ends[one] - 3 - back, ends[other] - 3 - back
                name = next((n for n in names if choice[n] == start[n] and size(n, i, j)), None)
                choice |= {name: size(name, i, j)} if name else {}
            yield choice
        for name in names:
            pairs = ((i, j) for i in range(ends[-1]) for j in range(i + 1, len(here)))
            yield from ({**start, name: n} for n in dict.fromkeys(size(name, *pair) for pair in pairs) if n)

    def _numbers(self, choice: Choice, lists: list[list[Probes]]) -> list[int]:
        """The numbers of each list, their sum and their product."""
        values = ([self._size(sizes, choice) for sizes in entries] for entries in lists)
        return [n for entries in values for n in (*entries, sum(entries), abs(math.prod(entries)))]  # -1 is the rest

    def _batch(self, found: list[Any]) -> set[str]:
        """Symbols that stand at the same place in two matrices: a product that needs one of them to be a number is a
        slip, as [B, T, 512] @ [B, 256] is. Of the product of a matrix with itself none is taken for one."""
        arguments = list({id(leaf): leaf for leaf in found if _is_tensor(leaf)}.values())
        if self.function not in _PRODUCTS or len(arguments) != 2:
            return set()
        formulae = ([self.symbols.formula(size) for size in _sizes(argument)] for argument in arguments)
        return {s for one, other in zip(*formulae, strict=False) if one == other for s in one.symbols()}

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


def _sizes(leaf: Any) -> list[Probes]:
    """The sizes of a tensor, or an integer, in each probe."""
    if isinstance(leaf, Tensor) or (isinstance(leaf, Probed) and leaf.is_tensor):
        return dims(leaf) or []
    values = leaf.values if isinstance(leaf, Probed) else (leaf,) * PROBES
    return [values] if all(type(value) is int for value in values) else []


def _lists(value: Any) -> Iterator[list[Probes]]:
    """The shape of each tensor, and the integers of each list."""
    match value:
        case list() | tuple():
            yield [sizes for entry in value if not _is_tensor(entry) for sizes in _sizes(entry)]
            for entry in value:
                yield from _lists(entry)
        case dict():
            yield from _lists(list(value.values()))
        case slice():
            yield from _lists([value.start, value.stop, value.step])
        case Maybe():
            yield from _lists(value.value)
        case Tensor() | Probed() if _is_tensor(value):
            yield _sizes(value)


def _needs_data(error: Exception) -> bool:
    """Whether a failure comes from the missing data, and decides nothing."""
    return isinstance(error, NotImplementedError) or bool(_NO_DATA.search(str(error)))


def _is_torchs(error: Exception) -> bool:
    """Whether a failure speaks of sizes and is torch's own, and no `raise` or `assert` of code that is not known."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised = dis.opname[frame.f_code.co_code[frame.f_lasti]] == "RAISE_VARARGS"
    known = frame.f_globals.get("__name__", "").split(".")[0] in ("torch", "einops")
    return bool(_SIZES.search(str(error))) and (known or not raised)


def _is_tensor(leaf: Any) -> bool:
    return leaf.is_tensor if isinstance(leaf, Probed) else isinstance(leaf, Tensor)
