"""Standalone: a model -> the classes and functions of a Python module that does not need this package.

A class for each distinct block: `__init__` builds what the constructor expressions say, over the params that are left,
and `forward` is the compiled one with these params in it. What params decide about the graph is decided, and written
in: such a param is *fixed*, and so is every param that a fixed one is computed from, up to the model.
"""

from __future__ import annotations

import ast
import copy
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..block import Block, Statement, _default, bind_params, expressions
from ..build import _finisher
from ..compiler import Compiled
from ..construct import Construction
from ..errors import ConfigError, Place
from ..expressions import Expression, evaluate
from ..graph import Graph, build_graph, remaining
from ..lowering import _MODULES, _Lowering
from ..model import GraphModel, Member
from ..shapes import Shapes, infer_shapes
from .members import Init, argument, literal, load, store
from .printer import about, docstring, remark
from .tidy import tidy


@dataclass(eq=False)
class Global:
    """Something that code reads by a name of its module, chosen when all of the module is known."""

    value: Any  # a module, a class, a function; a Definition
    wanted: str


@dataclass(eq=False)
class Definition:
    """A class or a function that is written; `arguments` are those that take params: name -> annotation, default."""

    block: Block
    tree: ast.ClassDef | ast.FunctionDef
    arguments: dict[str, tuple[str, ast.expr | None]]
    trues: tuple[str, ...]  # the params that are True, and fixed


@dataclass(eq=False)
class Use:
    """One use of a block."""

    path: str
    graph: Graph
    members: dict[str, nn.Module | Tensor]
    module: GraphModel


