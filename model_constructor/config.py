"""Config: YAML files and overrides, laid over each other -> one tree whose values know each place that set them."""

from __future__ import annotations

import os.path
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .errors import MAX_PROBLEMS, ConfigError, Place, Problem, nearest
from .interpolation import Keys, compute, escaped, interpolate, param_templates, with_environment
from .limits import limits
from .source import MAX_DEPTH, MAX_NODES, Node, dump, read_file, read_text

Key = str | int

MAX_FILES = 200  # read for one config: a value keeps its history through each of them
OVERRIDE = "--set"  # what messages call an override
# Of a model file: its mappings from names, and the bare types that stand for a param which the caller gives.
NAMED = ("inputs", "blocks", "modules", "graph", "init")
PARAM_TYPES: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str, "list": list}
_MERGES = ("append", "prepend", "keyed", "replace")


class Setting(NamedTuple):
    """One of the times that a value was set.

    `how`: "file" or "override"; "params" for what the caller of `build_model` gives, which has no place; "computed" for
    what a `${...}` became, "environment NAME" if it reads a variable; "removed" for a null that took the entry away.
    """

    value: object
    place: Place | None
    how: str


@dataclass(frozen=True, slots=True)
class Config:
    """A document and its places. `data` is plain Python; positions are asked for by path."""

    path: Path
    tree: Node
    model: bool = False

    @property
    def data(self) -> dict:
        plain = self.tree.plain
        assert isinstance(plain, dict)
        return plain

    @property
    def text(self) -> str:
        """A YAML text that reads as `data`, on its own."""
        return dump(escaped(self.data))

    def place(self, path: Sequence[Key]) -> Place:
        """Where the value at `path` was set, or its nearest ancestor that was."""
        return self._walk(path)[0].place

    def key_place(self, path: Sequence[Key]) -> Place:
        """Where the last key of `path` stands, or its nearest ancestor that stands in the file."""
        node, rest = self._walk(path[:-1])
        if not rest and path and isinstance(node.value, dict) and path[-1] in node.value:
            return node.key_place(str(path[-1]))
        return node.place

    def history(self, path: str | Sequence[Key], params: Mapping[str, Any] | None = None) -> list[Setting]:
        """Each setting of the value at `path`, such as "blocks.layer.params.dim", the oldest first.

        params: of a model file, what its caller gives for `params`.

        Raises ConfigError for a path at which nothing ever stood.
        """
        keys = _keys(self.tree, path.split(".")) if isinstance(path, str) else tuple(path)
        versions = list(_versions(self.tree, keys))
        if not versions:
            node, rest = self._walk(keys)
            known = node.value if isinstance(node.value, dict) else ()
            message = f"there is no '{'.'.join(map(str, keys))}' in {self.path}."
            raise ConfigError(Problem(message, node.place, nearest(rest[0], known) if rest else ""))
        settings = [
            Setting(node.plain, node.place, node.how or ("override" if node.source.name == OVERRIDE else "file"))
            for node in versions
        ]
        given = dict(params or {})
        if len(keys) == 2 and keys[0] == "params" and keys[1] in given:
            return [*settings, Setting(given[str(keys[1])], None, "params")]
        return [*settings, *self._computed(keys, given)]

    def _computed(self, keys: Keys, given: dict[str, Any]) -> Iterator[Setting]:
        """What the `${...}` of a param becomes when a model is built; nothing where the caller has to say more."""
        node, section = self._walk(keys)[0], self._walk(keys[:-1])[0]
        if not self.model or _level(keys)[:-1] != ("params",) or not param_templates(node):
            return
        given = given if len(keys) == 2 else {}  # to the file's own params
        assert isinstance(section.value, dict)
        required = {name for name, entry in section.value.items() if entry.text in PARAM_TYPES and not entry.style}
        values = {name: entry.plain for name, entry in section.value.items() if name not in required} | given
        with suppress(ConfigError):
            compute({path: one for path, one in param_templates(section).items() if path[0] not in given}, values)
        if values[str(keys[-1])] != node.plain:
            yield Setting(values[str(keys[-1])], node.place, "computed")

    def _walk(self, path: Sequence[Key]) -> tuple[Node, Sequence[Key]]:
        node = self.tree
        for position, key in enumerate(path):
            below = _child(node, key)
            if below is None:
                return node, path[position:]
            node = below
        return node, ()


