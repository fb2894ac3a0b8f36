"""Leaderboard: ours and lerobot's, on the same demonstrations, for the same time of training.

python -m experiment_training.leaderboard [--minutes 4] [--seeds 0 1 2] [--tasks ...] [--methods ...] [--settings]

By default 36 cells, about 3.5 hours on two cores. A finished cell is kept in the folder, so that it can be stopped and
continued; change nothing else on the machine meanwhile, since time is what is compared.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from experiment_training.leaderboard.board import SETTINGS, TRIED_ON, choose, chosen_settings, expert, verdicts
from experiment_training.leaderboard.contest import METHODS, SEEDS, TASKS, Cell
from experiment_training.leaderboard.table import Row, markdown, plot
from experiment_training.quickstart.record import RecordingError, project_root
from model_constructor import ConfigError


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
    parser.add_argument("--processes", type=int, default=2, help="that record and evaluate [2]")
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
    try:
        return board(given, [tasks[name] for name in given.tasks], [methods[name] for name in given.methods])
    except (ConfigError, RecordingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: finished cells are kept, the same command goes on", file=sys.stderr)
        return 130


def board(given: argparse.Namespace, tasks: Sequence, methods: Sequence) -> int:
    if given.settings:
        choose(tasks, methods, given.folder, given.minutes, given.processes)
    chosen = chosen_settings()
    rows: list[Row] = []
    failed = 0
    for task in tasks:
        rows.append(Row(task.name, "expert", [expert(task, given.folder, given.episodes, given.processes)]))
        for method in methods:
            setting = chosen.get(method.name, {}).get(task.kind, 0)
            cells = [Cell(task, method, seed, given.minutes, setting, episodes=given.episodes) for seed in given.seeds]
            found = [one for _, one in verdicts(cells, given.folder, given.processes)]
            failed += found.count(None)
            if kept := [one for one in found if one is not None]:
                rows.append(Row(task.name, method.name, kept))
            (given.folder / "leaderboard.md").write_text(markdown(rows))
            plot(rows, given.folder / "leaderboard.png")
    print(markdown(rows), end="")
    print(f"look at     {given.folder / 'leaderboard.png'}")
    if failed:
        print(f"{failed} cells failed, and are left out", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
