"""Prefetch: a data set and an order -> batches on the device."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from trainer.config.schemas import DataConfig
from trainer.data.seeded import Failure, SeededReader, says
from trainer.templates.trainer import Batch

MOST_TOGETHER, TOGETHER_S = 8, 0.02
DYING_S = 5.0  # between the end of a worker's connection and that of its process, at most
FEWER = "set data.num_workers, data.prefetch_factor or data.batch_size lower"
HINTS = {
    signal.SIGKILL: f"the machine has probably run out of memory: {FEWER}",
    signal.SIGBUS: f"shared memory (/dev/shm) is probably full: {FEWER}, or give a container more (--shm-size)",
    signal.SIGSEGV: "a native library crashed while reading: data.num_workers=0 shows where",
}


class WorkerDied(RuntimeError):
    """A process that reads data ended before the run did."""


def build_loader(
    dataset: Dataset, batches: Iterable[list[int]], data: DataConfig, device: torch.device, seed: int
) -> DataLoader:
    """A loader of whole batches; what it reads is seeded by place, and training's own random streams stay untouched."""
    workers: dict[str, Any] = {}
    if data.num_workers:
        workers = {
            "prefetch_factor": data.prefetch_factor,
            "persistent_workers": data.persistent_workers,
            "multiprocessing_context": start_method(dataset),
        }
    return DataLoader(
        SeededReader(dataset, seed),
        batch_sampler=batches,
        num_workers=data.num_workers,
        pin_memory=data.pin_memory and device.type == "cuda",
        collate_fn=as_read,
        generator=torch.Generator().manual_seed(seed),
        **workers,
    )


def start_method(dataset: Dataset) -> str:
    """Forked workers start at once and share what the data set holds; a data set that breaks in a fork says so."""
    return "spawn" if says(dataset, "needs_spawn") else "fork"


def as_read(batch: Any) -> Any:
    """The reader has collated already."""
    return batch


class DeviceBatches:
    """Iterates a loader. A context: leaving it ends the workers, and says which one died if that is why it is left."""

    def __init__(self, loader: DataLoader, device: torch.device) -> None:
        self._loader, self._device = loader, device
        self._read: Iterator[Batch | Failure] = iter(())

    def __iter__(self) -> Iterator[Batch]:
        loader = self._loader
        if loader.num_workers or loader.pin_memory:
            with signals_held():
                self._read = iter(loader)  # persistent workers start over, others are made anew
        else:
            self._read = read_here(loader, self._device)
        if self._device.type == "cuda":
            return copied_ahead(map(raised, self._read), self._device)
        return (to_device(raised(batch), self._device) for batch in self._read)

    def __enter__(self) -> DeviceBatches:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        died = self._dead_workers(error) if isinstance(error, Exception) else []
        self.close()
        if died:
            raise WorkerDied("\n".join(died)) from error

    def close(self) -> None:
        """End the workers now: signals do not, and a process that exits would wait for them forever."""
        if isinstance(self._read, _MultiProcessingDataLoaderIter):
            self._read._shutdown_workers()
            for worker in self._read._workers:
                worker.kill()  # one that hangs in a read has not ended; for all others nothing happens

    def _dead_workers(self, error: Exception) -> list[str]:
        if not isinstance(self._read, _MultiProcessingDataLoaderIter):
            return []
        if isinstance(error, ConnectionError | EOFError):  # one is dying: its exit code comes a moment later
            with suppress(RuntimeError):  # raised by torch when the signal comes that a process has ended
                ending = wait([worker.sentinel for worker in self._read._workers], timeout=DYING_S)
                for worker in self._read._workers:
                    worker.join(DYING_S if worker.sentinel in ending else 0)
        ends = [(number, worker.pid, worker.exitcode) for number, worker in enumerate(self._read._workers)]
        return [f"data worker {number} (process {pid}) {how_it_ended(code)}" for number, pid, code in ends if code]


@contextmanager
def signals_held() -> Iterator[None]:
    """Processes started in here never get SIGINT and SIGTERM, this one gets them afterwards.

    Ctrl-C and SIGTERM reach the whole process group; a worker that died of one would fail the step that saves.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def how_it_ended(exit_code: int) -> str:
    if exit_code > 0:
        return f"ended by itself with exit code {exit_code}; what it printed says why"
    number = signal.Signals(-exit_code)
    return f"was ended by {number.name}: {HINTS.get(number, f'data.num_workers=0 reads without workers; or {FEWER}')}"


def read_here(loader: DataLoader, device: torch.device) -> Iterator[Batch | Failure]:
    """As the loader would read in this process; its own bookkeeping takes as long as a batch of numbers.

    Small batches are read together where the data set allows it, as many as take `TOGETHER_S`: numbers take a third of
    the time, and pictures are enough for all threads. Not where others would wait meanwhile: processes, or a GPU.
    """
    reader = loader.dataset
    assert isinstance(reader, SeededReader) and loader.batch_sampler is not None
    batches, together, some = iter(loader.batch_sampler), 1, []
    if reader.joins and device.type == "cpu" and not torch.distributed.is_initialized():
        while some := list(islice(batches, together)):
            began = time.perf_counter()
            try:
                read = reader.read_together(some)
            except Exception:
                if len(some) == 1:
                    raise
                break  # one of them cannot be read, which is told when its turn comes, or they cannot be joined
            together = min(max(int(TOGETHER_S * len(some) / (time.perf_counter() - began)), 1), MOST_TOGETHER)
            while read:
                yield read.pop(0)  # and forget it: the next ones take memory, too
    yield from map(reader.__getitems__, chain(some, batches))


def raised(batch: Batch | Failure) -> Batch:
    if isinstance(batch, Failure):
        raise batch.error
    return batch


def copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on a CUDA device, each copied on a stream of its own while the step before works; the host never waits.

    A failure to read the batch ahead is told when that batch's turn comes.
    """
    copies, ready, failure = torch.cuda.Stream(device), None, None
    while failure is None:
        upcoming = None
        try:
            with torch.cuda.stream(copies):
                upcoming = to_device(next(batches), device), copies.record_event()
        except Exception as error:  # StopIteration is one of them
            failure = error
        if ready is not None:
            batch, copied = ready
            step = torch.cuda.current_stream(device)
            step.wait_event(copied)
            for value in batch.values():
                if isinstance(value, Tensor):
                    value.record_stream(step)  # its memory is not handed out again before the step has used it
            yield batch
        ready = upcoming
    if not isinstance(failure, StopIteration):
        raise failure


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Tensors on the device, floating ones as float32; what is no tensor stays as it is."""
    return {key: _moved(value, device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    moved = tensor.to(device, non_blocking=True)  # first: a conversion on the host would leave pinned memory
    return moved.float() if moved.is_floating_point() else moved