class Standalone:
    """The definitions of a model, innermost first, and the globals that they read, each by its place in `globals`."""

    def __init__(self, model: GraphModel) -> None:
        self.root = model._block
        self.uses, shapes = _uses(model)
        self.sizes = shapes.sizes
        self.sizes_of: defaultdict[ast.AST, set[int]] = defaultdict(set)  # of a `_`, wherever its block is used
        for (_, blank), size in self.sizes.items():
            self.sizes_of[blank].add(size)
        self.returned: defaultdict[Place, set[str]] = defaultdict(set)  # of each `outputs`: the shapes in all its uses
        for row in shapes.rows:
            if row.name == "outputs":
                self.returned[row.place].add(row.shape)
        self.fixed: defaultdict[Block, set[str]] = defaultdict(set)
        self.fixed[self.root] |= _deciding_sizes(model, shapes)
        known = -1
        while known < (known := sum(map(len, self.fixed.values()))):  # a param that is found to be fixed may fix others
            self.globals: list[Global] = []
            self.definitions: dict[tuple, Definition] = {}
            self._of_use: dict[Use, tuple[Definition, dict[str, int]]] = {}
            self.define(self.uses[""])
            for block in {use.graph.block for use in self.uses.values()}:
                self._fix_derived(block)

    @property
    def name(self) -> str:
        """Of the model's class, once the module is printed."""
        return [*self.definitions.values()][-1].tree.name

    @property
    def written_in(self) -> str:
        """The params of the model that decide its graph, with their values."""
        fixed = (name for name in self.root.params if name in self.fixed[self.root])
        return ", ".join(f"{name}={self.uses[''].graph.params[name]!r}" for name in fixed)

    def fix(self, block: Block, tree: ast.AST) -> None:
        """What an expression comes to is written in: the params that it reads are fixed."""
        self.fixed[block] |= {part.id for part in ast.walk(tree) if isinstance(part, ast.Name)} & block.params.keys()

    def _fix_derived(self, block: Block) -> None:
        """What is computed from fixed params alone is fixed."""
        for name, param in block.params.items():
            parts = param.templates[()].parts if () in param.templates else ()
            read = {n.id for part in parts if isinstance(part, Expression) for n in part.names()} & block.params.keys()
            if read and read <= self.fixed[block]:
                self.fixed[block].add(name)

    def name_of(self, value: Any, wanted: str = "") -> ast.Name:
        """Code that reads a global."""
        for number, known in enumerate(self.globals):
            if known.value is value:
                return load(f"§{number}§")
        self.globals.append(Global(value, wanted or getattr(value, "__name__", "").rpartition(".")[2]))
        return load(f"§{len(self.globals) - 1}§")

    def dotted(self, module: Any, name: str, wanted: str = "") -> ast.expr:
        return ast.Attribute(self.name_of(module, wanted), name, ast.Load())

    def nn(self, name: str) -> ast.expr:
        return self.dotted(nn, name)

    def type_code(self, kind: Any) -> ast.expr:
        """Code that reads a type: of torch.nn by its name there."""
        is_torchs = getattr(nn, getattr(kind, "__name__", ""), None) is kind
        return self.nn(kind.__name__) if is_torchs else self.name_of(kind)

    def define(self, use: Use) -> tuple[Definition, dict[str, int]]:
        """The class of a use, equal ones are one; and the inferred sizes that the use gives it."""
        if use not in self._of_use:
            definition, sizes = _class_of(self, use)
            self._of_use[use] = self._known(definition), sizes
        return self._of_use[use]

    def function(self, block: Block, params: dict[str, Any], inside: tuple[Block, ...]) -> tuple[Definition, Compiled]:
        """The function of a block without modules."""
        writer = _Forward(self, build_graph(block, params), {}, name=block.name, inside=inside)
        compiled = writer.compiled()
        tree = compiled.tree
        said = "\n\n".join(text for text in (about(block), _inputs_text(self, block, params)) if text)
        tree.body = [*docstring(said), *tree.body]
        return self._known(Definition(block, tree, writer.arguments, self._trues(block, params))), compiled

    def _known(self, definition: Definition) -> Definition:
        key = (definition.block.name, ast.dump(definition.tree))  # a file may be a block of several others
        return self.definitions.setdefault(key, definition)

    def _trues(self, block: Block, params: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(name for name in block.params if name in self.fixed[block] and params[name] is True)

    def pass_params(
        self, writer: Any, expression: Expression, tree: ast.Call, block: Block, definition: Definition
    ) -> list[ast.keyword]:
        """The params that the call of a block gives to its class or function; `writer` writes what they come to."""
        given = {keyword.arg: keyword.value for keyword in tree.keywords if keyword.arg is not None}
        passed = any(keyword.arg is None for keyword in tree.keywords)
        keywords = []
        for name in block.params:
            written = given.get(name, load(name) if passed and name in writer.block.params else None)
            if written is not None and name in self.fixed[block]:
                writer.decide(expression, written)
            elif written is not None and name in definition.arguments:
                keywords.append(ast.keyword(argument(name), writer.value(expression, written)))
        return keywords


def _uses(model: GraphModel) -> tuple[dict[str, Use], Shapes]:
    """Each use of a block, by its path; and what is known of shapes."""
    shapes = infer_shapes(model._block, model.params)
    found: list[Use] = []
    finish = _finisher()

    def record(graph: Graph, members: dict[str, nn.Module | Member], path: str) -> GraphModel:
        module = finish(graph, members, path)
        tensors = {name: entry.tensor if isinstance(entry, Member) else entry for name, entry in members.items()}
        found.append(Use(path, graph, tensors, module))
        return module

    construction = Construction(record, shapes.sizes, graphs=shapes.graphs)
    try:
        with torch.device("meta"):
            root = construction.block(model._block, model.params)
    except ConfigError:  # a type may need data to be built
        found.clear()
        root = construction.block(model._block, model.params)
    within = {*root.modules()}  # and not what was laid out for an empty list
    return {use.path: use for use in sorted(found, key=lambda use: use.module in within)}, shapes


def _deciding_sizes(model: GraphModel, shapes: Shapes) -> set[str]:
    """The params of a model that sizes for `_` depend on, or may: written in as numbers, they fit these params only."""
    block = model._block
    names = [name for name, value in model.params.items() if _numbers(value) and not block.params[name].templates]

    def change(changed: list[str]) -> bool | None:
        """Whether other sizes come out with these params twice as large; None where the model is none then."""
        given = {name: value for name, value in model.params.items() if not block.params[name].templates}
        given |= {name: _twice(given[name]) for name in changed}
        try:
            sizes = infer_shapes(block, bind_params(block, given, {})).sizes
        except ConfigError:
            return None
        return any(sizes.get(key, size) != size for key, size in shapes.sizes.items())

    if not shapes.sizes or change(names) is False:
        return set()
    return {name for name in names if change([name]) is not False}


def _numbers(value: Any) -> bool:
    return type(value) is int or (isinstance(value, list) and bool(value) and all(map(_numbers, value)))


def _twice(value: Any) -> Any:
    return [_twice(entry) for entry in value] if isinstance(value, list) else 2 * value


# forward


class _Forward(_Lowering):
    """Lowers a graph as the compiler has it, but for the params: they stay, where they decide nothing."""

    def __init__(
        self, sheet: Standalone, graph: Graph, modules: dict[str, Any], name: str, inside: tuple[Block, ...] = ()
    ) -> None:
        super().__init__(graph, modules, name, is_method=name == "forward", inside=inside)
        self.sheet = sheet
        self.read: set[str] = set()  # the params
        self.fresh: dict[str, str] = {}  # a name that nobody wrote: what it would be called if it were free
        if not self.is_method:
            self.locals |= self.params.keys()
        self.arguments: dict[str, tuple[str, ast.expr | None]] = {}

    def compiled(self) -> Compiled:
        compiled = super().compiled()
        if not self.is_method:
            self.arguments = _arguments(self.sheet, self.block, self.params, self.read)
            derived = [*_derived(self.sheet, self, self.read - self.arguments.keys())]
            compiled.tree.body[:0] = derived
            compiled.tree.body[:0] = _without_mutable_defaults(self.sheet, self.arguments, compiled.tree.body)
            for declared in compiled.tree.args.kwonlyargs:
                if declared.arg == compiled.device_name:
                    declared.annotation = self.sheet.dotted(torch, "device")
            for name, (annotation, default) in self.arguments.items():
                compiled.tree.args.kwonlyargs.append(ast.arg(name, _type_code(annotation)))
                compiled.tree.args.kw_defaults.append(default)
        _annotate(self.sheet, compiled.tree, self.block)
        tidy(compiled.tree, self.fresh)
        return compiled

    # what params come to

    def _name(self, tree: ast.Name) -> ast.expr:
        name = tree.id
        if name not in self.params or name in self.sheet.fixed[self.block]:
            return super()._name(tree)
        self.read.add(name)
        return ast.Attribute(load("self"), name, ast.Load()) if self.is_method else load(name)

    def value(self, expression: Expression, tree: ast.expr) -> ast.expr:
        return self._expr(tree)

    def decide(self, expression: Expression, tree: ast.expr) -> None:
        self.sheet.fix(self.block, tree)

    def _evaluate(self, tree: ast.expr) -> Any:
        self.sheet.fix(self.block, tree)
        return super()._evaluate(tree)

    def _conditional(self, tree: ast.IfExp, targets: tuple[str, ...]) -> ast.expr:
        assert self.expression is not None
        if remaining(self.expression, self.params, tree.test, self.block) is not tree.test:
            self.sheet.fix(self.block, tree.test)
        return super()._conditional(tree, targets)

    # names

    def _global(self, dotted: str, value: Any = None) -> ast.expr:
        first, *rest = dotted.split(".")
        code: ast.expr = self.sheet.name_of(_MODULES[first] if value is None else value, first)
        for attribute in rest:
            code = ast.Attribute(code, attribute, ast.Load())
        return code

    def _fresh(self, name: str) -> str:
        fresh = super()._fresh(name)
        self.fresh[fresh] = name
        return fresh

    def _block_call(self, tree: ast.Call, block: Block) -> ast.expr:
        given = {k.arg: k.value for k in tree.keywords if k.arg not in block.inputs}
        definition, compiled = self._defined(tree, block)
        arguments = [self._expr(argument) for argument in tree.args]
        keywords = [ast.keyword(k.arg, self._expr(k.value)) for k in tree.keywords if k.arg in block.inputs]
        if compiled.needs_training:
            keywords.append(ast.keyword("training", self._training()))
        if compiled.device_name:
            keywords.append(ast.keyword(compiled.device_name, self._device()))
        assert self.expression is not None
        call = ast.Call(tree.func, [], [ast.keyword(name, value) for name, value in given.items()])
        keywords += self.sheet.pass_params(self, self.expression, call, block, definition)
        return ast.Call(self.sheet.name_of(definition, block.name), arguments, keywords)

    def _defined(self, tree: ast.Call, block: Block) -> tuple[Definition, Compiled]:
        assert self.expression is not None
        written = {k.arg: k.value for k in tree.keywords if k.arg not in block.inputs}
        given = {str(name): evaluate(self.expression, self.params, value) for name, value in written.items()}
        return self.sheet.function(block, bind_params(block, given, {}), self.inside)

    def _function(self, tree: ast.Call, block: Block) -> tuple[str, Compiled]:
        return block.name, self._defined(tree, block)[1]

    # comments

    def _statement(self, statement: Statement) -> None:
        emitted = len(self.statements)
        super()._statement(statement)
        if len(self.statements) > emitted:
            last = self.statements[-1]
            while isinstance(last, ast.For | ast.If):
                last = last.body[-1]
            remark(self.block, self.statements[emitted], last, statement.place, statement.value)

    def _return(self) -> None:
        super()._return()
        outputs, last = self.block.outputs, self.statements[-1]
        assert isinstance(last, ast.Return) and last.value is not None
        own = None if isinstance(outputs, list | dict) else outputs
        remark(self.block, last, last, self.block.node.key_place("outputs"), own)
        entries = getattr(last.value, "elts", None) or getattr(last.value, "values", [])
        held = outputs if isinstance(outputs, list) else [*outputs.values()] if isinstance(outputs, dict) else []
        for value, entry in zip(held, entries, strict=False):
            if isinstance(value, Expression):
                remark(self.block, entry, entry, value.node.place, value)


# __init__


def _class_of(sheet: Standalone, use: Use) -> tuple[Definition, dict[str, int]]:
    block, params = use.graph.block, use.graph.params
    forward = _Forward(sheet, use.graph, use.members, "forward")
    method = forward.compiled().tree
    method.body = [*docstring(_inputs_text(sheet, block, params)), *method.body]
    maker = Init(sheet, use)
    body = maker.body()
    read = maker.read | forward.read
    arguments = _arguments(sheet, block, params, read)
    derived = [*_derived(sheet, maker, read - arguments.keys())]
    kept = [
        ast.Assign([ast.Attribute(load("self"), name, ast.Store())], load(argument(name)))
        for name in block.params
        if name in forward.read
    ]
    body = [*derived, *kept, *body]
    body = [*_without_mutable_defaults(sheet, arguments, body), *body]
    signature = ast.arguments([], [ast.arg("self")], None, [], [], None, [])
    extras = {name: ("int", None) for name in maker.extras}
    ordered = sorted({**extras, **arguments}.items(), key=lambda entry: entry[1][1] is not None)
    for name, (annotation, default) in ordered:
        declared = ast.arg(argument(name), _type_code(annotation))
        if name in block.params:
            remark(block, declared, declared, block.params[name].place, None)
        signature.args.append(declared)
        signature.defaults += [] if default is None else [default]
    begin = ast.parse("super().__init__()").body
    init = ast.FunctionDef("__init__", signature, [*begin, *body], [], ast.Constant(None))
    methods: list[ast.stmt] = [init, method] if body else [method]
    tree = ast.ClassDef("", [sheet.nn("Module")], [], [*docstring(about(block)), *methods], [])
    definition = Definition(block, tree, arguments, sheet._trues(block, params))
    return definition, maker.extras


def _arguments(
    sheet: Standalone, block: Block, params: Mapping[str, Any], read: set[str]
) -> dict[str, tuple[str, ast.expr | None]]:
    """The params that a class or function takes, with annotation and default."""
    waiting, needed = [*read], set()
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        derived = _template(block, name, params)
        if derived is None:
            needed.add(name)
        else:
            waiting += [part.id for part in derived.names() if part.id in block.params]
    found = {}
    for name, param in block.params.items():
        if name in needed and name not in sheet.fixed[block]:
            default = None
            if block is sheet.root:
                default = literal(params[name])
            elif not param.required and not param.templates:
                default = literal(param.default)
            found[name] = (_annotation(param.required, param.default, params[name]), default)
    return found


def _annotation(required: type | None, default: Any, value: Any) -> str:
    if required is not None and required is not list:
        return required.__name__
    kinds = [*dict.fromkeys(_kind(entry) for entry in (default, value) if required is None or entry is not default)]
    if {*kinds} == {"int", "float"}:
        kinds = ["float"]
    return "" if kinds == ["None"] else " | ".join(sorted(kinds, key=lambda kind: kind == "None"))


def _type_code(annotation: str) -> ast.expr | None:
    return ast.parse(annotation, mode="eval").body if annotation else None


def _kind(value: Any) -> str:
    if isinstance(value, list | tuple):
        inner = {*map(_kind, value)}
        return f"list[{inner.pop()}]" if len(inner) == 1 else "list"
    return "None" if value is None else type(value).__name__


def _template(block: Block, name: str, params: Mapping[str, Any]) -> Expression | None:
    """The expression that a param is computed by, where its value is what that gives."""
    templates = block.params[name].templates
    if () not in templates or len(templates[()].parts) != 1:
        return None
    (part,) = templates[()].parts
    same = repr(_default(block, name, params)) == repr(params[name])
    return part if isinstance(part, Expression) and same else None


def _derived(sheet: Standalone, writer: Any, names: set[str]) -> Iterator[ast.stmt]:
    """Statements for the params that are computed from others."""
    done: set[str] = set()

    def compute(name: str) -> Iterator[ast.stmt]:
        expression = _template(writer.block, name, writer.params)
        if name in done or expression is None or name in sheet.fixed[writer.block]:
            return
        done.add(name)
        for part in expression.names():
            if part.id in writer.block.params:
                yield from compute(part.id)
        assign = ast.Assign([store(argument(name))], writer.value(expression, expression.tree))
        remark(writer.block, assign, assign, writer.block.params[name].place, None)
        yield assign

    for name in writer.block.params:
        if name in names:
            yield from compute(name)


def _inputs_text(sheet: Standalone, block: Block, params: Mapping[str, Any]) -> str:
    """The inputs with their shapes."""
    entries = []
    has_remarks = False
    for name, declared in block.inputs.items():
        if declared.shape is None:
            text = name
        else:
            sizes = ", ".join(_size_text(sheet, block, params, entry) for entry in declared.shape)
            text = f"{name} {declared.dtype + ' ' if declared.dtype else ''}[{sizes}]"
        said = ast.Pass()
        remark(block, said, said, declared.place, None)
        has_remarks |= bool(getattr(said, "comment", ""))
        entries.append((text + " or None" * declared.optional, getattr(said, "comment", "")))
    line = ", ".join(text for text, _ in entries)
    if not entries or all(declared.shape is None for declared in block.inputs.values()):
        return ""
    if not has_remarks and len(line) < 100:
        return f"{line}."
    return "\n".join(f"{text}: {said}" if said else text for text, said in entries)


def _size_text(sheet: Standalone, block: Block, params: Mapping[str, Any], entry: Expression | int | None) -> str:
    if not isinstance(entry, Expression):
        return "..." if entry is None else str(entry)

    class Known(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return literal(params[node.id]) if node.id in sheet.fixed[block] else node

    return ast.unparse(Known().visit(copy.deepcopy(entry.tree)))


def _annotate(sheet: Standalone, tree: ast.FunctionDef, block: Block) -> None:
    """Say which arguments are tensors, and what is returned, where that is known."""
    assert block.outputs is not None
    first = next(expressions(block.outputs), None)
    types = {_type_of(shape) for shape in sheet.returned[first.place() if first else block.node.place]}
    if len(types) == 1 and "" not in types:
        code = ast.parse(types.pop(), mode="eval").body
        for part in ast.walk(code):
            if isinstance(part, ast.Name) and part.id == "Tensor":
                part.id = sheet.name_of(Tensor).id
        tree.returns = code
    for declared in (*tree.args.args, *tree.args.kwonlyargs):
        known = block.inputs.get(declared.arg)
        if declared.arg == "training" and known is None:
            declared.annotation = load("bool")
        if known is not None and known.shape is not None:
            tensor: ast.expr = sheet.name_of(Tensor)
            absent = ast.BinOp(tensor, ast.BitOr(), ast.Constant(None))
            declared.annotation = absent if known.optional else tensor


def _type_of(shape: str) -> str:
    """The type of a value whose shape the pass tells; "" where it does not."""
    if shape.endswith(" or None"):
        inner = _type_of(shape.removesuffix(" or None"))
        return inner and f"{inner} | None"
    if shape == "None":
        return shape
    if re.fullmatch(r"\[[^\[\]{}]*\]( \w+)?", shape):
        return "Tensor"
    if shape[:1] not in ("(", "[", "{"):
        return ""
    parts = [part.partition(": ")[2] if shape[0] == "{" else part for part in _parts(shape[1:-1])]
    held = [_type_of(part) for part in parts]
    if "" in held:
        return ""
    if shape[0] == "(":
        return f"tuple[{', '.join(held)}]"
    alike = held[0] if len({*held}) == 1 else ""
    return alike and (f"dict[str, {alike}]" if shape[0] == "{" else f"list[{alike}]")


def _parts(text: str) -> list[str]:
    """The entries of a list, between its commas."""
    depth, begin, parts = 0, 0, []
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append(text[begin:i].strip())
            begin = i + 1
    return [*parts, text[begin:].strip()]


def _without_mutable_defaults(
    sheet: Standalone, arguments: dict[str, tuple[str, ast.expr | None]], body: list[ast.stmt]
) -> Iterator[ast.stmt]:
    """Lists that are defaults become tuples; and lists again, where they are more than indexed."""
    for name, (annotation, default) in arguments.items():
        if not isinstance(default, ast.List):
            continue
        arguments[name] = re.sub(r"^list\[(.*)\]$", r"tuple[\1, ...]", annotation), ast.Tuple(default.elts, ast.Load())
        parts = [part for statement in body for part in ast.walk(statement)]
        entries = [p.value for p in parts if isinstance(p, ast.Subscript) and not isinstance(p.slice, ast.Slice)]
        counted = [
            p.args[0] for p in parts if isinstance(p, ast.Call) and ast.dump(p.func) == ast.dump(sheet.name_of(len))
        ]
        reads = [part for part in parts if isinstance(part, ast.Name) and part.id == argument(name)]
        if any(read not in entries and read not in counted for read in reads):
            yield ast.Assign([store(argument(name))], ast.Call(sheet.name_of(list), [load(argument(name))], []))
