"""Lowering: a graph and its modules -> the syntax tree of a Python function, `forward`.

The nodes of the tree carry the positions of the YAML file, so that every tool that reads tracebacks points there. The
function is what a person would have written.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import einops
import torch
import torch.nn.functional as F
from torch import nn

from .block import Block, Input, Statement, Value, bind_params, expressions
from .compiler import Compiled, Held, Listing
from .construct import returned_by
from .errors import ConfigError, Problem, nearest
from .expressions import Expression, evaluate, is_plain
from .graph import Graph, build_graph, is_build_time, remaining
from .limits import limits
from .names import (
    ANY_DIM,
    ATTRIBUTES,
    CONSTANTS,
    DTYPES,
    METHODS,
    NEEDS_DIM,
    OPS,
    PLAIN_FUNCTIONS,
    WRITE_DIM,
    creates,
    names_axes,
    torch_ops,
    training_position,
)

_MODULES: dict[str, Any] = {"torch": torch, "F": F, "math": math, "einops": einops}


def lower(graph: Graph, modules: dict[str, Any]) -> Compiled:
    """The method `forward` of a block; `modules` are its members by name (modules, parameters and buffers)."""
    return _Lowering(graph, modules, function_name="forward", is_method=True).compiled()


@dataclass(slots=True)
class _Member:
    """The target of a path into modules: the object, the code that reads it, and the steps that follow a tensor."""

    object: Any
    code: ast.expr
    rest: list[ast.Attribute | ast.Subscript] = field(default_factory=list)


class _Lowering:
    """Lowers the expressions of one graph to Python statements."""

    def __init__(
        self,
        graph: Graph,
        modules: dict[str, Any],
        function_name: str,
        is_method: bool,
        inside: tuple[Block, ...] = (),
        made: Iterator[int] | None = None,
    ) -> None:
        self.graph = graph
        self.block = graph.block
        self.params = graph.params
        self.modules = modules
        self.function_name = function_name
        self.is_method = is_method
        self.inside = (*inside, graph.block)
        self.made = made or itertools.count(1)  # counts the functions made for blocks, on all levels
        self.locals = {*self.block.values(), "self"} - self.params.keys()
        self.scope: dict[str, Any] = {}
        self.helpers: dict[tuple, tuple[str, Compiled]] = {}
        self.statements: list[ast.stmt] = []
        self.symbols_read: set[str] = set()
        # Names of what is a plain number, and of what may be one.
        self.plain = {*self.params, *self.block.symbols, *(CONSTANTS.keys() - self.locals)}
        self.maybe_plain = {"training", *(name for name, one in self.block.inputs.items() if one.shape is None)}
        self.held: dict[str, Held | None] = {}  # of nodes; see `_held`
        self.returns: Held | None = None
        self.needs_training = False
        self.device_name = ""  # of a function's argument, if it needs one
        self.listing = Listing(graph.block.node.source)
        self.expression: Expression | None = None  # the one being lowered

    def compiled(self) -> Compiled:
        problems: list[Problem] = []
        for lower in (*(partial(self._statement, statement) for statement in self.graph.order), self._return):
            try:
                lower()
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        body = [*self._symbols(), *self._devices(), *self.statements]
        tree = ast.FunctionDef(self.function_name, self._signature(), body, [], None)
        place = self.block.node.place
        tree.lineno, tree.col_offset = place.line, place.column - 1
        tree.end_lineno, tree.end_col_offset = place.line, place.column - 1
        ast.fix_missing_locations(tree)
        helpers = tuple(helper for _, helper in self.helpers.values())
        file = self.listing.remember()
        how = self.returns, self.needs_training, self.device_name
        return Compiled(self.block, tree, self.listing, file, self.scope, helpers, *how)

    # the frame of the function

    def _signature(self) -> ast.arguments:
        names = (["self"] if self.is_method else []) + list(self.block.inputs)
        defaults: list[ast.expr] = [ast.Constant(None) for declared in self.block.inputs.values() if declared.optional]
        given = [] if self.is_method else ["training"] * self.needs_training
        given += [self.device_name] if self.device_name else []
        no_defaults: list[ast.expr | None] = [None] * len(given)
        arguments, keywords = ([ast.arg(name) for name in part] for part in (names, given))
        return ast.arguments([], arguments, None, keywords, no_defaults, None, defaults)

    def _symbols(self) -> list[ast.stmt]:
        """Statements that read the symbols in use off the shapes of the inputs."""
        statements: list[ast.stmt] = []
        whole: dict[str, dict[int, str]] = {}  # required inputs without `...`: dimension -> symbol

        def bind(target: ast.expr, value: ast.expr, name: str, dim: int) -> None:
            declared = (self.block.inputs[name].shape or ())[dim]  # where a failure is to point
            assert isinstance(declared, Expression)
            statements.append(ast.copy_location(ast.Assign([target], value), declared.tree))
            self._list(declared, statements[-1:])

        for symbol in self.block.symbols:
            if symbol not in self.symbols_read:
                continue
            bindings = self._bindings(symbol)
            name, dim = bindings[0]
            declared = self.block.inputs[name]
            if not declared.optional and dim >= 0:
                whole.setdefault(name, {})[dim] = symbol
                continue
            size = self._size(name, dim)
            if declared.optional:  # the first of them that is present
                size = ast.Constant(None)
                for name, dim in reversed(bindings):
                    given = ast.Compare(_load(name), [ast.IsNot()], [ast.Constant(None)])
                    size = ast.IfExp(given, self._size(name, dim), size)
            bind(_store(symbol), size, *bindings[0])
        for name, by_dim in whole.items():
            if len(by_dim) == 1:
                for dim, symbol in by_dim.items():
                    bind(_store(symbol), self._size(name, dim), name, dim)
                continue
            targets: list[ast.expr] = [
                _store(by_dim.get(dim, "_")) for dim in range(len(self.block.inputs[name].shape or ()))
            ]
            shape = ast.Attribute(_load(name), "shape", ast.Load())
            bind(ast.Tuple(targets, ast.Store()), shape, name, min(by_dim))
        return statements

    def _size(self, name: str, dim: int) -> ast.expr:
        return ast.Subscript(ast.Attribute(_load(name), "shape", ast.Load()), ast.Constant(dim), ast.Load())

    def _bindings(self, symbol: str) -> list[tuple[str, int]]:
        """The inputs and dimensions that a symbol can be read from: a required one, else all optional ones."""
        found = []
        for name, declared in self.block.inputs.items():
            entries = declared.shape or ()
            for dim, entry in enumerate(entries):
                if isinstance(entry, Expression) and isinstance(entry.tree, ast.Name) and entry.tree.id == symbol:
                    found.append((name, dim - len(entries) if entries[0] is None else dim))
        assert found, "a symbol that only calculations name is refused when the file is read"
        required = [binding for binding in found if not self.block.inputs[binding[0]].optional]
        return required[:1] or found

    def _device(self) -> ast.expr:
        """Code for the device of the first tensor that the block is given; see `device_of`."""
        inputs = self.block.inputs
        first = next((n for n, declared in inputs.items() if declared.shape is not None and not declared.optional), "")
        if first:
            return ast.Attribute(_load(first), "device", ast.Load())
        if self.is_method:
            return self._found_device(*inputs, "self")
        self.device_name = self.device_name or self._fresh("device")
        return _load(self.device_name)

    def _devices(self) -> list[ast.stmt]:
        """A function creates where its first tensor is, and where its caller does if it is given none."""
        inputs = self.block.inputs
        if not (self.device_name and inputs):
            return []
        found = ast.BoolOp(ast.Or(), [self._found_device(*inputs), _load(self.device_name)])
        return [ast.Assign([_store(self.device_name)], found)]

    def _found_device(self, *names: str) -> ast.expr:
        return ast.Call(self._global("device_of", device_of), [_load(name) for name in names], [])

    # statements

    def _emit(self, statement: ast.stmt, origin: ast.AST | None = None) -> None:
        if origin is not None:
            ast.copy_location(statement, origin)
        elif isinstance(statement, ast.Return) and statement.value is not None and hasattr(statement.value, "lineno"):
            ast.copy_location(statement, statement.value)
        self.statements.append(statement)

    def _return(self) -> None:
        outputs = self.block.outputs
        assert outputs is not None
        self._emit(ast.Return(self._value(outputs)))
        self.returns = ("tuple", len(outputs)) if isinstance(outputs, list) else self._held(outputs)

    def _statement(self, statement: Statement) -> None:
        targets = statement.targets
        value = self._value(statement.value, targets)
        self.held[statement.key] = self._held(statement.value)
        for names, is_known in (self.plain, self._is_plain), (self.maybe_plain, self._may_be_plain):
            if all(is_plain(expression.tree, is_known) for expression in expressions(statement.value)):
                names.update(targets)
        if _is_names(value, targets):  # a threaded call has already bound them
            return
        stored: ast.expr = _store(targets[0])
        if len(targets) > 1:
            stored = ast.Tuple([_store(target) for target in targets], ast.Store())
        self._emit(ast.Assign([stored], value), value if hasattr(value, "lineno") else None)

    def _value(self, value: Value, targets: tuple[str, ...] = ()) -> ast.expr:
        if isinstance(value, Expression):
            self.expression = value
            emitted = len(self.statements)
            lowered = self._expr(value.tree, targets)
            self._list(value, [*self.statements[emitted:], lowered])
            return lowered
        if isinstance(value, list):
            entries = [self._value(entry) for entry in value]
            held = ast.Tuple(entries, ast.Load()) if value is self.block.outputs else ast.List(entries, ast.Load())
        else:
            entries = [self._value(entry) for entry in value.values()]
            held = ast.Dict([ast.Constant(key) for key in value], entries)
        return ast.copy_location(held, entries[0]) if entries else held

    def _list(self, expression: Expression, lowered: Sequence[ast.AST]) -> None:
        """Move the lines of what an expression became to where the listing shows the expression."""
        lines_before = self.listing.add(expression.node.source)
        for part in (part for tree in lowered for part in ast.walk(tree) if lines_before and hasattr(part, "lineno")):
            part.lineno += lines_before  # pyrefly: ignore
            part.end_lineno += lines_before  # pyrefly: ignore

    # values that hold others

    def _held(self, value: Value) -> Held | None:
        """What a lowered value holds; None for a tensor or number, and where that is not known or may vary."""
        if not isinstance(value, Expression):
            return ("list", len(value)) if isinstance(value, list) else ("dict", len(value))
        self.expression = value
        return self._held_by(value.tree)

    def _held_by(self, tree: ast.expr) -> Held | None:
        match tree:
            case ast.Tuple(elts=entries) | ast.List(elts=entries) | ast.Dict(values=entries):
                return type(tree).__name__.lower(), len(entries)
            case ast.Name():
                return self.held.get(tree.id)
            case ast.IfExp():
                assert self.expression is not None
                rest = remaining(self.expression, self.params, tree.test, self.block)
                branches = [tree.body] * (rest is not False) + [tree.orelse] * (rest is not True)
                held = {self._held_by(branch) for branch in branches}
                return held.pop() if len(held) == 1 else None
            case ast.Subscript(slice=ast.Slice()) if self._root(tree) not in self.modules:
                whole = self._held_by(tree.value)
                return (whole[0], None) if whole is not None else None
            case ast.Call(func=ast.Attribute(attr="scan" | "map") as callee) if self._is_list(callee.value):
                return "list", None
            case ast.Call(func=callee) if self._root(callee) in self.modules:
                return returned_by(self._member(callee).object)
            case ast.Call(func=ast.Name(id=name)):
                block = self.block.find_block(name)
                return self._function(tree, block)[1].returns if block is not None else None
        return None

    # expressions

    def _error(self, message: str, part: ast.expr, hint: str = "") -> ConfigError:
        assert self.expression is not None
        return ConfigError(Problem(message, self.expression.place(part), hint))

    def _evaluate(self, tree: ast.expr) -> Any:
        assert self.expression is not None
        return evaluate(self.expression, self.params, tree)

    def _expr(self, tree: ast.expr, targets: tuple[str, ...] = ()) -> ast.expr:
        return ast.copy_location(self._lower(tree, targets), tree)

    def _lower(self, tree: ast.expr, targets: tuple[str, ...]) -> ast.expr:
        match tree:
            case ast.Name():
                return self._name(tree)
            case ast.Call():
                return self._call(tree, targets)
            case ast.IfExp():
                return self._conditional(tree, targets)
            case ast.Attribute() | ast.Subscript() if self._root(tree) in self.modules:
                return self._read_member(tree)
            case ast.Attribute():
                return ast.Attribute(self._expr(tree.value), tree.attr, ast.Load())
            case ast.Subscript():
                return ast.Subscript(self._expr(tree.value), self._expr(tree.slice), ast.Load())
            case ast.Slice():
                parts = (tree.lower, tree.upper, tree.step)
                return ast.Slice(*(None if part is None else self._expr(part) for part in parts))
            case ast.BinOp():
                return ast.BinOp(self._expr(tree.left), tree.op, self._expr(tree.right))
            case ast.UnaryOp():
                return ast.UnaryOp(tree.op, self._expr(tree.operand))
            case ast.BoolOp():
                return ast.BoolOp(tree.op, [self._expr(value) for value in tree.values])
            case ast.Compare():
                if len(tree.ops) > 1 and not is_plain(tree, self._may_be_plain):
                    hint = "of tensors each comparison stands alone: (0 < x) & (x < 1)"
                    raise self._error("a chain of comparisons has no tensor result.", tree, hint)
                return ast.Compare(self._expr(tree.left), tree.ops, [self._expr(entry) for entry in tree.comparators])
            case ast.Tuple():
                return ast.Tuple([self._expr(entry) for entry in tree.elts], ast.Load())
            case ast.List():
                return ast.List([self._expr(entry) for entry in tree.elts], ast.Load())
            case ast.Dict():
                keys = [None if key is None else self._expr(key) for key in tree.keys]
                return ast.Dict(keys, [self._expr(value) for value in tree.values])
            case ast.Constant():
                return ast.Constant(tree.value)
        raise AssertionError(f"the grammar lets no {type(tree).__name__} through")

    def _name(self, tree: ast.Name) -> ast.expr:
        name = tree.id
        if name in self.params:
            return _literal(self.params[name])
        if name in self.block.symbols:
            self.symbols_read.add(name)
            return _load(name)
        if name in self.modules:
            return self._read_member(tree)
        if name in self.locals:
            return _load(name)
        if name == "training":
            return self._training()
        if name in CONSTANTS:
            return ast.Attribute(self._global(CONSTANTS[name][0]), name, ast.Load())
        assert name in DTYPES, f"check_names lets no unknown name through: {name}"
        return ast.Attribute(self._global("torch"), name, ast.Load())

    def _training(self) -> ast.expr:
        self.needs_training = True
        return ast.Attribute(_load("self"), "training", ast.Load()) if self.is_method else _load("training")

    def _global(self, dotted: str, value: Any = None) -> ast.expr:
        """Code that reads a name of the function's globals; a local of that name gives it an underscore."""
        first, *rest = dotted.split(".")
        value = _MODULES[first] if value is None else value
        alias = first
        while alias in self.locals or self.scope.get(alias, value) is not value:
            alias = f"_{alias}"
        self.scope[alias] = value
        code: ast.expr = _load(alias)
        for attribute in rest:
            code = ast.Attribute(code, attribute, ast.Load())
        return code

    def _conditional(self, tree: ast.IfExp, targets: tuple[str, ...]) -> ast.expr:
        assert self.expression is not None
        rest = remaining(self.expression, self.params, tree.test, self.block)
        if isinstance(rest, bool):
            return self._expr(tree.body if rest else tree.orelse, targets)
        test = self._expr(rest)
        outer = self.statements
        branches = []
        for branch in (tree.body, tree.orelse):
            self.statements = []
            branches.append((self._expr(branch), self.statements))
        self.statements = outer
        (then, then_statements), (otherwise, else_statements) = branches
        if not then_statements and not else_statements:
            return ast.IfExp(test, then, otherwise)
        name = targets[0] if len(targets) == 1 else self._fresh("chosen")
        body = [*then_statements, ast.copy_location(ast.Assign([_store(name)], then), tree.body)]
        orelse = [*else_statements, ast.copy_location(ast.Assign([_store(name)], otherwise), tree.orelse)]
        self._emit(ast.If(test, body, orelse), tree)
        return _load(name)

    # paths into modules

    def _root(self, tree: ast.AST) -> str:
        while isinstance(tree, ast.Attribute | ast.Subscript):
            tree = tree.value
        return tree.id if isinstance(tree, ast.Name) else ""

    def _member(self, tree: ast.expr) -> _Member:
        """Follow a path such as `text_model.encoder.layers[0]` or `wte.weight` through the modules."""
        steps: list[ast.Attribute | ast.Subscript] = []
        at: ast.expr = tree
        while isinstance(at, ast.Attribute | ast.Subscript):
            steps.insert(0, at)
            at = at.value
        assert isinstance(at, ast.Name)
        member = _Member(self.modules[at.id], ast.Attribute(_load("self"), at.id, ast.Load()))
        for position, step in enumerate(steps):
            if not isinstance(member.object, nn.Module):
                member.rest = steps[position:]
                break
            member = self._step(member, step)
        return member

    def _step(self, member: _Member, step: ast.Attribute | ast.Subscript) -> _Member:
        module = member.object
        if isinstance(step, ast.Attribute):
            key: Any = step.attr
        elif is_build_time(step.slice, self.block):
            key = self._evaluate(step.slice)
        else:
            hint = "modules are chosen when the model is built: by numbers and params"
            raise self._error("which module this is depends on the input.", step.slice, hint)
        if isinstance(key, slice):
            hint = "call its entries by their numbers, or build two lists"
            raise self._error(f"modules are chosen one by one; '{ast.unparse(step)}' is a part of a list.", step, hint)
        if isinstance(key, int) and isinstance(module, nn.ModuleList | nn.Sequential):
            if not -len(module) <= key < len(module):
                raise self._error(f"this list has {len(module)} modules; it has no [{key}].", step)
            return _Member(module[key], ast.Subscript(member.code, ast.Constant(key), ast.Load()))
        entries = {**module._modules, **module._parameters, **module._buffers}
        if not isinstance(key, str) or key not in entries:
            what = ast.unparse(step.value)
            hint = nearest(key, entries) or f"'{what}' holds no modules or parameters"
            raise self._error(f"'{what}' has no '{key}'.", step, hint)
        code = ast.Attribute(member.code, key, ast.Load())
        if key.isdigit():
            code = ast.Subscript(member.code, ast.Constant(int(key)), ast.Load())
        return _Member(entries[key], code)

    def _read_member(self, tree: ast.expr) -> ast.expr:
        member = self._member(tree)
        if isinstance(member.object, nn.Module):
            hint = "call it, or read a parameter of it by path"
            raise self._error(f"'{ast.unparse(tree)}' is a module, not a value.", tree, hint)
        code = ast.copy_location(member.code, tree)
        for step in member.rest:
            if isinstance(step, ast.Attribute):
                if step.attr not in ATTRIBUTES:
                    raise self._error(f"a value has no '.{step.attr}' to read.", step, nearest(step.attr, ATTRIBUTES))
                code = ast.copy_location(ast.Attribute(code, step.attr, ast.Load()), step)
            else:
                code = ast.copy_location(ast.Subscript(code, self._expr(step.slice), ast.Load()), step)
        return code

    # calls

    def _call(self, tree: ast.Call, targets: tuple[str, ...]) -> ast.expr:
        callee = tree.func
        if self._root(callee) in self.modules:
            return self._module_call(tree, targets)
        if isinstance(callee, ast.Attribute):
            method = ast.copy_location(ast.Attribute(self._expr(callee.value), callee.attr, ast.Load()), callee)
            held = self._held_by(callee.value)
            if held is not None:
                hint = "read one of its entries, or join them to one tensor: stack(...), cat(...)"
                raise self._error(f"a {held[0]} has no method '{callee.attr}'; tensors have.", callee, hint)
            return ast.Call(method, *self._arguments(tree))
        assert isinstance(callee, ast.Name)
        block = self.block.find_block(callee.id)  # a name of the file hides a function of that name
        if block is not None:
            return self._block_call(tree, block)
        if callee.id in PLAIN_FUNCTIONS and is_plain(tree, self._is_plain):
            module, function = PLAIN_FUNCTIONS[callee.id]
            name = self._global(f"math.{callee.id}") if module else self._global(callee.id, function)
            return ast.Call(name, *self._arguments(tree))
        return self._op_call(tree, callee.id)

    def _is_plain(self, name: str) -> bool:
        return name in self.plain

    def _may_be_plain(self, name: str) -> bool:
        return name in self.plain or name in self.maybe_plain

    def _arguments(self, tree: ast.Call) -> tuple[list[ast.expr], list[ast.keyword]]:
        positional = [self._expr(argument) for argument in tree.args]
        keywords = [
            ast.copy_location(ast.keyword(keyword.arg, self._expr(keyword.value)), keyword) for keyword in tree.keywords
        ]
        return positional, keywords

    def _op_call(self, tree: ast.Call, name: str) -> ast.expr:
        arguments, keywords = self._arguments(tree)
        given = {keyword.arg for keyword in keywords}
        if OPS.has(name) or name in torch_ops():
            position = training_position(name)
            if position is not None and "training" not in given and len(arguments) <= position:
                keywords.append(ast.keyword("training", self._training()))
        if OPS.has(name):
            return ast.Call(self._global(name, OPS.get(name)), arguments, keywords)
        if name not in torch_ops():
            raise self._error(f"'{name}' takes plain numbers: params, symbols and literals.", tree)
        if name in NEEDS_DIM:
            dims = [*arguments[1:2], *(keyword.value for keyword in keywords if keyword.arg == "dim")]
            if all(isinstance(dim, ast.Constant) and dim.value is None for dim in dims):
                raise self._error(ANY_DIM.format(name), tree, WRITE_DIM)
        if name == "scaled_dot_product_attention":
            self._drop_in_training(tree, arguments, keywords)
        module = torch_ops()[name][0]
        if name == "einsum" and arguments:
            pattern = self._evaluate(tree.args[0]) if is_build_time(tree.args[0], self.block) else None
            if isinstance(pattern, str) and names_axes(pattern):
                arguments = [*arguments[1:], arguments[0]]
                pattern = None
            module = "torch" if pattern is not None else "einops"  # which has it last
        if creates(name, len(arguments), given) and "device" not in given:
            keywords.append(ast.keyword("device", self._device()))
        function = ast.copy_location(self._global(f"{module}.{name}"), tree.func)
        return ast.Call(function, arguments, keywords)

    def _drop_in_training(self, tree: ast.Call, arguments: list[ast.expr], keywords: list[ast.keyword]) -> None:
        """Switch the dropout of attention off in eval: the op has no argument `training`."""

        def switched(written: ast.expr, lowered: ast.expr) -> ast.expr:
            names = {part.id for part in ast.walk(written) if isinstance(part, ast.Name)}
            if "training" in names or (isinstance(lowered, ast.Constant) and not lowered.value):
                return lowered
            return ast.copy_location(ast.IfExp(self._training(), lowered, ast.Constant(0.0)), lowered)

        arguments[4:5] = map(switched, tree.args[4:5], arguments[4:5])
        for written, keyword in zip(tree.keywords, keywords, strict=True):
            if keyword.arg == "dropout_p":
                keyword.value = switched(written.value, keyword.value)

    def _block_call(self, tree: ast.Call, block: Block) -> ast.expr:
        """A block without modules is a function: its params are given by keyword and fixed when it is compiled."""
        if block.modules:
            hint = f"build it under 'modules', as in {block.name}_1: {block.name}(...), and call that"
            raise self._error(f"the block '{block.name}' holds modules.", tree, hint)
        inputs = [keyword for keyword in tree.keywords if keyword.arg in block.inputs]
        self._check_inputs(tree, block.name, tuple(block.inputs.items()), inputs)
        name, compiled = self._function(tree, block)
        arguments = [self._expr(argument) for argument in tree.args]
        keywords = [ast.keyword(keyword.arg, self._expr(keyword.value)) for keyword in inputs]
        if compiled.needs_training:
            keywords.append(ast.keyword("training", self._training()))
        if compiled.device_name:
            keywords.append(ast.keyword(compiled.device_name, self._device()))
        return ast.Call(self._global(name, compiled.function()), arguments, keywords)

    def _function(self, tree: ast.Call, block: Block) -> tuple[str, Compiled]:
        """The function of a block for the params that a call gives, and its name; one for all calls that give these."""
        given: dict[str, Any] = {}
        places = {"": self.expression.place(tree) if self.expression else None}
        for keyword in tree.keywords:
            if keyword.arg in block.inputs:
                continue
            if not is_build_time(keyword.value, self.block):
                hint = nearest(keyword.arg, block.inputs) if keyword.arg not in block.params else ""
                raise self._error("a param is known when the model is built.", keyword.value, hint)
            assert keyword.arg is not None
            given[keyword.arg] = self._evaluate(keyword.value)
            places[keyword.arg] = self.expression.place(keyword.value) if self.expression else None
        helper_key = (block, tuple(sorted((name, repr(value)) for name, value in given.items())))
        if helper_key not in self.helpers:
            graph = build_graph(block, bind_params(block, given, places))
            if block in self.inside:
                chain = " -> ".join(level.name for level in (*self.inside, block))
                raise self._error(f"the block '{block.name}' contains itself: {chain}.", tree)
            if next(self.made) > limits().functions:
                raise self._error(f"blocks without modules give more than {limits().functions} functions here.", tree)
            name = block.name
            taken = {*(other for other, _ in self.helpers.values()), *self.locals, *_MODULES, *PLAIN_FUNCTIONS, "zip"}
            while name in taken:
                name += "_"
            compiled = _Lowering(graph, {}, name, is_method=False, inside=self.inside, made=self.made).compiled()
            self.helpers[helper_key] = (name, compiled)
        return self.helpers[helper_key]

    def _check_inputs(
        self, tree: ast.Call, name: str, inputs: Sequence[tuple[str, Input]], keywords: Sequence[ast.keyword]
    ) -> None:
        """Whether the arguments of a call bind the declared inputs of a block."""
        names = [declared for declared, _ in inputs]
        if len(tree.args) > len(names):
            hint = f"its inputs: {', '.join(names) or 'none'}"
            raise self._error(f"'{name}' takes {len(names)} inputs; {len(tree.args)} are given.", tree, hint)
        bound = set(names[: len(tree.args)])
        for keyword in keywords:
            if keyword.arg not in names:
                raise self._error(f"'{name}' has no input '{keyword.arg}'.", keyword.value, nearest(keyword.arg, names))
            if keyword.arg in bound:
                raise self._error(f"the input '{keyword.arg}' of '{name}' is given twice.", keyword.value)
            bound.add(str(keyword.arg))
        missing = [declared for declared, entry in inputs if declared not in bound and not entry.optional]
        if missing:
            raise self._error(f"'{name}' needs the input{'s' * (len(missing) > 1)} {', '.join(missing)}.", tree)

    def _is_list(self, tree: ast.expr) -> bool:
        return self._root(tree) in self.modules and isinstance(self._member(tree).object, nn.ModuleList)

    def _module_call(self, tree: ast.Call, targets: tuple[str, ...]) -> ast.expr:
        callee = tree.func
        if isinstance(callee, ast.Attribute) and callee.attr in ("scan", "map") and self._is_list(callee.value):
            how = self._scan if callee.attr == "scan" else self._map
            return how(tree, self._member(callee.value), targets)
        if isinstance(callee, ast.Attribute) and callee.attr in METHODS:
            owner = self._member(callee.value) if not isinstance(callee.value, ast.Call) else None
            if owner is not None and not isinstance(owner.object, nn.Module):
                method = ast.Attribute(self._read_member(callee.value), callee.attr, ast.Load())
                return ast.Call(ast.copy_location(method, callee), *self._arguments(tree))
        member = self._member(callee)
        if isinstance(member.object, nn.ModuleList):
            return self._thread(tree, member, targets)
        if not isinstance(member.object, nn.Module) or member.rest:
            raise self._error(f"'{ast.unparse(callee)}' is a value and cannot be called.", callee)
        if type(member.object).forward is nn.Module.forward:  # a namespace, or a container of another kind
            hint = nearest("", member.object._modules)
            raise self._error(f"'{ast.unparse(callee)}' only holds modules; call one of them.", callee, hint)
        block = getattr(member.object, "_block", None)
        if isinstance(block, Block):
            self._check_inputs(tree, ast.unparse(callee), tuple(block.inputs.items()), tree.keywords)
        return ast.Call(ast.copy_location(member.code, callee), *self._arguments(tree))

    # lists of modules

    def _thread(self, tree: ast.Call, member: _Member, targets: tuple[str, ...]) -> ast.expr:
        """`h = first; for layer in layers: h = layer(h, ...)`"""
        carried, returns = self._start(tree, member, targets)
        self._loop(tree, member, carried, returns, [])
        return self._carried_value(carried, returns)

    def _scan(self, tree: ast.Call, member: _Member, targets: tuple[str, ...]) -> ast.expr:
        """As threading, and a list of every member's result."""
        carried, returns = self._start(tree, member, ())
        results = targets[0] if len(targets) == 1 and targets[0] != "_" else self._fresh("results")
        self._emit(ast.Assign([_store(results)], ast.List([], ast.Load())), tree)
        append = ast.Attribute(_load(results), "append", ast.Load())
        self._loop(
            tree, member, carried, returns, [ast.Expr(ast.Call(append, [self._carried_value(carried, returns)], []))]
        )
        return _load(results)

    def _start(self, tree: ast.Call, member: _Member, targets: tuple[str, ...]) -> tuple[list[str], int | None]:
        """Bind what the first member is given; the names that are threaded, and how many a member returns."""
        returns = self._returns(tree, member.object)
        count = returns or 1
        if len(tree.args) < count:
            threaded = "its first argument" if count == 1 else f"its first {count} arguments"
            hint = f"give {'it' if count == 1 else 'them'} by position; what is given by keyword goes to every member"
            raise self._error(f"a list threads {threaded}; the call gives {len(tree.args)} by position.", tree, hint)
        self._check_members(tree, member.object)
        carried = self._carried(member.object, count, targets)
        self._assign(carried, [self._expr(argument) for argument in tree.args[:count]], tree)
        return carried, returns

    def _carried_value(self, carried: list[str], returns: int | None) -> ast.expr:
        return _load(carried[0]) if returns is None else ast.Tuple([_load(name) for name in carried], ast.Load())

    def _check_members(self, tree: ast.Call, members: nn.ModuleList) -> None:
        """Whether each member can be called as the list is."""
        for position, member in enumerate(members):
            if type(member).forward is nn.Module.forward:
                hint = "choose an entry by its number, or call the inner lists one by one"
                raise self._error(f"member {position} of this list is a list or namespace itself.", tree, hint)
        blocks = (getattr(member, "_block", None) for member in members)
        for block in {id(block): block for block in blocks if isinstance(block, Block)}.values():
            self._check_inputs(tree, block.name, tuple(block.inputs.items()), tree.keywords)

    def _map(self, tree: ast.Call, member: _Member, targets: tuple[str, ...]) -> ast.expr:
        """`[expert(x) for expert in experts]`"""
        self._check_members(tree, member.object)
        loop_name, iterated, unpacked, arguments, keywords = self._each(tree, member, skip=0)
        call = ast.Call(_load(loop_name), arguments, keywords)
        target = ast.Tuple([_store(n) for n in unpacked], ast.Store()) if len(unpacked) > 1 else _store(unpacked[0])
        return ast.ListComp(call, [ast.comprehension(target, iterated, [], 0)])

    def _loop(
        self, tree: ast.Call, member: _Member, carried: list[str], returns: int | None, then: list[ast.stmt]
    ) -> None:
        loop_name, iterated, unpacked, arguments, keywords = self._each(tree, member, skip=len(carried))
        call = ast.Call(_load(loop_name), [*map(_load, carried), *arguments], keywords)
        stored: ast.expr = _store(carried[0])
        if returns is not None:
            stored = ast.Tuple([_store(name) for name in carried], ast.Store())
        target = ast.Tuple([_store(n) for n in unpacked], ast.Store()) if len(unpacked) > 1 else _store(unpacked[0])
        ast.copy_location(call, tree)
        body: list[ast.stmt] = [ast.Assign([stored], call), *then]
        self._emit(ast.For(target, iterated, body, []), tree)

    def _each(
        self, tree: ast.Call, member: _Member, skip: int
    ) -> tuple[str, ast.expr, list[str], list[ast.expr], list[ast.keyword]]:
        """The loop variable(s), what is iterated, and the arguments of the call inside the loop."""
        name = (
            tree.func.value if isinstance(tree.func, ast.Attribute) and tree.func.attr in ("scan", "map") else tree.func
        )
        word = name.attr if isinstance(name, ast.Attribute) else name.id if isinstance(name, ast.Name) else "member"
        loop_name = self._fresh(word[:-1] if word.endswith("s") and len(word) > 2 else "member")
        inputs = self._input_names(member.object)
        unpacked, zipped = [loop_name], [ast.copy_location(member.code, tree.func)]

        def argument(part: ast.expr, hint: str) -> ast.expr:
            if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id == "each":
                lowered = self._expr(part.args[0])
                unpacked.append(self._fresh(f"{hint}_i" if hint in self.locals else hint))
                zipped.append(lowered)
                return _load(unpacked[-1])
            lowered = self._expr(part)
            if isinstance(lowered, ast.Name | ast.Constant) or _is_path(lowered):
                return lowered
            once = self._fresh(hint)  # evaluated once, not by each member
            self._emit(ast.Assign([_store(once)], lowered), part)
            return _load(once)

        names = [*inputs[skip:], *["value"] * len(tree.args)]
        arguments = [argument(part, names[i]) for i, part in enumerate(tree.args[skip:])]
        keywords = [ast.keyword(k.arg, argument(k.value, str(k.arg))) for k in tree.keywords]
        iterated = zipped[0]
        if len(zipped) > 1:
            strict = [ast.keyword("strict", ast.Constant(True))]
            iterated = ast.Call(self._global("zip", zip), zipped, strict)
        return loop_name, iterated, unpacked, arguments, keywords

    def _returns(self, tree: ast.Call, members: nn.ModuleList) -> int | None:
        """How many values each member returns as a tuple."""
        held = [returned_by(member) for member in members] or [returned_by(members)]
        returned = {entry[1] if entry is not None and entry[0] == "tuple" else None for entry in held}
        if len(returned) > 1:
            counts = " and ".join(sorted(f"{count or 1}" for count in returned))
            raise self._error(f"the members of this list return {counts} values: it cannot be threaded.", tree)
        return returned.pop()

    def _input_names(self, members: nn.ModuleList) -> list[str]:
        return list(getattr(members[0], "inputs", ())) if len(members) else []

    def _carried(self, members: nn.ModuleList, count: int, targets: tuple[str, ...]) -> list[str]:
        if len(targets) == count and "_" not in targets:
            return list(targets)
        inputs = [*self._input_names(members), *["x"] * count]
        return [self._fresh(name) for name in inputs[:count]]

    def _assign(self, names: list[str], values: list[ast.expr], origin: ast.AST) -> None:
        if len(names) == 1:
            if not _is_names(values[0], tuple(names)):
                self._emit(ast.Assign([_store(names[0])], values[0]), values[0])
            return
        target = ast.Tuple([_store(name) for name in names], ast.Store())
        self._emit(ast.Assign([target], ast.Tuple(values, ast.Load())), origin)

    def _fresh(self, name: str) -> str:
        """A local name that nothing else has."""
        fresh, count = name, 1
        while fresh in self.locals or fresh in self.scope or fresh in _MODULES:
            count += 1
            fresh = f"{name}_{count}"
        self.locals.add(fresh)
        return fresh


