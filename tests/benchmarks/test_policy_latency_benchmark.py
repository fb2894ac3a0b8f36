"""The benchmark of a policy's latency runs and its rows are what they say; times are for a quiet machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_row_of_the_latency_is_timed_and_a_pop_is_far_cheaper_than_a_prediction(
    capsys: pytest.CaptureFixture[str],
):
    spec = importlib.util.spec_from_file_location("policy_latency", Path(__file__).with_name("policy_latency.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["--calls", "12"])
    rows = {
        row.split("|")[1].strip(): [float(cell) for cell in row.split("|")[2:-1] if cell.strip()]
        for row in capsys.readouterr().out.splitlines()[2:]
        if "|" in row
    }
    predicts, bare, pops, step = (
        rows[name][0]
        for name in ("select_action that predicts", "bare modules", "select_action that pops", "a solver step")
    )
    assert 0 < 10 * pops < predicts < 2 * bare
    assert 0 < step < predicts / 5  # ten of them, and the backbones
