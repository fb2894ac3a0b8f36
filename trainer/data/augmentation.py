"""Augmentation: the list `data.augmentation` -> changed images, the same for the same seed.

    augmentation:
      - {type: random_shift, params: {pixels: 4}}
      - {type: color_jitter, keys: [observation.images.top], probability: 0.8}

Entries are applied in their order, each to the images in `keys` (all of them unless said), and each sample is changed
with `probability` (1 unless said). `trainer.data.image_transforms` holds the transforms and their parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from model_constructor.errors import ConfigError, Problem, nearest
from trainer.data.image_transforms import TRANSFORMS, Draws, Transform
from trainer.data.report import Placed, Report

ENTRY = ("type", "params", "keys", "probability")


@dataclass(frozen=True, slots=True)
class Step:
    transform: Transform
    keys: tuple[str, ...]
    probability: float

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[B, C, H, W] or [B, T, C, H, W], float32 in [0, 1] -> the same."""
        windows = images.unsqueeze(1) if images.ndim == 4 else images  # [B, T, C, H, W]
        changed = self.transform(windows, draws)
        if self.probability < 1:
            chosen = draws.uniform(0, 1, len(images), 1, 1, 1, 1) < self.probability
            changed = torch.where(chosen, changed, windows)
        return changed.view(images.shape)


@dataclass(frozen=True, slots=True)
class Augmentation:
    steps: tuple[Step, ...] = ()

    def __call__(self, batch: Mapping[str, Any], seed: Sequence[int]) -> dict[str, Any]:
        """A new batch with changed images: a function of `batch` and `seed`, whatever else was drawn before."""
        changed = dict(batch)
        for number, step in enumerate(self.steps):
            for key in step.keys:
                images = changed[key]
                # One stream for each step and camera: another camera in the config changes nothing for this one.
                draws = Draws((*seed, number, *key.encode()), images.device)
                changed[key] = step(images, draws)
        return changed


def build_augmentation(
    value: Sequence[Any] | None, images: Mapping[str, int], config: Placed | None = None
) -> Augmentation:
    """`images`: the channels of each image key. Raises ConfigError with all that is wrong, at its places."""
    report = Report(config, ("data", "augmentation"))
    steps = _read(value, report, images)
    if report.problems:
        raise ConfigError(report.problems)
    return Augmentation(tuple(steps))


def augmentation_problems(value: Any, config: Placed | None = None) -> list[Problem]:
    """What can be found wrong before there is a data set: all but the names of the images."""
    report = Report(config, ("data", "augmentation"))
    _read(value if isinstance(value, list) else [], report, None)
    return report.problems


def _read(entries: Sequence[Any] | None, report: Report, images: Mapping[str, int] | None) -> list[Step]:
    steps = []
    for position, entry in enumerate(entries or ()):
        if isinstance(entry, str):
            entry = {"type": entry}
        if not isinstance(entry, Mapping):
            report.value(f"augmentation is {entry!r}", "a mapping of type, params, keys, probability", position)
            continue
        for name in [name for name in entry if name not in ENTRY]:
            report.key(f"unknown key '{name}' of an augmentation", nearest(name, ENTRY), position, name)
        transform = _transform(entry, position, report)
        keys = _keys(entry.get("keys"), position, report, images)
        probability = entry.get("probability", 1.0)
        if type(probability) not in (int, float) or not 0 < probability <= 1:
            report.value(f"probability is {probability!r}", "above 0, at most 1", position, "probability")
        elif transform is not None:
            _check_channels(transform, keys, position, report, images or {})
            steps.append(Step(transform, keys, probability))
    return steps


def _transform(entry: Mapping[str, Any], position: int, report: Report) -> Transform | None:
    kind = entry.get("type")
    if not isinstance(kind, str) or kind not in TRANSFORMS:
        message = "an augmentation has no type" if kind is None else f"no augmentation is called {kind!r}"
        report.value(message, nearest(kind, TRANSFORMS), position, "type")
        return None
    params = entry.get("params", {})
    if not isinstance(params, Mapping):
        report.value(f"params is {params!r}", "a mapping", position, "params")
        return None
    try:
        return TRANSFORMS[kind].model_validate(dict(params))
    except ValidationError as error:
        for detail in error.errors():
            where = (position, "params", *detail["loc"])
            name = detail["loc"][0]
            if detail["type"] == "extra_forbidden":
                known = TRANSFORMS[kind].model_fields
                report.key(f"'{kind}' has no parameter '{name}'", nearest(name, known), *where)
            else:
                said = detail["msg"].replace("Value error, ", "").replace("Input should", "should")
                report.value(f"{name} of '{kind}' is {detail['input']!r}", said, *where)
    return None


def _keys(given: Any, position: int, report: Report, images: Mapping[str, int] | None) -> tuple[str, ...]:
    if given is None:
        if images is not None and not images:
            report.value("there is nothing to augment: the data set has no images", "remove it", position)
        return tuple(images or ())
    if not isinstance(given, list) or not given or not all(isinstance(key, str) for key in given):
        report.value(f"keys is {given!r}", "a list of image keys", position, "keys")
        return ()
    for number, key in enumerate(given):
        if images is not None and key not in images:
            hint = nearest(key, images) or "the data set has no images"
            report.value(f"the data set has no image '{key}'", hint, position, "keys", number)
    return tuple(given)


def _check_channels(
    transform: Transform, keys: Sequence[str], position: int, report: Report, images: Mapping[str, int]
) -> None:
    for key in keys:
        if key in images and (why := transform.refuses(images[key])):
            report.value(f"'{key}' has {images[key]} channels", why, position, "params")
