"""Mixture: several weighted data sets -> one data set.

Its items are those of the first set, then those of the second, and so on; `epoch_order` is what the weights act on. At
every position a set is picked with a probability in proportion to its weight, and gives the next frame of a
permutation of its own, which goes on over the ends of epochs: every frame of a set has its turn before any has its
second. An epoch is as long as all sets together. (The positions at an epoch's end that fill no update are skipped, as
everywhere: their frames' turn is over.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from model_constructor.errors import ConfigError, Problem, nearest
from trainer.data.seeded import collate, says, stacks_items

PERMUTED_TOGETHER = 4096
"""Items of a small set that are permuted by one generator, several permutations at once: making one costs 20 us."""


class Mixture(Dataset[dict[str, Any]]):
    """Items are those of the sets, with one more key: `dataset_index`, the number of the set it comes from.

    Observations and actions must be the same keys, of the same shapes and types, in every set (`ConfigError`); any
    other key that one of the sets lacks is left out. `names` are what messages call the sets.
    """

    def __init__(
        self, datasets: Sequence[Dataset], weights: Sequence[float], names: Sequence[str] | None = None
    ) -> None:
        names = [f"data set {number}" for number in range(len(datasets))] if names is None else names
        _check_weights(weights, names)
        assert len(datasets) == len(weights) == len(names)
        self.datasets = list(datasets)
        self.shares = np.asarray(weights, dtype=np.float64) / math.fsum(weights)  # [K]
        self.sizes = np.array([len(dataset) for dataset in datasets])  # type: ignore[arg-type]  # [K]
        if empty := [name for name, size in zip(names, self.sizes, strict=True) if not size]:
            raise ConfigError([Problem(f"{name} of the mixture is empty", hint="leave it out") for name in empty])
        self.keys = _shared_keys([dataset[0] for dataset in datasets], names)
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])  # [K + 1] first item of each set, and the end
        self.draws_nothing = all(says(dataset, "draws_nothing") for dataset in datasets)
        self.stacks_items = all(stacks_items(dataset) for dataset in datasets)
        self.needs_spawn = any(says(dataset, "needs_spawn") for dataset in datasets)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch: one gather per set, its rows put back to where they were asked for."""
        index_B = np.asarray(indices)
        set_B = np.searchsorted(self._starts, index_B, side="right") - 1
        batch: dict[str, Any] = {"dataset_index": torch.from_numpy(set_B)}
        for number in np.unique(set_B):
            rows = np.flatnonzero(set_B == number)
            part = _gather(self.datasets[number], (index_B[rows] - self._starts[number]).tolist())
            for key in self.keys:
                _put(batch, key, part[key], rows, len(index_B))
        return batch

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        """The epoch's item indices, in order [len(self)]: a pure function, as fast for late epochs as for early ones.

        How often each set is picked in an epoch is drawn first (multinomial), then in which order: as likely as one
        pick after another, and what earlier epochs have taken from each set is known without drawing their picks.
        """
        picks = np.random.default_rng([seed, 0, 0, 1]).multinomial(
            len(self), self.shares, size=epoch + 1
        )  # [epoch + 1, K]
        taken, now = picks[:-1].sum(axis=0), picks[-1]
        set_N = np.random.default_rng([seed, epoch]).permutation(np.repeat(np.arange(len(self.datasets)), now))
        order = np.empty(len(self), dtype=np.int64)
        for number, start in enumerate(self._starts[:-1]):
            order[set_N == number] = start + self._turns(number, seed, taken[number], taken[number] + now[number])
        return order

    def _turns(self, number: int, seed: int, first: int, last: int) -> np.ndarray:
        """Items `first` to `last` of one set's permutations, one permutation after the other."""
        size = int(self.sizes[number])
        together = max(1, PERMUTED_TOGETHER // size)
        blocks = range(first // (together * size), -(-last // (together * size)))
        turns = [
            np.random.default_rng([seed, block, 1 + number])
            .permuted(np.tile(np.arange(size), (together, 1)), axis=1)
            .ravel()
            for block in blocks
        ]
        if not turns:
            return np.empty(0, dtype=np.int64)
        skipped = blocks.start * together * size
        return np.concatenate(turns)[first - skipped : last - skipped]


def _gather(dataset: Dataset, indices: list[int]) -> dict[str, Any]:
    if hasattr(dataset, "__getitems__"):
        return collate(dataset.__getitems__(indices))
    return collate([dataset[index] for index in indices])


def _put(batch: dict[str, Any], key: str, values: Any, rows: np.ndarray, size: int) -> None:
    """The rows of one set's tensor or texts into the whole batch."""
    if isinstance(values, Tensor):
        if key not in batch:
            batch[key] = values.new_empty(size, *values.shape[1:])
        batch[key][torch.from_numpy(rows)] = values
    else:
        whole = batch.setdefault(key, [None] * size)
        for row, value in zip(rows, values, strict=True):
            whole[row] = value


def _check_weights(weights: Sequence[float], names: Sequence[str]) -> None:
    problems = [
        Problem(f"the weight of {name} is {weight!r}", hint="a number above 0; leave out a set that is not to be used")
        for name, weight in zip(names, weights, strict=True)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf
    ]
    if not names:
        problems = [Problem("a mixture needs at least one data set")]
    if problems:
        raise ConfigError(problems)


def _shared_keys(items: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """The keys that all sets have; refuses sets whose observations or actions are not those of the first."""
    problems = [
        problem
        for item, name in zip(items, names, strict=True)
        for problem in _differences(items[0], names[0], item, name)
    ]
    shared = [key for key in items[0] if all(key in item for item in items)]
    if problems:
        raise ConfigError(problems)
    return shared


def _differences(first: Mapping[str, Any], first_name: str, item: Mapping[str, Any], name: str) -> Iterator[Problem]:
    for one, its_name, other, other_name in ((first, first_name, item, name), (item, name, first, first_name)):
        for key in one:
            if key.startswith(("observation", "action")) and key not in other:
                yield Problem(f"{other_name} has no '{key}', which {its_name} has", hint=nearest(key, other))
    for key in first:
        if key in item and (expected := _kind(first[key])) != (found := _kind(item[key])):
            yield Problem(
                f"'{key}' is {found} in {name}, and {expected} in {first_name}",
                hint="data sets that are mixed have the same shapes",
            )


def _kind(value: Any) -> str:
    value = torch.as_tensor(value) if isinstance(value, np.ndarray | np.generic | int | float) else value
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}".removeprefix("torch.")
    return "text" if isinstance(value, str) else type(value).__name__
