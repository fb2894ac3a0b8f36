"""Block: the tree of a model file -> what its author declared, level by level, with every expression parsed.

A file and an inline block have the same shape, so both become a `Block`. Names are checked for clashes here; what they
refer to is the graph's business.
"""

from __future__ import annotations

import ast
import copy
import keyword
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from unicodedata import is_normalized, normalize

from torch import nn

from .config import PARAM_TYPES, check_keys
from .errors import ConfigError, Place, Problem, nearest
from .expressions import Expression, parse
from .init import check_init
from .interpolation import Keys, Template, compute, param_templates
from .names import CONSTANTS, DTYPES, PLAIN_FUNCTIONS, TAKEN, TAKEN_BY_MODELS
from .source import Node, is_expression
from .version1 import Translated, is_version_1, translate

BLOCK_KEYS = ("params", "inputs", "blocks", "modules", "graph", "outputs", "init")
FILE_KEYS = ("schema_version", "imports", *BLOCK_KEYS)
PARAM_VALUES = "a number, bool, string, null, or a list of these"

Value = Expression | list["Value"] | dict[str, "Value"]  # of a node, an output, or a module


@dataclass(frozen=True, slots=True, eq=False)
class Param:
    """A name with a default, or with a bare type when the caller has to give the value."""

    default: Any
    required: type | None
    place: Place
    declared: type | None = None  # the bare type that this file, or one that it starts from, writes
    templates: Mapping[Keys, Template] = field(default_factory=dict)  # the `${...}` in the default, by their path in it


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """`shape` holds one expression per dimension, `...` first where any number may lead; None means `any`."""

    shape: tuple[Expression | int | None, ...] | None  # an entry None stands for the leading ...
    dtype: str | None
    optional: bool
    place: Place


@dataclass(frozen=True, slots=True, eq=False)
class Statement:
    """A node of the graph: `targets` are the names it binds ("_" discards)."""

    key: str
    targets: tuple[str, ...]
    value: Value
    place: Place


@dataclass(slots=True, eq=False)
class Block:
    """One level of a model as it was written. `parent` is the level around it, whose blocks it may use."""

    name: str
    node: Node
    parent: Block | None
    params: dict[str, Param] = field(default_factory=dict)
    inputs: dict[str, Input] = field(default_factory=dict)
    blocks: dict[str, Block] = field(default_factory=dict)
    modules: dict[str, Value] = field(default_factory=dict)
    graph: dict[str, Statement] = field(default_factory=dict)
    outputs: Value | None = None
    init: dict[str, Value] = field(default_factory=dict)  # selector -> initialiser, or one per parameter name
    symbols: dict[str, Place] = field(default_factory=dict)
    imports: Node | None = None
    module_places: dict[str, Place] = field(default_factory=dict)
    _values: frozenset[str] | None = field(default=None, init=False)

    def find_block(self, name: str) -> Block | None:
        """A block by name, on this level or one around it."""
        level: Block | None = self
        while level is not None:
            if name in level.blocks:
                return level.blocks[name]
            level = level.parent
        return None

    def visible_blocks(self) -> dict[str, Block]:
        return {**(self.parent.visible_blocks() if self.parent else {}), **self.blocks}

    def values(self) -> frozenset[str]:
        """The names that stand for values in the graph, once the block is read."""
        if self._values is None:
            nodes = {target for statement in self.graph.values() for target in statement.targets}
            self._values = frozenset({*self.params, *self.inputs, *self.symbols, *nodes} - {"_"})
        return self._values

    def levels(self) -> Iterator[Block]:
        yield self
        for block in self.blocks.values():
            yield from block.levels()


def read_block(node: Node, name: str) -> Block:
    """The declarations of a whole file, into which the files of its blocks have been read.

    Raises ConfigError with everything that is wrong with the form of the file.
    """
    reader = _Reader()
    block = reader.block(node, name, None, FILE_KEYS)
    if reader.problems:
        raise ConfigError(reader.problems)
    return block


def expressions(value: Value) -> Iterator[Expression]:
    """Every expression in a value, in the order written."""
    if isinstance(value, Expression):
        yield value
    else:
        for entry in value if isinstance(value, list) else value.values():
            yield from expressions(entry)


