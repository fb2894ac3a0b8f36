"""Program: what a program that trains a cell is given, and what it gives back. Each is a process of its own."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment_training.leaderboard.contest import Cell

RUNNING: set[subprocess.Popen] = set()
STOPPED = threading.Event()


@dataclass(frozen=True)
class Spec:
    cell: Cell
    demonstrations: Path
    folder: Path  # of this cell, for what training writes
    updates: int
    calibrates: bool = False  # only the time of an update is asked for


class CellFailed(RuntimeError):
    """The program of a cell ended with an error; the message holds its last words."""


def call(spec: Spec) -> Any:
    """Seconds of an update, or a verdict."""
    if STOPPED.is_set():
        raise CellFailed(f"{spec.cell.name} was not begun")
    spec.folder.mkdir(parents=True, exist_ok=True)
    order, result, log = (spec.folder / name for name in ("spec.pickle", "result.json", "log.txt"))
    order.write_bytes(pickle.dumps(spec))
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"experiment_training.leaderboard.{spec.cell.method.program}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # a cell has one core
    with (
        log.open("w") as words,
        subprocess.Popen(
            [*command, str(order), str(result)], stdout=words, stderr=subprocess.STDOUT, env=environment
        ) as process,
    ):
        RUNNING.add(process)
        try:
            code = process.wait()
        finally:
            RUNNING.discard(process)
    if code or not result.exists():
        last = "\n  ".join(log.read_text(errors="replace").splitlines()[-15:])
        raise CellFailed(f"{spec.cell.name} ended with code {code}; the end of {log}:\n  {last}")
    return json.loads(result.read_text())


def stop_all() -> None:
    """A board that is stopped leaves no cell behind, and begins none."""
    STOPPED.set()
    for process in list(RUNNING):
        process.kill()


def main(calibrate: Callable[[Spec], float], run: Callable[[Spec], dict[str, Any]]) -> None:
    order, result = map(Path, sys.argv[1:])
    spec = pickle.loads(order.read_bytes())  # written by `call`, a moment ago
    result.write_text(json.dumps(calibrate(spec) if spec.calibrates else run(spec)))
