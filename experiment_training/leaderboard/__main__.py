"""Leaderboard: ours and lerobot's, on the same demonstrations, for the same time of training.

python -m experiment_training.leaderboard [--minutes 4] [--seeds 0 1 2] [--tasks ...] [--methods ...] [--settings]

By default 36 cells, two at a time with one core each: about 2.5 hours. A finished cell is kept in the folder, so that
it can be stopped and continued; do nothing else on the machine meanwhile, since time is what is compared.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment_training.leaderboard.board import SETTINGS, TRIED_ON, choose, chosen_settings, expert, verdicts
from experiment_training.leaderboard.contest import METHODS, SEEDS, TASKS, Cell, Method, Task
from experiment_training.leaderboard.table import Row, markdown, plot
from experiment_training.quickstart.record import RecordingError, project_root
from model_constructor import ConfigError

Verdict = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiment_training.leaderboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks, methods = {one.name: one for one in TASKS}, {one.name: one for one in METHODS}
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, for each cell [4]")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of training [0 1 2]")
    parser.add_argument(
        "--tasks", nargs="+", choices=tasks, default=list(tasks), metavar="TASK", help=f"of {', '.join(tasks)}"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=methods,
        default=list(methods),
        metavar="METHOD",
        help=f"of {', '.join(methods)}",
    )
    parser.add_argument("--episodes", type=int, default=50, help="held-out placements, for each cell [50]")
    parser.add_argument("--processes", type=int, default=2, help="cells at once, of one core each [2]")
    parser.add_argument("--folder", type=Path, default=project_root() / "runs/leaderboard")
    parser.add_argument(
        "--settings", action="store_true", help=f"first try each method's {SETTINGS} settings, on other placements"
    )
    given = parser.parse_args(arguments)
    if not 0 < given.minutes < math.inf or not 1 <= given.episodes <= 50 or given.processes < 1:
        parser.error("--minutes and --processes are above 0, --episodes from 1 to 50")
    if min(given.seeds) < 0 or len(set(given.seeds)) < len(given.seeds):
        parser.error("--seeds are different whole numbers from 0")
    if given.settings and not set(given.tasks) & set(TRIED_ON.values()):
        parser.error(f"--settings are tried on {' and '.join(TRIED_ON.values())}: name one of them under --tasks")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        return board(given, [tasks[name] for name in given.tasks], [methods[name] for name in given.methods])
    except (ConfigError, RecordingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: finished cells are kept, the same command goes on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def board(given: argparse.Namespace, tasks: Sequence[Task], methods: Sequence[Method]) -> int:
    options = (tasks, methods, given.folder, given.minutes, given.processes)
    chosen = choose(*options) if given.settings else chosen_settings()
    experts = {task.name: expert(task, given.folder, given.episodes, given.processes) for task in tasks}
    cells = [  # seed after seed: a board that is stopped has as much of each method
        Cell(task, method, seed, given.minutes, chosen.get(method.name, {}).get(task.kind, 0), episodes=given.episodes)
        for seed in given.seeds
        for task in tasks
        for method in methods
    ]
    found: list[tuple[Cell, Verdict]] = []
    failed = 0
    for cell, verdict in verdicts(cells, given.folder, given.processes):
        if verdict is None:
            failed += 1
            continue
        found.append((cell, verdict))
        rows = [row for task in tasks for row in rows_of(task.name, experts[task.name], methods, found)]
        (given.folder / "leaderboard.md").write_text(markdown(rows))
        plot(rows, given.folder / "leaderboard.png")
    if found:
        print((given.folder / "leaderboard.md").read_text(), end="")
        print(f"look at     {given.folder / 'leaderboard.png'}")
    if failed:
        print(f"{failed} cells failed, and are left out", file=sys.stderr)
    return 1 if failed else 0


def rows_of(task: str, expert: Verdict, methods: Sequence[Method], found: Sequence[tuple[Cell, Verdict]]) -> list[Row]:
    """What the expert reaches at a task, and below it each method with the seeds that are done."""
    rows = [Row(task, "expert", [expert])]
    for method in methods:
        kept = [one for cell, one in found if (cell.task.name, cell.method.name) == (task, method.name)]
        if kept:
            rows.append(Row(task, method.name, kept))
    return rows


if __name__ == "__main__":
    sys.exit(main())
