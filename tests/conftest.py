"""The table of faults: `make test-faults` runs the tests that hold one, wherever they are, and prints what came of each.

A test says with `@pytest.mark.fault("F5", "killed within a save")` which fault it holds.
"""

from collections.abc import Iterator

import pytest


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
    if not config.getoption("--fault-table"):
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
