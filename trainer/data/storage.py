"""Storage: named streams of bytes -> flat tensors, held in memory or, when they are large, mapped from files."""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import torch
from torch import Tensor

from model_constructor.errors import ConfigError, Problem

Fill = Callable[[Mapping[str, BinaryIO]], None]
"""Writes every stream, each under its name."""


def in_memory(names: Sequence[str], fill: Fill) -> dict[str, Tensor]:
    """Streams -> uint8 [bytes]."""
    streams = {name: io.BytesIO() for name in names}
    fill(streams)
    empty = torch.empty(0, dtype=torch.uint8)
    return {
        name: torch.frombuffer(stream.getbuffer(), dtype=torch.uint8) if stream.tell() else empty
        for name, stream in streams.items()
    }


def mapped(names: Sequence[str], fill: Fill, folder: Path) -> dict[str, Tensor]:
    """Streams -> uint8 [bytes], from files in `folder`; `fill` is called only if the folder is not there yet.

    Other processes that ask for the same folder wait until it is whole.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                _write(names, fill, folder)
    except OSError as error:
        raise ConfigError(
            Problem(
                f"the columns of the data set cannot be laid out in {folder.parent} ({error})",
                hint="make room there, or choose another place with the environment variable XDG_CACHE_HOME",
            )
        ) from error
    return {name: _map(folder / _file_name(names, name)) for name in names}


def cache_folder() -> Path:
    """Where large columns are laid out: under the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "policy-constructor" / "columns"


def _write(names: Sequence[str], fill: Fill, folder: Path) -> None:
    print(f"the data set is large: its columns are laid out in {folder}, once", flush=True)
    with TemporaryDirectory(dir=folder.parent) as unfinished, ExitStack() as files:
        (whole := Path(unfinished) / "whole").mkdir()
        streams = {name: files.enter_context(open(whole / _file_name(names, name), "wb")) for name in names}
        fill(streams)
        for stream in streams.values():
            stream.flush()
            os.fsync(stream.fileno())
        whole.rename(folder)


def _map(path: Path) -> Tensor:
    size = path.stat().st_size
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if size else torch.empty(0).byte()


def _file_name(names: Sequence[str], name: str) -> str:
    return f"{list(names).index(name):03d}.bytes"  # a name itself may not be fit for a file
