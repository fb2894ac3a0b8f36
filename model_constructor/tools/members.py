"""Members: the `__init__` of a class that is written out, from the constructor expressions of its block."""

from __future__ import annotations

import ast
import copy
import inspect
import math
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..block import Value
from ..construct import chosen, is_blank, is_constructor
from ..expressions import Expression, evaluate, links
from ..init import _DIMENSIONS, _called, _selected
from ..lowering import _MODULES, _literal
from ..model import GraphModel
from ..names import CONSTANTS, PLAIN_FUNCTIONS, TYPES, find_type, torch_ops
from ..selectors import _is_a, parse_selector
from .printer import remark

if TYPE_CHECKING:
    from ..block import Block
    from .standalone import Standalone, Use

_DRAWS_NOTHING = ("zeros", "ones", "constant", "eye", "dirac")
_MOST_NAMED = 3  # parameters that are filled one by one
_LOCALS = ("self", "super", "module", "parameter", "name", "index")  # of `__init__`, which no argument may hide


def load(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def store(name: str) -> ast.Name:
    return ast.Name(name, ast.Store())


def argument(name: str) -> str:
    """What `__init__` calls a param."""
    return f"{name}_" if name in _LOCALS else name


literal = _literal


class Init:
    """Writes what the members of one use of a block are built by."""

    def __init__(self, sheet: Standalone, use: Use) -> None:
        self.sheet = sheet
        self.use = use
        self.block = use.graph.block
        self.params = use.graph.params
        self.read: set[str] = set()  # the params
        self.extras: dict[str, int] = {}  # arguments for sizes that are inferred
        self.statements: list[ast.stmt] = []
        self.index: int | None = None  # of the list that is being written
        self.writes_index = False  # whether it is written as a number
        self.tests: list[ast.expr] = []  # what the index decides
        self.blanks: dict[ast.expr, ast.expr] = {}  # each `_` that is given to a block, and what it comes to

    def body(self) -> list[ast.stmt]:
        prefix = f"{self.use.path}." if self.use.path else ""
        for name, value in self.block.modules.items():
            if name in self.use.graph.modules:
                emitted = len(self.statements)
                self.member(load("self"), name, value, f"{prefix}{name}")
                if len(self.statements) > emitted:
                    first = self.statements[emitted]
                    remark(self.block, first, first, self.block.module_places[name], value)
        for selector, value in self.block.init.items():
            self.initialise(selector, value)
        return self.statements

    # members

    def member(self, owner: ast.expr, name: str, value: Value, path: str) -> None:
        target = ast.Attribute(owner, name, ast.Store())
        if isinstance(value, Expression):
            tensor = self.tensor_call(value)
            if tensor is not None:
                self.tensor(owner, name, value, tensor)
            else:
                self.emit(target, self.code(value, value.tree, path))
        elif isinstance(value, dict):
            self.emit(target, ast.Call(self.sheet.nn("Module"), [], []))
            for key, entry in value.items():
                self.member(target, key, entry, f"{path}.{key}")
        elif all(isinstance(entry, Expression) for entry in value):
            entries = [self.code(e, e.tree, f"{path}.{i}") for i, e in enumerate(value) if isinstance(e, Expression)]
            self.emit(target, self.module_list(entries))
        else:
            self.emit(target, self.module_list([]))
            for position, entry in enumerate(value):
                self.append(target, position, entry, f"{path}.{position}")

    def append(self, target: ast.expr, position: int, value: Value, path: str) -> None:
        """Add an entry to a list that holds namespaces."""
        if isinstance(value, Expression):
            new = self.code(value, value.tree, path)
        else:
            new = ast.Call(self.sheet.nn("Module" if isinstance(value, dict) else "ModuleList"), [], [])
        append = ast.Attribute(target, "append", ast.Load())
        self.statements.append(ast.Expr(ast.Call(append, [new], [])))
        inner = ast.Subscript(target, ast.Constant(position), ast.Load())
        for key, entry in value.items() if isinstance(value, dict) else ():
            self.member(inner, key, entry, f"{path}.{key}")
        for key, entry in enumerate(value if isinstance(value, list) else ()):
            self.append(inner, key, entry, f"{path}.{key}")

    def emit(self, target: ast.expr, value: ast.expr) -> None:
        self.statements.append(ast.Assign([target], value))

    def module_list(self, entries: list[ast.expr]) -> ast.expr:
        arguments: list[ast.expr] = [ast.List(entries, ast.Load())] if entries else []
        return ast.Call(self.sheet.nn("ModuleList"), arguments, [])

    # constructors

    def code(self, expression: Expression, tree: ast.expr, path: str) -> ast.expr:
        """What a constructor expression says, as Python."""
        match tree:
            case ast.IfExp() | ast.Subscript():
                return self.part(expression, tree, path)
            case ast.BinOp(op=ast.RShift()):
                parts = [self.code(expression, link, f"{path}.{i}") for i, link in enumerate(links(tree))]
                return ast.Call(self.sheet.nn("Sequential"), parts, [])
            case ast.BinOp(op=ast.Mult()):
                return self.repeat(expression, tree, path)
            case ast.List():
                return self.module_list([self.code(expression, e, f"{path}.{i}") for i, e in enumerate(tree.elts)])
        assert isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)
        block = self.block.find_block(tree.func.id)
        if block is not None:
            return self.block_call(expression, tree, block, path)
        kind = find_type(tree.func.id)
        assert kind is not None
        called = self.sheet.type_code(kind)
        arguments = [self.part(expression, part, path, tree) for part in tree.args]
        keywords = [ast.keyword(k.arg, self.part(expression, k.value, path, tree)) for k in tree.keywords]
        return ast.Call(called, arguments, keywords)

    def part(self, expression: Expression, tree: ast.expr, path: str, caller: ast.Call | None = None) -> ast.expr:
        """An argument: a size that is inferred, a module, or a value."""
        if is_blank(tree):
            assert caller is not None
            return self.blank(tree, caller, path)
        if isinstance(tree, ast.IfExp) and is_constructor(tree, self.block):
            return self.conditional(expression, tree, path, caller)
        if isinstance(tree, ast.Subscript) and is_constructor(tree, self.block):
            self.decide(expression, tree.slice)
            return self.part(expression, chosen(expression, tree, self.values()), path, caller)
        if is_constructor(tree, self.block):
            return self.code(expression, tree, f"{path}.{tree.lineno}.{tree.col_offset}" if caller else path)
        return self.value(expression, tree)

    def conditional(
        self, expression: Expression, tree: ast.IfExp, path: str, caller: ast.Call | None = None
    ) -> ast.expr:
        """As it is written; decided where only what is built can be written, since the other branch is not known."""
        taken = tree.body if evaluate(expression, self.values(), tree.test) else tree.orelse
        other = tree.orelse if taken is tree.body else tree.body
        holds_blocks = any(
            is_blank(part) or (isinstance(part, ast.Call) and self.block.find_block(getattr(part.func, "id", "")))
            for part in ast.walk(other)
            if isinstance(part, ast.expr)
        )
        if holds_blocks or self.is_fixed(tree.test):
            self.decide(expression, tree.test)
            return self.part(expression, taken, path, caller)
        body, orelse = (self.part(expression, branch, path, caller) for branch in (tree.body, tree.orelse))
        return ast.IfExp(self.value(expression, tree.test), body, orelse)

    def block_call(self, expression: Expression, tree: ast.Call, block: Block, path: str) -> ast.expr:
        definition, sizes = self.sheet.define(self.sheet.uses[path])
        keywords = [ast.keyword(name, ast.Constant(size)) for name, size in sizes.items()]
        self.blanks = {k.value: self.blank(k.value, tree, path) for k in tree.keywords if is_blank(k.value)}
        keywords += self.sheet.pass_params(self, expression, tree, block, definition)
        return ast.Call(self.sheet.name_of(definition, block.name), [], keywords)

    def blank(self, tree: ast.expr, caller: ast.Call, path: str) -> ast.expr:
        """A size that was inferred: an argument, if the uses of the block differ in it."""
        size = self.sheet.sizes[path, tree]
        if len(self.sheet.sizes_of[tree]) == 1 or self.index is not None:
            return ast.Constant(size)
        name = _blank_name(caller, tree)
        if name in self.block.params or self.extras.get(name, size) != size:
            name = f"{path.removeprefix(self.use.path).strip('.').split('.')[0]}_{name}"
        if self.extras.setdefault(name, size) != size:
            return ast.Constant(size)
        return load(name)

    def repeat(self, expression: Expression, tree: ast.BinOp, path: str) -> ast.expr:
        """`A() * n`: a comprehension, or written out where the members are not alike."""
        members = evaluate(expression, self.values(), tree.right)
        count = self.value(expression, tree.right)
        if not members:
            self.decide(expression, tree.right)
            return self.module_list([])
        tests, self.tests = self.tests, []
        codes = [self.at(i, expression, tree.left, f"{path}.{i}") for i in range(members)]
        deciding, self.tests = self.tests, tests
        alike = len({ast.dump(code) for code in codes}) == 1
        common = codes[0] if alike else self.choice(expression, codes, deciding)
        if common is not None:
            return ast.Call(self.sheet.nn("ModuleList"), [self.comprehension(common, count)], [])
        self.decide(expression, tree.right)
        codes = [self.at(i, expression, tree.left, f"{path}.{i}", writes_index=True) for i in range(members)]
        entries: list[ast.expr] = []
        for _, group in groupby(codes, ast.dump):
            run = [*group]
            repeated = self.comprehension(run[0], ast.Constant(len(run)))
            entries += run if len(run) == 1 else [ast.Starred(repeated, ast.Load())]
        return self.module_list(entries)

    def at(self, index: int, expression: Expression, tree: ast.expr, path: str, writes_index: bool = False) -> ast.expr:
        outer, self.index, self.writes_index = (self.index, self.writes_index), index, writes_index
        code = self.part(expression, tree, path)
        self.index, self.writes_index = outer
        return code

    def _at(self, index: int) -> dict[str, Any]:
        return {**self.params, "index": index}

    def comprehension(self, code: ast.expr, count: ast.expr) -> ast.expr:
        reads = any(isinstance(part, ast.Name) and part.id == "index" for part in ast.walk(code))
        counted = ast.Call(self.sheet.name_of(range), [count], [])
        return ast.GeneratorExp(code, [ast.comprehension(store("index" if reads else "_"), counted, [], 0)])

    def choice(self, expression: Expression, codes: list[ast.expr], tests: list[ast.expr]) -> ast.expr | None:
        """`A() if index % 2 == 0 else B()`, if the index decides between two codes by one test."""
        forms = {ast.dump(test): test for test in tests}
        if len({ast.dump(code) for code in codes}) != 2 or len(forms) != 1:
            return None
        (test,) = forms.values()
        outcomes = [bool(evaluate(expression, self._at(i), test)) for i in range(len(codes))]
        of = {
            outcome: {ast.dump(c) for c, o in zip(codes, outcomes, strict=True) if o is outcome}
            for outcome in (True, False)
        }
        if any(len(found) != 1 for found in of.values()):
            return None
        return ast.IfExp(self.value(expression, test), codes[outcomes.index(True)], codes[outcomes.index(False)])

    # values

    def values(self) -> dict[str, Any]:
        return self.params if self.index is None else self._at(self.index)

    def decide(self, expression: Expression, tree: ast.expr) -> None:
        """An expression that decides what is written."""
        self.sheet.fix(self.block, tree)
        if any(isinstance(part, ast.Name) and part.id == "index" for part in ast.walk(tree)):
            self.tests.append(tree)

    def is_fixed(self, tree: ast.expr) -> bool:
        names = {part.id for part in ast.walk(tree) if isinstance(part, ast.Name)}
        fixed = self.sheet.fixed[self.block] | ({"index"} if self.writes_index else set())
        return (
            bool(names & fixed)
            and not (names & self.block.params.keys()) - fixed
            and names - fixed <= PLAIN_FUNCTIONS.keys() | CONSTANTS.keys()
        )

    def value(self, expression: Expression, tree: ast.expr) -> ast.expr:
        """A value over params, as Python."""
        if tree in self.blanks:
            return self.blanks[tree]
        if self.is_fixed(tree):
            found = evaluate(expression, self.values(), tree)
            if not isinstance(found, Tensor | torch.dtype):
                return literal(found)
        match tree:
            case ast.IfExp() if self.is_fixed(tree.test):
                taken = tree.body if evaluate(expression, self.values(), tree.test) else tree.orelse
                return self.value(expression, taken)
            case ast.Name():
                return self.name(expression, tree)
            case ast.Call(func=ast.Name(id=name)):
                parts = [self.value(expression, part) for part in tree.args]
                keywords = [ast.keyword(k.arg, self.value(expression, k.value)) for k in tree.keywords]
                if name in PLAIN_FUNCTIONS and not self.makes_tensor(tree):
                    module, function = PLAIN_FUNCTIONS[name]
                    called = self.sheet.dotted(math, name) if module else self.sheet.name_of(function)
                else:
                    module, function = torch_ops()[name]
                    called = self.op(module, name)
                return ast.Call(called, parts, keywords)
        clone = copy.copy(tree)
        for key, child in ast.iter_fields(tree):
            if isinstance(child, ast.expr):
                setattr(clone, key, self.value(expression, child))
            elif isinstance(child, list) and any(isinstance(entry, ast.expr | ast.keyword) for entry in child):
                setattr(clone, key, [self._entry(expression, entry) for entry in child])
        return clone

    def _entry(self, expression: Expression, entry: Any) -> Any:
        if isinstance(entry, ast.keyword):
            return ast.keyword(entry.arg, self.value(expression, entry.value))
        return self.value(expression, entry) if isinstance(entry, ast.expr) else entry

    def makes_tensor(self, tree: ast.Call) -> bool:
        """Whether an argument is a tensor, so that `abs` and the like mean the op."""
        calls = (part for argument in tree.args for part in ast.walk(argument) if isinstance(part, ast.Call))
        return any(not (isinstance(call.func, ast.Name) and call.func.id in PLAIN_FUNCTIONS) for call in calls)

    def op(self, module: str, name: str) -> ast.expr:
        first, *rest = module.split(".")
        code: ast.expr = self.sheet.name_of(_MODULES[first], first)
        for attribute in (*rest, name):
            code = ast.Attribute(code, attribute, ast.Load())
        return code

    def name(self, expression: Expression, tree: ast.Name) -> ast.expr:
        name = tree.id
        if name in self.params:
            self.read.add(name)
            return load(argument(name))
        if name == "index":
            return load("index")
        if name in CONSTANTS:
            return self.sheet.dotted(math, name)
        return self.sheet.dotted(torch, name)  # a dtype

    # tensors

    def tensor_call(self, value: Expression) -> ast.Call | None:
        """The call of Param or Buffer that an entry comes to."""
        tree = value.tree
        while isinstance(tree, ast.IfExp):
            if not any(
                isinstance(p, ast.Call) and getattr(p.func, "id", "") in ("Param", "Buffer") for p in ast.walk(tree)
            ):
                return None
            self.decide(value, tree.test)
            tree = tree.body if evaluate(value, self.params, tree.test) else tree.orelse
        called = tree.func.id if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) else ""
        return tree if called in ("Param", "Buffer") and isinstance(tree, ast.Call) else None

    def tensor(self, owner: ast.expr, name: str, expression: Expression, tree: ast.Call) -> None:
        options = {k.arg: k.value for k in tree.keywords}
        given = [evaluate(expression, self.params, part) for part in tree.args]
        written = [self.value(expression, part) for part in tree.args]
        if all(type(size) is int for size in given):
            code = self.filled(expression, options.get("init"), written)
        elif isinstance(given[0], Tensor):
            code = written[0]
        else:
            code = ast.Call(self.sheet.dotted(torch, "tensor"), written, [])
            numbers = torch.as_tensor(given[0])
            if isinstance(tree.func, ast.Name) and tree.func.id == "Param" and not numbers.is_floating_point():
                code = ast.Call(ast.Attribute(code, "float", ast.Load()), [], [])
        flags = [
            ast.keyword(key, self.value(expression, options[key]))
            for key in ("requires_grad", "persistent")
            if key in options
        ]
        if isinstance(tree.func, ast.Name) and tree.func.id == "Param":
            self.emit(ast.Attribute(owner, name, ast.Store()), ast.Call(self.sheet.nn("Parameter"), [code], flags))
        else:
            register = ast.Attribute(owner, "register_buffer", ast.Load())
            self.statements.append(ast.Expr(ast.Call(register, [ast.Constant(name), code], flags)))

    def filled(self, expression: Expression, init: ast.expr | None, sizes: list[ast.expr]) -> ast.expr:
        plain = isinstance(init, ast.Name) and init.id in ("zeros", "ones")
        made = init.id if isinstance(init, ast.Name) and plain else "zeros"
        sizes = sizes or [ast.Tuple([], ast.Load())]
        zeros = ast.Call(self.sheet.dotted(torch, made), sizes, [])
        return zeros if init is None or plain else self.fill(expression, init, zeros)

    def fill(self, expression: Expression, init: ast.expr, target: ast.expr) -> ast.expr:
        """The call of torch.nn.init."""
        arguments = [self.value(expression, part) for part in getattr(init, "args", [])]
        keywords = [ast.keyword(k.arg, self.value(expression, k.value)) for k in getattr(init, "keywords", [])]
        called = ast.Attribute(self.sheet.nn("init"), f"{_called(init)}_", ast.Load())
        return ast.Call(called, [target, *arguments], keywords)

    # init

    def initialise(self, selector: str, value: Value) -> None:
        """The loops that fill what an entry of `init` selects; by name, where they would not reach the same."""
        model, steps = self.use.module, parse_selector(selector).steps
        if steps[0] in self.block.modules and not hasattr(model, steps[0]):
            return
        filled = [(expression, [*fits.values()]) for expression, fits in _selected(model, selector, value)]
        path = self.walk(steps)
        if path is None or not self.reaches(path.found, value, filled):
            for expression, fits in _selected(model, selector, value):
                named: list[ast.expr] = [_path_code(name) for name in fits]
                if len(named) <= _MOST_NAMED:
                    self.statements += [ast.Expr(self.fill(expression, expression.tree, code)) for code in named]
                    continue
                names: list[ast.expr] = [ast.Constant(name) for name in fits]
                found = ast.Call(ast.Attribute(load("self"), "get_parameter", ast.Load()), [load("name")], [])
                fill: list[ast.stmt] = [ast.Expr(self.fill(expression, expression.tree, found))]
                self.statements.append(ast.For(store("name"), ast.List(names, ast.Load()), fill, []))
            return
        if isinstance(value, Expression):
            self.statements += path.around(self.fill_module(value, path))
            return
        assert isinstance(value, dict)
        fills = {
            name: self.fill_own(name, entry, path) for name, entry in value.items() if isinstance(entry, Expression)
        }
        random = [e for e in value.values() if isinstance(e, Expression) and _called(e.tree) not in _DRAWS_NOTHING]
        together = (
            [[*fills.values()]] if len(random) < 2 else [[fill] for fill in fills.values()]
        )  # draws keep their order
        for group in together:
            self.statements += path.around(group)

    def fill_module(self, value: Expression, path: _Path) -> list[ast.stmt]:
        """All parameters in a module, or one parameter."""
        if not isinstance(path.found[0], nn.Module):
            return [ast.Expr(self.fill(value, value.tree, path.code))]
        least = _DIMENSIONS.get(_called(value.tree), 0)
        reached = [[n for n, p in module.named_parameters() if p.ndim >= least] for module in path.found]
        if all(names == reached[0] and len(names) == 1 and "." not in names[0] for names in reached):
            own = ast.Attribute(path.code, reached[0][0], ast.Load())
            return [ast.Expr(self.fill(value, value.tree, own))]
        fill: ast.stmt = ast.Expr(self.fill(value, value.tree, load("parameter")))
        if any(p.ndim < least for module in path.found if isinstance(module, nn.Module) for p in module.parameters()):
            ndim = ast.Attribute(load("parameter"), "ndim", ast.Load())
            fill = ast.If(ast.Compare(ndim, [ast.GtE()], [ast.Constant(least)]), [fill], [])
        inside = ast.Call(ast.Attribute(path.code, "parameters", ast.Load()), [], [])
        return [ast.For(store("parameter"), inside, [fill], [])]

    def fill_own(self, name: str, value: Expression, path: _Path) -> ast.stmt:
        """A parameter of a module's own."""
        own = ast.Attribute(path.code, name, ast.Load())
        fill: ast.stmt = ast.Expr(self.fill(value, value.tree, own))
        modules = [module for module in path.found if isinstance(module, nn.Module)]
        if any(module._parameters.get(name) is None for module in modules):
            fill = ast.If(ast.Compare(own, [ast.IsNot()], [ast.Constant(None)]), [fill], [])
        return fill

    def reaches(self, found: list[Any], value: Value, filled: list[tuple[Expression, list[nn.Parameter]]]) -> bool:
        """Whether loops over what was found fill the same parameters in the same order, each once."""
        reached: list[list[nn.Parameter | None]] = []
        if isinstance(value, dict):
            if not all(isinstance(module, nn.Module) for module in found):
                return False
            if any(name not in module._parameters for name in value for module in found):
                return False
            reached = [[module._parameters[name] for module in found] for name in value]
        elif isinstance(value, Expression) and len({isinstance(one, nn.Module) for one in found}) == 1:
            least = _DIMENSIONS.get(_called(value.tree), 0)
            inside = [[*one.parameters()] if isinstance(one, nn.Module) else [one] for one in found]
            reached = [[p for group in inside for p in group if p.ndim >= least]]
        present = [[id(p) for p in group if p is not None] for group in reached]
        return present == [[id(p) for p in fits] for _, fits in filled] and all(len({*g}) == len(g) for g in present)

    def walk(self, steps: tuple[str, ...]) -> _Path | None:
        """The loops of a selector, if it has a form that can be read as such."""
        path = _Path(load("self"), [self.use.module])
        for before, step in zip(("", *steps), steps, strict=False):
            if step.startswith("type:"):
                name = step.removeprefix("type:")
                path.found = [m for one in path.found for m in one.modules() if m is not one and _is_a(m, name)]
                kinds = [self.kind(module, name) for module in path.found]
                written = [*{ast.dump(kind): kind for kind in kinds if kind is not None}.values()]
                if None in kinds or not kinds or any(isinstance(loop, ast.If) for loop in path.loops):
                    return None
                kind = written[0] if len(written) == 1 else ast.Tuple([*written], ast.Load())
                inside = ast.Call(ast.Attribute(path.code, "modules", ast.Load()), [], [])
                path.loops.append(ast.For(store("module"), inside, [], []))
                path.loops.append(ast.If(ast.Call(load("isinstance"), [load("module"), kind], []), [], []))
                path.code = load("module")
            elif step == "[*]":
                if not all(isinstance(one, nn.ModuleList | nn.Sequential) for one in path.found):
                    return None
                word = path.code.attr if isinstance(path.code, ast.Attribute) else "member"
                name = word[:-1] if word.endswith("s") and len(word) > 2 else "member"
                name += "_" * (name in self.params)
                path.loops.append(ast.For(store(name), path.code, [], []))
                path.found = [member for one in path.found for member in one]
                path.code = load(name)
            elif step.isdecimal():
                if not all(
                    isinstance(one, nn.ModuleList | nn.Sequential) and int(step) < len(one) for one in path.found
                ):
                    return None
                path.found = [one[int(step)] for one in path.found]
                path.code = ast.Subscript(path.code, ast.Constant(int(step)), ast.Load())
            elif step.isidentifier():
                if not all(
                    isinstance(one, nn.Module) and isinstance(getattr(one, step, None), nn.Module | Tensor)
                    for one in path.found
                ):
                    return None
                path.found = [getattr(one, step) for one in path.found]
                path.code = ast.Attribute(path.code, step, ast.Load())
            elif step != "**" or before == "**":
                return None
        return path if path.found and steps[-1] != "**" else None

    def kind(self, module: nn.Module, name: str) -> ast.expr | None:
        """The code of the class by which a selector of types knows a module."""
        if isinstance(module, GraphModel):
            use = next((use for use in self.sheet.uses.values() if use.module is module), None)
            return None if use is None else self.sheet.name_of(self.sheet.define(use)[0], use.graph.block.name)
        registered = TYPES.get(name) if TYPES.has(name) else None
        kind = next(kind for kind in type(module).__mro__ if kind is registered or kind.__name__ == name)
        return self.sheet.type_code(kind)


@dataclass(eq=False)
class _Path:
    """How what a selector names is reached: loops and tests, the outermost first, and the code inside them."""

    code: ast.expr
    found: list[Any]
    loops: list[ast.For | ast.If] = field(default_factory=list)

    def around(self, body: list[ast.stmt]) -> list[ast.stmt]:
        for loop in reversed(self.loops):
            loop = copy.copy(loop)
            loop.body = body
            body = [loop]
        return body


def _blank_name(caller: ast.Call, blank: ast.expr) -> str:
    """The argument that a `_` stands for."""
    for keyword in caller.keywords:
        if keyword.value is blank:
            return str(keyword.arg)
    kind = find_type(getattr(caller.func, "id", ""))
    assert kind is not None
    return [*inspect.signature(kind).parameters][caller.args.index(blank)]


def _path_code(path: str) -> ast.expr:
    """`self.layers[1].norm.weight`"""
    code: ast.expr = load("self")
    for part in path.split("."):
        known = ast.Constant(int(part)) if part.isdecimal() else None
        code = ast.Attribute(code, part, ast.Load()) if known is None else ast.Subscript(code, known, ast.Load())
    return code
