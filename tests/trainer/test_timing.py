"""Every moment of a run belongs to one phase; what belongs to none is the loop's own; no step waits for a device."""

import time
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from trainer.timing import UNREAD, PhaseTimer, is_measured

CPU = torch.device("cpu")


class FakeTime:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr("trainer.timing.time", fake)
    return fake


def spend(clock: FakeTime, timer: PhaseTimer, phase: str, seconds: float) -> None:
    with timer(phase):
        clock.now += seconds


def test_each_phase_is_milliseconds_an_update_and_the_rest_is_the_loops(clock: FakeTime) -> None:
    timer = PhaseTimer(CPU)
    clock.now += 60.0  # building
    timer.restart()
    for _ in range(2):
        spend(clock, timer, "data", 0.010)
        spend(clock, timer, "forward", 0.030)
        spend(clock, timer, "backward", 0.050)
        clock.now += 0.002
        spend(clock, timer, "optimizer", 0.005)
        timer.count(32)
    spend(clock, timer, "logging", 0.006)
    assert timer.lap() == {
        **{"time/data_ms": 10.0, "time/forward_ms": 30.0, "time/backward_ms": 50.0, "time/optimizer_ms": 5.0},
        **{"time/loop_ms": 2.0, "time/logging_ms": 3.0},
        **{"samples_per_s": 320.0, "data_wait": 0.1},
    }
    assert timer.summary() == (
        "2 updates: data 10%, forward 30%, backward 50%, optimizer 5%, the loop itself 5% (5.00 ms an update)"
    )


def test_a_phase_within_a_phase_is_taken_out_of_it_also_one_of_the_same_name(clock: FakeTime) -> None:
    timer = PhaseTimer(CPU)
    with timer("forward"):
        clock.now += 1.0
        spend(clock, timer, "data", 0.25)
        spend(clock, timer, "forward", 0.5)
        clock.now += 1.0
    timer.count(1)
    lap = timer.lap()
    assert (lap["time/forward_ms"], lap["time/data_ms"], lap["time/loop_ms"]) == (2500.0, 250.0, 0.0)


def test_a_phase_that_raises_ends(clock: FakeTime) -> None:
    timer = PhaseTimer(CPU)
    with pytest.raises(KeyError), timer("forward"):
        clock.now += 1.0
        raise KeyError
    clock.now += 3.0
    timer.count(1)
    assert timer.lap()["time/loop_ms"] == 3000.0


def test_validating_and_saving_do_not_count_in_samples_per_second_and_stand_in_the_summary(clock: FakeTime) -> None:
    timer = PhaseTimer(CPU)
    spend(clock, timer, "forward", 1.0)
    timer.count(10)
    spend(clock, timer, "validation", 2.0)
    spend(clock, timer, "save", 1.0)
    lap = timer.lap()
    assert lap["samples_per_s"] == 10.0
    assert not {"time/validation_ms", "time/save_ms"} & lap.keys()
    assert timer.summary() == "1 updates: forward 25%, validation 50%, save 25%, the loop itself 0% (0.00 ms an update)"


def test_a_lap_begins_where_the_last_one_ended(clock: FakeTime) -> None:
    timer = PhaseTimer(CPU)
    for seconds in (1.0, 3.0):
        spend(clock, timer, "forward", seconds)
        timer.count(6)
        assert timer.lap()["samples_per_s"] == 6 / seconds
    assert timer.summary().startswith("2 updates: forward 100%")
    assert PhaseTimer(CPU).summary() == "no update was timed"


def test_a_run_that_waited_for_its_data_says_what_helps() -> None:
    told = {}
    for data_s in (1.0, 5.0):
        timer = PhaseTimer(CPU)
        timer.count(1)
        timer._clock.lap = lambda phase, data_s=data_s: {"data": data_s, "forward": 10 - data_s}
        timer.lap()
        told[data_s] = timer.summary()
    assert "num_workers" not in told[1.0]
    assert told[5.0].endswith("; it has waited for data: a higher data.num_workers reads ahead")


def test_of_several_processes_the_slowest_ones_times_and_all_samples(clock: FakeTime) -> None:
    timer = PhaseTimer(CPU)
    spend(clock, timer, "forward", 1.0)
    timer.count(8)
    other = ({"forward": 0.5, "data": 1.5}, 2.0, 8, 0.0)
    lap = timer.lap(SimpleNamespace(size=2, gather=lambda own: [own, other]))
    assert (lap["time/forward_ms"], lap["time/data_ms"]) == (1000.0, 1500.0)
    assert (lap["samples_per_s"], lap["data_wait"]) == (8.0, 0.75)


def test_what_a_lap_tells_is_known_as_measured() -> None:
    timer = PhaseTimer(CPU)
    assert all(is_measured(name) for name in [*timer.lap(), "gpu_memory_gb", "time/forward_ms"])
    assert not any(is_measured(name) for name in ("loss", "grad_norm/time", "lr/encoder", "step"))


def test_a_phase_costs_microseconds() -> None:
    timer = PhaseTimer(CPU)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(2000):
            with timer("forward"):
                pass
        best = min(best, (time.perf_counter() - began) / 2000)
    assert best < 10e-6  # 0.8 on a quiet core


class Device:
    """A stream that is `behind` the host by some seconds, and what was asked of it."""

    now, behind, waits, reads = 0.0, 0.0, 0, 0
    peak: ClassVar[int] = 0


class FakeEvent:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Device.now

    def query(self) -> bool:
        return self.at <= Device.now - Device.behind

    def synchronize(self) -> None:
        Device.waits += 1
        Device.behind = 0.0

    def elapsed_time(self, later: "FakeEvent") -> float:
        assert self.query() and later.query(), "CUDA refuses events that are not done"
        Device.reads += 1
        return 1e3 * (later.at - self.at)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> PhaseTimer:
    Device.now, Device.behind, Device.waits, Device.reads, Device.peak = 0.0, 0.0, 0, 0, 3 * 10**9
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: Device.peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(Device, "peak", 10**9))
    return PhaseTimer(torch.device("cuda", 0))


def run_phases(timer: PhaseTimer, updates: int) -> None:
    for _ in range(updates):
        for phase, seconds in (("forward", 0.001), ("backward", 0.002)):
            with timer(phase):
                Device.now += seconds
        timer.count(4)


def test_on_cuda_phases_are_what_the_device_took_and_only_a_lap_waits(cuda: PhaseTimer) -> None:
    Device.behind = 100.0
    run_phases(cuda, 5 * UNREAD)
    assert (Device.waits, Device.reads) == (0, 0)
    lap = cuda.lap()
    assert Device.waits == 1
    assert (lap["time/forward_ms"], lap["time/backward_ms"]) == (1.0, 2.0)
    run_phases(cuda, 3)
    assert cuda.lap()["time/backward_ms"] == 2.0


def test_a_long_lap_on_cuda_reads_what_is_done_as_it_goes(cuda: PhaseTimer) -> None:
    run_phases(cuda, 10 * UNREAD)
    assert Device.waits == 0
    assert len(cuda._clock._marks) == UNREAD
    assert cuda.lap()["time/forward_ms"] == 1.0


def test_gpu_memory_is_the_peak_of_the_lap(cuda: PhaseTimer) -> None:
    run_phases(cuda, 1)
    assert cuda.lap()["gpu_memory_gb"] == 3.0
    assert cuda.lap()["gpu_memory_gb"] == 1.0