def load_config(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    model: bool = False,
    names: Collection[tuple[str, ...]] = (),
) -> Config:
    """Read a YAML file on top of its `defaults`, set overrides in it, and fill in its `${...}`.

    source: the file's path, or the same as plain values; paths in these begin at the working directory.
    overrides: texts `key.path=value`, each value read as YAML, or a mapping from key paths to plain values.
    model: read it as a model file. Then null removes an entry of a mapping from names, a block given as a path is read
        into its place, and a `${...}` over params waits for the caller of the model.
    names: where another file has mappings from names, such as `("model", "heads")`.

    Raises ConfigError for anything that the files or the overrides get wrong.
    """
    loader = _Loader(model, names)
    path = Path("<mapping>") if isinstance(source, Mapping) else Path(source)
    tree = read_text(_dumped(source), str(path)) if isinstance(source, Mapping) else read_file(path)
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={_dumped([value], flow=True)[1:-1]}" for key, value in overrides.items()]
    tree = loader.document(tree, (os.path.realpath(path),), overrides)
    if loader.problems:
        raise ConfigError(loader.problems)
    tree = with_environment(tree, _is_ordinary) if model else interpolate(tree)
    return Config(path, tree, model)


def merge(below: Node, above: Node) -> Node:
    """`above` laid over `below`, as a file over one of its `defaults`. Raises ConfigError."""
    loader = _Loader(model=False)
    merged = loader.over(below, above)
    if loader.problems:
        raise ConfigError(loader.problems)
    return merged


