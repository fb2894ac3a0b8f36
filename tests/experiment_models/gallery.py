"""docs/zoo.md and its pictures, from the zoo itself: `python tests/experiment_models/gallery.py`.

It measures how far each model is from its reference; the test that the page is up to date takes these numbers as they
stand and makes the rest anew.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
import yaml
from peers import ENTRIES, Entry
from proof import ZOO, as_tuple, count, load_foreign, randomise

from model_constructor import build_model
from model_constructor.tools.cli import main as model_constructor

PAGE = ZOO.parents[1] / "docs" / "zoo.md"
PICTURES = PAGE.parent / "pictures" / "zoo"

INTRODUCTION = """\
# The zoo

Published architectures, each written down to the layer and proven equal to its reference: from the same weights the same
outputs, the same gradient of every parameter, the same number of parameters. How that is proven, and how weights of a
reference come in, is said [beside the files](../experiment_models/zoo/README.md). This page is made by
`python tests/experiment_models/gallery.py`; a test says whether it is up to date.

| model | lines | lines of its reference | parameters | largest difference |
|---|---|---|---|---|
"""

NOTES = """
- **lines**: of the file and of the files that it is made of, without blank lines and comments.
- **lines of its reference**: of the classes and functions that are named below, without comments and docstrings, each
  statement on one line however it is wrapped. Most references hold options that the file leaves out; those of pi0 and of
  GR00T's heads also draw the noise, compute the loss and sample. What our [blocks](blocks.md) do (attention, MLP, rotary
  positions, keypoints) is counted on neither side.
- **parameters**: at the file's defaults, with the params beside its name.
- **largest difference**: of any output, in eval and in train mode without dropout, in float32 on a CPU, as a part of the
  largest output; at the defaults, or at the small sizes of the tests where it says so.
"""


def page(differences: Mapping[str, str], parameters: Mapping[str, str]) -> str:
    """The page, with these measured differences and counts of parameters by the names of the files."""
    rows = [
        f"| [{entry.file}](#{anchor(entry)}){''.join(f' `{key}={value}`' for key, value in entry.params.items())} | "
        f"{lines(entry)} | {reference_lines(entry)} | {parameters[entry.file]} | {differences[entry.file]} |\n"
        for entry in ENTRIES
    ]
    return INTRODUCTION + "".join(rows) + NOTES + "".join(section(entry) for entry in ENTRIES)


def section(entry: Entry) -> str:
    """A file's first comment, its picture, its reference."""
    path = ZOO / entry.file
    comment = re.match(r"(# .*\n)+", path.read_text(encoding="utf-8"))
    assert comment is not None, f"{entry.file} does not begin with what it is"
    told = re.sub(r"^# ", "", comment[0], flags=re.MULTILINE)
    place = f"../experiment_models/zoo/{entry.file}"
    keys = "" if entry.keys is None else f" · [key map](../experiment_models/zoo/{entry.keys})"
    return (
        f"\n## {entry.file}\n\n{told}\n[file]({place}){keys} · reference: {names(entry.reference)}\n\n"
        f'[<img src="pictures/zoo/{picture(entry)}" alt="the graph of {entry.file}" height="360">]'
        f"(pictures/zoo/{picture(entry)})\n"
    )


def anchor(entry: Entry) -> str:
    """As GitHub names a heading."""
    return re.sub(r"[^\w-]", "", entry.file)


def picture(entry: Entry) -> str:
    return entry.file.replace("/", "_").replace(".yaml", ".svg")


def names(reference: str) -> str:
    return " ".join(f"`{name}`" for name in reference.split())


def stated(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """The differences and the parameters that a page states, by file."""
    rows = re.findall(r"^\| \[([\w/.]+)\].* \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    return {file: difference for file, _, difference in rows}, {file: parameters for file, parameters, _ in rows}


def parameters(entry: Entry) -> str:
    with torch.device("meta"):
        return f"{count(build_model(ZOO / entry.file, params=dict(entry.params))):,}"


def lines(entry: Entry) -> int:
    return sum(code_lines(file.read_text(encoding="utf-8")) for file in files(ZOO / entry.file))


def files(path: Path) -> set[Path]:
    """A model file and the files that it starts from and that its blocks come from."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    inner = [*tree.get("defaults", []), *(block for block in tree.get("blocks", {}).values() if isinstance(block, str))]
    return {path.resolve()}.union(*(files(path.parent / file) for file in inner))


def reference_lines(entry: Entry) -> int:
    # Unparsed, a statement is one line and comments are gone: the shortest way to count a reference.
    return sum(code_lines(ast.unparse(without_docstrings(part))) for part in definitions(entry.reference.split()))


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


def code_lines(text: str) -> int:
    """Lines that are neither blank nor a comment."""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in text.splitlines())


@torch.no_grad()
def difference(entry: Entry) -> str:
    """Measured, and at which sizes."""
    torch.manual_seed(0)
    peers = entry.peers()
    randomise(peers.theirs, peers.keys)
    load_foreign(peers.ours, peers.theirs.state_dict(), peers.keys)
    largest = 0.0
    for training in (False, True):
        results = [
            as_tuple(call(model.train(training)))
            for model, call in ((peers.ours, peers.call), (peers.theirs, peers.call_theirs or peers.call))
        ]
        for one, other in zip(*results, strict=True):
            largest = max(largest, ((one - other).abs().max() / other.abs().max()).item())
    return ("0" if not largest else f"{largest:.1e}".replace("e-0", "e-")) + (" (small)" if entry.small else "")


def draw(entry: Entry) -> str:
    """The picture of an entry."""
    given = [item for key, value in entry.params.items() for item in ("--set", f"params.{key}={value}")]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        command = ["show", str(ZOO / entry.file), "-o", folder, "--depth", str(entry.depth), *given]
        assert not model_constructor(command), command
        return Path(folder, Path(entry.file).name).with_suffix(".svg").read_text(encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the zoo, and write docs/zoo.md and its pictures.")
    parser.add_argument("only", nargs="*", help="files to measure; of the others what the page states now stays")
    parser.add_argument("--draw", action="store_true", help="measure nothing that the page already states")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    differences, _ = stated(PAGE.read_text(encoding="utf-8") if PAGE.exists() else "")
    PICTURES.mkdir(parents=True, exist_ok=True)
    for entry in ENTRIES:
        if entry.file not in differences or (entry.file in given.only if given.only else not given.draw):
            differences[entry.file] = difference(entry)
            print(f"{entry.file}: {differences[entry.file]}", flush=True)
        (PICTURES / picture(entry)).write_text(draw(entry), encoding="utf-8")
    PAGE.write_text(page(differences, {entry.file: parameters(entry) for entry in ENTRIES}), encoding="utf-8")


if __name__ == "__main__":
    main()