def device_of(*values: Any) -> torch.device | None:
    """The device of the first tensor among values, also in lists and dicts; of a module, that of its first weight.

    None, which is the default device, where there is none. Compiled code calls it.
    """
    for value in values:
        if isinstance(value, torch.Tensor):
            return value.device
        if isinstance(value, nn.Module):
            value = [*value.parameters(), *value.buffers()][:1]
        elif isinstance(value, dict):
            value = list(value.values())
        device = device_of(*value) if isinstance(value, list | tuple) else None
        if device is not None:
            return device
    return None


def _is_path(code: ast.expr) -> bool:
    """Whether code only reads a member, as `self.norm.weight` does: that costs and changes nothing."""
    while isinstance(code, ast.Attribute):
        code = code.value
    return isinstance(code, ast.Name) and code.id == "self"


def _load(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _store(name: str) -> ast.Name:
    return ast.Name(name, ast.Store())


def _literal(value: Any) -> ast.expr:
    """The code of a param's value."""
    if isinstance(value, float) and not math.isfinite(value):
        number = ast.Constant(1e999)  # which Python writes for infinity, whatever the names of a file are
        return (
            ast.BinOp(number, ast.Sub(), number)
            if math.isnan(value)
            else number
            if value > 0
            else ast.UnaryOp(ast.USub(), number)
        )
    if isinstance(value, list | tuple):
        return ast.List([_literal(entry) for entry in value], ast.Load())
    if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
        return ast.UnaryOp(ast.USub(), ast.Constant(-value))
    return ast.Constant(value)


def _is_names(value: ast.expr, targets: tuple[str, ...]) -> bool:
    """Whether a lowered value just reads the very names it is to be bound to."""
    if len(targets) == 1:
        return isinstance(value, ast.Name) and value.id == targets[0]
    return (
        isinstance(value, ast.Tuple)
        and len(value.elts) == len(targets)
        and all(isinstance(e, ast.Name) and e.id == t for e, t in zip(value.elts, targets, strict=True))
    )
