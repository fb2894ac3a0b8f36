"""Interpolation: `${...}` in ordinary values -> what they become.

`${4 * dim}` is an expression over named values, `${env:int:NAME,8}` a variable of the environment, and `$${` stands for
the text `${`. A value that is only one `${...}` keeps the type of its result; otherwise the results fill in the text.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from .errors import ConfigError, Place, Problem, nearest
from .expressions import Expression, evaluate, parse
from .limits import limits
from .names import CONSTANTS, PLAIN_FUNCTIONS
from .source import MAX_DEPTH, Node

Keys = tuple[str | int, ...]  # the way to a value

MAX_SIZE = 1_000_000  # characters and entries of all that is computed at once
MAX_BITS = 4096  # of an integer

_OPENING = re.compile(r"\$\$?\{")
_VARIABLE = re.compile(r"env:(?:([a-z]+):)?([A-Za-z_][A-Za-z0-9_]*)(?:,(.*))?", re.DOTALL)
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_CASTS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "int": ("an integer", int),
    "float": ("a number", float),
    "bool": ("true or false", lambda text: _TRUTH[text.strip().lower()]),
    "json": ("JSON", json.loads),
}


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """A scalar with `${...}` in it: its literal texts, and its expressions, whose names are dotted paths."""

    node: Node
    parts: tuple[str | Expression, ...]
    paths: Mapping[str, Keys]  # of each dotted name
    uses: frozenset[Keys]  # the paths, or of a list the entry that is read: an entry may use another

    def fill(self, root: Mapping[str, Any]) -> Any:
        """What it becomes over the values of `root`. Raises ConfigError."""
        values, problems = {}, []
        for name, path, place in self.references():
            found, value = _look_up(root, path)
            if found:
                values[name] = value
            elif name not in CONSTANTS:
                problems.append(Problem(f"no value is called '{name}'.", place, nearest(name, value)))
        if problems:
            raise ConfigError(problems)
        results = [self._part(part, values) for part in self.parts]
        return results[0] if len(results) == 1 else "".join(map(self._text, results))

    def references(self) -> Iterator[tuple[str, Keys, Place]]:
        """Every value that it uses: its dotted name, its path, and where it is named."""
        for expression in self.parts:
            if isinstance(expression, Expression):
                named = (name for name in expression.names() if name.id in self.paths)  # the others are functions
                yield from ((name.id, self.paths[name.id], expression.place(name)) for name in named)

    def _part(self, part: str | Expression, values: Mapping[str, Any]) -> Any:
        if isinstance(part, str):
            return part
        result = evaluate(part, values)
        if _size(result) > MAX_SIZE:
            raise ConfigError(Problem("the result is too large.", part.place()))
        try:
            return _plain(result)
        except TypeError as error:
            hint = "a value is a number, text, true, false, null, or a list or mapping of these"
            raise ConfigError(Problem(f"the result is {error}.", part.place(), hint)) from None

    def _text(self, value: Any) -> str:
        if isinstance(value, list | dict):
            message = "a list or mapping cannot be a part of a text."
            raise ConfigError(Problem(message, self.node.place, "write the '${...}' alone"))
        return value if isinstance(value, str) else json.dumps(value)


def templates(node: Node, path: Keys = ()) -> Iterator[tuple[Keys, Template]]:
    """Every scalar in a tree that holds `${`, under its path. Raises ConfigError for one that is badly written."""
    if isinstance(node.value, str) and "${" in node.value:
        yield path, _template(node)
    for key, entry in node.entries():
        yield from templates(entry, (*path, key))


def param_templates(node: Node) -> dict[Keys, Template]:
    """Every `${...}` in the params of a block, where `params.dim` is another way to write `dim`."""

    def inside(path: Keys) -> Keys:
        return path[1:] if path[0] == "params" and len(path) > 1 else path

    return {
        path: replace(
            one,
            paths={name: inside(way) for name, way in one.paths.items()},
            uses=frozenset(map(inside, one.uses)),
        )
        for path, one in templates(node)
    }


def compute(found: Mapping[Keys, Template], root: dict[str, Any]) -> None:
    """Put what each template becomes into its place in `root`, those that others use first.

    Raises ConfigError with all that fail, or for templates that use each other in a circle.
    """
    covering: dict[Keys, list[Keys]] = {}  # a path -> the templates at it and below it
    for path in found:
        for length in range(1, len(path) + 1):
            covering.setdefault(path[:length], []).append(path)
    uses: dict[Keys, set[Keys]] = {}
    for path, template in found.items():
        above = (used[:length] for used in template.uses for length in range(1, len(used)))
        uses[path] = {p for used in template.uses for p in covering.get(used, ())} | {p for p in above if p in found}
    try:
        order = list(TopologicalSorter(uses).static_order())
    except CycleError as error:
        circle: list[Keys] = error.args[1][::-1]
        chain = " -> ".join(_dotted(path) for path in circle)
        place = min((found[path].node.place for path in circle), key=lambda place: (place.line, place.column))
        raise ConfigError(Problem(f"these values use each other in a circle: {chain}.", place)) from None
    problems: list[Problem] = []
    failed: set[Keys] = set()
    spent = 0
    for path in order:
        if uses[path] & failed:
            failed.add(path)
            continue
        try:
            value = found[path].fill(root)
            spent += _size(value)
            if spent > MAX_SIZE:
                raise ConfigError([*problems, Problem("the values become too large.", found[path].node.place)])
            _put(root, path, value)
        except ConfigError as error:
            problems += error.problems
            failed.add(path)
            if spent > MAX_SIZE:
                break
    if problems:
        raise ConfigError(problems)


def interpolate(tree: Node) -> Node:
    """The mapping `tree` with every `${...}` filled in; the dotted paths in them begin at its keys."""
    tree = with_environment(tree)
    found = dict(templates(tree))
    root = tree.plain
    assert isinstance(root, dict)
    compute(found, root)

    def put(node: Node, path: Keys) -> Node | None:
        if path not in found:
            return None
        return node_of(_look_up(root, path)[1], node, "computed")

    return _mapped(tree, put)


def with_environment(tree: Node, where: Callable[[Keys], bool] = lambda path: True) -> Node:
    """`tree` with every `${env:...}` filled in, in the scalars at the paths that `where` admits; other parts stay.

    Raises ConfigError for a variable that is not set, or cannot be read as its type.
    """
    problems: list[Problem] = []

    def put(node: Node, path: Keys) -> Node | None:
        if not isinstance(node.value, str) or "${env:" not in node.value or not where(path):
            return None
        try:
            return _with_variables(node)
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    tree = _mapped(tree, put)
    if problems:
        raise ConfigError(problems)
    return tree


def escaped(value: Any) -> Any:
    """A plain value in which texts read as they are: `$${` for `${`."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, dict):
        return {key: escaped(entry) for key, entry in value.items()}
    return [escaped(entry) for entry in value] if isinstance(value, list | tuple) else value


