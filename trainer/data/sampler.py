"""Sampler: which items make up which update.

(size, batch_size, seed, start) -> lists of item indices, one per update, without end. The order is a pure function of
(seed, epoch, position), so a run that continues at update `start` sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from model_constructor.errors import ConfigError, Problem

EpochOrder = Callable[[int, int], np.ndarray]
"""(seed, epoch) -> the epoch's item indices [size], in the order in which they are seen."""


class Update(list[int]):
    """The item indices of one update (of one process), and where they stand: position p of the order of `epoch`."""

    def __init__(self, indices: list[int], epoch: int, positions: list[int]) -> None:
        super().__init__(indices)
        self.epoch, self.positions = epoch, positions

    def __reduce__(self) -> tuple:  # it travels to the workers
        return Update, (list(self), self.epoch, self.positions)


class UpdateSampler(Sampler[list[int]]):
    """A batch sampler: every epoch's order is cut into whole updates; the tail that fills none is dropped.

    An update takes the next `accumulate x processes x batch_size` positions, in this order: first every process's first
    micro-batch, then every process's second one. So the micro-batches of all processes together are those of one
    process with the `processes`-fold batch, and another number of processes continues the same order.

    `epoch_order` is the order of a data set that has one of its own (a mixture); the default is a fresh permutation per
    epoch. No hidden state: each iteration begins behind the `start` updates that are already done.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        *,
        accumulate: int = 1,
        rank: int = 0,
        processes: int = 1,
        epoch_order: EpochOrder | None = None,
    ) -> None:
        assert 0 <= rank < processes
        self.size, self.batch_size, self.seed, self.start = size, batch_size, seed, start
        self.accumulate, self.rank, self.processes = accumulate, rank, processes
        self.epoch_order = epoch_order or permutations(size)
        if size < self.update_size:
            raise ConfigError(
                Problem(
                    f"the data set has {size} frames, fewer than the {self._in_words()} that one update takes",
                    hint=self._what_would_fit(),
                )
            )

    @property
    def update_size(self) -> int:
        """Items in an update of all processes together."""
        return self.batch_size * self.accumulate * self.processes

    @property
    def updates_per_epoch(self) -> int:
        return self.size // self.update_size

    def behind(self, start: int) -> UpdateSampler:
        """The same order behind `start` updates."""
        sampler = copy.copy(self)
        sampler.start = start
        return sampler

    def __iter__(self) -> Iterator[Update]:
        first_epoch, first_update = divmod(self.start, self.updates_per_epoch)
        for epoch in itertools.count(first_epoch):
            order = self.epoch_order(self.seed, epoch)  # [size]
            for update in range(first_update, self.updates_per_epoch):
                positions = self._own(update)
                yield Update(order[positions].tolist(), epoch, positions.tolist())
            first_update = 0

    def _own(self, update: int) -> np.ndarray:
        """This process's positions in an epoch's `update`-th update, micro-batch after micro-batch."""
        positions = np.arange(update * self.update_size, (update + 1) * self.update_size)
        return positions.reshape(self.accumulate, self.processes, self.batch_size)[:, self.rank].ravel()

    def _in_words(self) -> str:
        factors = {"batch_size": self.batch_size, "accumulate": self.accumulate, "processes": self.processes}
        if self.accumulate == self.processes == 1:
            return f"{self.batch_size}"
        return f"{self.update_size} ({' x '.join(f'{name} {factor}' for name, factor in factors.items())})"

    def _what_would_fit(self) -> str:
        fitting = self.size // (self.accumulate * self.processes)
        if fitting:
            return f"set data.batch_size to {fitting} or less, or record more data"
        return "take fewer processes or a smaller train.accumulate, or record more data"


def permutations(size: int) -> EpochOrder:
    """The order of a data set that has none of its own: a fresh permutation per epoch."""
    return lambda seed, epoch: np.random.default_rng([seed, epoch]).permutation(size)
