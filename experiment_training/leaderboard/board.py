"""Board: cells -> verdicts. A finished cell is kept: a board that was stopped goes on where it was."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from experiment_training.components.evaluation.metaworld import MetaWorldEvaluation
from experiment_training.leaderboard import ours, peer
from experiment_training.leaderboard.contest import DEMONSTRATED, HELD_OUT, TRIED, Cell, Kind, Method, Task
from experiment_training.leaderboard.program import STOPPED, CellFailed, Spec, call, stop_all
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
    STOPPED.clear()
    pool = ThreadPoolExecutor(processes)  # of threads that wait: each cell is a process of its own
    try:
        yield from zip(cells, pool.map(lambda cell: verdict_of(cell, folder), cells), strict=True)
    except BaseException:
        stop_all()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def verdict_of(cell: Cell, folder: Path) -> dict[str, Any] | None:
    try:
        return kept(folder / "cells" / f"{cell.name}.json", asked(cell), lambda: run(cell, folder))
    except CellFailed as error:
        if not STOPPED.is_set():
            print(f"error: {error}", file=sys.stderr, flush=True)
        return None


def run(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train for the cell's minutes and judge."""
    work = folder / "work" / cell.name
    shutil.rmtree(work, ignore_errors=True)  # of a cell that was stopped
    least = CALIBRATION_UPDATES[cell.method.program]
    spec = Spec(cell, demonstrations(cell.task, folder), work, least, True)
    updates = max(least, round(60 * cell.minutes / update_s(spec, folder)))
    verdict = call(replace(spec, updates=updates, calibrates=False))
    shutil.rmtree(work)
    print(f"{cell.name}: {verdict['successes']} of {verdict['episodes']}, {updates} updates", flush=True)
    return verdict


def update_s(spec: Spec, folder: Path) -> float:
    """Seconds of an update, by a short trial of this machine; all seeds of a method train as many updates."""
    path = folder / "paces" / f"{spec.cell.course}.json"
    with MEASURING[spec.cell.course]:
        return kept(path, asked(replace(spec.cell, seed=0)), lambda: call(spec))


def asked(cell: Cell) -> Any:
    """The cell, and what files say of it: a verdict is of no other."""
    recipe = ours.recipe(cell) if cell.method.program == "ours" else peer.recipe(cell)
    return json.loads(json.dumps({**asdict(cell), "recipe": recipe}))


def kept(path: Path, asked: Any, make: Callable[[], Any]) -> Any:
    """What was made before of exactly this, or is made now."""
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("asked") != asked:
        found = {"asked": asked, "made": make()}
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(found, indent=1))
        unfinished.rename(path)
    return found["made"]


def demonstrations(task: Task, folder: Path, processes: int = 1) -> Path:
    root = folder / "demonstrations" / task.name
    asked = Recording(task.demonstrations, task.name, DEMONSTRATED, 0.1, task.image_size, task.image_size is None)
    record(root, asked, processes)
    return root


def expert(task: Task, folder: Path, episodes: int, processes: int) -> dict[str, Any]:
    """What those who demonstrated reach on the placements of the table."""

    def reached() -> dict[str, int]:
        evaluation = MetaWorldEvaluation(task.name, episodes, HELD_OUT, task.max_steps, None, processes, films=0)
        metrics = evaluation.evaluate(Expert(task.name), None).metrics
        return {name: int(metrics[name]) for name in ("successes", "episodes")}

    path = folder / "cells" / f"{task.name}-expert-{episodes}episodes.json"
    return kept(path, {"task": task.name, "episodes": episodes, "max_steps": task.max_steps}, reached)


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
