"""What both programs are measured by, from within: when each update ends, and the memory that twenty of them took."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

BLOCK = 20  # updates between two lines of a log, in both programs


def clocks() -> np.ndarray:
    """[2] seconds: of the machine's clock, which all its processes share, and of the processor for this process."""
    return np.array([time.perf_counter(), time.process_time()])


class Marks:
    def __init__(self) -> None:
        self.ends: list[np.ndarray] = []  # of each update
        self.left_out: set[int] = set()  # updates behind something else, which emptied the caches
        self.peak_mb = 0.0

    def update_ends(self) -> None:
        self.ends.append(clocks())
        if len(self.ends) == BLOCK:
            self.peak_mb = peak_mb()

    def leave_out_next(self) -> None:
        self.left_out.add(len(self.ends))

    def write(self, path: str, **more: object) -> None:
        seconds = np.diff(self.ends, axis=0).tolist()  # of each update but the first, by both clocks
        counted = [one for number, one in enumerate(seconds, start=1) if number not in self.left_out]
        whole = {"first_end": self.ends[0][0], "seconds": counted, "peak_mb": self.peak_mb, **more}
        Path(path).write_text(json.dumps(whole))


def peak_mb() -> float:
    """Of the GPU where there is one, else of the process."""
    torch = sys.modules["torch"]
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
