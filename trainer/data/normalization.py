"""Normalization: raw features <-> what a network sees, one shift and one scale per dimension.

(statistics, modes) -> Normalizer. The statistics are buffers, so they follow the module to its device and into its
state dict. Statistics are `key -> {mean, std, min, max, q01, q99, count}`, float64, one value per dimension.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from model_constructor.errors import ConfigError, Place, Problem, nearest

Stats = Mapping[str, Mapping[str, np.ndarray]]

MODES = ("mean_std", "min_max", "quantile", "identity")

SMALLEST_SCALE = 1e-8
"""Below this spread a dimension is constant, however small the rest of its key is."""


@dataclass(frozen=True, slots=True)
class KeyMode:
    """How one key is normalised: `skip` dimensions stay as they are.

    A dimension whose scale is below `floor` times the largest scale of its key is near-constant. It is centred and
    divided by 1: dividing by its own spread would turn sensor noise into a feature as loud as any other, and the
    first value outside the demonstrations into hundreds of standard deviations.
    """

    mode: str = "mean_std"
    skip: tuple[int, ...] = ()
    floor: float = 1e-4


class Normalizer(nn.Module):
    """(x - shift) / scale per dimension, and back; keys without a mode pass through untouched."""

    def __init__(self, stats: Stats, modes: Mapping[str, KeyMode]) -> None:
        super().__init__()
        self._names = {key: key.replace(".", "/") for key, how in modes.items() if how.mode != "identity"}
        constant: dict[str, list[int]] = {}
        for key, name in self._names.items():
            shift, scale, constant[key] = _shift_and_scale(stats[key], modes[key])
            self.register_buffer(f"{name}_shift", torch.from_numpy(shift).float())  # [D]
            self.register_buffer(f"{name}_scale", torch.from_numpy(scale).float())  # [D]
        if named := ", ".join(f"{key}{dims}" for key, dims in constant.items() if dims):
            warnings.warn(f"near-constant dimensions are centred but not scaled: {named}", stacklevel=2)

    def normalize(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A new batch whose known keys are float32 in normalised units; [..., D] -> [..., D]."""
        return {key: self._normalized(key, value) if key in self._names else value for key, value in batch.items()}

    def denormalize(self, key: str, tensor: Tensor) -> Tensor:
        """Normalised units -> the data set's units; [..., D] -> [..., D]."""
        if key not in self._names:
            return tensor
        shift, scale = self._shift_and_scale(key)
        return tensor * scale + shift

    def _normalized(self, key: str, tensor: Tensor) -> Tensor:
        shift, scale = self._shift_and_scale(key)
        return (tensor.float() - shift) / scale

    def _shift_and_scale(self, key: str) -> tuple[Tensor, Tensor]:
        name = self._names[key]
        return self.get_buffer(f"{name}_shift"), self.get_buffer(f"{name}_scale")


