"""Comments: what YAML files say beside their values, by the lines where it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from .errors import Place, Problem
from .source import SourceFile


class Comments:
    """The comments of the files that a text is made from; each goes to the first entry that asks for its line."""

    def __init__(self, main: SourceFile, *sources: SourceFile) -> None:
        self.main = main.name
        self.known = {source.name: dict(_comments(source.text)) for source in sources}
        self.alone = {  # lines that hold nothing else
            source.name: {line for line in self.known[source.name] if source.lines[line - 1].lstrip().startswith("#")}
            for source in sources
        }

    def knows(self, place: Place) -> bool:
        """Whether a comment stands on the line of a value, or right above it."""
        known = self.known.get(place.file, {})
        return place.line in known or place.line - 1 in known

    def header(self) -> str:
        """The lines that a file begins with."""
        found, line = "", 1
        while line in self.alone[self.main]:
            found += f"{self.known[self.main].pop(line)}\n"
            line += 1
        return found

    def beside(self, text: str, place: Place, indent: str = "  ") -> str:
        """The text of an entry with the comment on its line behind it, and those right above it above."""
        known, alone = self.known.get(place.file, {}), self.alone.get(place.file, set())
        above, line = "", place.line - 1
        while line in alone and line in known:
            above = f"{indent}{known.pop(line)}\n{above}"
            line -= 1
        if place.line in known:
            first, newline, rest = text.partition("\n")
            text = f"{first}  {known.pop(place.line)}{newline}{rest}"
        return above + text

    def left(self) -> Iterator[Problem]:
        for name, found in self.known.items():
            for line, text in found.items():
                yield Problem(f"no entry stands beside this comment: {text}", Place(name, line, 1))


def _comments(text: str) -> Iterator[tuple[int, str]]:
    """The comments of a YAML text with their lines, counted from 1."""
    ends: dict[int, int] = {}  # where the last token of a line ends
    inside: set[int] = set()  # lines that a token of several lines covers
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.ScalarToken):
            inside |= set(range(token.start_mark.line + 1, token.end_mark.line))
        ends[token.end_mark.line] = max(token.end_mark.column, ends.get(token.end_mark.line, 0))
    for number, line in enumerate(text.splitlines()):
        rest = re.sub(r"^[|>][-+0-9]*\s+", "", line[ends.get(number, 0) :].strip())  # behind a key, of a block of text
        if number not in inside and rest.startswith("#"):
            yield number + 1, rest
