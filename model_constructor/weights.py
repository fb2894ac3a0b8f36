"""Weights: a checkpoint, also of another author -> the tensors of a model, with an account of each."""

from __future__ import annotations

import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .errors import ConfigError, Place, Problem, nearest
from .key_map import UNUSED, KeyMap, KeySource, Source
from .model import GraphModel
from .tools.table import folded, numberless, table
from .version1 import rename_weights

# What became of a tensor; of those behind `handled` the checkpoint and the model do not agree.
STATUSES = (
    "loaded",  # under its own name
    "renamed",
    "adapted",  # of another shape: the overlap was copied
    "shared",  # the same tensor as one that was loaded
    "unused",  # as the key map says
    "handled",  # by the loading of its module, which knows names of older files
    "missing",
    "unexpected",
    "shape differs",
)
_WRONG = STATUSES[-3:]


@dataclass(frozen=True, slots=True)
class TensorReport:
    """What became of one tensor. Its name and shape in the model and in the checkpoint, "" and None where it has none.

    part: which of how many equal stretches of rows of theirs is ours; (0, 1) is the whole.
    """

    status: str
    ours: str = ""
    shape: tuple[int, ...] | None = None
    theirs: str = ""
    their_shape: tuple[int, ...] | None = None
    part: tuple[int, int] = (0, 1)


@dataclass(frozen=True, slots=True)
class WeightReport:
    """What became of each tensor of a model and of a checkpoint; as text it is a table."""

    tensors: tuple[TensorReport, ...]

    def of(self, *statuses: str) -> list[TensorReport]:
        assert {*statuses} <= {*STATUSES}
        return [one for one in self.tensors if one.status in statuses]

    @property
    def fits(self) -> bool:
        """Whether nothing is missing, unexpected, or of another shape."""
        return not self.of(*_WRONG)

    @property
    def is_empty(self) -> bool:
        """Whether the model got nothing of what it would take."""
        got = any(one.their_shape is not None for one in self.of("loaded", "renamed", "adapted", "handled"))
        return not got and bool(self.of("missing", "shape differs"))

    @property
    def summary(self) -> str:
        """Such as "122 tensors: 60 loaded, 62 renamed"."""
        count = Counter(one.status for one in self.tensors)
        parts = (f"{count[status]} {status}" for status in STATUSES if count[status])
        return f"{len(self.tensors)} tensors: {', '.join(parts)}"

    def __str__(self) -> str:
        return self.table()

    def table(self, *statuses: str) -> str:
        """A line for each tensor, or for those whose names differ in numbers alone; only of these statuses, if any."""
        alike: dict[tuple, list[TensorReport]] = {}
        for one in self.of(*(statuses or STATUSES)):
            form = numberless(one.ours), numberless(one.theirs), one.status, one.shape, one.their_shape, one.part
            alike.setdefault(form, []).append(one)
        groups = sorted(alike.values(), key=lambda group: STATUSES.index(group[0].status))
        return table([["", "ours", "", "theirs", ""], *map(_row, groups)])


def load_weights(
    model: nn.Module,
    checkpoint: str | Path | Mapping[str, Tensor],
    keys: KeySource = None,
    *,
    prefix: str = "",
    adapt: bool = False,
    strict: bool = True,
) -> WeightReport:
    """Load a checkpoint into a model, each tensor in the dtype that it has there, and say what became of each.

    checkpoint: `.safetensors`, a file of torch that holds tensors alone (nothing else is unpickled), or a state dict.
    keys: a key map, or its file; without one each tensor has the same name on both sides.
    prefix: what the names of the checkpoint begin with, as in "model."; tensors without it are not looked at.
    adapt: of a tensor that has grown or shrunk, copy what overlaps; the rest keeps its initial values.
    strict: every tensor of the model is in the checkpoint, with its shape, and the other way round; otherwise what fits
        is loaded.

    On the meta device the same is checked and nothing is copied. Raises ConfigError for a file that cannot be read, a
    key map that is wrong, a checkpoint of which nothing fits, and under `strict` with everything that does not fit;
    then the model holds what did, as after `load_state_dict`.
    """
    what = "the checkpoint" if isinstance(checkpoint, Mapping) else str(checkpoint)
    state = checkpoint if isinstance(checkpoint, Mapping) else read_state_dict(Path(checkpoint))
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if state and not inside:
        hint = nearest(prefix, {name.partition(".")[0] + "." for name in state})
        raise ConfigError(Problem(f"{what}: no name begins with '{prefix}'.", hint=hint))
    report = fit_weights(model, inside, keys, adapt=adapt)
    if report.is_empty or (strict and not report.fits):
        raise ConfigError(_problem(report, what, inside, bool(keys)))
    return report


