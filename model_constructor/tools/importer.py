"""`model-constructor import`: a module written in Python -> a model file, proven equal."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from torch import nn

from ..errors import ConfigError, Problem, nearest
from ..importing import import_module
from ..source import read_text
from .arguments import add_output, add_sizes, refuse_output


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "import",
        help="write a module of Python down as a model file, proven equal",
        description="Write a module that is written in Python down as a model file. The package is imported and the "
        "callable is called: both run code, so name only what you trust. The module is run on random inputs, what it "
        "does is written down, and the file is built and compared with it before it is written.",
    )
    parser.add_argument("callable", metavar="PACKAGE:CALLABLE", help="what gives the module, as in timm:create_model")
    parser.add_argument(
        "--args",
        nargs="+",
        action="extend",
        default=[],
        metavar="VALUE",
        help="what it is called with, each read as YAML: resnet18, num_classes=10",
    )
    parser.add_argument(
        "--input",
        nargs="+",
        action="extend",
        required=True,
        metavar="'x: [B, 3, 224, 224]'",
        help="inputs of the forward, declared as in a model file",
    )
    add_sizes(parser, "sizes of symbols to run with; the first of a shape is 2 if it is not given")
    add_output(parser, "FILE", "where to write it; to the terminal if it is not given")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    if given.output:
        refuse_output(given.output, given.force)
    inputs: dict[str, Any] = {}
    for text in given.input:
        inputs |= _declared(text)
    arguments = [_argument(text) for text in given.args]
    with redirect_stdout(sys.stderr), ending_refused(given.callable):  # the file alone goes to the output
        module = _module(given.callable, arguments)
    call = ", ".join(f"{name}={value!r}" if name else repr(value) for name, value in arguments)
    title = f"{type(module).__module__}.{type(module).__qualname__}, from {given.callable}({call})"
    with redirect_stdout(sys.stderr), ending_refused(given.callable):
        imported = import_module(module, inputs, dict(given.size), title=title)
    if given.output:
        given.output.write_text(imported.text, encoding="utf-8")
    else:
        print(imported.text, end="")
    out = sys.stdout if given.output else sys.stderr
    written = f"{given.output}: {len(imported.text.splitlines())} lines" if given.output else "proven"
    print(f"{written}, {imported.tensors} tensors of the same names and shapes", file=out)
    print(f"in eval mode {_said(imported.difference)}", file=out)
    print(f"in training mode {_said(imported.in_training)}", file=out)
    return 0


@contextmanager
def ending_refused(name: str) -> Iterator[None]:
    """A module that ends the program would leave no file and no word."""
    try:
        yield
    except SystemExit as error:
        raise ConfigError(Problem(f"{name} ends the program, with code {error.code}.")) from error


def _said(difference: float | None) -> str:
    if difference is None:
        return "the module fails; nothing was compared"
    if difference == 0:
        return "the outputs are equal"
    return f"the outputs differ by {difference:.2g} of their size at most"


def _declared(text: str) -> dict[str, Any]:
    """`x: [B, 3]` as a mapping."""
    tree = read_text(text, "--input")
    if not isinstance(tree.value, dict):
        raise ConfigError(Problem("an input is declared by its name and shape.", tree.place, "'x: [B, 3, 224, 224]'"))
    declared = tree.plain
    assert isinstance(declared, dict)
    return declared


def _argument(text: str) -> tuple[str, Any]:
    """`10` or `num_classes=10` as the name, "" where there is none, and the value."""
    name, equals, value = text.partition("=")
    named = equals and name.isidentifier()
    return (name, _value(value)) if named else ("", _value(text))


def _value(text: str) -> Any:
    return read_text(text, "--args").plain


def _module(name: str, arguments: Sequence[tuple[str, Any]]) -> nn.Module:
    """What the callable gives; a failure of the user's own code stays what it is."""
    package, _, path = name.partition(":")
    if not package or not path:
        raise ConfigError(Problem(f"'{name}' is not written PACKAGE:CALLABLE.", hint="timm:create_model"))
    if "" not in sys.path:
        sys.path.append("")  # packages beside the user, as for `python -m`
    try:
        found: Any = importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(Problem(f"'{package}' cannot be imported: {error}.")) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigError(Problem(f"{package} has no '{part}'.", hint=nearest(part, dir(found))))
        found = getattr(found, part)
    module = found
    if isinstance(found, nn.Module) and arguments:
        raise ConfigError(Problem(f"{name} is a module already: it takes no --args.", hint="name its class"))
    if not isinstance(found, nn.Module):
        module = found(*(value for key, value in arguments if not key), **{key: v for key, v in arguments if key})
    if not isinstance(module, nn.Module):
        raise ConfigError(Problem(f"{name} gives no nn.Module but {type(module).__name__}."))
    return module
