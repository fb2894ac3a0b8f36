"""Batches on the device: whole, in order, and with one clear message when a worker ends."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, StackDataset, get_worker_info

from trainer.config.schemas import DataConfig
from trainer.data.prefetch import (
    DeviceBatches,
    WorkerDied,
    build_loader,
    copied_ahead,
    read_here,
    start_method,
    to_device,
)
from trainer.data.sampler import UpdateSampler
from trainer.data.seeded import SeededReader
from trainer.timing import PhaseTimer

CPU = torch.device("cpu")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Numbers(Dataset):
    draws_nothing = True

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"index": index, "half": np.float64(index) / 2, "pid": os.getpid()}


class Deadly(Numbers):
    """The worker that reads item 5 ends."""

    def __init__(self, end):
        self.end = end

    def __getitem__(self, index):
        if index == 5 and get_worker_info():
            self.end()
        return super().__getitem__(index)


def batches(dataset, workers=0, order=None, device=CPU, **options):
    data = DataConfig(datamodule={"type": "any"}, num_workers=workers, **options)
    order = [[0, 1], [2, 3], [4, 5], [6, 7]] if order is None else order
    return DeviceBatches(build_loader(dataset, order, data, device, 0), device)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_batch_arrives_in_its_order_and_floats_become_float32(workers):
    with batches(Numbers(), workers) as loaded:
        for _ in range(2):  # a validation set is gone through again and again
            seen = list(loaded)
            assert [batch["index"].tolist() for batch in seen] == [[0, 1], [2, 3], [4, 5], [6, 7]]
            assert all(batch["half"].dtype == torch.float32 and batch["index"].dtype == torch.int64 for batch in seen)
            assert torch.equal(torch.cat([batch["half"] for batch in seen]), torch.arange(8) / 2)


def test_uint8_images_and_texts_travel_as_they_are():
    batch = {
        "image": torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        "task": ["push", "pull"],
        "done": torch.tensor([True]),
    }
    moved = to_device(batch, CPU)
    assert (
        moved["image"].dtype == torch.uint8 and moved["task"] == ["push", "pull"] and moved["done"].dtype == torch.bool
    )


def test_the_wait_for_batches_is_counted():
    class Slow(Numbers):
        def __getitem__(self, index):
            time.sleep(0.02)
            return super().__getitem__(index)

    timer = PhaseTimer(CPU)
    with batches(Slow()) as loaded:
        timer.restart()
        read = iter(loaded)
        for _ in range(4):
            with timer("data"):
                next(read)
            timer.count(2)
    lap = timer.lap()
    assert 2 * 20 <= lap["time/data_ms"] < 250 and lap["data_wait"] > 0.9


class Stacked(Numbers):
    """Gathers whole batches, in `seconds` each; item 5 is gone where `breaks`. `read` are the requests."""

    stacks_items = True

    def __init__(self, seconds=0.0, breaks=False):
        self.seconds, self.breaks, self.read = seconds, breaks, []

    def __getitems__(self, indices):
        self.read.append(indices)
        time.sleep(self.seconds * len(indices) / 2)
        if self.breaks and 5 in indices:
            raise OSError("item 5 is gone")
        self.given = {"index": torch.tensor(indices), "task": [f"task {index}" for index in indices]}
        return self.given


@pytest.mark.parametrize("seconds, most", [(0.0, 3), (0.03, 1)], ids=["small", "large"])
def test_small_batches_are_read_together_and_large_ones_when_they_are_due(seconds, most, monkeypatch):
    if not seconds:
        monkeypatch.setattr("trainer.data.prefetch.TOGETHER_S", 60.0)  # however busy the machine is
    monkeypatch.setattr("trainer.data.prefetch.MOST_TOGETHER", 3)
    dataset, order = Stacked(seconds), [[i % 8, (i + 3) % 8] for i in range(6)] + [[1]]
    with batches(dataset, order=order) as loaded:
        read = iter(loaded)
        for number, indices in enumerate(order, start=1):
            batch = next(read)
            assert batch["index"].tolist() == indices
            assert batch["task"] == [f"task {index}" for index in indices]
            assert dataset.given.keys() == batch.keys()  # what the data set gave is its own
            ahead = 1 + math.ceil((number - 1) / most) * most  # the first one shows how long one takes
            assert sum(map(len, dataset.read)) == sum(map(len, order[:ahead]))
        assert next(read, None) is None


class Padded(Stacked):
    """Its class says nothing of the way that it gathers."""

    def __getitems__(self, indices):
        return super().__getitems__(indices)


@pytest.mark.parametrize("changes", [{"draws_nothing": False}, {"stacks_items": False}, {"__class__": Padded}])
def test_batches_are_read_one_by_one_unless_their_data_set_says_that_together_is_the_same(changes, monkeypatch):
    monkeypatch.setattr("trainer.data.prefetch.TOGETHER_S", 60.0)
    dataset = Stacked()
    for name, value in changes.items():
        setattr(dataset, name, value)
    with batches(dataset) as loaded:
        assert len(list(loaded)) == 4
    assert dataset.read == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize("of_several, device", [(True, "cpu"), (False, "cuda")])
def test_batches_are_read_one_by_one_where_others_would_wait_for_some(of_several, device, monkeypatch):
    monkeypatch.setattr("trainer.data.prefetch.TOGETHER_S", 60.0)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: of_several)
    dataset = Stacked()
    data = DataConfig(datamodule={"type": "any"})
    assert len(list(read_here(build_loader(dataset, [[0, 1], [2], [3]], data, CPU, 0), torch.device(device)))) == 3
    assert dataset.read == [[0, 1], [2], [3]]


@pytest.mark.parametrize(
    "value",
    ["robot", {"x": torch.zeros(2)}, (1, 2), torch.tensor(30.0), np.zeros(2), [torch.zeros(4)] * 3],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_parted_is_read_one_by_one_and_arrives_as_it_is(value, monkeypatch):
    class Odd(Stacked):
        stacks_items = True

        def __getitems__(self, indices):
            return {**super().__getitems__(indices), "odd": value}

    monkeypatch.setattr("trainer.data.prefetch.TOGETHER_S", 60.0)
    dataset = Odd()
    reader = SeededReader(dataset, 0)
    order = [[0, 1], [2, 3], [4, 5], [6, 7]]
    loader = build_loader(dataset, order, DataConfig(datamodule={"type": "any"}), CPU, 0)
    assert [batch["odd"] is value for batch in read_here(loader, CPU)] == [True] * 4
    assert dataset.read == [[0, 1], [2, 3, 4, 5, 6, 7], [2, 3], [4, 5], [6, 7]]  # tried once
    with pytest.raises(TypeError, match=r"is no batch of 4|0-d tensor"):
        reader.read_together(order[:2])


def test_what_cannot_be_read_is_told_when_its_turn_comes(monkeypatch):
    monkeypatch.setattr("trainer.data.prefetch.TOGETHER_S", 60.0)
    dataset = Stacked(breaks=True)
    with batches(dataset) as loaded:
        read = iter(loaded)
        assert [next(read)["index"].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
        with pytest.raises(OSError, match="item 5 is gone") as caught:
            next(read)
    assert caught.value.__notes__ == ["while reading items 4, 5 of the data set"]
    assert dataset.read == [[0, 1], [2, 3, 4, 5, 6, 7], [2, 3], [4, 5]]


def test_a_batch_alone_that_cannot_be_read_is_not_tried_again():
    dataset = Stacked(breaks=True)
    with batches(dataset, order=[[5]]) as loaded, pytest.raises(OSError, match="item 5 is gone"):
        next(iter(loaded))
    assert dataset.read == [[5]]


@pytest.mark.parametrize(
    "end, told",
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"was ended by SIGKILL: .*out of memory.*data.num_workers"),
        (lambda: os.kill(os.getpid(), signal.SIGBUS), r"was ended by SIGBUS: shared memory .* full"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), r"was ended by SIGSEGV: a native library crashed"),
        (lambda: os._exit(3), r"ended by itself with exit code 3"),
    ],
)
def test_a_worker_that_dies_ends_the_run_with_its_number_and_what_to_do(end, told):
    with pytest.raises(WorkerDied, match=rf"^data worker 0 \(process \d+\) {told}"), batches(Deadly(end), 2) as loaded:
        list(loaded)


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError])
def test_a_worker_whose_connection_ends_before_it_does_is_named(error):
    with pytest.raises(WorkerDied, match=r"^data worker 0 .* was ended by SIGKILL"), batches(Numbers(), 1) as loaded:
        worker = int(next(iter(loaded))["pid"][0])
        threading.Timer(0.3, os.kill, (worker, signal.SIGKILL)).start()
        raise error


def test_an_error_of_the_step_is_not_taken_for_one_of_a_worker():
    with pytest.raises(RuntimeError, match=r"^of the model$"), batches(Numbers(), 2) as loaded:
        next(iter(loaded))
        raise RuntimeError("of the model")


def test_workers_never_get_the_signals_of_the_terminal_and_this_process_does():
    received = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        with batches(Numbers(), 1, UpdateSampler(8, 2, seed=0)) as loaded:
            worker = int(next(iter(loaded))["pid"][0])
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker, number)
            os.kill(os.getpid(), signal.SIGINT)
            assert {int(batch["pid"][0]) for batch in islice(loaded, 10)} == {worker}
    finally:
        signal.signal(signal.SIGINT, before)
    assert received == [signal.SIGINT]


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_that_hangs_in_a_read_is_ended_at_close(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    with batches(Deadly(lambda: time.sleep(1000)), 1, [[0, 1], [5]]) as loaded:
        worker = int(next(iter(loaded))["pid"][0])
        assert alive(worker)
    deadline = time.monotonic() + 5
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


KILLED = """
import os, sys
import torch
torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL = 0.5  # seconds between a worker's looks at its parent
from trainer.config.schemas import DataConfig
from trainer.data.prefetch import DeviceBatches, build_loader
from trainer.data.sampler import UpdateSampler
class Numbers(torch.utils.data.Dataset):
    __len__ = lambda self: 8
    __getitem__ = lambda self, index: {"pid": os.getpid()}
