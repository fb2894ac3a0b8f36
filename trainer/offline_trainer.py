"""Offline trainer: the command line. A train config -> a run folder.
python   trainer/offline_trainer.py --train_config CONFIG.yaml [--set key.path=value ...] [--dry-run] [--resume auto]
torchrun --nproc_per_node=1 trainer/offline_trainer.py --train_config CONFIG.yaml"""

import sys
from pathlib import Path

if not __package__:  # started as a script: trainer/ must not make its `config` or `data` importable by those names
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import argparse
import os
import signal


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="offline_trainer", description="Train the policy that a config describes.")
    parser.add_argument("--train_config", required=True, metavar="CONFIG.yaml")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="key.path=value", dest="overrides")
    parser.add_argument("--dry-run", action="store_true", help="build everything, run one step, write nothing")
    parser.add_argument("--resume", default="none", metavar="none|auto|PATH")
    given = parser.parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin starve each other beside another process
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        print("several processes are not supported yet: start one (torchrun --nproc_per_node=1)", file=sys.stderr)
        return 2
    try:
        return run(given)
    except KeyboardInterrupt:
        print("interrupted before training began; nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT


def run(given: argparse.Namespace) -> int:
    from model_constructor import ConfigError  # torch takes seconds to import; a wrong flag is told before
    from trainer.checkpoint import CheckpointError
    from trainer.templates import NonFiniteGradient
    from trainer.training import run_dry, run_training

    try:
        if given.dry_run:
            run_dry(given.train_config, given.overrides)
            return 0
        result = run_training(given.train_config, given.overrides, given.resume)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (CheckpointError, NonFiniteGradient) as error:
        print(f"training stopped: {error}", file=sys.stderr)
        return 1
    if result.signal is not None:
        name = signal.Signals(result.signal).name
        print(f"{name}: stopped after update {result.step}; --resume auto continues from {result.checkpoint}")
        return 128 + result.signal
    print(f"trained {result.step} updates; checkpoint {result.checkpoint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