def _shift_and_scale(stats: Mapping[str, np.ndarray], how: KeyMode) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Shift, scale, and the near-constant dimensions of one key."""
    if how.mode == "mean_std":
        shift, scale = stats["mean"].copy(), stats["std"].copy()
    else:  # the two ends land on -1 and 1
        low, high = (stats["min"], stats["max"]) if how.mode == "min_max" else (stats["q01"], stats["q99"])
        shift, scale = (high + low) / 2, (high - low) / 2
    constant = scale < max(how.floor * scale.max(), SMALLEST_SCALE)
    scale[constant] = 1.0
    skipped = list(how.skip)
    shift[..., skipped], scale[..., skipped], constant[..., skipped] = 0.0, 1.0, False
    return shift, scale, np.flatnonzero(constant).tolist()


class Placed(Protocol):
    """What is asked of a config: the places of a value and of a key."""

    def place(self, path: Sequence[str]) -> Place: ...
    def key_place(self, path: Sequence[str]) -> Place: ...


def normalization_modes(
    value: Mapping[str, Any] | None, norm_stats: Stats, config: Placed | None = None
) -> dict[str, KeyMode]:
    """The mapping `data.normalization` -> one mode per key of `norm_stats`; what is not named gets `mean_std`.

    A key's value is a mode or a mapping of `mode`, `skip`, `floor`. With `config` the problems carry their places.
    """
    default = KeyMode()
    modes = dict.fromkeys(norm_stats, default)
    problems: list[Problem] = []

    def wrong(message: str, hint: str, *path: str, key: bool = False) -> None:
        full = ("data", "normalization", *path)
        place = None if config is None else config.key_place(full) if key else config.place(full)
        problems.append(Problem(message, place, hint))

    for key, entry in (value or {}).items():
        if key not in norm_stats:
            wrong(f"the data set has no statistics for '{key}'", nearest(key, norm_stats), key, key=True)
            continue
        options: Any = {"mode": entry} if isinstance(entry, str) else entry
        if not isinstance(options, Mapping):
            wrong(f"the normalization of '{key}' is {entry!r}", f"a mode ({', '.join(MODES)}), or a mapping", key)
            continue
        known = [field.name for field in fields(KeyMode)]
        for name in options.keys() - set(known):
            wrong(f"unknown normalization option '{name}'", nearest(name, known), key, name, key=True)
        mode = options.get("mode", default.mode)
        if mode not in MODES:
            where = (key,) if isinstance(entry, str) else (key, "mode")
            wrong(f"unknown normalization mode {mode!r}", nearest(mode, MODES), *where)
        size = norm_stats[key]["mean"].shape[-1]
        skip = options.get("skip", default.skip)
        if not isinstance(skip, list | tuple) or not all(type(dim) is int and 0 <= dim < size for dim in skip):
            wrong(f"skip of '{key}' is {skip!r}", f"a list of dimensions from 0 to {size - 1}", key, "skip")
            skip = []
        floor = options.get("floor", default.floor)
        if not isinstance(floor, int | float) or isinstance(floor, bool) or not 0 <= floor < 1:
            wrong(f"floor of '{key}' is {floor!r}", "a fraction of the key's largest scale, from 0 to 1", key, "floor")
        modes[key] = KeyMode(mode, tuple(skip), floor)
    if problems:
        raise ConfigError(problems)
    return modes


def plain_stats(stats: Stats) -> dict[str, dict[str, list[float]]]:
    """Statistics as plain values: what a checkpoint holds."""
    return {key: {name: np.asarray(value).tolist() for name, value in entry.items()} for key, entry in stats.items()}


def read_stats(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    return {key: {name: np.asarray(value) for name, value in entry.items()} for key, entry in plain.items()}


def fingerprint(stats: Stats) -> str:
    """Of the data behind the statistics. Extremes and counts alone: they are exact on every machine."""
    exact = {
        key: {name: entry[name] for name in ("min", "max", "count") if name in entry} for key, entry in stats.items()
    }
    return hashlib.sha256(json.dumps(plain_stats(exact), sort_keys=True).encode()).hexdigest()[:12]


def save_stats(stats: Stats, path: Path) -> None:
    """Statistics -> JSON, exactly: a float64 is written with all the digits it needs."""
    _replace(path, json.dumps(plain_stats(stats), indent=1).encode())


def load_stats(path: Path) -> dict[str, dict[str, np.ndarray]]:
    return read_stats(json.loads(Path(path).read_text(encoding="utf-8")))


def write_stats_pickle(stats: Stats, path: Path) -> None:
    """The same statistics for readers that expect a pickle; nothing here ever reads it."""
    _replace(path, pickle.dumps({key: dict(entry) for key, entry in stats.items()}))


def _replace(path: Path, content: bytes) -> None:
    """Written beside and renamed, so that a reader never meets half a file."""
    beside = Path(path).with_name(f"{Path(path).name}.tmp")
    beside.write_bytes(content)
    os.replace(beside, path)