class _Reader:
    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def complain(self, message: str, place: Place | None, hint: str = "") -> None:
        self.problems.append(Problem(message, place, hint))

    def block(self, node: Node, name: str, parent: Block | None, keys: tuple[str, ...]) -> Block:
        if keys is FILE_KEYS and is_version_1(node):
            try:
                node = translate(node)
            except ConfigError as error:
                self.problems += error.problems
                return Block(name, node, parent)
        block = Block(name, node, parent)
        if not isinstance(node.value, dict):
            self.complain(f"{name} has to be a mapping with the keys {', '.join(BLOCK_KEYS)}.", node.place)
            return block
        what = "a model file" if keys is FILE_KEYS else f"the block '{name}'"
        self.problems += check_keys(node, (*keys, "defaults") if keys is FILE_KEYS else keys, what)
        if keys is FILE_KEYS:
            if "defaults" in node.value:  # of a file they have been read
                self.complain("'defaults' stands in a file of its own.", node.key_place("defaults"))
            self._version(node)
            block.imports = node.value.get("imports")
        if "outputs" not in node.value:
            self.complain(f"{what} needs the key 'outputs'.", node.place)
        params = list(self._entries(node, "params"))
        names = {name for name, _, _ in params}
        for key, place, entry in params:
            block.params[key] = self._param(entry, place, names)
            self._check_type(block, key, entry)
        for key, place, entry in self._entries(node, "inputs"):
            block.inputs[key] = self._input(key, entry, place, block)
        self._check_symbols(block)
        for key, _, entry in self._entries(node, "blocks"):
            block.blocks[key] = self._inner(entry, key, block)
        for key, place, entry in self._entries(node, "modules"):
            block.modules[key] = self.value(entry)
            block.module_places[key] = place
        for key, place, entry in self._entries(node, "graph"):
            targets = tuple(part.strip() for part in key.split(","))
            block.graph[key] = Statement(key, targets, self.value(entry), place)
        if "outputs" in node.value:
            block.outputs = self.value(node.value["outputs"])
            if node.value["outputs"].value in ([], {}):
                self.complain("'outputs' names nothing.", node.value["outputs"].place)
        for key, place, entry in self._entries(node, "init"):
            block.init[key] = self._initialiser(entry, place)
        self._check_names(block)
        self.problems += check_init(block)
        return block

    def _initialiser(self, node: Node, place: Place) -> Value:
        entries = list(node.value.values()) if isinstance(node.value, dict) else [node]
        if not entries or any(isinstance(entry.value, list | dict) for entry in entries):
            hint = "such as zeros, normal(std=0.02), or {weight: normal(std=0.02), bias: zeros}"
            self.complain("an initialiser is needed here, or one for each parameter by name.", place, hint)
            return {}
        return self.value(node)

    def value(self, node: Node) -> Value:
        if isinstance(node.value, list):
            return [self.value(entry) for entry in node.value]
        if isinstance(node.value, dict):
            return {key: self.value(entry) for key, entry in node.value.items()}
        if isinstance(node, Translated):
            return Expression(node.tree, node)
        try:
            return parse(node)
        except ConfigError as error:
            self.problems += error.problems
            return []

    def _version(self, node: Node) -> None:
        assert isinstance(node.value, dict)
        version = node.value.get("schema_version")
        if version is None:
            self.complain("the key 'schema_version' is missing.", node.place, "begin the file with 'schema_version: 2'")
        elif version.value != 2 or isinstance(version.value, bool):
            written = f"the text '{version.text}'" if isinstance(version.value, str) else version.text
            self.complain(f"schema_version is {written}; it has to be the number 2.", version.place)

    def _entries(self, node: Node, key: str) -> Iterator[tuple[str, Place, Node]]:
        assert isinstance(node.value, dict)
        section = node.value.get(key)
        if section is None or section.value is None:
            return
        if not isinstance(section.value, dict):
            self.complain(f"'{key}' has to be a mapping of names.", section.place)
            return
        for name, entry in section.value.items():
            yield name, section.key_place(name), entry

    def _param(self, node: Node, place: Place, names: set[str]) -> Param:
        if not _is_param_value(node.plain):
            self.complain(f"a param is {PARAM_VALUES}.", node.place)
        self._check_texts(node, names)
        required = _bare_type(node)
        if node.style and node.value in PARAM_TYPES:
            self.complain(f"the string '{node.text}' would stand for a type.", node.place, "choose another word")
        versions = (*node.earlier, node)
        declared = next((kind for version in reversed(versions) if (kind := _bare_type(version))), None)
        default = node.plain
        if type(default) is int and any(isinstance(one.value, float) or _bare_type(one) is float for one in versions):
            default = float(default)  # see `_as_declared`
        return Param(default, required, place, declared, self._templates(node, names))

    def _check_type(self, block: Block, name: str, node: Node) -> None:
        """A derived file and an override are held to what they replace, as the caller of the model is."""
        written = [version for version in node.earlier if not _is_template(version)]
        if written and not _is_template(node) and not _bare_type(node):
            held = next((version for version in reversed(written) if _bare_type(version)), written[-1])
            self.problems += _misfit(block, name, node.plain, held.plain, {name: node.place}, held.place)

    def _check_texts(self, node: Node, names: set[str]) -> None:
        if isinstance(node.value, str) and not node.style and is_expression(node.text, names):
            computed = "one ${...} around all of it" if "${" in node.text else "the value"
            hint = f"write {'null' if node.text == 'None' else computed}, or quote it"
            self.complain(f"'{node.text}' is text here: params are values.", node.place, hint)
        for _, entry in node.entries():
            self._check_texts(entry, names)

    def _templates(self, node: Node, names: set[str]) -> dict[Keys, Template]:
        """The `${...}` in a default: expressions over the params of the block, and nothing else."""
        try:
            found = param_templates(node)
        except ConfigError as error:
            self.problems += error.problems
            return {}
        for template in found.values():
            for name, (first, *_), place in template.references():
                if first not in names | CONSTANTS.keys():
                    self.complain(f"no param is called '{name}'.", place, nearest(name, names))
        return found

    def _input(self, name: str, node: Node, place: Place, block: Block) -> Input:
        shape_node, dtype, optional = node, None, False
        if isinstance(node.value, dict):
            self.problems += check_keys(node, ("shape", "dtype", "optional"), f"the input '{name}'")
            dtype_node, optional_node = node.value.get("dtype"), node.value.get("optional")
            for entry in (dtype_node, optional_node):
                if entry is not None and "${" in entry.text:
                    hint = "an input is the same for all values of the params; ${env:...} may stand here"
                    self.complain("params are not known here.", entry.place, hint)
                    return Input(None, None, False, place)
            if dtype_node is not None:
                dtype = dtype_node.text
                if dtype not in DTYPES:
                    self.complain(f"no dtype is called '{dtype}'.", dtype_node.place, nearest(dtype, DTYPES))
            if optional_node is not None:
                optional = optional_node.value is True
                if not isinstance(optional_node.value, bool):
                    self.complain("'optional' is true or false.", optional_node.place)
            if "shape" not in node.value:
                self.complain(f"the input '{name}' needs the key 'shape'.", place, "a list such as [B, T, dim], or any")
                return Input(None, dtype, optional, place)
            shape_node = node.value["shape"]
        if shape_node.value == "any":
            return Input(None, dtype, optional, place)
        if not isinstance(shape_node.value, list):
            hint = "a list such as [B, T, dim], the word any, or {shape: [...], dtype: ..., optional: true}"
            self.complain(f"the input '{name}' needs a shape.", shape_node.place, hint)
            return Input(None, dtype, optional, place)
        return Input(tuple(self._shape(shape_node.value, block)), dtype, optional, place)

    def _shape(self, entries: list[Node], block: Block) -> Iterator[Expression | int | None]:
        for position, entry in enumerate(entries):
            if entry.text == "..." and position == 0:
                yield None
            elif isinstance(entry.value, int) and not isinstance(entry.value, bool):
                if entry.value < 0:
                    self.complain("a size cannot be negative.", entry.place)
                yield entry.value
            elif isinstance(entry.value, str) and entry.text != "...":
                try:
                    expression = parse(entry)
                except ConfigError as error:
                    self.problems += error.problems
                    continue
                calls = [part.func for part in ast.walk(expression.tree) if isinstance(part, ast.Call)]
                called = {id(function) for function in calls}
                for function in calls:
                    if not isinstance(function, ast.Name) or function.id not in PLAIN_FUNCTIONS:
                        hint = nearest(ast.unparse(function), PLAIN_FUNCTIONS)
                        self.complain("a shape cannot call this.", expression.place(function), hint)
                for name in expression.names():
                    if name.id not in block.params and id(name) not in called:
                        block.symbols.setdefault(name.id, expression.place(name))
                yield expression
            else:
                hint = "'...' may only come first" if entry.text == "..." else ""
                self.complain("an entry of a shape is a number, a name, or an expression of these.", entry.place, hint)

    def _check_symbols(self, block: Block) -> None:
        """A symbol stands for the size of a dimension: somewhere it has to be written alone."""
        entries = [entry for declared in block.inputs.values() for entry in declared.shape or ()]
        bound = {one.tree.id for one in entries if isinstance(one, Expression) and isinstance(one.tree, ast.Name)}
        for name, place in block.symbols.items():
            if name == "_":
                self.complain("'_' is no name of a size.", place, "each free size has a name of its own, such as S")
            elif name not in bound:
                close = nearest(name, [*block.params, *bound])
                hint = f"write a dimension that is just {name} in some input, or declare it under 'params'"
                hint += f"\n{close}" if "did you mean" in close else ""
                self.complain(f"nothing binds the symbol '{name}'.", place, hint)

    def _inner(self, node: Node, name: str, parent: Block) -> Block:
        if isinstance(node.value, dict) and "schema_version" in node.value:  # a whole file, with a scope of its own
            return self.block(node, name, None, FILE_KEYS)
        if isinstance(node.value, str):
            self.complain(f"'{node.value}' is not the name of a YAML file.", node.place, "blocks: {name: path.yaml}")
            return Block(name, node, None)
        return self.block(node, name, parent, BLOCK_KEYS)

    def _check_names(self, block: Block) -> None:
        first: dict[str, Place] = {}
        for name, place in _named(block):
            if name == "_":
                continue
            self._check_name(name, place)
            if name in block.modules and name in TAKEN_BY_MODELS:
                self.complain(f"'{name}' is an attribute of every model.", place, "choose another name")
            if name in first:
                hint = f"first at {first[name]}; params, inputs, symbols, modules and nodes share their names"
                self.complain(f"the name '{name}' stands here twice.", place, hint)
            first.setdefault(name, place)
        for entry, place in block.module_places.items():
            self._check_entries(block.modules[entry], place)
        for name, inner in block.blocks.items():
            if not name.isidentifier() or keyword.iskeyword(name) or name in ("Param", "Buffer"):
                place = inner.node.place
                self.complain(f"'{name}' cannot name a block: it could not be called.", place, "choose another name")
        seen_optional = ""
        for name, declared in block.inputs.items():
            if declared.optional:
                seen_optional = name
            elif seen_optional:
                hint = f"'{seen_optional}' before it may be left out: move optional inputs to the end"
                self.complain(f"the input '{name}' is not optional.", declared.place, hint)

    def _check_name(self, name: str, place: Place) -> None:
        if not name.isidentifier() or keyword.iskeyword(name):
            self.complain(f"'{name}' is not a name: letters, digits and _ only, no keyword of Python.", place)
        elif not is_normalized("NFKC", name):
            self.complain(f"'{name}' would be read as '{normalize('NFKC', name)}'.", place, "choose another name")
        elif name in TAKEN:
            self.complain(f"the name '{name}' is taken by the dialect.", place, "choose another name")
        elif name.startswith("_"):
            self.complain(f"the name '{name}' begins with an underscore.", place, "choose another name")
        elif hasattr(nn.Module, name):
            self.complain(f"'{name}' is an attribute of nn.Module.", place, "choose another name")

    def _check_entries(self, value: Value, place: Place) -> None:
        """The names inside a namespace, and inside the namespaces of a list."""
        for entry in value if isinstance(value, list) else ():
            self._check_entries(entry, place)
        for name, entry in value.items() if isinstance(value, dict) else ():
            self._check_name(name, place)
            self._check_entries(entry, place)


