"""Prefetch: a data set and an order -> batches on the device, and the time that was spent waiting for them."""

import signal
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from trainer.config.schemas import DataConfig
from trainer.templates.trainer import Batch


def build_loader(
    dataset: Dataset, batches: Iterable[list[int]], data: DataConfig, device: torch.device, seed: int
) -> DataLoader:
    """A loader with a random stream of its own: making or iterating it draws nothing from training's streams."""
    workers: dict[str, Any] = {}
    if data.num_workers:
        workers = {"prefetch_factor": data.prefetch_factor, "persistent_workers": data.persistent_workers}
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=data.num_workers,
        pin_memory=data.pin_memory and device.type == "cuda",
        collate_fn=collate,
        worker_init_fn=leave_signals_to_the_main_process,
        generator=torch.Generator().manual_seed(seed),
        **workers,
    )


def collate(items: Any) -> Batch:
    """A data set that gathers whole batches has nothing left to collate."""
    return items if isinstance(items, dict) else default_collate(items)


def leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C and SIGTERM reach the whole process group; a worker that died of one would fail the step that saves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class DeviceBatches:
    """Iterates a loader; `waited` are the seconds in which the step had no batch to work on."""

    def __init__(self, loader: DataLoader, device: torch.device) -> None:
        self._loader, self._device = loader, device
        self._batches: Iterator[Batch] = iter(())
        self.waited = 0.0

    def __iter__(self) -> "DeviceBatches":
        self._batches = iter(self._loader)  # persistent workers start over, others are made anew
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - began
        return to_device(batch, self._device)

    def close(self) -> None:
        """End the workers now: they ignore signals, and a process that exits would wait for them forever."""
        if isinstance(self._batches, _MultiProcessingDataLoaderIter):
            self._batches._shutdown_workers()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Tensors on the device, floating ones as float32; what is no tensor stays as it is."""
    return {key: _moved(value, device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.to(device, dtype, non_blocking=True)
