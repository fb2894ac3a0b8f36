"""Key maps: how the keys of a reference's state dict become the keys of ours.

A key map is a YAML mapping `ours: theirs`, read from top to bottom; the first pattern that fits one of our keys decides.
In a pattern `*` is one segment of the dotted key, or a stretch of one, and `**` any number of segments, one at least;
what they stand for on the left goes, in order, into the `*` and `**` on the right. A key that no pattern fits has the
same name on both sides.

    layers.*.norm1.*: encoder.blocks.*.ln_1.*
    layers.*.attn.q.*: {from: encoder.blocks.*.attn.in_proj_*, part: 0, of: 3}    # rows 0 to 1/3 of a fused tensor
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

KeyMap = Mapping[str, str | Mapping[str, Any]]


def read_key_map(path: str | Path) -> KeyMap:
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def load_foreign(model: nn.Module, state_dict: Mapping[str, Tensor], key_map: KeyMap) -> None:
    """Load the weights of a reference into a model. Raises KeyError or ValueError unless every tensor finds its place."""
    model.load_state_dict(translate(model.state_dict(), state_dict, key_map))


def translate(ours: Iterable[str], theirs: Mapping[str, Tensor], key_map: KeyMap) -> dict[str, Tensor]:
    """Tensors of a reference (its state dict, its gradients) under our keys.

    Raises KeyError where a key of ours leads to none of theirs, or where not exactly all of theirs is used.
    """
    found: dict[str, Tensor] = {}
    used: dict[str, list[tuple[int, int]]] = {key: [] for key in theirs}
    for key in ours:
        source, part, of = look_up(key, key_map)
        if source not in theirs:
            raise KeyError(f"our '{key}' is their '{source}', which does not exist")
        if theirs[source].ndim and len(theirs[source]) % of:
            raise ValueError(f"their '{source}' {list(theirs[source].shape)} has no {of} equal parts")
        found[key] = theirs[source].chunk(of)[part] if of > 1 else theirs[source]
        used[source].append((part, of))
    for source, parts in used.items():
        if sorted(parts) != [(part, len(parts)) for part in range(len(parts))] or not parts:
            raise KeyError(f"their '{source}' is used {len(parts)} times, as the parts {parts}: not exactly once")
    return found


def look_up(key: str, key_map: KeyMap) -> tuple[str, int, int]:
    """Their key for one of ours, and which of how many parts of it ours is."""
    for pattern, target in key_map.items():
        fits = re.fullmatch(_regex(pattern), key)
        if fits:
            entry = {"from": target, "part": 0, "of": 1} if isinstance(target, str) else target
            source = entry["from"]
            for segments in fits.groups():
                source = re.sub(r"\*\*?", segments, source, count=1)
            return source, entry["part"], entry["of"]
    return key, 0, 1


def _regex(pattern: str) -> str:
    wild = {"**": "(.+)", "*": "([^.]+)"}
    return "".join(wild.get(piece, re.escape(piece)) for piece in re.split(r"(\*\*?)", pattern))
