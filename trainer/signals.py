"""Signals: SIGINT and SIGTERM -> the run ends behind the update at hand; a second SIGINT ends the process at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """What a signal raises in work that can be left out."""


class Received(list[int]):
    """The signals so far."""

    def __init__(self) -> None:
        super().__init__()
        self._interrupts = False

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """In here a signal raises Interrupted, as soon as Python runs."""
        self._interrupts = True
        try:
            yield
        finally:
            self._interrupts = False

    def note(self, number: int, frame: FrameType | None) -> None:
        self.append(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self._interrupts:
            raise Interrupted(signal.Signals(number).name)


@contextmanager
def interruptions() -> Iterator[Received]:
    """The signals received so far. Only the main thread may handle signals; in another one they go where they went."""
    received = Received()

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, received.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_in_peace() -> None:
    """From here on SIGTERM is too late to say anything: what it asks for is done."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
