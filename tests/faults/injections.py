"""What is done to a run from inside its own process, before it starts. Functions here travel to that process."""

import builtins
import io
import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fault_plugin
from torch import Tensor

from trainer import loop, watch

DIED = 86
SHORT = 256  # bytes that are written in one go
CHANGES = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "symlink")  # what of `os` changes a folder

Reached = Callable[[str], None]  # called behind each change of the disk, with its name


class FollowedFile:
    """Every write goes to the system at once, a long one in two halves: nothing waits in a buffer that a death would lose."""

    def __init__(self, file: Any, reached: Reached) -> None:
        self._file, self._reached = file, reached

    def write(self, content: Any) -> int:
        half = len(content) // 2 if len(content) > SHORT else 0
        for name, part in (("half a write", content[:half]), ("write", content[half:])):
            if len(part):
                self._file.write(part)
                self._file.flush()
                self._reached(name)
        return len(content)

    def __enter__(self) -> "FollowedFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def follow_disk(reached: Reached) -> None:
    def followed(name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            reached(name)
            return result

        return call

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        stream = plain_open(file, mode, *args, **kwargs)
        if not set(mode) & set("wa+x"):
            return stream
        reached(f"open {mode}")
        return FollowedFile(stream, reached)

    plain_open = io.open
    io.open = builtins.open = opened
    for name in CHANGES:
        setattr(os, name, followed(name, getattr(os, name)))


def die_after(change: int, kinds: Sequence[str] = ()) -> None:
    """End at once behind the change of that number (of those kinds, or of all), and say in the log what it was."""
    numbers = itertools.count()

    def reached(name: str) -> None:
        if (not kinds or name in kinds) and next(numbers) == change:
            os.write(1, f"died behind {change}: {name}\n".encode())
            os._exit(DIED)

    follow_disk(reached)


def die_outside_saves(change: int) -> None:
    """As `die_after`, of a run of two updates; what a checkpoint's own writing changes is not counted."""
    numbers, saving = itertools.count(), []

    def reached(name: str) -> None:
        if not saving and next(numbers) == change:
            os.write(1, f"died behind {change}: {name}\n".encode())
            os._exit(DIED)

    def save(*given: Any) -> Any:
        saving.append(True)
        try:
            return plain_save(*given)
        finally:
            saving.pop()

    plain_save, loop.save = loop.save, save
    follow_disk(reached)


def die_at_each_change_of_a_save(step: int, folder: str, kinds: Sequence[str] = ()) -> None:
    """At that save the process forks, again and again: child n dies behind change n, and what it left goes to folder/n.

    The last child saves to the end; then the run itself ends.
    """
    original, left = loop.save, Path(folder)

    def save(run: Any, progress: Any, is_best: bool = False) -> Any:
        if progress.step != step:
            return original(run, progress, is_best)
        run_dir, untouched = run.config.save_dir, left / "untouched"
        shutil.copytree(run_dir, untouched, symlinks=True)
        streams = random.getstate()
        for change in itertools.count():
            if (child := os.fork()) == 0:
                random.setstate(streams)  # a fork seeds Python's own stream anew
                die_after(change, kinds)
                original(run, progress, is_best)
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            run_dir.rename(left / str(change))
            shutil.copytree(untouched, run_dir, symlinks=True)
            if status != DIED:
                os._exit(status)

    loop.save = save


def signal_during(place: str, number: int) -> None:
    """The process gets a signal behind its third update, or with the validation or the save behind its fourth."""
    module, name = {"step": (watch.Watch, "after_update"), "validation": (loop, "validate"), "save": (loop, "save")}[
        place
    ]
    original, calls = getattr(module, name), itertools.count(1)
    first = {"step": 3, "validation": 2, "save": 2}[place]

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == first:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(module, name, call)


def worker_dies(number: int, item: int) -> None:
    """Whoever reads the item gets the signal, if it is not the process that trains."""
    main = os.getpid()

    def read(index: int, _: dict) -> None:
        if index == item and os.getpid() != main:
            os.kill(os.getpid(), number)

    fault_plugin.HOOKS["item"] = read


def item_cannot_be_read(item: int) -> None:
    def read(index: int, _: dict) -> None:
        if index == item:
            raise OSError("the cable is torn")

    fault_plugin.HOOKS["item"] = read


def waits_in_the_third_update(waiting: str, release: str) -> None:
    """Until there is a file `release`."""
    updates = itertools.count(1)

    def loss(loss: Tensor) -> Tensor:
        if next(updates) == 3:
            Path(waiting).touch()
            while not Path(release).exists():
                time.sleep(0.01)
        return loss

    fault_plugin.HOOKS["loss"] = loss


def killed_after(seconds: float, from_training: bool) -> None:
    """SIGKILL, so long after the process began or after its training did, wherever it is by then."""

    def wind_up() -> None:
        run = os.getpid()
        if os.fork() == 0:  # another process, so that it may happen between any two instructions
            time.sleep(seconds)
            if os.getppid() == run:
                os.kill(run, signal.SIGKILL)
            os._exit(0)

    def begin(*args: Any) -> None:
        wind_up()
        original(*args)

    if from_training:
        original = watch.Watch.__init__
        watch.Watch.__init__ = begin
    else:
        wind_up()


def clock_goes_back() -> None:
    """Between any two looks at the wall clock an hour is taken back."""
    hours = itertools.count()
    plain = time.time
    time.time = lambda: plain() - 3600 * next(hours)
