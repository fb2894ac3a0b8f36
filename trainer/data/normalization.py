"""Normalization: raw features <-> what a network sees, one shift and one scale per dimension (of images: per channel).

(statistics, modes) -> Normalizer. The statistics are buffers, so they follow the module to its device and into its
state dict. Statistics are `key -> {mean, std, min, max, q01, q99, count}`, one value per dimension; a data set may
give fewer, and a mode that needs a missing one is refused.

    normalization:
      action: min_max
      observation.state: {mode: quantile, skip: [6], floor: 1.0e-3}
      observation.images.top: imagenet
      observation.images.wrist: {mean: [0.5], std: [0.25]}
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model_constructor.errors import ConfigError, Problem, nearest
from trainer.data.report import Placed, Report
from trainer.files import replace_bytes, replace_text

Stats = Mapping[str, Mapping[str, np.ndarray]]

NEEDED = {"mean_std": ("mean", "std"), "min_max": ("min", "max"), "quantile": ("q01", "q99"), "identity": ()}
MODES = (*NEEDED, "imagenet")
OPTIONS = ("mode", "skip", "floor", "mean", "std")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Of ImageNet's images in [0, 1], red, green, blue: what most pretrained backbones expect."""

SMALLEST_SCALE = 1e-8
"""Below this spread a dimension is constant, however small the rest of its key is."""


@dataclass(frozen=True, slots=True)
class KeyMode:
    """How one key is normalised: `skip` dimensions stay as they are; `mean` and `std` replace the data set's.

    A dimension whose scale is below `floor` times the largest scale of its key is near-constant. It is centred and
    divided by 1: dividing by its own spread would turn sensor noise into a feature as loud as any other, and the
    first value outside the demonstrations into hundreds of standard deviations.
    """

    mode: str = "mean_std"
    skip: tuple[int, ...] = ()
    floor: float = 1e-4
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Normalizer(nn.Module):
    """(x - shift) / scale per dimension, and back; keys without a mode pass through untouched.

    `images` maps the image keys to their channels; images come in [0, 1], and each channel is one dimension.
    """

    def __init__(self, stats: Stats, modes: Mapping[str, KeyMode], images: Mapping[str, int] | None = None) -> None:
        super().__init__()
        images = images or {}
        stats = with_images(stats, images)
        self.modes = dict(modes)
        self._names = {key: key.replace(".", "/") for key, how in modes.items() if how.mode != "identity"}
        constant: dict[str, list[int]] = {}
        for key, name in self._names.items():
            shift, scale, constant[key] = _shift_and_scale(stats.get(key, {}), modes[key])
            shape = (-1, 1, 1) if key in images else shift.shape
            self.register_buffer(f"{name}_shift", torch.from_numpy(shift).float().reshape(shape))  # [D] or [C, 1, 1]
            self.register_buffer(f"{name}_scale", torch.from_numpy(scale).float().reshape(shape))
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
        return (tensor.float() - shift).div_(scale)

    def _shift_and_scale(self, key: str) -> tuple[Tensor, Tensor]:
        name = self._names[key]
        shift, scale = self._buffers[f"{name}_shift"], self._buffers[f"{name}_scale"]  # get_buffer splits the name
        assert shift is not None and scale is not None
        return shift, scale


