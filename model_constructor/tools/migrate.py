"""`model-constructor migrate`: a version-1 file in version 2, proven to build the same model before it is written."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..build import build_model
from ..equality import equal
from ..errors import ConfigError, Problem, nearest
from ..migration import Migration, migrate
from ..source import read_text
from ..weights import fit_weights
from .arguments import add_imports, add_output, look_beside_the_user, refuse_output
from .trial import Sample, find_inputs, sample


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "migrate",
        help="rewrite a version-1 file in version 2, proven to build the same model",
        description="Rewrite a version-1 file in version 2. Both are built, get the same weights and the same random "
        "inputs, and have to give the same outputs, in eval mode and in training; only then is anything written. "
        "Without -o it goes to the standard output.",
    )
    parser.add_argument("file", metavar="FILE")
    add_output(parser, "OUT.yaml", "write it here")
    parser.add_argument(
        "--input",
        nargs="+",
        action="extend",
        default=[],
        type=sample,
        metavar="'x: [2, 3, 64, 64]'",
        help="inputs to prove it with, if none are found; 'x: {shape: [2, 5], dtype: int64}' for another dtype",
    )
    add_imports(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    if given.output is not None:
        refuse_output(given.output, given.force)
    look_beside_the_user(given.allow_import)
    migration = migrate(given.file)
    inputs = prove(given.file, migration, dict(given.input), given.allow_import)
    for note in migration.notes:
        print(f"note: {note}", file=sys.stderr)
    shapes = ", ".join(f"{name} {one}" for name, one in inputs.items())
    print(
        f"{given.file}: equal weights give equal outputs, in eval mode and in training, for {shapes}", file=sys.stderr
    )
    if given.output is None:
        print(migration.text, end="")
    else:
        given.output.write_text(migration.text, encoding="utf-8")
        print(f"written: {given.output}", file=sys.stderr)
    return 0


def prove(
    path: str, migration: Migration, given: Mapping[str, Sample], allow_imports: Sequence[str] = ()
) -> dict[str, Sample]:
    """Compare the model of a file with that of its migration; the shapes that it was done with.

    Both get the same weights, which have the same names, and the same inputs; what they give is equal to the bit, in
    eval mode and, from the same seed, in training; so are the batch statistics afterwards. Raises ConfigError where
    anything is not, and where no inputs are known that the model runs with.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are among the notes
        old = build_model(path, allow_imports=allow_imports)
    document = read_text(migration.text, f"{path} in version 2").plain
    assert isinstance(document, dict)
    new = build_model(document, allow_imports=allow_imports)
    unknown = [name for name in given if name not in old.inputs]
    if unknown:
        raise ConfigError(
            [Problem(f"no input is called '{name}'.", hint=nearest(name, old.inputs)) for name in unknown]
        )
    shapes = find_inputs(old, given)
    if shapes is None:
        hint = "give them: --input " + " ".join(f"'{name}: [...]'" for name in old.inputs)
        raise ConfigError(Problem(f"{path}: no inputs were found that the model runs with.", hint=hint))
    values = {name: one.random() for name, one in shapes.items()}
    for model in (old, new):
        model.eval()(**values)  # sizes that are found at the first call
    report = fit_weights(new, old.state_dict())
    differences = [] if report.fits else [report.table("missing", "unexpected", "shape differs")]
    for training in (False, True):
        results = []
        for model in (old, new):
            torch.manual_seed(0)
            results.append((model.train(training)(**values), model.state_dict()))
        if not equal(*results):
            differences.append(f"the outputs or weights {'in training' if training else 'in eval mode'}")
    if differences:
        hint = "this is a mistake of migrate, which has written nothing"
        message = f"{path}: the file in version 2 builds another model: {'; '.join(differences)}."
        raise ConfigError(Problem(message, hint=hint))
    return shapes