class _Loader:
    """Reads files, lays them over each other, and gathers what is wrong with them."""

    def __init__(self, model: bool, names: Collection[tuple[str, ...]] = ()) -> None:
        self.model = model
        self.names = names
        self.problems: list[Problem] = []
        self.chain: tuple[str, ...] = ()  # the files that lead to the document in hand
        self.version: object = None  # of that document
        self.files = 0
        self.values = 0

    def complain(self, message: str, place: Place | None, hint: str = "") -> None:
        self.problems.append(Problem(message, place, hint))

    def document(self, tree: Node, chain: tuple[str, ...], overrides: Sequence[str] = ()) -> Node:
        """A file on top of its defaults, with the overrides, and with its blocks read in."""
        outer = self.chain, self.version
        self.chain, self.version = chain, _version(tree)
        try:
            merged: Node | None = None
            for layer in self._layers(tree, chain):
                self._check_version(layer, tree)
                merged = self.over(merged, layer)
            assert merged is not None  # the file itself is the last of its layers
            for override in overrides:
                try:
                    merged = self._overridden(merged, override, tree.source.folder)
                except ConfigError as error:
                    self.problems += error.problems
            return self._with_blocks(merged) if self.model else merged
        finally:
            self.chain, self.version = outer

    def _layers(self, tree: Node, chain: tuple[str, ...]) -> Iterator[Node]:
        """The files that a file starts from, each after those that it starts from itself, and then the file."""
        self._count(tree)
        if not isinstance(tree.value, dict):
            raise ConfigError(Problem("the file has to hold a mapping of keys.", tree.place))
        for entry in self._defaults(tree.value.get("defaults")):
            base = self._read(entry, chain, "these files start from each other")
            if base is not None:
                yield from self._layers(*base)
        yield replace(tree, value={key: entry for key, entry in tree.value.items() if key != "defaults"})

    def _defaults(self, section: Node | None) -> Iterator[Node]:
        if section is None:
            return
        hint = "defaults: [base.yaml], or defaults: [{base: base.yaml}]"
        if not isinstance(section.value, list):
            self.complain("'defaults' is a list of files.", section.place, hint)
            return
        for entry in section.value:
            path = entry
            if isinstance(entry.value, dict) and len(entry.value) == 1:
                (path,) = entry.value.values()
            if _is_file(path):
                yield path
            else:
                self.complain("an entry of 'defaults' is the path of a YAML file.", entry.place, hint)

    def _read(self, entry: Node, chain: tuple[str, ...], circle: str) -> tuple[Node, tuple[str, ...]] | None:
        """The file that an entry names, and the chain of files that leads to it."""
        path = entry.source.folder / entry.text
        real = os.path.realpath(path)
        if real in chain:
            folder = os.path.dirname(chain[0])
            names = (os.path.relpath(name, folder) for name in (*chain[chain.index(real) :], real))
            self.complain(f"{circle}: {' -> '.join(names)}.", entry.place)
            return None
        if not limits().reaches_out and not Path(real).is_relative_to(os.path.dirname(chain[0])):
            self.complain("a file that is not trusted reads files of its own folder alone.", entry.place)
            return None
        if len(chain) > MAX_DEPTH:
            self.complain(f"files lead to each other more than {MAX_DEPTH} deep.", entry.place)
            return None
        self.files += 1
        if self.files > MAX_FILES:
            raise ConfigError(Problem(f"more than {MAX_FILES} files are read.", entry.place))
        try:
            return read_file(path), (*chain, real)
        except ConfigError as error:
            for problem in error.problems:
                self.complain(problem.message, problem.place or entry.place, problem.hint)
            return None

    def _count(self, tree: Node) -> None:
        waiting = [tree]
        while waiting:
            node = waiting.pop()
            self.values += 1
            waiting += [entry for _, entry in node.entries()]
        if self.values > MAX_NODES:
            raise ConfigError(Problem(f"the files hold more than {MAX_NODES} values.", tree.place))

    def _check_version(self, layer: Node, tree: Node) -> None:
        assert isinstance(layer.value, dict) and isinstance(tree.value, dict)
        version, wanted = layer.value.get("schema_version"), tree.value.get("schema_version")
        if self.model and version and wanted and version.value != wanted.value:
            message = f"this file is of schema_version {version.text}; {tree.source.name} is of {wanted.text}."
            self.complain(message, version.place, f"{tree.source.name} starts from this file")

    def _with_blocks(self, tree: Node) -> Node:
        """A level with every block that is the path of a file replaced by the file."""
        blocks = _child(tree, "blocks")
        if blocks is None or not isinstance(blocks.value, dict):
            return tree
        read = {
            name: self._block(name, entry) if _is_file(entry) else self._with_blocks(entry)
            for name, entry in blocks.value.items()
        }
        assert isinstance(tree.value, dict)
        return replace(tree, value={**tree.value, "blocks": replace(blocks, value=read)})

    def _block(self, name: str, entry: Node) -> Node:
        """A block as it stands written out: of one that is the path of a file, the file."""
        if not _is_file(entry):
            return entry
        found = self._read(entry, self.chain, f"the block '{name}' contains itself")
        if found is None:
            return entry
        block = self.document(*found)
        assert isinstance(block.value, dict)
        if "schema_version" not in block.value:
            hint = "begin the file with 'schema_version: 2'"
            self.complain("the key 'schema_version' is missing.", block.place, hint)
        return block.after(entry)

    def over(self, below: Node | None, above: Node, path: Keys = ()) -> Node:
        """`above` laid over `below`: mappings merge, everything else replaces what was there."""
        if isinstance(above.value, list):
            entries = [self.over(None, entry, (*path, i)) for i, entry in enumerate(above.value)]
            return replace(above, value=entries).after(below)
        if not isinstance(above.value, dict):
            return above.after(below)
        if "_merge_" in above.value:
            return self._directed(below, above, path)
        if below is not None and self._changes_a_file(below, above, path):
            below = self._block(str(path[-1]), below)
            if _version(below) == 1:
                message = "this changes a block's file of schema_version 1; only a whole block can replace it."
                self.complain(message, above.place, f"the file is {below.source.name}")
        values: dict[str, Node] = {}
        places, removed = above.key_places, {}
        if below is not None and isinstance(below.value, dict):
            values, removed = dict(below.value), dict(below.removed)
            places = {**below.key_places, **places}
        for key, entry in above.value.items():
            if self._is_removal(entry, (*path, key)):
                self._remove(values, removed, key, entry)
            else:
                values[key] = self.over(values.get(key) or removed.pop(key, None), entry, (*path, key))
        return replace(above, value=values, key_places=places, removed=removed).after(below)

    def _changes_a_file(self, below: Node, above: Node, path: Keys) -> bool:
        """Whether a mapping stands over the path of a block's file, and is no whole block itself."""
        return (
            self.model
            and self.version != 1
            and _level(path)[:-1] == ("blocks",)
            and _is_file(below)
            and _child(above, "outputs") is None
        )

    def _is_removal(self, entry: Node, path: Keys) -> bool:
        if entry.value is not None:
            return False
        level = _level(path)
        return path[:-1] in self.names or (self.model and len(level) > 1 and level[0] in NAMED)

    def _remove(self, values: dict[str, Node], removed: dict[str, Node], key: str, entry: Node) -> None:
        if key in values and not entry.text:
            self.complain(f"nothing is written for '{key}'.", entry.place, "write null to remove it")
        elif key in values:
            removed[key] = replace(entry, how="removed").after(values.pop(key))
        else:
            hint = "\n".join(filter(None, ("write what it is, or leave the line out", nearest(key, values))))
            self.complain(f"nothing is written for '{key}', and null finds no such entry to remove.", entry.place, hint)

    def _directed(self, below: Node | None, above: Node, path: Keys) -> Node:
        """What `{_merge_: append, _value_: [...]}` and the like make of the value below."""
        assert isinstance(above.value, dict)
        word, value, key = (above.value.get(name) for name in ("_merge_", "_value_", "key"))
        assert word is not None
        found = len(self.problems)
        self.problems += check_keys(above, ("_merge_", "_value_", "key"), "a '_merge_'")
        if word.text not in _MERGES:
            self.complain(f"no '_merge_' is called '{word.text}'.", word.place, nearest(word.text, _MERGES))
        elif word.text == "keyed" and (key is None or not isinstance(key.value, str)):
            self.complain("'keyed' needs 'key', the name that its entries are told apart by.", word.place, "key: name")
        elif word.text != "keyed" and key is not None:
            self.complain(f"'{word.text}' takes no 'key'.", above.key_place("key"), "keyed does")
        if value is None:
            self.complain("a '_merge_' needs the key '_value_'.", above.place, "{_merge_: append, _value_: [...]}")
        elif word.text != "replace" and not isinstance(value.value, list):
            self.complain("the '_value_' has to be a list.", value.place)
        elif word.text != "replace" and below is not None and not isinstance(below.value, list | None):
            self.complain("what stands below is no list.", word.place, f"it was set at {below.place}")
        if len(self.problems) > found or value is None:
            return above
        if word.text == "replace":
            return self.over(None, value, path).after(below)
        entries = list(below.value) if below is not None and isinstance(below.value, list) else []
        if word.text == "keyed":
            assert key is not None
            merged = self._keyed(entries, value, key.text, path)
        else:
            new = [self.over(None, entry, (*path, i)) for i, entry in enumerate(_list(value))]
            merged = entries + new if word.text == "append" else new + entries
        return replace(value, value=merged).after(below)

    def _keyed(self, entries: list[Node], value: Node, key: str, path: Keys) -> list[Node]:
        """The entries of `value` laid over those with the same `key`; the others at the end."""
        for entry in _list(value):
            name = _child(entry, key)
            if name is None or isinstance(name.value, list | dict):
                self.complain(f"the entry needs the key '{key}'.", entry.place)
                continue
            same = [i for i, known in enumerate(entries) if (own := _child(known, key)) and own.value == name.value]
            if len(same) > 1:
                places = " and ".join(str(entries[i].place) for i in same)
                self.complain(f"more than one entry has {key} '{name.text}'.", entry.place, f"at {places}")
            elif same:
                entries[same[0]] = self.over(entries[same[0]], entry, (*path, same[0]))
            else:
                entries.append(self.over(None, entry, (*path, len(entries))))
        return entries

    def _overridden(self, tree: Node, override: str, folder: Path) -> Node:
        name, equals, text = override.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys) or len(keys) > MAX_DEPTH:
            raise ConfigError(Problem(f"'{override}': an override is written key.path=value.", Place(OVERRIDE, 1, 1)))
        value = read_text(" " * len(name + equals) + (text.strip() or "null"), OVERRIDE, override, folder)
        if not text.strip():
            value = replace(value, text="")  # as in a file where nothing is written
        if isinstance(value.value, list | dict) and text.lstrip()[:1] not in ("[", "{", "&"):
            hint = "a list or mapping is written in [] or {}; an expression with ': ' or a leading '- ' in quotes"
            raise ConfigError(Problem("this is cut at a ': ' or begins with '- '.", value.place, hint))
        return self._set(tree, keys, value, ())

    def _set(self, node: Node | None, keys: list[str], value: Node, path: Keys) -> Node:
        """`node` in which the value at `keys` is `value`; mappings on the way are made where absent."""
        if not keys:
            extends = isinstance(value.value, dict) and "_merge_" in value.value
            return self.over(node, value, path) if extends else self.over(None, value, path).after(node)
        if node is None or node.value is None:
            node = Node({}, value.place, value.source).after(node)
        elif self.model and _level(path)[:-1] == ("blocks",):
            node = self._block(str(path[-1]), node)
        if isinstance(node.value, list):
            key, rest = keys[0], keys[1:]
            if not (key.isascii() and key.isdigit()) or int(key) >= len(node.value):
                message = f"the list at {node.place} has {len(node.value)} entries; '{key}' is none of them."
                raise ConfigError(Problem(message, value.place))
            entries = list(node.value)
            entries[int(key)] = self._set(entries[int(key)], rest, value, (*path, int(key)))
            return replace(node, value=entries)
        key, rest = _first_key(node, keys)
        if not isinstance(node.value, dict):
            raise ConfigError(Problem(f"'{node.text}' at {node.place} is a single value: no key '{key}'.", value.place))
        values, removed = dict(node.value), dict(node.removed)
        if self.model and not rest and path[-1:] == ("params",) and key not in values:
            hint = nearest(key, values) or "the file has no params"
            raise ConfigError(Problem(f"there is no param '{key}' to set.", value.place, hint))
        if not rest and self._is_removal(value, (*path, key)):
            self._remove(values, removed, key, value)
        else:
            values[key] = self._set(values.get(key) or removed.pop(key, None), rest, value, (*path, key))
        places = {key: value.place, **node.key_places}  # where the file has the key, that stays its place
        return replace(node, value=values, key_places=places, removed=removed)