def node_of(value: Any, node: Node, how: str) -> Node:
    """A plain value as a tree that stands where `node` does, and came about by `how` after it."""
    if isinstance(value, dict):
        made = Node({key: node_of(entry, node, how) for key, entry in value.items()}, node.place, node.source)
    elif isinstance(value, list):
        made = Node([node_of(entry, node, how) for entry in value], node.place, node.source)
    else:  # marked as quoted: a text is a text, whatever it looks like
        text = value if isinstance(value, str) else json.dumps(value)
        made = replace(node, value=value, text=text, style='"' if isinstance(value, str) else "", earlier=())
    return replace(made, how=how).after(node)


def _mapped(node: Node, put: Callable[[Node, Keys], Node | None], path: Keys = ()) -> Node:
    """A copy of a tree with what `put` gives in place of a node; where it gives None the node stays."""
    new = put(node, path)
    if new is not None:
        return new
    if isinstance(node.value, dict):
        return replace(node, value={key: _mapped(entry, put, (*path, key)) for key, entry in node.value.items()})
    if isinstance(node.value, list):
        return replace(node, value=[_mapped(entry, put, (*path, i)) for i, entry in enumerate(node.value)])
    return node


def _pieces(node: Node) -> Iterator[str | Node]:
    """The text of a scalar, cut: literal texts, and what stands inside each `${...}` as a scalar of its own."""
    text, at = node.text, 0
    while opening := _OPENING.search(text, at):
        if opening.start() > at:
            yield text[at : opening.start()]
        at = opening.end()
        if opening[0] == "$${":
            yield "${"
            continue
        depth = 1
        while at < len(text) and depth:
            depth += (text[at] == "{") - (text[at] == "}")
            at += 1
        if depth:
            behind = node.source.text[node.span[1] :].split("\n", 1)[0].lstrip()
            hint = "write '$${' for the text '${'"
            if not node.style and behind.startswith("#"):
                hint = "' #' begins a comment in YAML: put the value in quotes"
            place = node.part(opening.start(), len(text)).place
            raise ConfigError(Problem("'${' without its '}'.", place, hint))
        yield node.part(opening.end(), at - 1)
    if at < len(text):
        yield text[at:]


def _template(node: Node) -> Template:
    paths: dict[str, Keys] = {}
    uses: set[Keys] = set()
    parts: list[str | Expression] = []
    problems: list[Problem] = []
    for piece in _pieces(node):
        if isinstance(piece, str):
            parts.append(piece)
            continue
        try:
            reader = _PathReader(parse(piece))
            parts.append(reader.expression)
            paths |= reader.paths
            uses |= reader.uses
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return Template(node, tuple(parts), paths, frozenset(uses))


