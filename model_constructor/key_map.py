"""Key map: under which names of a checkpoint the tensors of a model are.

It is a YAML mapping `ours: theirs`, kept beside the model's file as `NAME.keys.yaml` and read from top to bottom: the
first pattern that fits one of our names decides. In a pattern `*` is one segment of the dotted name, or a stretch of
one, and `**` any number of segments, one at least; what they stand for on the left goes, in order, into the `*` and
`**` on the right. A name that no pattern fits is the same on both sides.

    layers.*.norm1.*: encoder.blocks.*.ln_1.*
    layers.*.attn.q.*: {from: encoder.blocks.*.attn.in_proj_*, part: 0, of: 3}  # the first third of its rows
    _unused_: [encoder.position_ids]  # theirs that no tensor of ours needs
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from .config import check_keys
from .errors import ConfigError, Problem
from .source import Node, dump, read_file, read_text

UNUSED = "_unused_"
KeySource: TypeAlias = "KeyMap | str | Path | Mapping[str, Any] | None"  # a key map, its file, or its lines


class Source(NamedTuple):
    """Where a tensor is in a checkpoint: its name, and which of how many equal parts of its rows."""

    name: str
    part: int = 0
    of: int = 1

    def taken_from(self, whole: Tensor) -> Tensor:
        return whole.chunk(self.of)[self.part] if self.of > 1 else whole


@dataclass(frozen=True, slots=True)
class KeyMap:
    """Names of a model -> names of a checkpoint."""

    lines: tuple[tuple[re.Pattern[str], Source], ...] = ()
    unused: tuple[re.Pattern[str], ...] = ()

    @staticmethod
    def read(keys: KeySource) -> KeyMap:
        """A key map from its file, or from the same as plain values. Raises ConfigError with all that is wrong."""
        if isinstance(keys, KeyMap):
            return keys
        if not keys:  # also a mapping without entries
            return KeyMap()
        tree = read_text(dump(dict(keys)), "<keys>") if isinstance(keys, Mapping) else read_file(keys)
        if not isinstance(tree.value, dict):
            raise ConfigError(Problem("a key map is a mapping `ours: theirs`.", tree.place))
        problems: list[Problem] = []
        entries = {pattern: entry for pattern, entry in tree.value.items() if pattern != UNUSED}
        lines = [(_regex(pattern), _source(pattern, entry, problems)) for pattern, entry in entries.items()]
        unused = tree.value.get(UNUSED)
        names = unused.value if unused is not None else []
        if not isinstance(names, list) or not all(isinstance(name.value, str) for name in names):
            assert unused is not None
            problems.append(Problem(f"'{UNUSED}' is a list of their names.", unused.place))
            names = []
        if problems:
            raise ConfigError(problems)
        return KeyMap(tuple(lines), tuple(_regex(name.text) for name in names))

    def look_up(self, name: str) -> Source:
        """Where the tensor of this name is in a checkpoint."""
        for pattern, source in self.lines:
            if fits := pattern.fullmatch(name):
                first, *others = re.split(r"\*\*?", source.name)
                filled = (stretch + other for stretch, other in zip(fits.groups(), others, strict=False))
                return source._replace(name=first + "".join(filled))
        return Source(name)

    def leaves_out(self, theirs: str) -> bool:
        return any(pattern.fullmatch(theirs) for pattern in self.unused)


def _source(pattern: str, entry: Node, problems: list[Problem]) -> Source:
    """The right-hand side of one line."""
    if isinstance(entry.value, dict):
        found = check_keys(entry, ("from", "part", "of"), "a line of a key map")
        name, part, of = (entry.value.get(key) for key in ("from", "part", "of"))
        numbers = (part and part.value, of and of.value)
    else:
        found, name, numbers = [], entry, (0, 1)
    part, of = numbers
    if name is None or not isinstance(name.value, str) or type(part) is not int or type(of) is not int:
        found.append(Problem(f"'{pattern}' is theirs, or {{from: theirs, part: 0, of: 3}}.", entry.place))
    elif not 0 <= part < of:
        found.append(Problem(f"there is no part {part} of {of}: the first is 0.", entry.place))
    elif len(re.findall(r"\*\*?", name.value)) > len(re.findall(r"\*\*?", pattern)):
        found.append(Problem(f"'{name.value}' has more stars than '{pattern}' fills.", name.place))
    else:
        return Source(name.value, part, of)
    problems += found
    return Source("")


def _regex(pattern: str) -> re.Pattern[str]:
    wild = {"**": "(.+)", "*": "([^.]+)"}
    return re.compile("".join(wild.get(piece) or re.escape(piece) for piece in re.split(r"(\*\*?)", pattern)))