cpu, data = torch.device("cpu"), DataConfig(datamodule={"type": "any"}, num_workers=2)
loader = build_loader(Numbers(), UpdateSampler(8, 1, 0), data, cpu, 0)
batches = iter(DeviceBatches(loader, cpu))
print(int(next(batches)["pid"]), int(next(batches)["pid"]), flush=True)
os.kill(os.getpid(), 9)
"""


def test_no_worker_outlives_a_main_process_that_is_killed():
    killed = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    workers = [int(pid) for pid in killed.stdout.split()]
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(set(workers)) == 2 and not any(map(alive, workers))


def test_a_data_set_that_breaks_in_a_fork_gets_spawned_workers_that_read_the_same():
    dataset = StackDataset(index=torch.arange(8), half=torch.arange(8.0) / 2)
    assert start_method(dataset) == "fork"
    dataset.needs_spawn = True
    assert start_method(torch.utils.data.Subset(dataset, range(4))) == "spawn"
    with batches(dataset, 1) as loaded:
        assert torch.equal(torch.cat([batch["half"] for batch in loaded]), torch.arange(8) / 2)


class Streams:
    """Stands in for CUDA: notes in which order copies are made, waited for, and kept for the step."""

    def __init__(self, monkeypatch):
        self.said = []
        stream = SimpleNamespace(
            record_event=lambda: self.said.append("copied") or len(self.said),
            wait_event=lambda event: self.said.append(
                f"step waits for {self.said[event - 1]} no. {self.numbered(event)}"
            ),
        )
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self.said.append("kept"))

    def numbered(self, event):
        return self.said[:event].count("copied") - 1


def test_the_next_batch_is_copied_before_the_step_begins_and_the_step_waits_for_its_own_alone(monkeypatch):
    said = Streams(monkeypatch).said
    for number, batch in enumerate(copied_ahead(iter([{"x": torch.tensor([float(one)])} for one in range(3)]), CPU)):
        assert batch["x"].item() == number
        said.append(f"step {number}")
    assert said == [
        "copied",
        *("copied", "step waits for copied no. 0", "kept", "step 0"),
        *("copied", "step waits for copied no. 1", "kept", "step 1"),
        *("step waits for copied no. 2", "kept", "step 2"),
    ]


def torn():
    yield {"x": torch.zeros(1)}
    raise OSError("torn cable")


def test_a_failure_to_read_the_batch_ahead_is_told_when_its_turn_comes(monkeypatch):
    Streams(monkeypatch)
    copied = copied_ahead(torn(), CPU)
    assert next(copied)["x"].item() == 0
    with pytest.raises(OSError, match="torn cable"):
        next(copied)


@cuda
def test_batches_are_copied_ahead_of_the_step_whole_and_in_order():
    device = torch.device("cuda")
    read = []

    def source():
        for number in range(6):
            read.append(number)
            yield {"x": torch.full((1 << 20,), float(number), dtype=torch.float64).pin_memory(), "task": [str(number)]}

    for number, batch in enumerate(copied_ahead(source(), device)):
        assert batch["x"].device.type == "cuda" and batch["x"].dtype == torch.float32
        assert read == list(range(min(number + 2, 6)))  # one batch ahead, not more
        torch.cuda._sleep(1_000_000)  # the step is still at work when the next batches are copied
        assert (batch["x"] == number).all() and batch["task"] == [str(number)]


@cuda
def test_a_batch_s_memory_is_not_handed_out_before_the_step_has_used_it():
    device = torch.device("cuda")
    source = ({"x": torch.full((1 << 20,), float(number)).pin_memory()} for number in range(20))
    sums = []
    for batch in copied_ahead(source, device):
        torch.cuda._sleep(20_000_000)
        sums.append(batch.pop("x").sum())
    assert [value.item() / (1 << 20) for value in sums] == list(range(20))


@cuda
def test_the_host_never_waits_for_the_device():
    device = torch.device("cuda")
    source = [{"x": torch.ones(1 << 20).pin_memory()} for _ in range(5)]
    copied = copied_ahead(iter(source), device)
    next(copied)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(2_000_000_000)  # about a second of work
        began = time.perf_counter()
        next(copied)
        assert time.perf_counter() - began < 0.2
    finally:
        torch.cuda.set_sync_debug_mode("default")
