"""Cameras: where the pictures of a data set come from, and how one that cannot be read is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

TOLERANCE_S = 1e-4
"""How far a time may lie from that of the frame it means, as in LeRobotDataset."""

Given = TypeVar("Given")
Made = TypeVar("Made")


class Camera(Protocol):
    """One key of a data set whose values are pictures. It is pickled to workers and may be read in any process."""

    def read(self, frames: Sequence[int]) -> Tensor:
        """Frames of the set, ascending and distinct -> uint8 [M, C, H, W]. Raises whatever stands in the way."""
        ...

    def file(self, frame: int) -> Path:
        """The file that holds this frame."""
        ...


class UnreadableFrame(RuntimeError):
    """A picture cannot be read; the message names its camera, episode, frame and file, the cause is chained."""


def channels_first(pixels: np.ndarray) -> np.ndarray:
    """[H, W, C] or [H, W] -> [C, H, W], contiguous. In numpy: torch would wake more threads than the copy is worth."""
    return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))


def map_in_threads(function: Callable[[Given], Made], items: Iterable[Given]) -> list[Made]:
    """`map`, on as many threads as torch may use here: one in a worker of a DataLoader. Decoders release the GIL.

    The thread that asks does its part: where those of torch still wait for their next work on the other cores, new ones
    take milliseconds to get going.
    """
    items = list(items)
    made: list[Made] = [cast(Made, None)] * len(items)
    left = iter(range(len(items)))  # who takes a number does that item; no two threads get the same

    def work() -> None:
        for index in left:
            made[index] = function(items[index])

    helpers = min(torch.get_num_threads(), len(items)) - 1
    if helpers < 1:
        work()
        return made
    with ThreadPoolExecutor(helpers) as pool:
        helping = [pool.submit(work) for _ in range(helpers)]
        work()
        for one in helping:
            one.result()
    return made
