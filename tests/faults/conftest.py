"""Faults: what goes wrong on a machine, done to a small run, and what has to be left of it.

Nothing is mocked that can be had: processes are killed, disks are full, files are damaged. A test says with
`@pytest.mark.fault("F5", "killed within a save")` which fault it holds; `--fault-table` prints each with its outcome.
After each fault a restart with `--resume auto` needs no help and ends equal, bit for bit, to the run `undisturbed`.

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


# The table: fault -> outcome

ELSEWHERE = {
    "F1 to F3": "a resume equals an uninterrupted run: trainer/test_exact_resume.py, trainer/test_resume.py",
    "F4, F9, F10, F12": "several processes: trainer/test_processes.py",
    "F15": "every key has an effect: trainer/test_keys.py",
    "F17": "statistics that cannot be used: trainer/data/test_normalization.py, trainer/data/test_columns.py",
    "F19": "loggers that fail: trainer/test_loggers.py",
    "F20": "accumulation equals a larger batch: trainer/test_component_trainer.py",
    "F23": "frozen components: trainer/modeling/test_freeze.py",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", action="store_true", help="print each fault with its outcome")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(number, name): the fault that a test holds")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = (yield).get_result()
    if marker := item.get_closest_marker("fault"):
        report.fault = marker.args


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.getoption("--fault-table", default=False):
        return
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            if fault := getattr(report, "fault", None):
                outcomes = counts.setdefault(fault, {})
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
    terminalreporter.section("fault -> outcome")
    for (number, name), outcomes in sorted(counts.items(), key=lambda one: (int(one[0][0][1:]), one[0][1])):
        told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        terminalreporter.line(f"{number:4} {name:84} {told}")
    for numbers, where in ELSEWHERE.items():
        terminalreporter.line(f"{numbers:16} {where}")