def _named(block: Block) -> Iterator[tuple[str, Place]]:
    for name, param in block.params.items():
        yield name, param.place
    for name, declared in block.inputs.items():
        yield name, declared.place
    yield from block.symbols.items()
    yield from block.module_places.items()
    for statement in block.graph.values():
        for target in statement.targets:
            yield target, statement.place


def bind_params(block: Block, given: Mapping[str, Any], places: Mapping[str, Place | None]) -> dict[str, Any]:
    """The value of each param of a block: what the caller gives, else the default. Raises ConfigError."""
    if not isinstance(given, Mapping):
        raise ConfigError(Problem(f"params are given as a mapping from names to values, not as {given!r}."))
    problems = []
    given = {name: _plain_number(value) for name, value in given.items()}
    for name, value in given.items():
        if not _is_param_value(value) or (isinstance(value, str) and value in PARAM_TYPES):
            hint = f"a param is {PARAM_VALUES}, and no string that names a type"
            problems.append(Problem(f"the param '{name}' cannot be {value!r}.", places.get(name), hint))
            continue
        if name not in block.params:
            hint = nearest(name, block.params) or "it has no params"
            problems.append(Problem(f"'{block.name}' has no param '{name}'.", places.get(name), hint))
    for name, param in block.params.items():
        if name in given and not param.templates:
            problems += _misfit(block, name, given[name], param.default, places)
        elif name not in given and param.required:
            at_top = places.get("") == block.node.place  # and not at a call
            how = f"--set params.{name}=..., or build_model(..., params={{'{name}': ...}})"
            hint = f"declared at {param.place} without a default: give it, as in "
            hint += how if at_top else f"{block.name}({name}=...)"
            problems.append(Problem(f"'{block.name}' needs the param '{name}'.", places.get(""), hint))
    if problems:
        raise ConfigError(problems)
    values = _with_defaults(block, {name: _as_declared(block.params[name], value) for name, value in given.items()})
    for name, value in given.items():
        if block.params[name].templates:
            problems += _misfit(block, name, value, _default(block, name, values), places)
    if problems:
        raise ConfigError(problems)
    return values


