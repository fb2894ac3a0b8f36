"""Migration: a version-1 file -> the text of a version-2 file, as its author would write it.

Beyond what `version1` does to build the file: the values that `${...}` refer to become params again, required arguments
lose their names, an `nn.Sequential` becomes a chain, and comments stay with the entries that they stand beside.
"""

from __future__ import annotations

import ast
import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .comments import Comments
from .config import PARAM_TYPES, load_config
from .errors import ConfigError, Place, Problem
from .interpolation import Keys, templates
from .names import CONSTANTS, PLAIN_FUNCTIONS, TAKEN, find_type
from .source import Node, dump
from .version1 import Translated, Translation, is_reserved, is_version_1, located, resolve

SECTIONS = ("imports", "params", "inputs", "modules", "graph", "outputs")
WIDTH = 110  # of a mapping on one line


@dataclass(frozen=True, slots=True)
class Migration:
    """`text` is the file in version 2; `notes` say what could not come with it, and where that stands."""

    text: str
    notes: tuple[Problem, ...]


def migrate(path: str | Path) -> Migration:
    """Rewrite a version-1 file, its `defaults` merged. Raises ConfigError with everything that is wrong with it."""
    tree = load_config(path, model=True).tree
    if not is_version_1(tree):
        assert isinstance(tree.value, dict)
        version = tree.value.get("schema_version", tree)
        raise ConfigError(Problem(f"{path} is no file of version 1.", version.place, "there is nothing to rewrite"))
    resolved = resolve(tree)
    plain = Translation(resolved)
    document = plain.document()
    if plain.problems:
        raise ConfigError(plain.problems)
    translation = _WithParams(resolved, _names(document))
    document = translation.document()
    sources = {node.source.name: node.source for node in _nodes(tree)}
    comments = Comments(sources[tree.source.name], *sources.values())
    text = _text(document, translation.params, comments)
    notes = [
        *translation.warnings,
        *_left_behind(tree, translation),
        *_renamed(document, translation),
        *comments.left(),
    ]
    return Migration(text, tuple(notes))


# params


class _WithParams(Translation):
    """A translation in which a `${...}` stays what it is: an expression over params."""

    def __init__(self, tree: Node, taken: set[str]) -> None:
        super().__init__(tree)
        self.taken_names = taken
        self.params: dict[str, tuple[Any, Place]] = {}
        self.param_names: dict[Keys, str] = {}
        self.written_out: set[Keys] = set()  # values that are read and can be no params

    def _literal(self, node: Node, anchor: Node, read: Callable[[Node, Node], ast.expr]) -> ast.expr:
        if node.how.startswith("environment"):
            variable = node.how.removeprefix("environment ")
            self.warn(f"the value of the environment variable '{variable}' is written as it is now.", node.place)
        tree = self._over_params(node)
        return super()._literal(node, anchor, read) if tree is None else located(tree, node.place, anchor)

    def _over_params(self, node: Node) -> ast.expr | None:
        """The expression of a value that is one `${...}`; None for any other, and where it reads what is no param."""
        written = node.earlier[-1] if node.how == "computed" else None
        found = dict(templates(written)).get(()) if written is not None and isinstance(written.value, str) else None
        if found is None or len(found.parts) != 1 or isinstance(found.parts[0], str):
            return None
        names = {name: self._param(path) for name, path in found.paths.items()}
        if None in names.values():
            return None
        tree = copy.deepcopy(found.parts[0].tree)
        for part in ast.walk(tree):
            if isinstance(part, ast.Name) and (name := names.get(part.id)):
                part.id = name
        return tree

    def _param(self, path: Keys) -> str | None:
        """The name of the param that the value at a path becomes; None where that can be none."""
        if path in self.param_names:
            return self.param_names[path]
        node: Node | None = self.tree
        for key in path:
            below = node.value if node is not None and isinstance(node.value, dict) else {}
            node = below.get(str(key))
        words = [str(key) for key in path]
        choices = ("_".join(words[start:]) for start in reversed(range(len(words))))
        name = next(filter(self._is_free, choices), None)
        if node is None or name is None or path[0] in ("model", "settings", "imports") or not _may_be_param(node.plain):
            self.written_out.add(path)
            return None
        self.param_names[path] = name
        self.params[name] = self._default(node), node.place
        return name

    def _default(self, node: Node) -> Any:
        """A value with its `${...}`, where these read params or a variable of the environment."""
        if node.how.startswith("environment") and node.earlier[-1].text.count("${") == 1:
            return node.earlier[-1].text
        if isinstance(node.value, list):
            return [self._default(entry) for entry in node.value]
        tree = self._over_params(node)
        return node.plain if tree is None else f"${{{ast.unparse(tree)}}}"

    def _is_free(self, name: str) -> bool:
        known = self.taken_names | PLAIN_FUNCTIONS.keys() | CONSTANTS.keys() | TAKEN
        taken = name in known or name in self.param_names.values()
        return name.isidentifier() and not is_reserved(name) and not taken


def _may_be_param(value: object) -> bool:
    if isinstance(value, list):
        return all(_may_be_param(entry) for entry in value)
    return not isinstance(value, dict) and not (isinstance(value, str) and ("${" in value or value in PARAM_TYPES))