def check_keys(node: Node, known: Sequence[str], what: str) -> list[Problem]:
    """One problem for each key of a mapping that is not among the known ones."""
    assert isinstance(node.value, dict)
    unknown = (key for key in node.value if key not in known)
    return [
        Problem(f"{what} has no key '{key}'.", node.key_place(key), nearest(key, known))
        for key in islice(unknown, MAX_PROBLEMS)
    ]


def _list(node: Node) -> list[Node]:
    assert isinstance(node.value, list)
    return node.value


def _dumped(value: object, *, flow: bool = False) -> str:
    try:
        return dump(value, flow=flow).strip()
    except yaml.YAMLError as error:
        raise ConfigError(Problem(f"this is no plain value: {error}.")) from error
    except RecursionError:
        raise ConfigError(Problem("these values are nested too deeply, or hold themselves.")) from None


def _is_file(node: Node) -> bool:
    return isinstance(node.value, str) and node.value.endswith((".yaml", ".yml")) and "\0" not in node.value


def _version(document: Node) -> object:
    version = _child(document, "schema_version")
    return version.value if version is not None else None


def _level(path: Keys) -> Keys:
    """A path in a model file without the blocks that lead to its level."""
    while len(path) > 2 and path[0] == "blocks":
        path = path[2:]
    return path


