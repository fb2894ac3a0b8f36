"""Runs as processes of their own, forked from one that has imported everything; and how two runs are compared."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint import open_checkpoint
from trainer.metrics import read_metrics
from trainer.timing import is_measured

TIMEOUT_S = 120.0
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["fault_server"])


@dataclass
class Started:
    """A run in a process: how it ended, and what it said."""

    process: Any
    log: Path

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the run did not end within {timeout_s} s; it said:\n{self.said}")
        return self.process.exitcode

    @property
    def said(self) -> str:
        return self.log.read_text()


def start(config: Path, overrides: Sequence[str] = (), resume: str = "none", inject: Callable | None = None) -> Started:
    """`inject` is called in the process of the run before anything else; it has to be importable there."""
    log = config.parent / f"log_{len(list(config.parent.glob('log_*')))}"
    log.touch()
    arguments = ["--train_config", str(config), "--resume", resume, *(["--set", *overrides] if overrides else [])]
    environment = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}  # for the server's own start
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        process = SERVER.Process(target=_run, args=(arguments, str(log), inject))
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return Started(process, log)


def _run(arguments: list[str], log: str, inject: Callable | None) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if inject is not None:
        inject()
    from trainer.offline_trainer import main

    sys.exit(main(arguments))


def values_of(checkpoint: Path) -> dict[str, Any]:
    """Every tensor and plain value of every file of a checkpoint by its place; how long it took is left out."""
    values: dict[str, Any] = {}

    def walk(place: str, value: Any) -> None:
        if isinstance(value, dict | list | tuple):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                walk(f"{place}/{key}", inner)
        elif place != "training_state/seconds":
            values[place] = value

    for path in sorted(checkpoint.glob("*.pt")):
        walk(path.stem, torch.load(path, weights_only=True))
    return values


def assert_same_values(one: Path, other: Path) -> None:
    first, second = values_of(one), values_of(other)
    assert first.keys() == second.keys()
    assert any(isinstance(value, torch.Tensor) for value in first.values())
    for place, value in first.items():
        same = torch.equal(value, second[place]) if isinstance(value, torch.Tensor) else value == second[place]
        assert same, f"{one} and {other} differ in {place}"


def dates_in(folder: Path) -> dict[Path, int]:
    """When each file, folder and link in it was changed."""
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not is_measured(name)} for line in lines]


def assert_ended_alike(run_dir: Path, undisturbed: Path) -> None:
    """The last checkpoints hold the same bits, and the lines of metrics the same numbers; nothing else is left over."""
    last = open_checkpoint(run_dir / os.readlink(run_dir / "latest"))  # which verifies every hash
    assert_same_values(last.path, undisturbed / os.readlink(undisturbed / "latest"))
    assert lines_of(run_dir) == lines_of(undisturbed)
    assert not list(run_dir.glob(".tmp-*"))
