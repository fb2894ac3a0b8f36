"""The command line: `model-constructor COMMAND ...`."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from ..errors import ConfigError
from . import check, diff, eject, importer, load, migrate, new, schema, show, summary, why

# Each has `add_parser`, which names the function that runs it.
COMMANDS = (new, check, summary, why, show, diff, load, importer, eject, migrate, schema)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, or 1 where something is wrong in a file. Wrong arguments exit with 2."""
    parser = argparse.ArgumentParser(
        prog="model-constructor",
        description="Look at model files.",
        epilog="model-constructor COMMAND --help says more of one.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    given = parser.parse_args(arguments)
    if "run" not in given:
        parser.print_help()
        return 0
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = given.run(given)
        sys.stdout.flush()
        return status
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed goes nowhere
        return 1
    except KeyboardInterrupt:
        return 130


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """What a file is warned of names its own place; the line of Python that warns says nothing."""
    print(f"warning: {message}", file=sys.stderr)
