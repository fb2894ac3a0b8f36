"""The leaderboard: fair by construction, kept cell by cell, and shown with its uncertainty."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiment_training.leaderboard import __main__ as program
from experiment_training.leaderboard import board, contest
from experiment_training.leaderboard.contest import ACT, FLOW, HELD_OUT, METHODS, SEEDS, TASKS, TRIED, Cell, Task
from experiment_training.leaderboard.program import RUNNING, CellFailed, Spec, call
from experiment_training.leaderboard.table import Row, markdown, plot
from model_constructor import load_config
from trainer.loop import TrainResult

PEG = TASKS[1]


def verdict(successes: int, **more) -> dict:
    return {"successes": successes, "episodes": 50, "latency_ms": 2.5, "parameters": 1_000_000, **more}


SHIPPED = board.CHOSEN


@pytest.fixture(autouse=True)
def as_new(tmp_path: Path, monkeypatch) -> Iterator[None]:
    """Nothing is chosen, and no board was stopped."""
    monkeypatch.setattr(board, "CHOSEN", tmp_path / "chosen.json")
    yield
    board.STOPPED.clear()


def test_what_was_chosen_is_a_setting_of_each_method_for_each_kind() -> None:
    chosen = json.loads(SHIPPED.read_text())
    assert {method.name: {*chosen[method.name]} for method in METHODS} == {
        one.name: {"state", "image"} for one in METHODS
    }
    assert all(number in range(board.SETTINGS) for kinds in chosen.values() for number in kinds.values())


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


@pytest.fixture
def ran(monkeypatch) -> list[Cell]:
    """The cells that are run; none of them really is, nor are demonstrations recorded."""
    cells: list[Cell] = []
    monkeypatch.setattr(board, "demonstrations", lambda *_: Path("nowhere"))
    monkeypatch.setattr(board, "run", lambda cell, _: cells.append(cell) or verdict(40 + cell.seed, updates=9))
    return cells


def test_a_finished_cell_is_kept_and_a_changed_one_is_run_again(tmp_path: Path, ran: list[Cell]) -> None:
    cells = [Cell(PEG, ACT, seed, minutes=4) for seed in (0, 1)]
    first = list(board.verdicts(cells, tmp_path, 1))
    assert [one["successes"] for _, one in first] == [40, 41]
    assert list(board.verdicts(cells, tmp_path, 1)) == first
    assert ran == cells
    changed = replace(cells[0], method=replace(ACT, base={"state": {"policy.type": "act"}}))
    list(board.verdicts([changed], tmp_path, 1))
    assert ran == [*cells, changed]


def test_a_cell_whose_config_or_architecture_changed_is_run_again(tmp_path: Path, ran: list[Cell], monkeypatch) -> None:
    here = tmp_path / "configs"
    here.mkdir()
    for kind in ("state", "image"):
        text = (Path(contest.__file__).parent / f"flow_{kind}.yaml").read_text()
        (here / f"flow_{kind}.yaml").write_text(text)
    monkeypatch.setattr(board.ours, "HERE", here)
    path = "experiment_models/quickstart/pick_place/action_decoder.yaml"
    decoder = Path(path).read_text()
    state = here / "flow_state.yaml"
    state.write_text(state.read_text().replace(path, str(here / "decoder.yaml")))
    cell = Cell(PEG, FLOW, 0, minutes=4)

    def runs_after(path: Path, text: str) -> int:
        path.write_text(text)
        list(board.verdicts([cell], tmp_path, 1))
        return len(ran)

    assert runs_after(here / "decoder.yaml", decoder) == 1
    assert runs_after(here / "decoder.yaml", "# only a comment\n" + decoder) == 1
    assert runs_after(here / "decoder.yaml", decoder.replace("norm1(h) * (1 + s1)", "norm1(h) * (2 + s1)")) == 2
    assert runs_after(state, state.read_text().replace("decay: 0.995", "decay: 0.9")) == 3


def test_cells_are_run_at_the_same_time(tmp_path: Path, ran: list[Cell], monkeypatch) -> None:
    together = threading.Barrier(2, timeout=10)
    monkeypatch.setattr(board, "run", lambda cell, _: {**verdict(cell.seed), "updates": together.wait() + 1})
    cells = [Cell(PEG, ACT, seed, minutes=4) for seed in (3, 1, 2, 0)]
    assert [(cell.seed, one["successes"]) for cell, one in board.verdicts(cells, tmp_path, 2)] == [
        (seed, seed) for seed in (3, 1, 2, 0)
    ]


def test_the_pace_of_a_method_is_measured_once_for_all_seeds(tmp_path: Path, monkeypatch) -> None:
    measured, updates = [], []

    def call(spec: Spec):
        spec.folder.mkdir(parents=True, exist_ok=True)
        (measured if spec.calibrates else updates).append(spec.updates)
        return 0.5 if spec.calibrates else verdict(1)

    monkeypatch.setattr(board, "demonstrations", lambda *_: Path("nowhere"))
    monkeypatch.setattr(board, "call", call)
    for cell in (Cell(PEG, ACT, 0, 4), Cell(PEG, ACT, 1, 4), Cell(PEG, ACT, 1, 2)):
        board.run(cell, tmp_path)
    assert measured == [board.CALIBRATION_UPDATES["peer"]] * 2  # of 4 minutes, and of 2
    assert updates == [480, 480, 240]


def test_a_cell_that_fails_is_told_and_the_others_go_on(tmp_path: Path, monkeypatch, capsys) -> None:
    def run(cell: Cell, *_) -> dict:
        if cell.seed == 0:
            raise CellFailed("seed 0 ended with code 1")
        return verdict(50, updates=9)

    monkeypatch.setattr(board, "run", run)
    monkeypatch.setattr(board, "demonstrations", lambda *_: tmp_path)
    monkeypatch.setattr(program, "expert", lambda *_: {"successes": 45, "episodes": 50})
    arguments = ["--tasks", PEG.name, "--methods", FLOW.name, "--seeds", "0", "1", "--folder", str(tmp_path)]
    assert program.main(arguments) == 1
    told = capsys.readouterr()
    assert "seed 0 ended with code 1" in told.err
    assert "1 cells failed" in told.err
    assert f"| {PEG.name} | {FLOW.name} | 100% (93% to 100%) |" in told.out
    assert (tmp_path / "leaderboard.md").read_text() in told.out
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [
        f"{PEG.name}-flow_matching-4min-setting0-50episodes-seed1.json"
    ]


def test_a_board_that_is_stopped_leaves_no_cell_behind(tmp_path: Path, monkeypatch, capsys) -> None:
    (slow := tmp_path / "slow").write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr("experiment_training.leaderboard.program.sys.executable", str(slow))
    monkeypatch.setattr(board, "demonstrations", lambda *_: tmp_path)
    monkeypatch.setattr(program, "expert", lambda *_: {"successes": 45, "episodes": 50})
    seen: list[subprocess.Popen] = []

    def terminate() -> None:
        while not RUNNING:  # the pace, for which the other seeds wait
            time.sleep(0.01)
        seen.extend(RUNNING)
        os.kill(os.getpid(), signal.SIGTERM)

    (other := threading.Thread(target=terminate)).start()
    assert program.main(["--tasks", PEG.name, "--methods", ACT.name, "--folder", str(tmp_path)]) == 130
    other.join()
    assert [process.poll() for process in seen] == [-signal.SIGKILL] and not RUNNING
    assert capsys.readouterr().err == "interrupted: finished cells are kept, the same command goes on\n"


def test_seeds_that_run_at_the_same_time_share_a_pace(tmp_path: Path, monkeypatch) -> None:
    measured = []

    def call(spec: Spec) -> float:
        measured.append(spec.cell.seed)
        time.sleep(0.2)
        return 0.5

    monkeypatch.setattr(board, "call", call)
    specs = [Spec(Cell(PEG, ACT, seed, 4), tmp_path, tmp_path, 1) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda spec: board.update_s(spec, tmp_path), specs)) == [0.5, 0.5]
    assert len(measured) == 1


def test_a_cell_that_is_stopped_is_not_judged(tmp_path: Path, monkeypatch) -> None:
    stopped = TrainResult(tmp_path, tmp_path, 7, {}, signal=signal.SIGINT)
    monkeypatch.setattr("trainer.train", lambda *_: stopped)
    with pytest.raises(SystemExit) as ended:
        board.ours.run(Spec(Cell(PEG, FLOW, 0, 4), tmp_path, tmp_path, 10))
    assert ended.value.code == 128 + signal.SIGINT


def test_what_hardly_moves_is_no_noise_to_a_peer() -> None:
    stats = {"observation.state": {"mean": np.array([1.0, 2.0]), "std": np.array([0.5, 1e-7])}}
    stats["observation.state"] |= {"min": np.array([0.0, 2.0]), "max": np.array([3.0, 2.0 + 1e-6])}
    found = board.peer.floored(stats)["observation.state"]
    assert (found["std"].tolist(), found["min"].tolist(), found["max"].tolist()) == ([0.5, 1.0], [0.0, 1.0], [3.0, 3.0])


@pytest.mark.slow
def test_the_setting_that_reached_most_is_written_down_and_used(tmp_path: Path, ran, monkeypatch) -> None:
    reached = {FLOW.name: [20, 25, 25], ACT.name: [9, 3, 8]}
    updates = [10, 10, 40]
    asked: list[Cell] = []

    def run(cell: Cell, *_) -> dict:
        asked.append(cell)
        return verdict(reached.get(cell.method.name, [1, 1, 1])[cell.setting], updates=updates[cell.setting])

    monkeypatch.setattr(board, "run", run)
    board.choose(TASKS, METHODS, tmp_path, 4, 1)
    assert {(cell.placements, cell.minutes) for cell in asked} == {(TRIED, 2)}
    chosen = board.chosen_settings()
    assert (chosen[FLOW.name]["state"], chosen[ACT.name]["state"]) == (2, 0)  # of equal ones the one of more updates
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


@pytest.mark.slow
def test_a_program_that_ends_badly_says_its_last_words(tmp_path: Path) -> None:
    cell = Cell(Task("no-task-v3", 1), FLOW, 0, 1.0)
    with pytest.raises(CellFailed, match=r"no-task-v3(?s:.*)ended with code 1(?s:.*)nowhere"):
        call(Spec(cell, tmp_path / "nowhere", tmp_path / "work", 1, calibrates=True))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_cell_is_trained_and_judged(method, tmp_path: Path) -> None:
    minutes = 0.5 if method is FLOW else 0.01  # others make as few updates as they are let
    task = Task("pick-place-v3", 4, max_steps=20)
    cell = Cell(task, method, 0, minutes=minutes, episodes=2)
    found = board.run(cell, tmp_path)
    assert (found["episodes"], found["successes"]) == (2, 0)
    least = board.CALIBRATION_UPDATES[method.program]
    assert (found["updates"] > least) == (method is FLOW)
    assert (
        found["updates"] == least or 0.2 < found["train_s"] / 30 < 5
    )  # as asked, but for how a machine's pace changes
    assert found["parameters"] > 100_000
    assert found["latency_ms"] > 0
    assert not list((tmp_path / "work").iterdir())
