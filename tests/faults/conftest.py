"""Faults: what goes wrong on a machine, done to a small run, and what has to be left of it.

Nothing is mocked that can be had: processes are killed, disks are full, files are damaged. After each fault a restart
with `--resume auto` needs no help and ends equal, bit for bit, to the run `undisturbed`. What other tests hold of the
faults is marked where they are; `make test-faults` runs them too (`tests/conftest.py`).

    fault_project.py  the project, and how it is run            fault_runs.py    runs as processes; comparing them
    fault_plugin.py   its data set and trainer, with hooks      fault_server.py  what those processes are forked from
    injections.py     what is done inside of a run              test_*.py        the faults, by what breaks
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # where a config's `plugins: [fault_plugin]` is found

import fault_plugin
from fault_project import Project


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Numbers of a run depend on the number of threads. The picture of the losses takes longer than the runs."""
    monkeypatch.setattr("trainer.watch.draw_curves", lambda *given, **named: None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    fault_plugin.HOOKS.clear()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run to which nothing happened."""
    project = Project(tmp_path_factory.mktemp("undisturbed"))
    started = project.start()
    assert started.wait() == 0, started.said
    return project.run_dir


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable], None]:
    """Put a fault in its place: see fault_plugin.HOOKS."""
    return partial(monkeypatch.setitem, fault_plugin.HOOKS)