def _shift_and_scale(stats: Mapping[str, np.ndarray], how: KeyMode) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Shift, scale, and the near-constant dimensions of one key."""
    given = {name: value for name, value in (("mean", how.mean), ("std", how.std)) if value is not None}
    first, second = (np.array({**stats, **given}[name], dtype=np.float64) for name in NEEDED[how.mode])
    if how.mode == "mean_std":
        shift, scale = first, second
    else:  # the two ends land on -1 and 1
        shift, scale = (second + first) / 2, (second - first) / 2
    skipped = list(how.skip)
    largest = np.delete(scale, skipped, axis=-1).max(initial=0.0)  # a clock that is left alone is no measure of others
    constant = scale < max(how.floor * largest, SMALLEST_SCALE)
    scale[constant] = 1.0
    shift[..., skipped], scale[..., skipped], constant[..., skipped] = 0.0, 1.0, False
    return shift, scale, np.flatnonzero(constant).tolist()


def with_images(stats: Stats, images: Mapping[str, int]) -> Stats:
    """The statistics with what is known of images before any is decoded: their range. All one number per channel."""
    known = {
        key: {
            **{name: np.reshape(value, -1) for name, value in stats.get(key, {}).items()},
            "min": np.zeros(channels),
            "max": np.ones(channels),
        }
        for key, channels in images.items()
    }
    return {**stats, **known}


def normalization_modes(
    value: Mapping[str, Any] | None,
    norm_stats: Stats,
    config: Placed | None = None,
    *,
    images: Mapping[str, int] | None = None,
    counts: Collection[str] = (),
) -> dict[str, KeyMode]:
    """The mapping `data.normalization` -> one mode per key of `norm_stats`, and per image that is named.

    What is not named gets `mean_std`; images (key -> channels) stay in [0, 1], and `counts`, the keys of whole numbers
    and truth values, stay what they are. A key's value is a mode or a mapping of OPTIONS. With `config` the problems
    carry their places.
    """
    images, value = images or {}, value or {}
    report = Report(config, ("data", "normalization"))
    stats = with_images(norm_stats, images)
    modes: dict[str, KeyMode] = {}
    for key in value:
        if key not in stats:
            report.key(f"the data set has no statistics for '{key}'", nearest(key, stats), key)
    for key, entry in stats.items():
        if key in value:
            modes[key] = _read_mode(key, value[key], entry, images.get(key), report)
        elif key not in images:
            modes[key] = KeyMode("identity" if key in counts else "mean_std")
            _check_needed(key, modes[key], entry, report)
    if report.problems:
        raise ConfigError(report.problems)
    return modes


def _read_mode(key: str, entry: Any, stats: Mapping[str, np.ndarray], channels: int | None, report: Report) -> KeyMode:
    before = len(report.problems)
    options: Any = {"mode": entry} if isinstance(entry, str) else entry
    if not isinstance(options, Mapping):
        report.value(f"the normalization of '{key}' is {entry!r}", f"a mode ({', '.join(MODES)}), or a mapping", key)
        return KeyMode()
    for name in [name for name in options if name not in OPTIONS]:
        report.key(f"unknown normalization option '{name}'", nearest(name, OPTIONS), key, name)
    mode = options.get("mode", "mean_std")
    at_mode = (key,) if isinstance(entry, str) else (key, "mode")
    if mode not in MODES:
        report.value(f"unknown normalization mode {mode!r}", nearest(mode, MODES), *at_mode)
    if mode == "imagenet" and channels != 3:
        why = "is no image" if channels is None else f"has {channels} channels"
        report.value(f"'{key}' {why}", "imagenet is the mean and std of red, green and blue", *at_mode)
    if mode == "identity":
        for name in [name for name in options if name in ("skip", "floor")]:
            report.key(f"{name} of '{key}' is not read: identity changes nothing", "remove it, or the mode", key, name)
    size = max((value.shape[-1] for name, value in stats.items() if name != "count"), default=1)
    skip = options.get("skip", ())
    if not isinstance(skip, list | tuple) or not all(type(dim) is int and 0 <= dim < size for dim in skip):
        report.value(f"skip of '{key}' is {skip!r}", f"a list of dimensions from 0 to {size - 1}", key, "skip")
    floor = options.get("floor", KeyMode().floor)
    if not _is_number(floor) or not 0 <= floor < 1:
        hint = "a fraction of the key's largest scale, from 0 to 1"
        report.value(f"floor of '{key}' is {floor!r}", hint, key, "floor")
    given = {name: options[name] for name in ("mean", "std") if name in options}
    for name, numbers in given.items():
        if mode != "mean_std":
            report.key(f"{name} of '{key}' is read by mean_std alone", "remove it, or the mode", key, name)
        elif not isinstance(numbers, list) or len(numbers) != size or not all(_is_number(one) for one in numbers):
            report.value(f"{name} of '{key}' is {numbers!r}", f"a list of {size} numbers", key, name)
        elif name == "std" and min(numbers) <= 0:
            report.value(f"std of '{key}' is {numbers!r}", "numbers above 0", key, name)
    if len(report.problems) > before:
        return KeyMode()
    if mode == "imagenet":
        mode, given = "mean_std", dict(IMAGENET)
    how = KeyMode(
        mode, tuple(skip), float(floor), **{name: tuple(map(float, numbers)) for name, numbers in given.items()}
    )
    _check_needed(key, how, stats, report)
    return how


def _check_needed(key: str, how: KeyMode, stats: Mapping[str, np.ndarray], report: Report) -> None:
    """Each statistic that a mode needs is there."""
    given = {name for name in ("mean", "std") if getattr(how, name) is not None}
    if missing := [name for name in NEEDED[how.mode] if name not in stats and name not in given]:
        can = [mode for mode, needed in NEEDED.items() if set(needed) <= stats.keys()]
        message = f"{how.mode} of '{key}' needs {' and '.join(missing)}, which the data set does not give"
        hint = f"it gives {', '.join(stats) or 'nothing'}: choose {' or '.join(can)}"
        report.value(message, hint + (", or write `mean:` and `std:`" if how.mode == "mean_std" else ""), key)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def plain_stats(stats: Stats) -> dict[str, dict[str, list[float]]]:
    """Statistics as plain values: what a checkpoint holds."""
    return {key: {name: np.asarray(value).tolist() for name, value in entry.items()} for key, entry in stats.items()}


def read_stats(given: Any) -> dict[str, dict[str, np.ndarray]]:
    """What a data set's factory or a checkpoint holds (lists, arrays, tensors) -> statistics of finite numbers."""
    if not isinstance(given, Mapping) or not all(isinstance(entry, Mapping) for entry in given.values()):
        hint = "{key: {mean: [...], std: [...], ...}}"
        raise ConfigError(Problem("norm_stats is no mapping of keys to statistics", hint=hint))
    stats = {key: {name: _numbers(key, name, value) for name, value in entry.items()} for key, entry in given.items()}
    problems = []
    for key, entry in stats.items():
        read = {name: value for name, value in entry.items() if any(name in needed for needed in NEEDED.values())}
        if len({value.shape for value in read.values()}) > 1:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in read.items())
            problems.append(Problem(f"the statistics of '{key}' differ in shape: {shapes}"))
            continue
        for name, value in read.items():
            if not np.isfinite(value).all():
                hint = "repair the data, or compute its statistics without what is not finite"
                problems.append(Problem(f"{name} of '{key}' is not finite: {value.tolist()}", hint=hint))
            elif name == "std" and (value < 0).any():
                problems.append(Problem(f"std of '{key}' is below 0: {value.tolist()}"))
        for low, high in (NEEDED["min_max"], NEEDED["quantile"]):
            if {low, high} <= read.keys() and np.any(read[low] > read[high]):
                problems.append(Problem(f"{low} of '{key}' is above its {high}"))
    if problems:
        raise ConfigError(problems)
    return stats


