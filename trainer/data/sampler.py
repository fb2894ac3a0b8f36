"""Sampler: which items make up which update.

(size, batch_size, seed, start) -> lists of item indices, one per update, without end. The order is a pure function of
(seed, epoch, position), so a run that continues at update `start` sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from model_constructor.errors import ConfigError, Problem


class UpdateSampler(Sampler[list[int]]):
    """A batch sampler: every epoch is a fresh permutation, cut into whole updates; the tail that fills none is dropped.

    It holds no hidden state: each iteration begins behind the `start` updates that are already done.
    """

    def __init__(self, size: int, batch_size: int, seed: int, start: int = 0) -> None:
        if size < batch_size:
            raise ConfigError(
                Problem(
                    f"the data set has {size} frames, fewer than the {batch_size} that one update takes",
                    hint=f"set data.batch_size to {size} or less, or record more data",
                )
            )
        self.size, self.batch_size, self.seed, self.start = size, batch_size, seed, start

    @property
    def updates_per_epoch(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        first_epoch, first_update = divmod(self.start, self.updates_per_epoch)
        for epoch in itertools.count(first_epoch):
            order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
            for update in range(first_update, self.updates_per_epoch):
                yield order[update * self.batch_size : (update + 1) * self.batch_size].tolist()
            first_update = 0