def fit_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    keys: KeySource = None,
    *,
    adapt: bool = False,
) -> WeightReport:
    """As `load_weights` of a state dict that is not strict, and it is left to the caller what to make of the report."""
    own = {name: one for name, one in model.state_dict(keep_vars=True).items() if isinstance(one, Tensor)}
    plan, values = _plan(own, state, KeyMap.read(keys), _with_older_names(model, state), adapt)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta")
        result = model.load_state_dict(values, strict=False)  # which calls the modules' own loading
    return WeightReport(tuple(_settled(plan, {*result.missing_keys}, {*result.unexpected_keys})))


def read_tensors(path: Path, place: Place | None = None) -> Any:
    """What a file of tensors and plain values holds, on the CPU. Nothing in a file is ever run. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(Problem(f"{path}: there is no such file.", place))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        is_zip = zipfile.is_zipfile(path)  # what torch writes; it can be read where it lies
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # of what is no file of tensors, a reader raises whatever it stumbles over
        message = f"{path} is damaged, or holds something else than tensors; nothing of it was run"
        raise ConfigError(Problem(message, place, _first_line(error))) from error


def read_state_dict(path: Path, place: Place | None = None) -> dict[str, Tensor]:
    """The tensors of a file by their names. Raises ConfigError, at `place`."""
    state = read_tensors(path, place)
    if isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        return state
    holds = _listed([str(key) for key in state]) if isinstance(state, dict) else type(state).__name__
    hint = f"it holds {holds}; save the state dict alone"
    raise ConfigError(Problem(f"{path} is no state dict: names and tensors", place, hint))


# the plan


def _plan(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], keys: KeyMap, names: Mapping[str, str], adapt: bool
) -> tuple[list[TensorReport], dict[str, Tensor]]:
    """What is to become of each tensor, and the values to load. `names`: of the checkpoint, by those they have now."""
    plan: list[TensorReport] = []
    values: dict[str, Tensor] = {}
    users: dict[str, dict[Source, str]] = {}  # of theirs: the parts that are used, and by which of ours
    loaded = set()  # ours, by identity
    problems: list[Problem] = []
    for ours, tensor in own.items():
        source, shape = keys.look_up(ours), _shape(tensor)
        theirs = names.get(source.name)
        if theirs is None:
            plan.append(TensorReport("missing", ours, shape, source.name))
            continue
        given, part = state[theirs], (source.part, source.of)
        before = users.setdefault(theirs, {}).setdefault(source, ours)
        if own[before] is not tensor:
            problems.append(Problem(f"their '{theirs}' would be loaded twice: as '{before}' and as '{ours}'."))
        if given.is_complex() and not tensor.is_complex():
            problems.append(Problem(f"their '{theirs}' is complex, and our '{ours}' is not."))
            continue
        if source.of > 1 and (not given.ndim or len(given) % source.of):
            problems.append(Problem(f"their '{theirs}' {list(given.shape)} has no {source.of} equal parts."))
            continue
        value = source.taken_from(given)
        status = "loaded" if ours == theirs and source.of == 1 else "renamed"
        if shape not in (None, (*value.shape,)):
            status = "adapted" if adapt and value.ndim == tensor.ndim else "shape differs"
        plan.append(TensorReport(status, ours, shape, theirs, (*given.shape,), part))
        if status != "shape differs":
            values[ours] = _overlaid(tensor, value) if status == "adapted" else value
            loaded.add(id(tensor))
    if problems:
        raise ConfigError(problems)
    plan = [
        TensorReport("shared", one.ours, one.shape) if one.status == "missing" and id(own[one.ours]) in loaded else one
        for one in plan
    ]
    for theirs, given in state.items():
        used = users.get(theirs, {})
        parts = max((source.of for source in used), default=1)
        if {(source.part, source.of) for source in used} != {(part, parts) for part in range(parts)}:
            status = "unused" if keys.leaves_out(theirs) else "unexpected"
            plan.append(TensorReport(status, theirs=theirs, their_shape=(*given.shape,)))
            if status == "unexpected" and theirs not in own:
                values[theirs] = given  # a module may know this name
    return plan, values


def _overlaid(own: Tensor, given: Tensor) -> Tensor:
    """Our tensor with theirs laid over it, beginning at its first entry in every dimension."""
    result = own.detach().clone()
    overlap = tuple(slice(min(sizes)) for sizes in zip(own.shape, given.shape, strict=True))
    if not result.is_meta:
        result[overlap] = given[overlap].to(result)
    return result


def _settled(plan: Iterable[TensorReport], missing: set[str], unexpected: set[str]) -> Iterator[TensorReport]:
    """The plan after the modules' own loading had its say."""
    for one in plan:
        by_module = (one.status == "missing" and one.ours not in missing) or (
            one.status == "unexpected" and one.ours == "" and one.theirs not in unexpected
        )
        yield TensorReport("handled", one.ours, one.shape, one.theirs, one.their_shape) if by_module else one


