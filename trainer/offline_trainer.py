"""Offline trainer: the command line. A train config -> a run folder.
python   trainer/offline_trainer.py --train_config CONFIG.yaml [--set key.path=value ...] [--dry-run] [--resume auto]
torchrun --nproc_per_node=N trainer/offline_trainer.py --train_config CONFIG.yaml"""

import sys
from pathlib import Path

if not __package__:  # started as a script: trainer/ must not make its `config` or `data` importable by those names
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import argparse
import signal


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="offline_trainer", description="Train the policy that a config describes.")
    parser.add_argument("--train_config", required=True, metavar="CONFIG.yaml")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="key.path=value", dest="overrides")
    parser.add_argument("--dry-run", action="store_true", help="build everything, run one step, write nothing")
    parser.add_argument("--resume", default="none", metavar="none|auto|PATH")
    given = parser.parse_args(arguments)
    if given.dry_run and given.resume != "none":
        parser.error("--dry-run shows a run from its beginning: leave --resume out")
    try:
        return run(given)
    except KeyboardInterrupt:
        print("interrupted before training began; nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT


def run(given: argparse.Namespace) -> int:
    from model_constructor import ConfigError  # torch takes seconds to import; a wrong flag is told before
    from trainer.distributed import processes
    from trainer.training import run_command

    try:
        with processes() as world:
            return run_command(given.train_config, given.overrides, given.resume, given.dry_run, world)
    except ConfigError as error:  # the processes did not come together; what fails later is told by one of them
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
