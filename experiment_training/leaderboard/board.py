"""Board: cells -> verdicts. A finished cell is kept: a board that was stopped goes on where it was."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from experiment_training.components.evaluation.episode import HELD_OUT_SEED
from experiment_training.components.evaluation.metaworld import MetaWorldEvaluation
from experiment_training.leaderboard.contest import DEMONSTRATED, HELD_OUT, TRIED, Cell, Kind, Method, Task
from experiment_training.leaderboard.program import CellFailed, Spec, call
from experiment_training.quickstart.record import Expert, Recording, record

CALIBRATION_UPDATES = 100  # more than the warm-up of any method
CHOSEN = Path(__file__).resolve().parent / "chosen.json"
SETTINGS = 3  # tried for each method and kind of task
TRIED_ON: Mapping[Kind, str] = {"state": "peg-insert-side-v3", "image": "button-press-topdown-v3"}

assert HELD_OUT == HELD_OUT_SEED


def verdicts(cells: Iterable[Cell], folder: Path, processes: int) -> Iterator[tuple[Cell, dict[str, Any] | None]]:
    """Each cell with its verdict; None where it failed, which is told."""
    for cell in cells:
        kept, asked = folder / "cells" / f"{cell.name}.json", _plain(cell)
        found = json.loads(kept.read_text()) if kept.exists() else {}
        if found.get("cell") == asked:
            yield cell, found["verdict"]
            continue
        print(cell.name, flush=True)
        try:
            verdict = run(cell, folder, processes)
        except CellFailed as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            yield cell, None
            continue
        _keep(kept, {"cell": asked, "verdict": verdict})
        print(f"  {verdict['successes']} of {verdict['episodes']}, {verdict['updates']} updates", flush=True)
        yield cell, verdict


def run(cell: Cell, folder: Path, processes: int) -> dict[str, Any]:
    """Train for the cell's minutes, as many updates as fit by a short trial of this machine, and judge."""
    work = folder / "work" / cell.name
    shutil.rmtree(work, ignore_errors=True)  # of a cell that was stopped
    spec = Spec(cell, demonstrations(cell.task, folder, processes), work, CALIBRATION_UPDATES, processes, True)
    update_s = call(spec)
    verdict = call(replace(spec, updates=max(1, round(60 * cell.minutes / update_s)), calibrates=False))
    shutil.rmtree(work)
    return verdict


def demonstrations(task: Task, folder: Path, processes: int) -> Path:
    root = folder / "demonstrations" / task.name
    asked = Recording(task.demonstrations, task.name, DEMONSTRATED, 0.1, task.image_size, task.image_size is None)
    record(root, asked, processes)
    return root


def expert(task: Task, folder: Path, episodes: int, processes: int) -> dict[str, Any]:
    """What those who demonstrated reach on the placements of the table."""
    kept, asked = (
        folder / "cells" / f"{task.name}-expert-{episodes}episodes.json",
        {"task": task.name, "episodes": episodes, "max_steps": task.max_steps},
    )
    found = json.loads(kept.read_text()) if kept.exists() else {}
    if found.get("cell") != asked:
        evaluation = MetaWorldEvaluation(task.name, episodes, HELD_OUT, task.max_steps, None, processes, films=0)
        metrics = evaluation.evaluate(Expert(task.name), None).metrics
        verdict = {"successes": int(metrics["successes"]), "episodes": int(metrics["episodes"])}
        found = {"cell": asked, "verdict": verdict}
        _keep(kept, found)
    return found["verdict"]


def choose(
    tasks: Iterable[Task], methods: Iterable[Method], folder: Path, minutes: float, processes: int
) -> dict[str, dict[str, int]]:
    """Try each method's settings on one task of each kind, on placements of their own; the best are written down.

    Where a trial fails nothing is chosen.
    """
    chosen = chosen_settings()
    for task in tasks:
        if task.name != TRIED_ON[task.kind]:
            continue
        for method in methods:
            cells = [Cell(task, method, 0, minutes, number, TRIED, 30) for number in range(SETTINGS)]
            reached = [one["successes"] for _, one in verdicts(cells, folder, processes) if one is not None]
            if len(reached) == SETTINGS:
                chosen.setdefault(method.name, {})[task.kind] = reached.index(max(reached))
                CHOSEN.write_text(json.dumps(chosen, indent=2) + "\n")
    return chosen


def chosen_settings() -> dict[str, dict[str, int]]:
    """Method -> kind of task -> number of the setting."""
    return json.loads(CHOSEN.read_text()) if CHOSEN.exists() else {}


def _plain(cell: Cell) -> Any:
    return json.loads(json.dumps(asdict(cell)))


def _keep(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=1))
    unfinished.rename(path)
