"""The table in zoo/README.md says what the files are."""

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from proof import ZOO, count

from model_constructor import build_model

ROWS = [
    [cell.strip() for cell in line.strip("| \n").split("|")]
    for line in (ZOO / "README.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| [")
]


def code_lines(text: str) -> int:
    """Lines that are neither blank nor a comment."""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in text.splitlines())


def files(path: Path) -> set[Path]:
    """A model file and the files that its blocks come from."""
    blocks = yaml.safe_load(path.read_text(encoding="utf-8")).get("blocks", {})
    inner = [path.parent / block for block in blocks.values() if isinstance(block, str)]
    return {path.resolve()}.union(*map(files, inner))


def definitions(names: list[str]) -> Iterator[ast.stmt]:
    """The classes and functions of a reference, each named behind the module that it is in, which is not imported."""
    for name in names:
        if "." in name:
            package, *inside = name.split(".")
            source = Path(find_spec(package).origin).parent.joinpath(*inside).with_suffix(".py")
            here = ast.parse(source.read_text(encoding="utf-8")).body
        else:
            yield next(part for part in here if getattr(part, "name", "") == name)


def without_docstrings(definition: ast.stmt) -> ast.stmt:
    for part in ast.walk(definition):
        if isinstance(part, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(part) is not None:
            part.body = part.body[1:] or [ast.Pass()]
    return definition


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_table_counts_lines_and_parameters(row):
    link, lines, reference, reference_lines, parameters, _ = row
    path = ZOO / re.search(r"\((.+)\)", link)[1]
    assert sum(code_lines(file.read_text(encoding="utf-8")) for file in files(path)) == int(lines)
    written = definitions(re.findall(r"`([^`]+)`", reference))
    # Unparsed, a statement is one line and comments are gone: the shortest way to count a reference.
    assert sum(code_lines(ast.unparse(without_docstrings(part))) for part in written) == int(reference_lines)
    params = {name: int(value) for name, value in re.findall(r"`(\w+)=(\d+)`", link)}
    with torch.device("meta"):
        assert f"{count(build_model(path, params=params)):,}" == parameters


def test_every_model_of_the_zoo_is_in_the_table():
    listed = {file for row in ROWS for file in files(ZOO / re.search(r"\((.+)\)", row[0])[1])}
    written = {path.resolve() for path in ZOO.rglob("*.yaml") if not path.name.endswith(".keys.yaml")}
    assert listed == written