def _numbers(key: str, name: str, value: Any) -> np.ndarray:
    """At least one dimension; float64, but what is counted stays whole."""
    try:
        array = np.atleast_1d(value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value))
    except (ValueError, TypeError):  # rows of different lengths; a number that numpy does not know
        array = np.array([None])
    if array.dtype.kind not in "iuf":
        raise ConfigError(Problem(f"{name} of '{key}' is {value!r:.60}", hint="one number per dimension"))
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def fingerprint(stats: Stats) -> str:
    """Of the data behind the statistics. Extremes and counts alone: they are exact on every machine."""
    exact = {
        key: {name: entry[name] for name in ("min", "max", "count") if name in entry} for key, entry in stats.items()
    }
    return hashlib.sha256(json.dumps(plain_stats(exact), sort_keys=True).encode()).hexdigest()[:12]


def save_stats(stats: Stats, path: Path) -> None:
    """Statistics -> JSON, exactly: a float64 is written with all the digits it needs."""
    replace_text(path, json.dumps(plain_stats(stats), indent=1))


def load_stats(path: Path) -> dict[str, dict[str, np.ndarray]]:
    return read_stats(json.loads(Path(path).read_text(encoding="utf-8")))


def write_stats_pickle(stats: Stats, path: Path) -> None:
    """The same statistics for readers that expect a pickle; nothing here ever reads it."""
    replace_bytes(path, pickle.dumps({key: dict(entry) for key, entry in stats.items()}))
