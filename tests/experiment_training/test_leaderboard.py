"""The leaderboard: fair by construction, kept cell by cell, and shown with its uncertainty."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from experiment_training.leaderboard import __main__ as program
from experiment_training.leaderboard import board, contest
from experiment_training.leaderboard.contest import ACT, FLOW, HELD_OUT, METHODS, SEEDS, TASKS, TRIED, Cell, Task
from experiment_training.leaderboard.program import CellFailed, Spec, call
from experiment_training.leaderboard.table import Row, markdown, plot
from model_constructor import load_config

PEG = TASKS[1]


def verdict(successes: int, **more) -> dict:
    return {"successes": successes, "episodes": 50, "latency_ms": 2.5, "parameters": 1_000_000, **more}


def test_each_method_tries_as_many_settings_as_every_other_and_on_placements_of_their_own() -> None:
    kinds = {task.kind for task in TASKS}
    assert {len(method.settings[kind]) for method in METHODS for kind in kinds} == {board.SETTINGS}
    assert len({contest.DEMONSTRATED, TRIED, HELD_OUT}) == 3
    assert len(TASKS) * len(METHODS) * len(SEEDS) == 36
    assert set(board.TRIED_ON.values()) <= {task.name for task in TASKS}


def test_all_methods_see_the_same_batches_of_the_same_size() -> None:
    folder = Path(contest.__file__).parent
    for kind in ("state", "image"):
        sizes = {
            load_config(folder / method.base[kind]).data["data"]["batch_size"]
            if method.program == "ours"
            else method.base[kind]["batch_size"]
            for method in METHODS
        }
        assert len(sizes) == 1


def test_a_finished_cell_is_kept_and_a_changed_one_is_run_again(tmp_path: Path, monkeypatch) -> None:
    ran: list[Cell] = []
    monkeypatch.setattr(board, "run", lambda cell, *_: ran.append(cell) or verdict(40 + cell.seed, updates=9))
    cells = [Cell(PEG, FLOW, seed, minutes=4) for seed in (0, 1)]
    first = list(board.verdicts(cells, tmp_path, 1))
    assert [one["successes"] for _, one in first] == [40, 41]
    assert list(board.verdicts(cells, tmp_path, 1)) == first
    assert ran == cells
    changed = replace(cells[0], method=replace(FLOW, base={"state": "other.yaml"}))
    list(board.verdicts([changed], tmp_path, 1))
    assert ran == [*cells, changed]


def test_a_cell_that_fails_is_told_and_the_others_go_on(tmp_path: Path, monkeypatch, capsys) -> None:
    def run(cell: Cell, *_) -> dict:
        if cell.seed == 0:
            raise CellFailed("seed 0 ended with code 1")
        return verdict(50, updates=9)

    monkeypatch.setattr(board, "run", run)
    monkeypatch.setattr(program, "expert", lambda *_: {"successes": 45, "episodes": 50})
    arguments = ["--tasks", PEG.name, "--methods", FLOW.name, "--seeds", "0", "1", "--folder", str(tmp_path)]
    assert program.main(arguments) == 1
    told = capsys.readouterr()
    assert "seed 0 ended with code 1" in told.err
    assert "1 cells failed" in told.err
    assert f"| {PEG.name} | {FLOW.name} | 100% (93% to 100%) |" in told.out
    assert (tmp_path / "leaderboard.md").read_text() in told.out
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [
        f"{PEG.name}-flow_matching-4min-seed1-setting0-50episodes.json"
    ]


def test_the_setting_that_reached_most_is_written_down_and_used(tmp_path: Path, monkeypatch) -> None:
    reached = {FLOW.name: [20, 25, 25], ACT.name: [9, 3, 8]}
    asked: list[Cell] = []

    def run(cell: Cell, *_) -> dict:
        asked.append(cell)
        return verdict(reached.get(cell.method.name, [1, 1, 1])[cell.setting], updates=9)

    monkeypatch.setattr(board, "run", run)
    monkeypatch.setattr(board, "CHOSEN", tmp_path / "chosen.json")
    board.choose(TASKS, METHODS, tmp_path, 4, 1)
    assert {cell.placements for cell in asked} == {TRIED}
    chosen = board.chosen_settings()
    assert (chosen[FLOW.name]["state"], chosen[ACT.name]["state"]) == (1, 0)
    assert json.loads((tmp_path / "chosen.json").read_text()) == chosen


def test_the_table_pools_the_seeds_and_says_how_sure_it_is(tmp_path: Path) -> None:
    rows = [
        Row("peg", "expert", [{"successes": 45, "episodes": 50}]),
        Row("peg", "ours", [verdict(48, train_s=240.0), verdict(50, train_s=242.0)]),
    ]
    lines = markdown(rows).splitlines()
    assert lines[2].startswith("| peg | expert | 90% (79% to 96%) | 45 of 50 | ")
    assert lines[3] == "| peg | ours | 98% (93% to 99%) | 48, 50 of 50 | 241 s |  |  | 1,000,000 | 2.5 ms |"
    plot(rows, tmp_path / "board.png")
    with Image.open(tmp_path / "board.png") as picture:
        assert min(picture.size) > 200


def test_a_program_that_ends_badly_says_its_last_words(tmp_path: Path) -> None:
    cell = Cell(Task("no-task-v3", 1), FLOW, 0, 1.0)
    with pytest.raises(CellFailed, match=r"no-task-v3(?s:.*)ended with code 1(?s:.*)nowhere"):
        call(Spec(cell, tmp_path / "nowhere", tmp_path / "work", 1, 1, calibrates=True))


@pytest.mark.slow
@pytest.mark.parametrize("method", [FLOW], ids=lambda method: method.name)
def test_a_cell_is_trained_and_judged(method, tmp_path: Path) -> None:
    task = Task("pick-place-v3", 4, max_steps=20)
    cell = Cell(task, method, 0, minutes=0.2, episodes=2)
    found = board.run(cell, tmp_path, 2)
    assert (found["episodes"], found["successes"]) == (2, 0)
    assert 0.2 < found["train_s"] / 12 < 5  # seconds asked for, but for how a machine's pace changes
    assert found["parameters"] > 100_000
    assert found["latency_ms"] > 0
    assert not list((tmp_path / "work").iterdir())
