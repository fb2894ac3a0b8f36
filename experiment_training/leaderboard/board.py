"""Board: cells -> verdicts. A finished cell is kept: a board that was stopped goes on where it was."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from experiment_training.components.evaluation.metaworld import MetaWorldEvaluation
from experiment_training.leaderboard import ours, peer
from experiment_training.leaderboard.contest import DEMONSTRATED, HELD_OUT, TRIED, Cell, Kind, Method, Task
from experiment_training.leaderboard.program import CellFailed, Spec, call
from experiment_training.quickstart.record import Expert, Recording, record

CALIBRATION_UPDATES = {"ours": 100, "peer": 40}  # ours are refused below their warm-up
CHOSEN = Path(__file__).resolve().parent / "chosen.json"
MEASURING: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
SETTINGS = 3  # tried for each method and kind of task
TRIED_ON: Mapping[Kind, str] = {"state": "pick-place-v3", "image": "button-press-topdown-v3"}


def verdicts(cells: Sequence[Cell], folder: Path, processes: int) -> Iterator[tuple[Cell, dict[str, Any] | None]]:
    """Each cell with its verdict, `processes` cells at a time; None where one failed, which is told."""
    for task in {cell.task.name: cell.task for cell in cells}.values():
        demonstrations(task, folder, processes)
    pool = ThreadPoolExecutor(processes)  # of threads that wait: each cell is a process of its own
    try:
        yield from zip(cells, pool.map(lambda cell: verdict_of(cell, folder), cells), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def verdict_of(cell: Cell, folder: Path) -> dict[str, Any] | None:
    kept, asked = folder / "cells" / f"{cell.name}.json", {**_plain(cell), "recipe": recipe(cell)}
    found = json.loads(kept.read_text()) if kept.exists() else {}
    if found.get("cell") == asked:
        return found["verdict"]
    try:
        verdict = run(cell, folder)
    except CellFailed as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return None
    _keep(kept, {"cell": asked, "verdict": verdict})
    reached = f"{verdict['successes']} of {verdict['episodes']}"
    print(f"{cell.name}: {reached}, {verdict['updates']} updates", flush=True)
    return verdict


def run(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train for the cell's minutes and judge."""
    work = folder / "work" / cell.name
    shutil.rmtree(work, ignore_errors=True)  # of a cell that was stopped
    least = CALIBRATION_UPDATES[cell.method.program]
    spec = Spec(cell, demonstrations(cell.task, folder), work, least, True)
    updates = max(least, round(60 * cell.minutes / update_s(spec, folder)))
    verdict = call(replace(spec, updates=updates, calibrates=False))
    shutil.rmtree(work)
    return verdict


def update_s(spec: Spec, folder: Path) -> float:
    """Seconds of an update, by a short trial of this machine; all seeds of a method train as many updates."""
    asked = {**_plain(replace(spec.cell, seed=0)), "recipe": recipe(replace(spec.cell, seed=0))}
    kept = folder / "paces" / f"{spec.cell.course}.json"
    with MEASURING[spec.cell.course]:
        found = json.loads(kept.read_text()) if kept.exists() else {}
        if found.get("cell") == asked:
            return found["update_s"]
        seconds: float = call(spec)
        _keep(kept, {"cell": asked, "update_s": seconds})
    return seconds


def recipe(cell: Cell) -> Any:
    """What files say of a cell, beside the cell itself: a kept verdict is of no other."""
    return ours.recipe(cell) if cell.method.program == "ours" else peer.recipe(cell)


def demonstrations(task: Task, folder: Path, processes: int = 1) -> Path:
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
    tasks: Iterable[Task], methods: Sequence[Method], folder: Path, minutes: float, processes: int
) -> dict[str, dict[str, int]]:
    """Try each method's settings on one task of each kind, on placements of their own, for half the time.

    The best are written down; of equal ones that which made more updates. Where a trial fails nothing is chosen.
    """
    tried = [task for task in tasks if task.name == TRIED_ON[task.kind]]
    courses = [(task, method) for task in tried for method in methods]
    cells = [Cell(*course, 0, minutes / 2, number, TRIED, 30) for course in courses for number in range(SETTINGS)]
    found = [verdict for _, verdict in verdicts(cells, folder, processes)]
    chosen = chosen_settings()
    for place, (task, method) in enumerate(courses):
        own = found[SETTINGS * place :][:SETTINGS]
        reached = [(one["successes"], one["updates"]) for one in own if one is not None]
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