def _names(document: Node) -> set[str]:
    """Every name that a translated file uses: of inputs, modules and nodes, and in expressions."""
    assert isinstance(document.value, dict)
    names = set()
    for section in ("inputs", "modules", "graph"):
        entries = document.value.get(section)
        for key in entries.value if entries is not None and isinstance(entries.value, dict) else ():
            names |= {part.strip() for part in key.split(",")}
    trees = (node.tree for node in _nodes(document) if isinstance(node, Translated))
    return names | {part.id for tree in trees for part in ast.walk(tree) if isinstance(part, ast.Name)}


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for _, entry in node.entries():
        yield from _nodes(entry)


# what cannot come along


def _left_behind(tree: Node, translation: _WithParams) -> Iterator[Problem]:
    assert isinstance(tree.value, dict)
    for key in tree.value:
        place = tree.key_place(key)
        if key == "settings":
            hint = "what may be imported is said by the caller: --allow-import, build_model(..., allow_imports=...)"
            yield Problem("version 2 has no 'settings'.", place, hint)
        elif key not in ("schema_version", "imports", "templates", "model"):
            if any(path[0] == key for path in translation.written_out):
                yield Problem(f"'{key}' can be no param: its value is written out where it is read.", place)
            elif not any(path[0] == key for path in translation.param_names):
                yield Problem(f"no '${{...}}' of the model reads '{key}': it is left out.", place)


def _renamed(document: Node, translation: Translation) -> Iterator[Problem]:
    assert isinstance(document.value, dict)
    graph = document.value.get("graph", document)
    keys = {name.strip(): str(key) for key, _ in graph.entries() for name in str(key).split(",")}
    for old, new in translation.names.items():
        if old != new and new in keys:
            hint = "values, modules, ops and the words of the dialect share one scope in version 2"
            yield Problem(f"the value '{old}' is called '{new}'.", graph.key_place(keys[new]), hint)


# the text


class _Idiomatic(ast.NodeTransformer):
    """Constructors as they are written by hand."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        """A number as one writes it: inf, 1e-6."""
        if isinstance(node.value, float):
            return ast.Name("inf" if node.value == math.inf else repr(node.value).replace("e-0", "e-"))
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if not isinstance(node.func, ast.Name):
            return node
        if node.func.id == "Sequential" and len(node.args) > 1 and all(isinstance(one, ast.Call) for one in node.args):
            chain, *rest = node.args
            for link in rest:
                chain = ast.BinOp(chain, ast.RShift(), link)
            return chain
        kind = find_type(node.func.id)
        if kind is None:
            return node
        keywords = {keyword.arg: keyword for keyword in node.keywords}
        for name in list(_required(kind))[len(node.args) :]:
            if name not in keywords:
                break
            node.args.append(keywords[name].value)
            node.keywords.remove(keywords[name])
        return node


def _required(kind: Callable[..., Any]) -> Iterator[str]:
    """The arguments without a default that begin a signature, as far as they may be given by position."""
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or parameter.default is not parameter.empty:
            return
        yield name


def _text(document: Node, params: Mapping[str, tuple[Any, Place]], comments: Comments) -> str:
    assert isinstance(document.value, dict)
    parts = [comments.header() + "schema_version: 2\n"]
    for section in SECTIONS:
        entry = document.value.get(section)
        if section == "params" and params:
            parts.append(_params(params, comments))
        elif entry is None or section == "params":
            continue
        elif isinstance(entry.value, dict):
            lines = [comments.beside(_line(key, one), entry.key_place(key)) for key, one in entry.value.items()]
            parts.append(f"{section}:\n" + "".join(lines))
        elif isinstance(entry.value, list):
            lines = [
                comments.beside(f"  - {dump(_plain(one), flow=True).splitlines()[0]}\n", one.place)
                for one in entry.value
            ]
            parts.append(f"{section}:\n" + "".join(lines))
        else:
            parts.append(comments.beside(dump({section: _plain(entry)}), entry.place, indent=""))
    return "\n".join(parts)


def _params(params: Mapping[str, tuple[Any, Place]], comments: Comments) -> str:
    """In the order of their file; on one line if that is short, and no comment stands beside one."""
    ordered = sorted(params.items(), key=lambda entry: (entry[1][1].file, entry[1][1].line, entry[1][1].column))
    line = dump({"params": {name: value for name, (value, _) in ordered}}, flow=True).strip()[1:-1] + "\n"
    if len(line) <= WIDTH and not any(comments.knows(place) for _, place in params.values()):
        return line
    lines = [(f"  {dump({name: value}, flow=True).strip()[1:-1]}\n", place) for name, (value, place) in ordered]
    return "params:\n" + "".join(comments.beside(line, place) for line, place in lines)


def _line(key: str, node: Node) -> str:
    return "".join(f"  {line}\n" for line in dump({key: _plain(node)}).splitlines())


def _plain(node: Node) -> Any:
    if isinstance(node, Translated):
        return ast.unparse(_Idiomatic().visit(copy.deepcopy(node.tree)))
    if isinstance(node.value, dict):
        return {key: _plain(entry) for key, entry in node.value.items()}
    return [_plain(entry) for entry in node.value] if isinstance(node.value, list) else node.value
