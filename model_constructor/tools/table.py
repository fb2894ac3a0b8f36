"""Table: rows of text as columns that fit the terminal."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterable, Sequence

GAP = "  "
NARROWEST = 8  # characters that a column keeps, if it had as many


def terminal_width() -> int:
    """Characters in a line; 0 where the output goes to a file or a pipe, whose lines have no end."""
    return shutil.get_terminal_size((0, 0)).columns


def table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """The rows as lines of columns; those in `right` are aligned there. What does not fit is cut with '...'."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - terminal_width() if terminal_width() else 0
    while excess > 0:
        widest = max((i for i in range(len(widths)) if i not in right), key=lambda i: widths[i])
        if widths[widest] <= NARROWEST:
            break
        widths[widest] -= 1
        excess -= 1
    return "\n".join(
        GAP.join(
            cut(cell, width).rjust(width) if i in right else cut(cell, width).ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def cut(text: str, width: int) -> str:
    """The text in at most `width` characters; whole if that is 0."""
    return text if len(text) <= width or not width else text[: max(width - 3, 0)] + "..."[:width]


def short(number: int) -> str:
    """Three digits of a number: 41.0M for 41017368."""
    for unit, suffix in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= 0.9995 * unit:  # or it would be rounded to 1000 of the next smaller
            return f"{number / unit:#.3g}".rstrip(".") + suffix
    return str(number)


def numberless(path: str) -> str:
    """A path with `#` for each number: paths that differ in numbers alone have the same."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", path)


def folded(paths: Iterable[str]) -> str:
    """Paths that differ in numbers alone as ranges: `layers.0-6.mlp`."""
    alike: dict[str, list[tuple[int, ...]]] = {}
    for path in paths:
        numbers = tuple(int(segment) for segment in re.findall(r"(?<![^.])\d+(?![^.])", path))
        alike.setdefault(numberless(path), []).append(numbers)
    return ", ".join(_range(form, found) for form, found in alike.items())


def _range(form: str, found: list[tuple[int, ...]]) -> str:
    first, last = ([choose(numbers) for numbers in zip(*found, strict=True)] for choose in (min, max))
    count = 1
    for low, high in zip(first, last, strict=True):
        count *= high - low + 1
    if count != len(found):  # with gaps
        first = last = found[0]
    for low, high in zip(first, last, strict=True):
        form = form.replace("#", str(low) if low == high else f"{low}-{high}", 1)
    return form if count == len(found) else f"{form} and {len(found) - 1} more"