def _misfit(
    block: Block,
    name: str,
    value: Any,
    default: Any,
    places: Mapping[str, Place | None],
    declared_at: Place | None = None,
) -> Iterator[Problem]:
    """What is wrong with the type of a value that is given in place of a default."""
    param = block.params[name]
    expected = param.declared or (None if default is None else type(default))
    if expected and not _fits(value, expected, strict=param.declared is not None):
        message = f"the param '{name}' of '{block.name}' is {value!r}; it has to be {_article(expected)}."
        yield Problem(message, places.get(name), f"declared at {declared_at or param.place}")


def _as_declared(param: Param, value: Any) -> Any:
    """A whole number for a float is one: `Param(scale)` of 4 would be four numbers, and of 4.0 one."""
    is_float = param.declared is float or isinstance(param.default, float)
    return float(value) if is_float and type(value) is int else value


def _bare_type(node: Node) -> type | None:
    return PARAM_TYPES.get(node.text) if isinstance(node.value, str) and not node.style else None


def _is_template(node: Node) -> bool:
    """Whether a value has `${...}`, so that its type is known only once it is computed."""
    return isinstance(node.value, str) and "${" in node.value


def _with_defaults(block: Block, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given and the defaults of the rest, the `${...}` of these filled in."""
    values = {name: given.get(name, copy.deepcopy(param.default)) for name, param in block.params.items()}
    found: dict[Keys, Template] = {
        (name, *path): template
        for name, param in block.params.items()
        if name not in given
        for path, template in param.templates.items()
    }
    compute(found, values)
    for name in {name for name, *_ in found}:
        param = block.params[str(name)]
        if not _is_param_value(values[str(name)]) or values[str(name)] in tuple(PARAM_TYPES):
            message = f"the param '{name}' becomes {values[str(name)]!r}."
            raise ConfigError(Problem(message, param.place, f"a param is {PARAM_VALUES}, and no name of a type"))
    return values


def _default(block: Block, name: str, values: Mapping[str, Any]) -> Any:
    """What the `${...}` of a param that is given would be beside the other values; None where it would fail."""
    try:
        return _with_defaults(block, {other: value for other, value in values.items() if other != name})[name]
    except ConfigError:
        return None


def _plain_number(value: Any) -> Any:
    """A numpy number as Python's own."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def _is_param_value(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_param_value(entry) for entry in value)
    return value is None or type(value) in (int, float, bool, str)


def _fits(value: Any, expected: type, strict: bool) -> bool:
    """A declared type is strict; a default only says number, string, ...: 1 does not forbid 1.5, nor anything null."""
    if isinstance(value, bool):
        return expected is bool
    if expected is float or (expected is int and not strict):
        return isinstance(value, int | float) or (value is None and not strict)
    return isinstance(value, expected) or (value is None and not strict)


def _article(expected: type) -> str:
    return {int: "an integer", float: "a number", bool: "true or false", str: "a string", list: "a list"}[expected]
