"""Timing: the phases of an update -> milliseconds each, samples per second, and what the loop itself took.

Every moment belongs to one phase: a phase inside another takes its time out of the outer one, and what belongs to none
is the loop's own. On a CPU a clock is read; on CUDA events are put into the stream and read when a lap ends, so that
each phase is what the device took for it, idle time included, and no step waits.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from trainer.distributed import World

ALONE = World()
LOOP = "loop"  # the phase of what is in no other
OWN = ("logging", LOOP)  # what the loop costs; everything else is the model's or the data's
BESIDE = ("validation", "evaluation", "save")  # no part of an update: they do not count in samples per second
UNREAD = 256  # marks that may wait in a stream before finished ones are read
MUCH_WAITING = 0.3  # of the time
MEASURED = ("samples_per_s", "data_wait", "gpu_memory_gb")


def is_measured(name: str) -> bool:
    """Whether a metric depends on the machine's pace, so that two equal runs differ in it."""
    return name in MEASURED or name.startswith("time/")


class PhaseTimer:
    """`with timer("forward"): ...`; `count` after each update; `lap` when it is time to log."""

    def __init__(self, device: torch.device) -> None:
        self._clock = CudaClock(device) if device.type == "cuda" else HostClock()
        self._phase = LOOP
        self._samples = self._updates = 0
        self._total: dict[str, float] = {}  # seconds per phase, since the beginning,
        self._total_updates = 0  # and updates
        self.annotate = False  # phases as ranges in a profiler's trace
        self._began = time.perf_counter()

    def __call__(self, phase: str) -> AbstractContextManager[None]:
        return _Phase(self, phase)

    def count(self, samples: int) -> None:
        """One update of so many samples on this process is done."""
        self._updates += 1
        self._samples += samples

    def restart(self) -> None:
        """The first update is next: what building took is none of its business."""
        self._clock.lap(self._phase)
        self._clock.peak_memory_gb()
        self._began = time.perf_counter()

    def lap(self, world: World = ALONE) -> dict[str, float]:
        """Since the last lap: `time/<phase>_ms` per update, `samples_per_s`, `data_wait` (a share), `gpu_memory_gb`.

        Of several processes the slowest one's times, all samples, and the fullest device. Every rank calls it.
        """
        seconds = self._clock.lap(self._phase)  # waits for the device: metrics are read at the same moment
        now = time.perf_counter()
        wall = max(now - self._began - sum(seconds.get(phase, 0.0) for phase in BESIDE), 1e-9)
        everywhere = world.gather((seconds, wall, self._samples, self._clock.peak_memory_gb()))
        updates, phases = max(self._updates, 1), dict.fromkeys(phase for one in everywhere for phase in one[0])
        seconds = {phase: max(one[0].get(phase, 0.0) for one in everywhere) for phase in phases}
        wall = max(one[1] for one in everywhere)
        for phase, value in seconds.items():
            self._total[phase] = self._total.get(phase, 0.0) + value
        self._total_updates += self._updates
        lap = {f"time/{phase}_ms": 1e3 * value / updates for phase, value in seconds.items() if phase not in BESIDE}
        lap["samples_per_s"] = sum(one[2] for one in everywhere) / wall
        lap["data_wait"] = min(seconds.get("data", 0.0) / wall, 1.0)
        if memory := max(one[3] for one in everywhere):
            lap["gpu_memory_gb"] = memory
        self._samples = self._updates = 0
        self._began = now
        return {name: round(value, 4) for name, value in lap.items()}

    def summary(self) -> str:
        """`1,200 updates: forward 41%, backward 43%, ... loop's own 2% (0.21 ms an update)`, of this process's laps."""
        whole = sum(self._total.values())
        if not whole or not self._total_updates:
            return "no update was timed"
        shares = [f"{phase} {value / whole:.0%}" for phase, value in self._total.items() if phase not in OWN]
        own = sum(self._total.get(phase, 0.0) for phase in OWN)
        own_ms = 1e3 * own / self._total_updates
        shares.append(f"the loop itself {own / whole:.0%} ({own_ms:.2f} ms an update)")
        waits = self._total.get("data", 0.0) / whole > MUCH_WAITING
        hint = "; it has waited for data: a higher data.num_workers reads ahead" if waits else ""
        return f"{self._total_updates:,} updates: {', '.join(shares)}{hint}"

    def _switch(self, phase: str) -> None:
        """What was since the last mark belongs to the phase that ends here."""
        self._clock.mark(self._phase)
        self._phase = phase


class _Phase:
    """One stay in a phase."""

    __slots__ = ("_name", "_outer", "_range", "_timer")

    def __init__(self, timer: PhaseTimer, name: str) -> None:
        self._timer, self._name = timer, name
        self._range: AbstractContextManager[Any] | None = None

    def __enter__(self) -> None:
        timer = self._timer
        self._outer = timer._phase
        timer._switch(self._name)
        if timer.annotate:
            self._range = torch.profiler.record_function(self._name)
            self._range.__enter__()

    def __exit__(self, *error: object) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
        self._timer._switch(self._outer)


class HostClock:
    """Marks are readings of the clock."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, phase: str) -> None:
        """The time since the last mark was the phase's."""
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def lap(self, phase: str) -> dict[str, float]:
        """Mark, and give the seconds of each phase since the last lap."""
        self.mark(phase)
        seconds, self._seconds = self._seconds, {}
        return seconds

    def peak_memory_gb(self) -> float:
        """Of the device, since the last lap; a CPU's is not told."""
        return 0.0


class CudaClock:
    """Marks are events in the current stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._marks: deque[tuple[str, torch.cuda.Event]] = deque()  # the phase that ended, and when
        self._spare: list[torch.cuda.Event] = []
        self._last = self._record()

    def mark(self, phase: str) -> None:
        self._marks.append((phase, self._record()))
        while len(self._marks) > UNREAD and self._marks[0][1].query():
            self._read_oldest()

    def lap(self, phase: str) -> dict[str, float]:
        self.mark(phase)
        self._marks[-1][1].synchronize()
        while self._marks:
            self._read_oldest()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def peak_memory_gb(self) -> float:
        peak = torch.cuda.max_memory_allocated(self._device) / 1e9
        torch.cuda.reset_peak_memory_stats(self._device)
        return peak

    def _record(self) -> torch.cuda.Event:
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _read_oldest(self) -> None:
        phase, event = self._marks.popleft()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + self._last.elapsed_time(event) / 1e3
        self._spare.append(self._last)
        self._last = event


@contextmanager
def one_thread() -> Iterator[None]:
    """A policy asked for one action computes too little to share; threads that wait for each other cost tenfold
    where another program keeps a core busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
