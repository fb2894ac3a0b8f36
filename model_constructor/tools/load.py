"""`model-constructor load`: what becomes of each tensor of a checkpoint in a model; and the weights it then has."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from ..build import build_model
from ..errors import ConfigError, Problem
from ..saving import apart
from ..weights import load_weights, read_state_dict
from .arguments import (
    add_imports,
    add_output,
    add_overrides,
    build_without_memory,
    look_beside_the_user,
    refuse_output,
)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "load",
        help="say what becomes of each tensor of a checkpoint in a model, and write the model's weights from it",
        description="Say what becomes of each tensor of a checkpoint in a model. With -o, write the weights that the "
        "model then has, under its own names; without it no weights are made.",
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=".safetensors, or a state dict that torch has saved")
    parser.add_argument(
        "--keys",
        metavar="MAP",
        help="a key map; NAME.keys.yaml beside NAME.yaml, if it is there and the names of the checkpoint are others",
    )
    parser.add_argument(
        "--prefix", default="", metavar="P", help="what the names of the checkpoint begin with, as in model."
    )
    parser.add_argument("--adapt", action="store_true", help="copy what overlaps of tensors that have grown or shrunk")
    parser.add_argument("--partial", action="store_true", help="load what fits, where not everything does")
    add_output(parser, "OUT.safetensors", "write the model's weights here")
    add_overrides(parser)
    add_imports(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    if given.output is not None:
        refuse_output(given.output, given.force)
        if given.output.suffix != ".safetensors":
            hint = f"name it {given.output.with_suffix('.safetensors')}"
            raise ConfigError(Problem(f"{given.output}: weights are written as safetensors.", hint=hint))
        look_beside_the_user(given.allow_import)
        model = build_model(given.file, overrides=given.overrides, allow_imports=given.allow_import)
    else:
        model = build_without_memory(given.file, given)
    state = read_state_dict(Path(given.checkpoint))
    keys = given.keys or _map_beside(Path(given.file), model, state, given.prefix)
    report = load_weights(model, state, keys, prefix=given.prefix, adapt=given.adapt, strict=not given.partial)
    print(f"{report}\n\n{report.summary}" + (f", by {keys}" if keys else ""))
    if given.output is not None:
        from safetensors.torch import save_file

        save_file(apart(model.state_dict()), given.output, {"format": "pt"})
        print(f"written: {given.output}")
    return 0


def _map_beside(file: Path, model: nn.Module, names: Iterable[str], prefix: str) -> Path | None:
    """The key map beside a model's file, unless the names are the model's own."""
    path = file.with_suffix(".keys.yaml")
    own = {f"{prefix}{name}" for name in model.state_dict()}
    return path if path.is_file() and not own <= {*names} else None
