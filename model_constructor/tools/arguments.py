"""Arguments: those that several commands share, and the model that they describe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..build import build_model
from ..errors import ConfigError, Problem
from ..model import GraphModel


def add_overrides(
    parser: argparse.ArgumentParser, help: str = "set values of the file, as in --set params.depth=2"
) -> None:
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        dest="overrides",
        metavar="key.path=value",
        help=help,
    )


def add_imports(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-import",
        nargs="+",
        action="extend",
        default=[],
        metavar="PACKAGE",
        help="packages that the file's `imports` may name; they run code",
    )


def add_untrusted(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--untrusted",
        action="store_true",
        help="read no variable of the environment; refuse files outside of its folder, weights, and what is large",
    )


def add_output(parser: argparse.ArgumentParser, metavar: str, help: str) -> None:
    """`-o FILE`, and `--force` to replace it; a command asks `refuse_output` before it begins."""
    parser.add_argument("-o", "--output", type=Path, metavar=metavar, help=help)
    parser.add_argument("--force", action="store_true", help=f"replace {metavar} if it is there")


def refuse_output(path: Path, force: bool) -> None:
    """ConfigError where a file cannot be written, or would replace another."""
    if path.is_dir():
        raise ConfigError(Problem(f"{path} is a folder.", hint=f"name a file in it: {path / 'NAME'}"))
    if not os.access(path.parent, os.W_OK):
        what = "cannot be written to" if path.parent.is_dir() else "is no folder"
        raise ConfigError(Problem(f"{path}: {path.parent} {what}."))
    if path.exists() and not force:
        raise ConfigError(Problem(f"{path}: the file is there already.", hint="--force replaces it"))


def add_sizes(
    parser: argparse.ArgumentParser,
    help: str = "sizes of symbols of the inputs; B is 1 for multiply-adds if it is not given",
) -> None:
    parser.add_argument(
        "--size",
        nargs="+",
        action="extend",
        default=[],
        type=_size,
        metavar="T=16",
        help=help,
    )


def _size(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not name or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not written as T=16")
    return name, int(number)


def levels(text: str) -> int:
    """How deep to go, as an argument has it."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no number of levels")
    return int(text)


def look_beside_the_user(packages: Sequence[str]) -> None:
    """Let packages that are asked for be in the working directory, as for `python -m`."""
    if packages and "" not in sys.path:
        sys.path.append("")


def build_without_memory(path: str, given: argparse.Namespace) -> GraphModel:
    """The model on the meta device, in eval mode. Raises ConfigError as `build_model` does."""
    look_beside_the_user(given.allow_import)
    arguments = {"overrides": given.overrides, "allow_imports": given.allow_import}
    arguments["untrusted"] = getattr(given, "untrusted", False)
    try:
        with torch.device("meta"):
            return build_model(path, **arguments).eval()
    except ConfigError:  # a type may need data to be built: what is wrong is what is wrong with data, too
        return build_model(path, **arguments).eval().to("meta")
