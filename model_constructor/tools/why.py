"""`model-constructor why`: each place that set a value, and the one that won."""

from __future__ import annotations

import argparse
from typing import Any

from ..config import OVERRIDE, Config, Setting, load_config
from ..source import dump
from .arguments import add_overrides
from .table import table


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "why",
        help="show each place that set a value of a file, and which one won",
        description="Show each place that set a value of a model file or train config, the oldest first.",
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("path", metavar="PATH", help="such as params.dim, or blocks.layer.graph.h")
    add_overrides(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    settings = _load(given.file, given.overrides).history(given.path)
    rows = [[_origin(setting), _value(setting), ""] for setting in settings]
    rows[-1][-1] = "<- this one"
    print(table(rows))
    return 0


def _load(path: str, overrides: list[str]) -> Config:
    """A model file is read as one; it is known by its schema_version."""
    config = load_config(path, overrides, model=True)
    return config if "schema_version" in config.data else load_config(path, overrides)


def _origin(setting: Setting) -> str:
    if setting.place is None:
        return "params"
    if setting.place.file == OVERRIDE:
        return f"{OVERRIDE} {setting.place.text}"
    return str(setting.place)


def _value(setting: Setting) -> str:
    if setting.how == "removed":
        return "removed"
    flow = isinstance(setting.value, list | dict)
    text = " ".join(dump(setting.value, flow=flow).removesuffix("...\n").split())
    return text if setting.how in ("file", "override", "params") else f"{text}  ({setting.how})"
