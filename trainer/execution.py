"""Execution: predicted chunks of actions -> the one action of each step, by receding horizon or temporal ensembling."""

import math
from collections import deque
from collections.abc import Iterator

import numpy as np


class RecedingHorizon:
    """The first `steps` actions of a chunk are executed, all if None; then the next chunk is asked for."""

    def __init__(self, steps: int | None) -> None:
        self._steps = steps
        self._actions: deque[np.ndarray] = deque()

    @property
    def needs_chunk(self) -> bool:
        return not self._actions

    def add(self, chunk: np.ndarray) -> None:
        """What was predicted at this step [T, A]."""
        self._actions.extend(chunk[: self._steps])

    def action(self) -> np.ndarray:
        """Of this step [A]; the next call is about the next step."""
        return self._actions.popleft()


class TemporalEnsemble:
    """Each step has a chunk of its own, and its action is the mean of what all chunks so far say of it.

    The i-th of them, counted from the oldest, weighs exp(-decay i) (Zhao et al. 2023, arXiv 2304.13705, section IV-A).
    0: all weigh the same; below 0: the newest weighs most.
    """

    needs_chunk = True

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._chunks: list[np.ndarray] = []  # oldest first; each begins with its action for this step

    def add(self, chunk: np.ndarray) -> None:
        self._chunks.append(chunk)

    def action(self) -> np.ndarray:
        said_NA = np.stack([chunk[0] for chunk in self._chunks]).astype(np.float64)
        powers_N = -self._decay * np.arange(len(said_NA))
        weights_N = np.exp(powers_N - powers_N.max())  # the largest is 1, whatever the decay
        self._chunks = [chunk[1:] for chunk in self._chunks if len(chunk) > 1]
        return (weights_N @ said_NA / weights_N.sum()).astype(np.float32)


def execution(execute_steps: int | None, ensemble_decay: float | None) -> RecedingHorizon | TemporalEnsemble:
    """A new one, for a new episode."""
    return RecedingHorizon(execute_steps) if ensemble_decay is None else TemporalEnsemble(ensemble_decay)


def wrong_execution(execute_steps: object, ensemble_decay: object, horizon: int | None) -> Iterator[tuple[str, str]]:
    """What a trainer of chunks of `horizon` actions cannot be given, and what it can; None: of any length."""
    most = horizon or math.inf
    if execute_steps is not None and not (type(execute_steps) is int and 1 <= execute_steps <= most):
        yield (
            f"execute_steps is {execute_steps!r}",
            f"a whole number from 1{f' to {horizon}, the chunk' * bool(horizon)}",
        )
    if ensemble_decay is None:
        return
    if (
        isinstance(ensemble_decay, bool)
        or not isinstance(ensemble_decay, int | float)
        or not math.isfinite(ensemble_decay)
    ):
        yield f"ensemble_decay is {ensemble_decay!r}", "a number, such as 0.01; 0 weighs all predictions the same"
    if execute_steps is not None:
        yield (
            f"execute_steps is {execute_steps!r} and ensemble_decay is {ensemble_decay!r}",
            "an ensemble predicts at every step: leave out one of the two",
        )