def _is_ordinary(path: Keys) -> bool:
    """Whether `${...}` is read at a path of a model file; the other values are expressions."""
    level = _level(path)
    return level[:1] == ("params",) or (level[:1] == ("inputs",) and level[2:] in (("dtype",), ("optional",)))


def _child(node: Node, key: Key) -> Node | None:
    if isinstance(node.value, dict):
        return node.value.get(str(key))
    if isinstance(node.value, list) and str(key).isdecimal() and int(key) < len(node.value):
        return node.value[int(key)]
    return None


def _first_key(node: Node, keys: list[str]) -> tuple[str, list[str]]:
    """The first of dotted `keys` and the rest; a key of the mapping may hold dots itself."""
    for length in range(len(keys), 1, -1):
        key = ".".join(keys[:length])
        if isinstance(node.value, dict) and (key in node.value or key in node.removed):
            return key, keys[length:]
    return keys[0], keys[1:]


def _keys(node: Node | None, keys: list[str]) -> Keys:
    """A dotted path, cut at the dots that are not part of a key."""
    if not keys:
        return ()
    if node is None:
        return tuple(keys)
    key, rest = _first_key(node, keys)
    return (key, *_keys(_child(node, key), rest))


def _versions(node: Node, keys: Keys) -> Iterator[Node]:
    """Every value that stood at a path, the oldest first."""
    if not keys:
        yield from (*node.earlier, node)
        return
    below = _child(node, keys[0]) or node.removed.get(str(keys[0]))
    if below is not None:
        yield from _versions(below, keys[1:])
        return
    older = [version for one in node.earlier for version in _versions(one, keys)]
    if older:  # what holds it was replaced as a whole
        yield from (*older, replace(node, value=None, how="removed"))
