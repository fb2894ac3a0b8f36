"""Seeded: a data set -> whole batches, with every random stream seeded by the place of what is read.

A data set may draw from `random`, `numpy.random` and `torch` (CPU) in `__getitem__`: the item at a position of an epoch
is then a function of (seed, epoch, position), whichever process reads it, and training's own streams stay untouched.
A data set that gathers whole batches (`__getitems__`) is seeded once per batch, by the place of its first item.

A data set can say of itself (class attributes, all False unless said):
  draws_nothing   it reads no random stream, and is not seeded
  stacks_items    its `__getitems__` puts items side by side, whichever they are: some batches may be read as one
  needs_spawn     it must not be forked into a worker (see trainer.data.prefetch)
"""

from __future__ import annotations

import hashlib
import pickle
import random
import struct
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset, default_collate, get_worker_info

from trainer.data.sampler import Update
from trainer.templates.trainer import Batch


@dataclass(frozen=True)
class Failure:
    """An exception on its way from a worker to the main process."""

    error: Exception


class SeededReader(Dataset[Any]):
    """Reads and collates the items of an `Update`; a plain list of indices stands for epoch 0 in that very order."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self._draws = not says(dataset, "draws_nothing")
        self._gathers = hasattr(origin(dataset), "__getitems__")
        self.joins = not self._draws and stacks_items(dataset)

    def __getitems__(self, indices: Sequence[int]) -> Batch | Failure:
        """A failure ends in the main process: raised here, if this is it, or handed over with the worker's story."""
        try:
            with streams_kept() if self._draws else nullcontext():
                return self._read(indices)
        except Exception as error:
            if (worker := get_worker_info()) is None:
                raise
            return Failure(told_elsewhere(error, f"in data worker {worker.id} of {worker.num_workers}"))

    def read_together(self, batches: Sequence[Sequence[int]]) -> list[Batch]:
        """Some batches as one, in a fraction of their time; only where this reader `joins` them.

        The parts are copies: by how its memory is aligned, a matrix product may round. Raises what any of the batches
        meets, and TypeError where one holds what is neither tensors [B, ...] nor lists of length B.
        """
        assert self.joins
        if len(batches) == 1:
            return [self._read(batches[0])]
        whole, sizes = dict(self._read([index for one in batches for index in one])), list(map(len, batches))
        parts = {key: _parts(whole.pop(key), sizes) for key in list(whole)}  # each key's whole ends with its copies
        return [{key: part[number] for key, part in parts.items()} for number in range(len(batches))]

    def _read(self, indices: Sequence[int]) -> Batch:
        epoch, positions = (indices.epoch, indices.positions) if isinstance(indices, Update) else (0, indices)
        if self._gathers:
            if self._draws:
                seed_streams(self.seed, epoch, positions[0])
            with noted("while reading items {} of the data set", indices):
                return collate(self.dataset.__getitems__(list(indices)))  # type: ignore[attr-defined]
        items = []
        for index, position in zip(indices, positions, strict=True):
            if self._draws:
                seed_streams(self.seed, epoch, position)
            with noted("while reading item {} of the data set", [index]):
                items.append(self.dataset[index])
        with noted("while putting items {} of the data set into one batch", indices):
            return collate(items)


def origin(dataset: Dataset) -> Dataset:
    """The data set behind subsets of it."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def says(dataset: Dataset, name: str) -> bool:
    """What a data set says of itself: `draws_nothing`, `stacks_items` or `needs_spawn`."""
    return bool(getattr(origin(dataset), name, False))


def stacks_items(dataset: Dataset) -> bool:
    """What it says of itself; a class with a `__getitems__` of its own says it itself, or not at all."""
    own = origin(dataset)
    places = [vars(own), *map(vars, type(own).__mro__)]
    said, gathers = (
        next((number for number, one in enumerate(places) if name in one), len(places))
        for name in ("stacks_items", "__getitems__")
    )
    return says(own, "stacks_items") and said <= gathers < len(places)


def collate(items: Any) -> Batch:
    """A data set that gathers whole batches has nothing left to collate."""
    return items if isinstance(items, dict) else default_collate(items)


def _parts(value: Any, sizes: Sequence[int]) -> list[Any]:
    """[sum of sizes, ...], a tensor or a list -> one of each size."""
    if not isinstance(value, torch.Tensor | list) or len(value) != sum(sizes):
        raise TypeError(f"{type(value).__name__} is no batch of {sum(sizes)}")
    if isinstance(value, torch.Tensor):
        return [part.clone() for part in value.split(list(sizes))]
    ends = list(accumulate(sizes))
    return [value[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def seed_streams(seed: int, epoch: int, position: int) -> None:
    """`random`, numpy's and torch's global CPU streams, from 64 bits that differ in every place."""
    digest = hashlib.blake2b(struct.pack("<3q", seed, epoch, position), digest_size=8).digest()
    whole, (low, high) = int.from_bytes(digest, "little"), struct.unpack("<2I", digest)
    random.seed(whole)
    np.random.seed(high)  # numpy and torch run the same generator: one half each, or their streams would be equal
    torch.default_generator.manual_seed(low)  # torch.manual_seed would seed every device, and costs ten times as much


@contextmanager
def streams_kept() -> Iterator[None]:
    """The streams that `seed_streams` sets go on afterwards as if nothing had been."""
    kept = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.default_generator.set_state(kept[2])


@contextmanager
def noted(what: str, indices: Sequence[int]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(what.format(", ".join(map(str, indices))))
        raise


def told_elsewhere(error: Exception, where: str) -> Exception:
    """The exception as another process can have it: of the same type if that can be pickled, with its traceback told.

    Pickling drops the traceback and the cause, so both become a note.
    """
    story = "".join(traceback.format_exception(error)).rstrip()
    try:
        travelled = pickle.loads(pickle.dumps(error))
    except Exception:  # an exception's own constructor and state decide whether it can travel
        travelled = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            travelled.add_note(note)
    travelled.add_note(f"{where}; there it came from:\n{story}")
    return travelled
