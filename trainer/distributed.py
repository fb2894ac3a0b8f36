"""Distributed: the processes of a run -> one World each. One needs no group; several use nccl with CUDA, gloo without.

What steers a run (a signal, the clock, an object) travels between the hosts, so that asking waits for no device.
"""

import hashlib
import itertools
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model_constructor import ConfigError
from model_constructor.errors import Problem

FAILED = "failed"
RUNS = itertools.count()
POLL_S = 0.5  # how often a process asks whether another one has failed,
GRACE_S = 8.0  # and how long it may take to end by itself then
DEVICE_TIMEOUT = timedelta(minutes=30)  # of a device that neither fails nor goes on,
HOST_TIMEOUT = timedelta(days=1)  # and of a process: the others wait while the first one evaluates


@dataclass(frozen=True)
class World:
    """This process among the `size` processes of the run."""

    rank: int = 0
    size: int = 1
    hosts: dist.ProcessGroup | None = None  # over gloo, whatever the devices use
    store: dist.Store | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def say(self, text: str) -> None:
        """Once, however many processes there are."""
        if self.is_first:
            print(text, flush=True)

    def sum_(self, tensor: Tensor) -> Tensor:
        """In place, over all processes; the device of the tensor decides who carries it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """The first process's values to all, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank, on every process. Pickled: for states and texts, not in a step."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.hosts)
        return values

    def first_decides(self, decide: Callable[[], Any]) -> Any:
        """What `decide` returns on the first process, on every one; what it raises there is raised everywhere."""
        if self.size == 1:
            return decide()
        if self.is_first:
            try:
                answer = decide()
            except Exception as error:
                dist.broadcast_object_list([None, _sendable(error)], src=0, group=self.hosts)
                raise
            dist.broadcast_object_list([answer, None], src=0, group=self.hosts)
            return answer
        received: list[Any] = [None, None]
        dist.broadcast_object_list(received, src=0, group=self.hosts)
        answer, error = received
        if error is not None:
            error.raised_by_first = True  # who has its traceback tells it
            raise error
        return answer

    def fails_first(self) -> bool:
        """Whether this process is the first to tell that it fails: the others' errors follow from the first one's."""
        if self.store is None:
            return True
        if getattr(sys.exception(), "raised_by_first", False):
            return False
        try:
            return self.store.compare_set(FAILED, "", str(self.rank)).decode() == str(self.rank)
        except RuntimeError:  # the store went down with the process that held it
            return True


class Agreement:
    """Wishes of single processes (a signal's number, a clock that ran out) -> one answer for all of them: the maximum.

    Several processes get the answer to what they asked one update ago: by then it has travelled, and nobody waits.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked: tuple[Tensor, dist.Work] | None = None

    def ask(self, *wishes: int) -> list[int]:
        if self._world.size == 1:
            return list(wishes)
        answer = self._answer(len(wishes))
        asked = torch.tensor(wishes)
        work = dist.all_reduce(asked, dist.ReduceOp.MAX, group=self._world.hosts, async_op=True)
        assert work is not None, "an asynchronous call gives its handle"
        self._asked = (asked, work)
        return answer

    def close(self) -> None:
        self._answer(0)

    def _answer(self, count: int) -> list[int]:
        if self._asked is None:
            return [0] * count
        (answer, work), self._asked = self._asked, None
        work.wait()
        return answer.tolist()


@contextmanager
def processes() -> Iterator[World]:
    """Join the processes that torchrun started; alone, there is nothing to join."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    rendezvous: Any = dist.rendezvous("env://")
    store, rank, size = next(rendezvous)
    number = f"run {next(RUNS)}"  # a second run of these processes meets nothing of the first
    watched, store = (dist.PrefixStore(number, one) for one in (store.clone(), store))
    cuda, local_rank = torch.cuda.is_available(), int(os.environ.get("LOCAL_RANK", "0"))
    if cuda and local_rank >= torch.cuda.device_count():
        message = f"process {local_rank} of this machine has no GPU: {torch.cuda.device_count()} can be seen"
        raise ConfigError(Problem(message, hint="lower --nproc_per_node, or let CUDA_VISIBLE_DEVICES name more"))
    device = torch.device("cuda", local_rank) if cuda else None
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=DEVICE_TIMEOUT if cuda else HOST_TIMEOUT,
        device_id=device,
    )
    hosts: Any = dist.new_group(backend="gloo", timeout=HOST_TIMEOUT) if cuda else dist.group.WORLD
    done = threading.Event()
    watcher = threading.Thread(target=_end_with_the_others, args=(watched, done), daemon=True)
    watcher.start()
    world = World(rank, size, hosts, store)
    try:
        yield world
    except BaseException:
        world.fails_first()
        raise
    finally:
        dist.destroy_process_group()
        done.set()
        watcher.join()


def _end_with_the_others(store: dist.Store, done: threading.Event) -> None:
    """A process whose peer has failed may wait for it for ever, on the device too: it is ended from here."""
    while not done.wait(POLL_S):
        try:
            failed = store.check([FAILED])
        except RuntimeError:
            failed = True
        if failed:
            if not done.wait(GRACE_S):
                os._exit(1)
            return


def first_disagreement(world: World, named: Sequence[tuple[str, Tensor]]) -> str | None:
    """The first tensor, by name, whose bits are not the same on all processes."""
    if world.size == 1 or not named:
        return None
    own = [_digest(tensor) for _, tensor in named]
    for (name, _), *digests in zip(named, *world.gather(own), strict=True):
        if len(set(digests)) > 1:
            return name
    return None


def _digest(tensor: Tensor) -> bytes:
    """torch.hash_tensor is an exclusive or: it takes zeros for ones, and any order for any other."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).digest()


def _sendable(error: Exception) -> Exception:
    """The error itself, if another process can make it again from what is pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
