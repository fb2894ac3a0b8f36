"""The benchmark of the loop's own time runs; on a quiet machine its best is within half a millisecond."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_loops_own_time_is_shown_and_small(capsys: pytest.CaptureFixture[str]):
    spec = importlib.util.spec_from_file_location("loop_overhead", Path(__file__).with_name("loop_overhead.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["--rounds", "3", "--updates", "1000"])
    rows = {
        row.split("|")[1].strip(): row.split("|")[2:-1] for row in capsys.readouterr().out.splitlines() if "|" in row
    }
    assert {"bare loop", "trainer", "the loop's own", "data", "forward", "backward", "optimizer"} <= rows.keys()
    assert float(rows["the loop's own"][1]) <= 0.5