def _with_older_names(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str]:
    """The names of a checkpoint by those that they have in version 2 of the dialect."""
    names = {name: name for name in state}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the loading itself will say it
        for path, module in model.named_modules():
            if isinstance(module, GraphModel):
                rename_weights(module, names, f"{path}." if path else "")
    return names


def _problem(report: WeightReport, what: str, state: Iterable[str], has_keys: bool) -> Problem:
    if report.is_empty:
        first = report.of("missing", "shape differs")[0]
        message = f"{what} holds none of the model's tensors, such as '{first.theirs}'."
        beginnings = {name.partition(".")[0] for name in state}
        prefix = f"{beginnings.pop()}." if len(beginnings) == 1 else ""
        hint = f"all of its names begin with '{prefix}': prefix (--prefix)" if prefix else nearest(first.theirs, state)
        return Problem(message, hint=hint)
    words = {"shape differs": "of another shape"}
    counts = [f"{len(report.of(status))} {words.get(status, status)}" for status in _WRONG if report.of(status)]
    advice = []
    if report.of("shape differs"):
        advice.append("adapt (--adapt) copies what overlaps of tensors that have grown or shrunk")
    if report.of("missing", "unexpected"):
        map_says = f"under {UNUSED} in the key map stands what no tensor of ours needs"
        advice.append(map_says if has_keys else "a key map (--keys) says which of theirs is which of ours")
    advice.append("strict=False (--partial) loads what fits")
    hint = "\n".join([report.table(*_WRONG), *advice])
    return Problem(f"{what} does not fit the model: {', '.join(counts)}.", hint=hint)


# the table


def _row(group: list[TensorReport]) -> list[str]:
    first = group[0]
    theirs = folded(one.theirs for one in group) if first.theirs else ""
    if first.status == "missing":
        theirs = f"no {theirs}" if first.theirs != first.ours else ""
    elif first.part[1] > 1:
        theirs += f"  part {first.part[0]} of {first.part[1]}"
    elif first.ours == first.theirs and first.shape == first.their_shape:
        theirs = ""
    ours = folded(one.ours for one in group) if first.ours else ""
    return [first.status, ours, _text(first.shape), theirs, _text(first.their_shape) if theirs else ""]


def _shape(tensor: Tensor) -> tuple[int, ...] | None:
    return None if is_lazy(tensor) else (*tensor.shape,)


def _text(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else f"[{', '.join(map(str, shape))}]"


def _listed(names: list[str], shown: int = 8) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]
