"""Architecture: what a block computes, in one form whatever its parts are called, and the hash of that form.

The form has no names of nodes, symbols, params and blocks, and no order of nodes and modules. It keeps what can be seen
from outside: the names of inputs and modules (which are keys of calls and of state dicts), and the order of inputs and
outputs. Initial values are not part of it; a constant is, and so is the value of a `Buffer`. Whether a value is a node
or stands within the expression that reads it is part of it, too.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .block import Block, Input, Value, bind_params, expressions
from .construct import Sizes, chosen, is_blank, is_constructor
from .expressions import Expression, evaluate, links
from .graph import build_graph, is_build_time, remaining
from .names import CONSTANTS, OPS, PLAIN_FUNCTIONS, TYPES, find_type
from .shapes import infer_shapes

Form = Any  # what JSON can write: lists of lists, strings and numbers


def architecture_hash(block: Block, params: dict[str, Any]) -> str:
    """SHA-256, in hexadecimal, of the form of a block under these params."""
    inferred = any(is_blank(name) for level in block.levels() for name in _constructor_names(level))
    return _Architecture(infer_shapes(block, params).sizes if inferred else {}).digest(block, params, "")


def _constructor_names(block: Block) -> list[ast.Name]:
    return [
        name for value in block.modules.values() for expression in expressions(value) for name in expression.names()
    ]


@dataclass(slots=True)
class _Architecture:
    """One walk over the blocks of a model; `sizes` are those that stand for `_`, by the paths of their modules."""

    sizes: Sizes
    known: dict[tuple[Block, str, str], str] = field(default_factory=dict)

    def digest(self, block: Block, params: dict[str, Any], path: str) -> str:
        key = (block, repr(params), path if self.sizes else "")
        if key not in self.known:
            form = _BlockForm(self, block, params, path).form()
            self.known[key] = hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()
        return self.known[key]


class _BlockForm:
    """The form of one use of a block. `path` is where it stands in the whole model."""

    def __init__(self, architecture: _Architecture, block: Block, params: dict[str, Any], path: str) -> None:
        self.architecture = architecture
        self.block = block
        self.params = params
        self.path = path
        self.symbols = list(block.symbols)
        self.producers = {target: s for s in block.graph.values() for target in s.targets if target != "_"}
        self.reached: list[str] = []  # the nodes in the order in which the form, read from the outputs, meets them
        self.numbers: dict[str, int] = {}  # of these

    def form(self) -> Form:
        block = self.block
        modules = sorted(build_graph(block, self.params).modules)
        below = {name: f"{self.path}.{name}" if self.path else name for name in modules}
        assert block.outputs is not None
        outputs = self._value(block.outputs)
        nodes = [self._value(block.graph[key].value) for key in self.reached]  # grows while it is read
        return {
            "inputs": [[name, self._input(declared)] for name, declared in block.inputs.items()],
            "modules": [[name, self._entry(block.modules[name], below[name])] for name in modules],
            "outputs": ["Tuple", *outputs[1:]] if isinstance(block.outputs, list) else outputs,
            "nodes": nodes,
        }

    def _input(self, declared: Input) -> Form:
        shape = None if declared.shape is None else [self._size(entry) for entry in declared.shape]
        return [shape, declared.dtype, declared.optional]

    def _size(self, entry: Expression | int | None) -> Form:
        if isinstance(entry, Expression):
            plain = is_build_time(entry.tree, self.block)
            return evaluate(entry, self.params) if plain else self._expression(entry, entry.tree)
        return entry

    # the graph

    def _value(self, value: Value) -> Form:
        if isinstance(value, Expression):
            return self._expression(value, value.tree)
        if isinstance(value, list):
            return ["List", [self._value(entry) for entry in value], None]
        return ["Dict", *([_constant(key), self._value(entry)] for key, entry in value.items())]

    def _expression(self, expression: Expression, tree: ast.expr) -> Form:
        match tree:
            case ast.Name():
                return self._name(tree.id)
            case ast.Constant():
                return _constant(tree.value)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return _constant(-number)
            case ast.IfExp():
                test = remaining(expression, self.params, tree.test, self.block)
                if isinstance(test, bool):
                    return self._expression(expression, tree.body if test else tree.orelse)
                return ["IfExp", *(self._expression(expression, part) for part in (test, tree.body, tree.orelse))]
            case ast.Call(func=ast.Name(id=name)) if name not in self.block.modules and self.block.find_block(name):
                return self._function_call(expression, tree, name)
            case ast.Call():
                arguments = [self._expression(expression, argument) for argument in tree.args]
                return ["Call", self._expression(expression, tree.func), arguments, self._keywords(expression, tree)]
            case ast.Dict():
                items = zip(tree.keys, tree.values, strict=True)
                return ["Dict", *([self._expression(expression, part) for part in item if part] for item in items)]
        return [type(tree).__name__, *(self._field(expression, name, getattr(tree, name)) for name in tree._fields)]

    def _field(self, expression: Expression, name: str, value: Any) -> Form:
        if isinstance(value, ast.expr):
            return self._expression(expression, value)
        if isinstance(value, list):
            return [self._field(expression, name, entry) for entry in value]
        if isinstance(value, ast.AST):  # an operator; or how a name is used, which its place says already
            return None if name == "ctx" else type(value).__name__
        return value

    def _keywords(self, expression: Expression, tree: ast.Call, left_out: Mapping[str, Any] | None = None) -> Form:
        given = {keyword.arg: keyword.value for keyword in tree.keywords if keyword.arg not in (left_out or {})}
        return [[name, self._expression(expression, given[name])] for name in sorted(map(str, given))]

    def _function_call(self, expression: Expression, tree: ast.Call, name: str) -> Form:
        """A block without modules: its params are among the keywords."""
        block = self.block.find_block(name)
        assert block is not None
        given = {k.arg: evaluate(expression, self.params, k.value) for k in tree.keywords if k.arg in block.params}
        digest = self.architecture.digest(block, bind_params(block, given, {}), "")
        arguments = [self._expression(expression, argument) for argument in tree.args]
        return ["Function", digest, arguments, self._keywords(expression, tree, left_out=block.params)]

    def _name(self, name: str) -> Form:
        if name in self.params:
            return _constant(self.params[name])
        if name in self.producers:
            statement = self.producers[name]
            if statement.key not in self.numbers:
                self.numbers[statement.key] = len(self.reached)
                self.reached.append(statement.key)
            return ["Node", self.numbers[statement.key], statement.targets.index(name), len(statement.targets)]
        if name in self.block.symbols:
            return ["Symbol", self.symbols.index(name)]
        if name in self.block.inputs:
            return ["Input", name]
        if name in self.block.modules:
            return ["Module", name]
        return ["Registered" if OPS.has(name) else "Name", name]

    # modules

    def _entry(self, value: Value, path: str) -> Form:
        if isinstance(value, Expression):
            return self._constructor(value, value.tree, self.params, path)
        if isinstance(value, list):
            return ["List", *(self._entry(entry, f"{path}.{i}") for i, entry in enumerate(value))]
        return ["Namespace", *([name, self._entry(value[name], f"{path}.{name}")] for name in sorted(value))]

    def _constructor(self, expression: Expression, tree: ast.expr, values: Mapping[str, Any], path: str) -> Form:
        tree = chosen(expression, tree, values)
        match tree:
            case ast.BinOp(op=ast.RShift()):
                parts = enumerate(links(tree))
                return ["Chain", *(self._constructor(expression, link, values, f"{path}.{i}") for i, link in parts)]
            case ast.BinOp(op=ast.Mult()):
                members = [{**values, "index": i} for i in range(evaluate(expression, values, tree.right))]
                parts = (self._constructor(expression, tree.left, m, f"{path}.{i}") for i, m in enumerate(members))
                return ["List", *parts]
            case ast.List():
                entries = enumerate(tree.elts)
                return ["List", *(self._constructor(expression, e, values, f"{path}.{i}") for i, e in entries)]
        assert isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)
        name = tree.func.id
        if name in ("Param", "Buffer"):
            return self._tensor(expression, tree, name)
        block = self.block.find_block(name)
        if block is None:
            return self._type(expression, tree, name, values, path)
        given = {k.arg: self._plain(expression, k.value, values, path) for k in tree.keywords if k.arg is not None}
        if len(given) < len(tree.keywords):  # **params
            given = {**{param: self.params[param] for param in self.params if param in block.params}, **given}
        return ["Block", self.architecture.digest(block, bind_params(block, given, {}), path)]

    def _tensor(self, expression: Expression, tree: ast.Call, name: str) -> Form:
        """A buffer with its value, since that is computed with; a parameter by what training does not change."""
        if name == "Buffer":
            arguments = [self._expression(expression, argument) for argument in tree.args]
            return ["Buffer", arguments, self._keywords(expression, tree)]
        with torch.device("meta"):
            arguments = [evaluate(expression, self.params, argument) for argument in tree.args]
            sizes = all(type(size) is int for size in arguments)
            value = torch.empty(arguments) if sizes else torch.as_tensor(arguments[0])
        return ["Param", list(value.shape), str(value.dtype), self._keywords(expression, tree, left_out={"init": 0})]

    def _type(self, expression: Expression, tree: ast.Call, name: str, values: Mapping[str, Any], path: str) -> Form:
        """A type with the arguments that are not its defaults, each by its name."""
        kind = find_type(name)
        assert kind is not None
        positional = [self._argument(expression, argument, values, path) for argument in tree.args]
        keywords = {str(k.arg): self._argument(expression, k.value, values, path) for k in tree.keywords}
        signature = inspect.signature(kind)
        bound = signature.bind(*positional, **keywords).arguments
        default = {argument: _constant(parameter.default) for argument, parameter in signature.parameters.items()}
        given = {argument: form for argument, form in bound.items() if form != default[argument]}
        return ["Registered" if TYPES.has(name) else "Type", name, [[key, given[key]] for key in sorted(given)]]

    def _argument(self, expression: Expression, tree: ast.expr, values: Mapping[str, Any], path: str) -> Form:
        if is_blank(tree) or _is_plain(tree, values):
            return _constant(self._plain(expression, tree, values, path))
        if is_constructor(tree, self.block):
            taken = chosen(expression, tree, values)
            if taken is not tree:
                return self._argument(expression, taken, values, path)
            return self._constructor(expression, tree, values, f"{path}.{tree.lineno}.{tree.col_offset}")
        return self._expression(expression, tree)

    def _plain(self, expression: Expression, tree: ast.expr, values: Mapping[str, Any], path: str) -> Any:
        return self.architecture.sizes[path, tree] if is_blank(tree) else evaluate(expression, values, tree)


def _constant(value: Any) -> Form:
    if isinstance(value, list | tuple):
        return ["List" if isinstance(value, list) else "Tuple", *map(_constant, value)]
    return [type(value).__name__, repr(value)]


def _is_plain(tree: ast.expr, values: Mapping[str, Any]) -> bool:
    """Whether an argument is made of params and constants alone."""
    names = {part.id for part in ast.walk(tree) if isinstance(part, ast.Name)}
    return names <= values.keys() | PLAIN_FUNCTIONS.keys() | CONSTANTS.keys()
