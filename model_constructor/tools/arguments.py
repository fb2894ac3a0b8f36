"""Arguments: those that several commands share, and the model that they describe."""

from __future__ import annotations

import argparse
import sys

import torch

from ..build import build_model
from ..errors import ConfigError
from ..model import GraphModel


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        dest="overrides",
        metavar="key.path=value",
        help="set values of the file, as in --set params.depth=2",
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


def build_without_memory(path: str, given: argparse.Namespace) -> GraphModel:
    """The model on the meta device, in eval mode. Raises ConfigError as `build_model` does."""
    if given.allow_import and "" not in sys.path:
        sys.path.append("")  # packages beside the user, as for `python -m`
    arguments = {"overrides": given.overrides, "allow_imports": given.allow_import}
    try:
        with torch.device("meta"):
            return build_model(path, **arguments).eval()
    except ConfigError:  # a type may need data to be built: what is wrong is what is wrong with data, too
        return build_model(path, **arguments).eval().to("meta")
