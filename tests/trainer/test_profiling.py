"""train.profile writes a trace that loads, holds the phases of the asked number of updates, and says what took most."""

import json
from pathlib import Path

import pytest
import torch

from trainer.profiling import WARM_UP, UpdateProfiler
from trainer.timing import PhaseTimer

CPU = torch.device("cpu")


def run_updates(updates: int, traced: int, run_dir: Path) -> PhaseTimer:
    timer, weight = PhaseTimer(CPU), torch.randn(64, 64)
    profiler = UpdateProfiler(traced, run_dir, timer, CPU)
    for _ in range(updates):
        with timer("forward"):
            weight @ weight
        with timer("optimizer"):
            weight.mul_(0.99)
        profiler.step()
    profiler.close()
    return timer


@pytest.mark.parametrize(("updates", "traced", "found"), [(30, 4, 4), (WARM_UP + 4, 4, 4), (WARM_UP + 2, 4, 2)])
def test_the_trace_holds_the_phases_of_so_many_updates(updates: int, traced: int, found: int, tmp_path: Path, capsys):
    timer = run_updates(updates, traced, tmp_path)
    events = json.loads((tmp_path / "profile/trace.json").read_text())["traceEvents"]
    ranges = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert (ranges.count("forward"), ranges.count("optimizer")) == (found, found)
    assert any(event["name"] == "aten::mm" for event in events)
    assert not timer.annotate  # what is not traced costs nothing more
    said = capsys.readouterr().out
    assert f"trace of {found} updates: {tmp_path}/profile/trace.json" in said
    table = said.splitlines()[2:]
    (row,) = [row.split() for row in table if row.endswith("aten::mm")]
    assert len(table) <= 10 and row[0].endswith("%") and float(row[2]) == 1.0
    assert max(map(len, table)) <= 80
    assert not any(row.endswith((" forward", " optimizer")) or "ProfilerStep" in row for row in table)


def test_a_run_that_ends_too_early_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run_updates(3, 4, tmp_path)
    assert "ended within 10 updates" in capsys.readouterr().out
    assert not (tmp_path / "profile").exists()


def test_without_train_profile_nothing_happens(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run_updates(30, 0, tmp_path)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""
