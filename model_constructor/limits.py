"""Limits: what a model file may ask for. One that nobody trusts gets less, and reaches nothing but itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    modules: int = 20_000
    repeats: int = 1_000  # of `A() * n`
    functions: int = 1_000  # that blocks without modules become
    bytes: int | None = None  # of parameters and buffers; None: the memory of the machine
    reaches_out: bool = True  # to the environment, files outside of its folder, configurations and weights of others

    @property
    def memory(self) -> int:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return machine if self.bytes is None else min(self.bytes, machine)


TRUSTED = Limits()
UNTRUSTED = Limits(
    modules=2_000, functions=250, bytes=256 * 2**20, reaches_out=False
)  # a build takes at most 2 s and 1 GB

# Of a type, the argument by which it loads what others have made; a configuration written out loads nothing.
LOADS = {"TimmBackbone": "pretrained", "HuggingFaceBackbone": "source"}

_current: ContextVar[Limits] = ContextVar("limits", default=TRUSTED)


def limits() -> Limits:
    """Those of the file that is being built."""
    return _current.get()


@contextmanager
def limited(to: Limits) -> Iterator[None]:
    token = _current.set(to)
    try:
        yield
    finally:
        _current.reset(token)
