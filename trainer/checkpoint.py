"""Checkpoint: named tensors and texts <-> a folder that is either whole or not there.

    epoch_{N}/ or step_{N}/    {component}.pt  {component}_opt.pt  {component}_ema.pt  {component}.yaml
                               training_state.pt  manifest.json
    latest  best               relative links to the newest, and to the one of the lowest validation loss

A folder is written beside under a temporary name, flushed to disk, and renamed; its manifest, with the size and the
SHA-256 of every file, is written last. What has no valid manifest is no checkpoint.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import random
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from trainer.files import TEMPORARY, flush, flush_folder, write_bytes

MANIFEST = "manifest.json"
LATEST, BEST = LINKS = ("latest", "best")
LOCK = ".lock"
CHECKPOINT_NAME = re.compile(r"(epoch|step)_\d+")

told_of: set[Path] = set()  # checkpoints that cannot be removed: each costs one line in the life of a process


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or is not one."""


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    components: tuple[str, ...]

    def tensors(self, name: str) -> Any:
        """What `{name}.pt` holds, on the CPU; nothing but tensors and plain values is ever unpickled."""
        return read_tensors(self.path / f"{name}.pt")

    def has(self, name: str) -> bool:
        return (self.path / f"{name}.pt").is_file()

    def text(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8")


def read_tensors(source: Path | IO[bytes], mmap: bool = False) -> Any:
    """`mmap`: what no one looks at is not read."""
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # damage has no end of forms, and the unpickler a name for each
        message = f"{source} holds something else than tensors and plain values (weights_only); nothing of it was run"
        raise CheckpointError(message) from error


@contextmanager
def writing(run_dir: Path) -> Iterator[None]:
    """A full disk, a missing permission or a file in the folder's place is one message."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"the run folder {run_dir} cannot be read and written: {error}") from error


def write_checkpoint(
    run_dir: Path,
    name: str,
    step: int,
    tensors: Mapping[str, Any],
    texts: Mapping[str, str],
    best: str | None = None,
) -> Checkpoint:
    """`tensors` become `{key}.pt`, `texts` files of their own name. Whatever fails, older checkpoints are untouched.

    `best` names the checkpoint of the lowest validation loss so far. It is linked with every save: a run may have been
    killed between that one and its link.
    """
    temporary = run_dir / f"{TEMPORARY}{name}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for key, value in tensors.items():
            with (temporary / f"{key}.pt").open("wb") as file:
                torch.save(value, file)
                flush(file)
            read_tensors(temporary / f"{key}.pt", mmap=True)  # what cannot be read again is told now, not at a resume
        for key, text in texts.items():
            write_bytes(temporary / key, text.encode())
        files = {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())}
        components = sorted(key.removesuffix(".yaml") for key in texts)
        manifest = {"step": step, "components": components, "files": files}
        write_bytes(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
        flush_folder(temporary)
        _move_into_place(temporary, run_dir / name)
        link_checkpoints(run_dir, name, best)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        message = f"the checkpoint {run_dir / name} could not be written: {error}{_room(run_dir, tensors, error)}"
        raise CheckpointError(f"{message}\n  Earlier checkpoints are intact.") from error
    return Checkpoint(run_dir / name, step, tuple(components))


def link_checkpoints(run_dir: Path, latest: str, best: str | None) -> None:
    _link(run_dir, LATEST, latest)
    if best is not None and (run_dir / best).is_dir():  # a run that is continued elsewhere has left it behind
        _link(run_dir, BEST, best)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the manifest and check every file against it; CheckpointError says what is not as written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files, step, components = dict(manifest["files"]), manifest["step"], list(manifest["components"])
        expected_names = ["training_state.pt", *(f"{one}{end}" for one in components for end in (".pt", ".yaml"))]
        if type(step) is not int or not set(expected_names) <= files.keys():
            raise ValueError(f"it names no step, or not all of {', '.join(expected_names)}")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not a checkpoint: it has no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint: its {MANIFEST} cannot be read ({error})") from None
    for name, expected in files.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path} is not a checkpoint: {name} is missing")
        if _fingerprint(path / name) != expected:
            raise CheckpointError(f"{path} is not a checkpoint: {name} is not the file that was written")
    return Checkpoint(path, step, tuple(components))


def newest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """The valid checkpoint with the highest step, whatever `latest` says; invalid ones are passed over by name.

    None where there is no checkpoint's folder; where there are some and none is valid, CheckpointError names them all.
    """
    by_step = sorted(checkpoint_folders(run_dir), key=_written_step, reverse=True)  # the unreadable first: to be named
    refused: list[str] = []
    for path in by_step:
        try:
            found = open_checkpoint(path)
        except CheckpointError as error:
            refused.append(str(error))
            continue
        for line in refused:
            print(f"passed over: {line}", flush=True)
        return found
    if refused:
        raise CheckpointError("\n  ".join([f"{run_dir} holds no valid checkpoint:", *refused]))
    return None


def checkpoint_folders(run_dir: Path) -> list[Path]:
    if not run_dir.is_dir():
        return []
    return [path for path in run_dir.iterdir() if CHECKPOINT_NAME.fullmatch(path.name) and path.is_dir()]


def remove_old(run_dir: Path, keep_last: int, keep_every: int | None = None, newest: float = math.inf) -> None:
    """Keep the newest `keep_last`, those whose step `keep_every` divides, and `best`.

    `newest` is the step that was written last. What claims a later one was passed over when the run was continued: it
    is damaged, does not count as kept, and stays until the run writes over it. A folder that cannot be removed costs a
    line, not the run.
    """
    written = [
        path for path in checkpoint_folders(run_dir) if (step := _written_step(path)) < math.inf and step <= newest
    ]
    best = (run_dir / BEST).resolve()
    for path in sorted(written, key=_written_step)[:-keep_last]:
        if path.resolve() == best or (keep_every is not None and _written_step(path) % keep_every == 0):
            continue
        try:
            leaving = run_dir / f"{TEMPORARY}{path.name}"
            path.rename(leaving)  # half a folder never stands under a checkpoint's name
            shutil.rmtree(leaving)
        except OSError as error:
            if path not in told_of:
                told_of.add(path)
                print(f"could not remove the old checkpoint {path}: {error}", flush=True)


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """The run folder is this process's alone. The system lets go of the lock when the process ends, however it ends.

    A lock of `lockf` is not inherited: data workers that outlive a killed run for seconds do not keep it.
    """
    with (run_dir / LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either for a lock that another process holds
            file.seek(0)
            raise CheckpointError(f"another run is at work in {run_dir}: {file.read().strip()}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def holds_files(run_dir: Path) -> bool:
    """Of whomever; what a run leaves that ends before it has written anything (no room, a kill) does not count."""
    if not run_dir.exists():
        return False
    return any(path.name != LOCK and not path.name.startswith(TEMPORARY) for path in run_dir.iterdir())


def remove_leftovers(run_dir: Path) -> None:
    """What a killed run left behind under a temporary name; what cannot be removed costs a line."""
    for path in run_dir.glob(f"{TEMPORARY}*"):
        try:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError as error:
            print(f"could not remove {path}: {error}", flush=True)


def random_state() -> dict[str, Any]:
    """Every random stream of this process, of CUDA that of its own device, as plain values and tensors."""
    numpy_state: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _move_into_place(temporary: Path, target: Path) -> None:
    if target.exists():  # an invalid folder under this name; a valid one would have been resumed from
        aside = target.with_name(f"{TEMPORARY}old-{target.name}")
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
        temporary.rename(target)
        shutil.rmtree(aside)
    else:
        temporary.rename(target)
    flush_folder(target.parent)


def _link(run_dir: Path, name: str, target: str) -> None:
    link, beside = run_dir / name, run_dir / f"{TEMPORARY}{name}"
    if link.is_symlink() and os.readlink(link) == target:
        return
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    os.replace(beside, link)


def _room(run_dir: Path, tensors: Mapping[str, Any], error: Exception) -> str:
    """Where the disk is full: what a checkpoint takes, and what there is. torch.save hides the system's own error."""
    try:
        needed, free = _bytes(tensors), shutil.disk_usage(run_dir).free
    except OSError:  # the folder itself is gone
        return ""
    is_full = free < needed or getattr(error, "errno", None) == errno.ENOSPC
    return f"\n  It takes about {needed / 2**20:,.1f} MiB, and {free / 2**20:,.1f} MiB are free." if is_full else ""


def _bytes(value: Any) -> int:
    """Of all tensors in nested mappings and sequences."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(map(_bytes, inner))


def _written_step(path: Path) -> float:
    """The step that the manifest names; infinity for what has no readable manifest."""
    try:
        return int(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}
