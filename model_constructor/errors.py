"""Errors: what is wrong in a file, and where.

A `Problem` is one sentence with its place; a `ConfigError` is everything that one stage found, in file order.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

SHOWN = 160  # characters of a line in an excerpt
MAX_PROBLEMS = 30  # of one stage: nobody reads more, and a hint for each takes time
MAX_COMPARED = 2000  # names, and of each
COMPARED = 60  # characters


@dataclass(frozen=True, slots=True)
class Place:
    """A stretch of one line of a file: `line` and `column` count from 1, `text` is the whole line."""

    file: str
    line: int
    column: int
    length: int = 1
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def excerpt(self) -> str:
        """The line with a caret under the stretch, or "" when the line is not known."""
        if not self.text.strip():
            return ""
        text = self.text.rstrip()
        indent = len(text) - len(text.lstrip())
        begin = (
            indent if len(text) - indent <= SHOWN else max(indent, self.column - SHOWN // 2)
        )  # a long line is shown around the caret
        shown = text[begin : begin + SHOWN]
        start = max(self.column - 1 - begin, 0)
        length = max(1, min(self.length, len(shown) - start))
        return f"    {shown}\n    {' ' * start}{'^' * length}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `message` says what, `place` where, `hint` what would have been right."""

    message: str
    place: Place | None = None
    hint: str = ""

    def __str__(self) -> str:
        head = f"{self.place}  {self.message}" if self.place else self.message
        excerpt = self.place.excerpt() if self.place else ""
        hint = "\n".join(f"    {line}" for line in self.hint.splitlines())
        return "\n".join(part for part in (head, excerpt, hint) if part)


class ConfigError(Exception):
    """Something in a configuration or model file is wrong; `problems` holds all that was found."""

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        given = (problems,) if isinstance(problems, Problem) else tuple(problems)
        assert given, "a ConfigError needs at least one problem"
        self.problems = tuple(sorted(dict.fromkeys(given), key=_file_order))
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self):  # a ConfigError crosses process boundaries whole
        return type(self), (self.problems,)


def nearest(name: object, known: Iterable[object]) -> str:
    """What to say beside an unknown name: the known ones, nearest first, and the one that was probably meant."""
    names = sorted({str(entry)[:COMPARED] for entry in islice(known, MAX_COMPARED)})
    if not names:
        return ""
    wanted = str(name)[:COMPARED]
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    if not close:
        lowered = {entry.lower(): entry for entry in names}
        close = [lowered[entry] for entry in difflib.get_close_matches(wanted.lower(), lowered, n=1, cutoff=0.6)]
    by_nearness = sorted(names, key=_distance_to(wanted))
    shown = ", ".join(sorted(by_nearness[:10])) + (", ..." if len(names) > 10 else "")
    return f"known here: {shown}" + (f"   did you mean '{close[0]}'?" if close else "")


def _distance_to(wanted: str) -> Callable[[str], float]:
    matcher = difflib.SequenceMatcher(b=wanted)  # what it prepares for `b` serves all names

    def distance(name: str) -> float:
        matcher.set_seq1(name)
        return -matcher.ratio()

    return distance


def _file_order(problem: Problem) -> tuple[str, int, int]:
    place = problem.place
    return (place.file, place.line, place.column) if place else ("", 0, 0)
