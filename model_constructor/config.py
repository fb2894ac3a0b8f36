"""Config: a YAML file plus overrides -> plain data that still knows where each value was set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import ConfigError, Place, Problem, nearest
from .source import Node, read_file, read_text

Key = str | int


@dataclass(frozen=True, slots=True)
class Config:
    """A document and its places. `data` is plain Python; positions are asked for by path."""

    path: Path
    tree: Node

    @property
    def data(self) -> dict:
        plain = self.tree.plain
        assert isinstance(plain, dict)
        return plain

    def place(self, path: Sequence[Key]) -> Place:
        """Where the value at `path` was set, or its nearest ancestor that was."""
        return self._walk(path)[0].place

    def key_place(self, path: Sequence[Key]) -> Place:
        """Where the last key of `path` stands, or its nearest ancestor that stands in the file."""
        node, rest = self._walk(path[:-1])
        if not rest and path and isinstance(node.value, dict) and path[-1] in node.value:
            return node.key_place(str(path[-1]))
        return node.place

    def _walk(self, path: Sequence[Key]) -> tuple[Node, Sequence[Key]]:
        node = self.tree
        for position, key in enumerate(path):
            below = _child(node, key)
            if below is None:
                return node, path[position:]
            node = below
        return node, ()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the mapping in a YAML file and set `key.path=value` overrides in it, each value read as YAML.

    Raises ConfigError for anything the file or an override gets wrong.
    """
    tree = read_file(path)
    if not isinstance(tree.value, dict):
        raise ConfigError(Problem("the file has to hold a mapping of keys.", tree.place))
    problems: list[Problem] = []
    for override in overrides:
        try:
            tree = _overridden(tree, override)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return Config(Path(path), tree)


def _child(node: Node, key: Key) -> Node | None:
    if isinstance(node.value, dict):
        return node.value.get(str(key))
    if isinstance(node.value, list) and isinstance(key, int) and 0 <= key < len(node.value):
        return node.value[key]
    return None


def _overridden(tree: Node, override: str) -> Node:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(Problem(f"'{override}': an override is written key.path=value.", Place("--set", 1, 1)))
    value = read_text(" " * len(name + equals) + (text.strip() or "null"), "--set", override)
    return _with(tree, keys, value)


def _with(node: Node, keys: list[str], value: Node) -> Node:
    """A copy of `node` in which the value at `keys` is `value`; mappings on the way are made where absent."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(node.value, list):
        if not (key.isascii() and key.isdigit()) or int(key) >= len(node.value):
            message = f"the list at {node.place} has {len(node.value)} entries; '{key}' is none of them."
            raise ConfigError(Problem(message, value.place))
        entries = list(node.value)
        entries[int(key)] = _with(entries[int(key)], rest, value)
        return replace(node, value=entries)
    if node.value is not None and not isinstance(node.value, dict):
        raise ConfigError(Problem(f"'{node.text}' at {node.place} is a single value: no key '{key}'.", value.place))
    entries = dict(node.value or {})
    empty = Node({}, value.place, value.source)
    entries[key] = _with(entries.get(key, empty), rest, value)
    places = node.key_places if key in node.key_places else {**node.key_places, key: value.place}
    return replace(node, value=entries, key_places=places)


def check_keys(node: Node, known: Sequence[str], what: str) -> list[Problem]:
    """One problem for each key of a mapping that is not among the known ones."""
    assert isinstance(node.value, dict)
    return [
        Problem(f"{what} has no key '{key}'.", node.key_place(key), nearest(key, known))
        for key in node.value
        if key not in known
    ]
