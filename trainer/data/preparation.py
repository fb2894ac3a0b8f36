"""Preparation: a batch as the data set gives it -> what a step trains on, on the batch's device.

uint8 images -> float32 in [0, 1] -> augmentation (training only) -> normalisation. The last thing before a trainer,
and the same for a policy on a robot. Nothing in it waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model_constructor.errors import ConfigError, Problem
from trainer.data.augmentation import Augmentation, build_augmentation
from trainer.data.normalization import Normalizer, Stats, normalization_modes
from trainer.data.report import Placed

CHANNELS = (1, 3, 4)


class Preparation(nn.Module):
    """`images` maps each image key to its channels; `normalizer` leads back to the data set's units, too."""

    def __init__(self, normalizer: Normalizer, images: Mapping[str, int], augmentation: Augmentation) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.images = dict(images)
        self.augmentation = augmentation

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Any], seed: Sequence[int] | None = None) -> dict[str, Any]:
        """A new batch; the given one is left alone.

        Images [B, (T,) C, H, W] become float32; uint8 is divided by 255, other values are taken to be in [0, 1].
        With `seed` they are augmented, by draws that depend on nothing but the seed.
        """
        prepared = {key: _scaled(value) if key in self.images else value for key, value in batch.items()}
        if seed is not None:
            prepared = self.augmentation(prepared, seed)
        return self.normalizer.normalize(prepared)


def build_preparation(
    item: Mapping[str, Any],
    norm_stats: Stats,
    normalization: Mapping[str, Any] | None = None,
    augmentation: Sequence[Any] | None = None,
    config: Placed | None = None,
) -> Preparation:
    """From one item of the data set, its statistics, and the config's `data.normalization` and `data.augmentation`.

    Raises ConfigError with all that is wrong in either, at its place. Warns of near-constant dimensions.
    """
    images = image_channels(item)
    counts = [key for key, value in item.items() if key not in images and not _is_floating(value)]
    problems: list[Problem] = []
    modes, changes = {}, Augmentation()
    try:
        modes = normalization_modes(normalization, norm_stats, config, images=images, counts=counts)
        problems += _shape_problems(item, norm_stats, modes, images)
    except ConfigError as error:
        problems += error.problems
    try:
        changes = build_augmentation(augmentation, images, config)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return Preparation(Normalizer(norm_stats, modes, images), images, changes)


def image_channels(item: Mapping[str, Any]) -> dict[str, int]:
    """The image keys of an item, and how many channels each has.

    An image is a uint8 array [..., C, H, W] of 1, 3 or 4 channels, whatever its key; so no vector, no window of
    vectors and no label is taken for one. A data set that gives floats in [0, 1] is understood, too, if the key has
    the word "image" in it. Raises ConfigError for images whose channels come last.
    """
    images, problems = {}, []
    for key, value in item.items():
        if not _may_be_image(key, value):
            continue
        shape = tuple(value.shape)
        if shape[-3] in CHANNELS:
            images[key] = int(shape[-3])
        elif shape[-1] in CHANNELS:
            message = f"the images of '{key}' have shape {list(shape)}: their channels come last"
            problems.append(Problem(message, hint="give them as [channels, height, width]"))
    if problems:
        raise ConfigError(problems)
    return images


def _may_be_image(key: str, value: Any) -> bool:
    if not isinstance(value, Tensor | np.ndarray) or value.ndim < 3:
        return False
    return value.dtype in (torch.uint8, np.uint8) or ("image" in key and _is_floating(value))


def _is_floating(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return np.asarray(value).dtype.kind == "f"


def _scaled(image: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1], by the division that LeRobotDataset does."""
    return image.float().div_(255) if image.dtype == torch.uint8 else image.float()


def _shape_problems(
    item: Mapping[str, Any], stats: Stats, modes: Mapping[str, Any], images: Mapping[str, int]
) -> list[Problem]:
    """Statistics that would be spread over dimensions that they are not of."""
    problems = []
    for key, how in modes.items():
        if how.mode == "identity" or key not in item:
            continue
        size = images.get(key) or (np.shape(item[key]) or (1,))[-1]
        sizes = {np.shape(value)[-1] for name, value in stats.get(key, {}).items() if name != "count"}
        if key not in images and sizes - {1, size}:
            message = f"'{key}' has {size} dimensions, its statistics have {max(sizes)}"
            problems.append(Problem(message, hint="compute them of the features that the data set gives"))
    return problems
