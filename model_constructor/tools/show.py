"""`model-constructor show`: a model as a picture, and as a page on which its blocks unfold."""

from __future__ import annotations

import argparse
import base64
import hashlib
import os.path
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..config import OVERRIDE
from ..errors import ConfigError, Place, Problem
from ..shapes import infer_shapes
from .arguments import add_imports, add_overrides, add_sizes, build_without_memory, levels
from .drawing import IsOpen, draw, escaped, size
from .measure import measure
from .picture import Frame, picture
from .table import short

PAGE = (1500.0, 1900.0)  # pixels that a picture of unfolded blocks may take


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "show",
        help="draw a model: a picture (SVG), and a page (HTML) on which blocks unfold",
        description="Write the name of FILE with .svg and .html, each complete in itself: the graph of the model and "
        "of the blocks in it, with the shape of every value, the parameters and the lines of the file. What the params "
        "decide against is left out. On the page blocks unfold and fold, and the files can be read; its address says "
        "what is unfolded: act.html#expand=encoder,layer. Pictures that are there are replaced. No weights are made.",
    )
    parser.add_argument("file", metavar="FILE")
    add_overrides(parser)
    add_sizes(parser)
    parser.add_argument(
        "--depth",
        type=levels,
        metavar="N",
        help="unfold N levels of blocks; 1 if it is not given, or 0 where that is larger than a page",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(), metavar="FOLDER", help="where to write; here if absent"
    )
    add_imports(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    path = Path(given.file)
    model = build_without_memory(given.file, given)
    measured = measure(model, dict(given.size))
    frame = picture(model, infer_shapes(model._block, model.params), measured)
    depth = given.depth if given.depth is not None else _depth(frame)
    summary = f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters"
    if not measured.note:
        summary += f", {short(measured.multiply_adds[model])} multiply-adds"
    for suffix, write in ((".svg", svg), (".html", page)):
        target = given.output / f"{path.stem}{suffix}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(write(frame, path, depth, summary), encoding="utf-8")
        except OSError as error:
            raise ConfigError(Problem(f"{target}: cannot be written: {error.strerror}.")) from error
        print(target)
    count = sum(len(each.nodes) for each in frame.frames())
    print(f"{summary}; {len(frame.nodes)} nodes, {count} with all blocks unfolded")
    if measured.note:
        print(f"multiply-adds are not counted: {measured.note}")
    return 0


def svg(frame: Frame, path: Path, depth: int, summary: str) -> str:
    """The picture, with so many levels of blocks unfolded."""
    return draw(frame, f"{path.name}: {summary}", _to(depth), _Files(path).place_text)


def page(frame: Frame, path: Path, depth: int, summary: str) -> str:
    """The page, complete in itself: no request leaves it, and only its own script runs."""
    sources = _Files(path)
    drawing = draw(frame, f"{path.name}: {summary}", _to(depth), sources.place_text, everything=True)
    text = files("model_constructor.tools").joinpath("page.html").read_text(encoding="utf-8")
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # What a file says is escaped, so it holds no `<!--` that would be filled in.
    parts = {
        "hash": f"sha256-{digest}",
        "title": escaped(path.name),
        "summary": escaped(summary),
        "picture": drawing,
        "sources": "\n".join(sources.listings()),
    }
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part)
    return text


class _Files:
    """The files whose lines a picture names, by their paths from the folder of the model's own."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self.seen: dict[str, Path] = {path.name: path}

    def place_text(self, place: Place) -> str:
        if place.file == OVERRIDE:
            return f"{OVERRIDE} {place.text}"
        name = Path(os.path.relpath(place.file, self.folder)).as_posix()
        self.seen[name] = Path(place.file)
        return f"{name}:{place.line}"

    def listings(self) -> Iterator[str]:
        """The text of each file, its lines under the names that `place_text` gives them."""
        for name, path in self.seen.items():
            lines = path.read_text(encoding="utf-8").splitlines()
            items = (
                f'<li id="{escaped(name)}:{i}"><code>{escaped(line)}</code></li>' for i, line in enumerate(lines, 1)
            )
            yield f"<h2>{escaped(name)}</h2>\n<ol>\n{chr(10).join(items)}\n</ol>"


def _to(depth: int) -> IsOpen:
    return lambda member, level: level < depth


def _depth(frame: Frame) -> int:
    """One level of blocks is unfolded, if that is no larger than a page."""
    return int(all(side <= most for side, most in zip(size(frame, _to(1)), PAGE, strict=True)))