class _PathReader(ast.NodeTransformer):
    """Turns each dotted path of an expression into one name; finds the calls of what is not a plain function."""

    def __init__(self, expression: Expression) -> None:
        self.paths: dict[str, Keys] = {}
        self.uses: set[Keys] = set()
        self.source = expression
        self.problems: list[Problem] = []
        self.expression = Expression(self.visit(expression.tree), expression.node)
        if self.problems:
            raise ConfigError(self.problems)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._named(node, (node.id,))

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        path = _path(node)
        if path is None:
            self._complain("only a value of the file has entries.", node, "a dotted path, as in ${data.batch_size}")
            return node
        return self._named(node, path)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        path = _path(node)
        if path is None:
            return self.generic_visit(node)
        if isinstance(path[-1], str):
            return self._named(node, path)
        node.value = self._named(node.value, path[:-1], path)  # whether the list is so long is asked when it is read
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if not isinstance(node.func, ast.Name) or node.func.id not in PLAIN_FUNCTIONS:
            called = ast.unparse(node.func)
            self._complain(f"no function is called '{called}' here.", node.func, nearest(called, PLAIN_FUNCTIONS))
        node.args = [self.visit(argument) for argument in node.args]
        for keyword in node.keywords:
            keyword.value = self.visit(keyword.value)
        return node

    def _named(self, node: ast.expr, path: Keys, used: Keys | None = None) -> ast.expr:
        name = _dotted(path)
        self.paths[name] = path
        self.uses.add(used or path)
        return ast.copy_location(ast.Name(name, ast.Load()), node)

    def _complain(self, message: str, node: ast.expr, hint: str) -> None:
        self.problems.append(Problem(message, self.source.place(node), hint))


def _path(tree: ast.expr) -> Keys | None:
    match tree:
        case ast.Name():
            return (tree.id,)
        case ast.Attribute():
            key: object = tree.attr
        case ast.Subscript(slice=ast.Constant()):
            key = tree.slice.value
        case _:
            return None
    above = _path(tree.value)
    return (*above, key) if above and isinstance(key, str | int) else None


def _dotted(path: Keys) -> str:
    return ".".join(map(str, path))


def _look_up(root: Any, path: Keys) -> tuple[bool, Any]:
    """Whether there is a value at `path`, and the value; or else the dotted paths that stand there instead."""
    value = root
    for length, key in enumerate(path):
        known = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        if key not in known:
            return False, [_dotted((*path[:length], entry)) for entry in known]
        value = value[key]
    return True, value


def _put(root: Any, path: Keys, value: Any) -> None:
    for key in path[:-1]:
        root = root[key]
    root[path[-1]] = value


def _size(value: Any) -> int:
    """How many characters and entries a value has when it is written out; more than MAX_SIZE is not counted."""
    size, waiting = 0, [(value, 0)]
    while waiting and size <= MAX_SIZE:
        value, depth = waiting.pop()
        size += len(value) if isinstance(value, str) else 1
        if depth > MAX_DEPTH or (isinstance(value, int) and value.bit_length() > MAX_BITS):
            return MAX_SIZE + 1
        if isinstance(value, list | tuple | dict):
            waiting += [(entry, depth + 1) for entry in (value.values() if isinstance(value, dict) else value)]
    return size


def _plain(value: Any) -> Any:
    """A result as YAML has it. Raises TypeError that says what it is instead."""
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(entry) for key, entry in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"of type {type(value).__name__}")


def _with_variables(node: Node) -> Node:
    """A scalar with its `${env:...}` filled in."""
    pieces = list(_pieces(node))
    problems: list[Problem] = []
    parts: list[Any] = []
    names: list[str] = []
    for piece in pieces:
        if isinstance(piece, Node) and piece.text.startswith("env:"):
            try:
                name, value = _variable(piece)
                names.append(name)
                parts.append(escaped(value))
            except ConfigError as error:
                problems += error.problems
        else:
            parts.append(f"${{{piece.text}}}" if isinstance(piece, Node) else escaped(piece))
    if problems:
        raise ConfigError(problems)
    if len(parts) > 1:
        parts = ["".join(part if isinstance(part, str) else json.dumps(part) for part in parts)]
    return node_of(parts[0], node, f"environment {', '.join(dict.fromkeys(names))}") if names else node


def _variable(node: Node) -> tuple[str, Any]:
    """The name and value of the variable in `env:CAST:NAME,DEFAULT`."""
    written = _VARIABLE.fullmatch(node.text)
    cast, name, default = written.groups() if written else (None, "", None)
    if not written or (cast and cast not in _CASTS):
        hint = f"${{env:NAME}}, ${{env:NAME,default}}, or ${{env:int:NAME,8}}; types: {', '.join(_CASTS)}"
        raise ConfigError(Problem("this names no variable of the environment.", node.place, hint))
    environment = os.environ if limits().reaches_out else {}
    text = environment.get(name, default)
    if text is None:
        hint = f"give a default: ${{{node.text},...}}"
        why = "is not read for a file that is not trusted"
        if limits().reaches_out:
            hint, why = f"set it, or {hint}", "is not set"
        raise ConfigError(Problem(f"the environment variable '{name}' {why}.", node.place, hint))
    if cast is None:
        return name, text
    what, read = _CASTS[cast]
    try:
        value = read(text)
    except (ValueError, KeyError, RecursionError):
        of = f"the environment variable '{name}'" if name in environment else f"the default of '{name}'"
        raise ConfigError(Problem(f"{of} is {text!r}; it has to be {what}.", node.place)) from None
    if _size(value) > MAX_SIZE:
        raise ConfigError(Problem(f"the environment variable '{name}' is too large.", node.place))
    return name, value
