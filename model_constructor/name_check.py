"""Name check: every level of a file, whatever its params -> all that is unknown, unused or cyclic, told together."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import TYPE_CHECKING

from .block import Block, Value, expressions
from .config import OVERRIDE, PARAM_TYPES
from .errors import MAX_PROBLEMS, ConfigError, Place, Problem, nearest
from .expressions import Expression
from .graph import cycles, is_build_time, may_be_decided
from .members import NEVER_TRAIN, member_paths, read_paths, unnamed_members
from .names import (
    ATTRIBUTES,
    CHANGING,
    CONSTANTS,
    DTYPES,
    METHODS,
    OPS,
    PLAIN_FUNCTIONS,
    changing_positions,
    find_type,
    torch_ops,
    type_names,
)
from .source import Node

if TYPE_CHECKING:  # imported where it is used: it takes longer to import than all of this package
    import networkx as nx


MAX_INSIDE = 60  # blocks, each used by the one before
PREFIXES = ("nn", "F", "torch", "self", "einops")  # of Python, that a file does not need


_CHOSEN = "a string chooses a module where that is built: {{'relu': ReLU(), 'gelu': GELU()}}[{0}]"
# What tensors of torch have besides, and what is written in a graph.
_INSTEAD = {
    **dict.fromkeys(("cuda", "cpu"), "a model moves as a whole, by model.to(device), and a tensor by x.to(y.device)"),
    **dict.fromkeys(("item", "numpy", "tolist"), "what depends on the values of tensors is a registered op or module"),
}


def check_names(root: Block) -> None:
    """Raise one ConfigError with every unknown, unused or cyclic name on any level of a file."""
    found = (problem for level in root.levels() for problem in _Checker(level).problems())
    problems = list(islice(found, MAX_PROBLEMS)) or list(_too_deep(root))
    if problems:
        raise ConfigError(problems)


def _too_deep(root: Block) -> Iterator[Problem]:
    """A block that uses a block that uses a block, and so on: later stages follow them by recursion."""
    uses: dict[Block, set[Block]] = {}
    levels = list(root.levels())
    for block in levels if len(levels) > MAX_INSIDE else ():
        uses[block] = {inner for name in _called(block) if (inner := block.find_block(name)) is not None}
    depths: dict[Block, int] = {}
    with suppress(CycleError):  # a circle is told where it is closed
        for block in TopologicalSorter(uses).static_order():  # those that are used first
            depths[block] = 1 + max((depths[inner] for inner in uses[block]), default=0)
            if depths[block] > MAX_INSIDE:
                yield Problem(f"blocks use blocks more than {MAX_INSIDE} deep.", block.node.place)
                return


class _Checker:
    """What is wrong with the names of one level."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.values = block.values()
        self.unknown: set[str] = set()
        self.buffers = {name for name, value in block.modules.items() if _is_tensor_constructor(value)}

    def problems(self) -> Iterator[Problem]:
        block = self.block
        for value in block.modules.values():
            for expression in expressions(value):
                yield from self._constructor(expression, expression.tree)
        for where, value in self._graph_values():
            for expression in expressions(value):
                yield from self._visit(expression, expression.tree, where)
        yield from cycles(self._certain_dag(), self.block)
        yield from self._unused()
        yield from self._params_in_vain()
        yield from self._defaults_in_vain()
        yield from self._blocks_in_vain()

    def _graph_values(self) -> Iterator[tuple[str, Value]]:
        for statement in self.block.graph.values():
            yield statement.key, statement.value
        if self.block.outputs is not None:
            yield "outputs", self.block.outputs

    # constructors

    def _constructor(self, expression: Expression, tree: ast.AST) -> Iterator[Problem]:
        """Every call in a constructor expression names a type, a block or a function; every other name a param."""
        if isinstance(tree, ast.Call):
            if isinstance(tree.func, ast.Name):
                yield from self._constructor_call(expression, tree.func)
            else:
                yield from self._constructor(expression, tree.func)
            for child in [*tree.args, *tree.keywords]:
                if isinstance(child, ast.keyword) and child.arg == "init" and _callee(tree) in ("Param", "Buffer"):
                    continue  # initialisers have names of their own
                if isinstance(child, ast.keyword) and child.arg is None:
                    continue  # **params
                value = child.value if isinstance(child, ast.keyword) else child
                if isinstance(value, ast.Name) and value.id == "_" and self._builds(tree):
                    continue  # a size that the shape pass infers
                yield from self._constructor(expression, child)
        elif isinstance(tree, ast.Name):
            if tree.id == "_":
                hint = "it stands for a whole argument of a module type or block, as in Linear(_, 64)"
                yield Problem("'_' has no value here.", expression.place(tree), hint)
            elif tree.id not in (*self.block.params, *CONSTANTS, *DTYPES, "index"):
                called = find_type(tree.id) or self.block.find_block(tree.id)
                hint = f"to build it write {tree.id}(...)" if called else nearest(tree.id, self.block.params)
                if tree.id in PREFIXES:
                    hint = "types stand without a prefix here: Linear(8, 8)"
                yield Problem(f"no param is called '{tree.id}'.", expression.place(tree), hint or "there are no params")
        else:
            for child in ast.iter_child_nodes(tree):
                yield from self._constructor(expression, child)

    def _builds(self, tree: ast.Call) -> bool:
        name = _callee(tree)
        return name not in ("Param", "Buffer") and bool(self.block.find_block(name) or find_type(name))

    def _constructor_call(self, expression: Expression, name: ast.Name) -> Iterator[Problem]:
        if name.id in ("Param", "Buffer") or self.block.find_block(name.id) or find_type(name.id):
            return
        if name.id in PLAIN_FUNCTIONS or name.id in torch_ops():
            return
        known = [*self.block.visible_blocks(), *type_names()]
        message = f"no module type or block is called '{name.id}'."
        hint = _CHOSEN.format(name.id) if self._is_string(name.id) else nearest(name.id, known)
        yield Problem(message, expression.place(name), hint)

    def _is_string(self, name: str) -> bool:
        param = self.block.params.get(name)
        return param is not None and (isinstance(param.default, str) or param.required is str)

    # graph expressions

    def _visit(self, expression: Expression, tree: ast.expr, where: str) -> Iterator[Problem]:
        match tree:
            case ast.Call():
                yield from self._call(expression, tree, where)
            case ast.Attribute():
                if self._root(tree) in self.block.modules:
                    yield from self._subscripts(expression, tree, where)
                else:
                    if tree.attr not in ATTRIBUTES:
                        method = tree.attr in METHODS
                        hint = f"call it: .{tree.attr}(...)" if method else nearest(tree.attr, ATTRIBUTES | METHODS)
                        yield Problem(f"{where}: a value has no '.{tree.attr}' to read.", expression.place(tree), hint)
                    yield from self._visit(expression, tree.value, where)
            case ast.Subscript() if self._root(tree) in self.block.modules:
                yield from self._subscripts(expression, tree, where)
            case ast.IfExp():
                yield from self._condition(expression, tree.test, where)
                yield from self._visit(expression, tree.body, where)
                yield from self._visit(expression, tree.orelse, where)
            case ast.BoolOp() | ast.UnaryOp(op=ast.Not()) if not is_build_time(tree, self.block):
                hint = "of tensors write '&', '|' and '~'; 'and', 'or', 'not' belong into the condition of an 'if'"
                yield Problem(f"{where}: 'and', 'or' and 'not' have no tensor result.", expression.place(tree), hint)
            case ast.Name():
                yield from self._name(expression, tree, where)
            case ast.BinOp(op=ast.RShift()):
                hint = "modules are chained where they are built, under 'modules'"
                yield Problem(f"{where}: '>>' has no meaning here.", expression.place(tree), hint)
            case _:
                for child in ast.iter_child_nodes(tree):
                    if isinstance(child, ast.expr):
                        yield from self._visit(expression, child, where)

    def _name(self, expression: Expression, tree: ast.Name, where: str) -> Iterator[Problem]:
        name = tree.id
        if name in self.values or name in self.buffers or name in CONSTANTS or name == "training":
            return
        if name in self.block.modules:
            hint = f"call it, as in {name}(...), or read a parameter of it by path"
            yield Problem(f"{where}: '{name}' is a module, not a value.", expression.place(tree), hint)
        elif name in DTYPES and (name == "float" or not self._is_op(name)):
            return
        elif self._is_op(name) or self.block.find_block(name):
            yield Problem(f"{where}: '{name}' is an op, not a value.", expression.place(tree), f"call it: {name}(...)")
        else:
            yield self._unknown(expression, tree, where)

    def _unknown(self, expression: Expression, tree: ast.Name, where: str) -> Problem:
        self.unknown.add(tree.id)
        if tree.id in PREFIXES:
            hint = "names stand without a prefix here: Linear(8, 8), silu(x), layer(h)"
            return Problem(f"{where}: '{tree.id}' is not known.", expression.place(tree), hint)
        hint = nearest(tree.id, self._own_names())
        if "did you mean" not in hint:
            wide = nearest(tree.id, [*OPS.keys(), *torch_ops(), *self.block.visible_blocks(), *PLAIN_FUNCTIONS])
            hint += "   did you mean" + wide.split("did you mean")[1] if "did you mean" in wide else ""
        return Problem(f"{where}: no value, module or op is called '{tree.id}'.", expression.place(tree), hint)

    def _call(self, expression: Expression, tree: ast.Call, where: str) -> Iterator[Problem]:
        callee = tree.func
        arguments = [*tree.args, *(keyword.value for keyword in tree.keywords)]
        if self._root(callee) not in self.block.modules:
            op = callee.id if isinstance(callee, ast.Name) else ""
            for name, value in self._changing(op, tree):
                hint = "ops change nothing that they are given"
                yield Problem(f"{where}: '{name}' is not part of the dialect.", expression.place(value), hint)
        for keyword in tree.keywords:
            if keyword.arg is None:
                hint = "'**params' belongs into constructors"
                yield Problem(f"{where}: '**' has no meaning in a call.", expression.place(keyword.value), hint)
        if isinstance(callee, ast.Name):
            name = callee.id
            if name in self.values or name in self.buffers:
                hint = _CHOSEN.format(name) if self._is_string(name) else ""
                yield Problem(f"{where}: '{name}' is a value and cannot be called.", expression.place(callee), hint)
            elif name == "each":
                hint = "it hands each member of a list of modules its entry: layers(x, each(xs))"
                yield Problem(f"{where}: 'each' is an argument of a call of a list.", expression.place(callee), hint)
            elif not (name in self.block.modules or self._is_op(name) or self.block.find_block(name)):
                yield self._unknown(expression, callee, where)
        elif self._root(callee) in self.block.modules:
            yield from self._subscripts(expression, callee, where)
        elif isinstance(callee, ast.Attribute):
            if callee.attr not in METHODS:
                message = f"{where}: a value has no method '{callee.attr}'."
                hint = _INSTEAD.get(callee.attr) or nearest(callee.attr, METHODS)
                yield Problem(message, expression.place(callee), hint)
            yield from self._visit(expression, callee.value, where)
        else:
            yield Problem(f"{where}: this cannot be called.", expression.place(callee))
        for argument in arguments:
            if (
                isinstance(argument, ast.Call)
                and _callee(argument) == "each"
                and self._root(callee) in self.block.modules
            ):
                if len(argument.args) != 1 or argument.keywords:
                    yield Problem(f"{where}: 'each' takes one list.", expression.place(argument))
                for inner in argument.args:
                    yield from self._visit(expression, inner, where)
            else:
                yield from self._visit(expression, argument, where)

    def _changing(self, op: str, tree: ast.Call) -> Iterator[tuple[str, ast.expr | ast.keyword]]:
        """The arguments, by name or position, with which an op would change what it is given."""
        yield from ((keyword.arg, keyword) for keyword in tree.keywords if keyword.arg in CHANGING)
        if op not in self.block.blocks and op in torch_ops() and not OPS.has(op):
            yield from ((name, tree.args[i]) for i, name in changing_positions(op).items() if i < len(tree.args))

    def _condition(self, expression: Expression, tree: ast.expr, where: str) -> Iterator[Problem]:
        """A condition is made of params, `training`, `x is None`, comparisons of these, and `and or not`."""
        match tree:
            case ast.BoolOp():
                for value in tree.values:
                    yield from self._condition(expression, value, where)
            case ast.UnaryOp(op=ast.Not()):
                yield from self._condition(expression, tree.operand, where)
            case ast.Compare() if _is_none_test(tree):
                yield from self._visit(expression, tree.left, where)
            case ast.Name(id="training"):
                return
            case ast.Compare() if not is_build_time(tree, self.block) and self._compares_conditions(tree):
                for side in (tree.left, *tree.comparators):
                    yield from self._condition(expression, side, where)
            case _ if is_build_time(tree, self.block):
                for name in ast.walk(tree):
                    if isinstance(name, ast.Name) and name.id not in PLAIN_FUNCTIONS:
                        yield from self._name(expression, name, where)
            case _:
                names = (part for part in ast.walk(tree) if isinstance(part, ast.Name))
                unknown = [problem for name in names for problem in self._name(expression, name, where)]
                hint = "a condition is made of params, training, 'x is None', comparisons of these, and/or/not"
                message = f"{where}: this condition depends on the value of a tensor, or on its size."
                yield from unknown or [Problem(message, expression.place(tree), hint)]

    def _compares_conditions(self, tree: ast.Compare) -> bool:
        """Whether each side of a comparison could be a condition itself, as in `training == flag`."""
        return all(
            is_build_time(part, self.block) or _is_none_test(part) or ast.unparse(part) == "training"
            for part in _parts(tree)
        )

    def _subscripts(self, expression: Expression, tree: ast.expr, where: str) -> Iterator[Problem]:
        """The names inside the brackets of a path into modules."""
        while isinstance(tree, ast.Attribute | ast.Subscript):
            if isinstance(tree, ast.Subscript):
                yield from self._visit(expression, tree.slice, where)
            tree = tree.value

    def _root(self, tree: ast.AST) -> str:
        while isinstance(tree, ast.Attribute | ast.Subscript):
            tree = tree.value
        return tree.id if isinstance(tree, ast.Name) and tree.id not in self.buffers else ""

    def _is_op(self, name: str) -> bool:
        return OPS.has(name) or name in torch_ops() or name in PLAIN_FUNCTIONS

    # the whole level

    def _certain_dag(self) -> nx.DiGraph:
        """Who reads whom under any params: without the branches that a test on params decides."""
        import networkx as nx

        producers = {target: s for s in self.block.graph.values() for target in s.targets if target != "_"}
        dag: nx.DiGraph = nx.DiGraph()
        for statement in self.block.graph.values():
            for expression in expressions(statement.value):
                for name in self._certain_names(expression.tree):
                    if name in producers:
                        dag.add_edge(producers[name].key, statement.key)
        return dag

    def _certain_names(self, tree: ast.AST) -> Iterator[str]:
        if isinstance(tree, ast.Name):
            yield tree.id
        elif not (isinstance(tree, ast.IfExp) and may_be_decided(tree.test, self.block)):
            for child in ast.iter_child_nodes(tree):
                yield from self._certain_names(child)

    def _own_names(self) -> list[str]:
        return [*self.values, *self.block.modules]

    def _params_in_vain(self) -> Iterator[Problem]:
        """Params that nothing reads, though a file adds them to those of its `defaults`, where they are most likely
        misspelt, or an override sets them."""
        known = _base_names(self.block, "params")
        unread = unread_params(self.block)
        for name, node in _param_nodes(self.block).items():
            if name not in unread:
                continue
            if node.source.name == OVERRIDE:
                yield Problem(f"nothing reads the param '{name}': to set it changes nothing.", node.place)
            elif known is not None and name not in known:
                yield Problem(f"nothing reads the param '{name}'.", self.block.params[name].place, nearest(name, known))

    def _defaults_in_vain(self) -> Iterator[Problem]:
        """Params of a block that a derived file or an override sets, though every use of the block gives them."""
        here = (OVERRIDE, self.block.node.source.name)  # a block's own file may be used alone, too
        for block in self.block.blocks.values():
            params = _param_nodes(block).items()
            changed = {name: one for name, one in params if one.source.name in here and _is_another_value(one)}
            uses = list(_uses(block, self.block)) if changed else []
            for name, node in changed.items():
                giving = [place for given, place in uses if name in given]
                if uses and len(giving) == len(uses):
                    message = f"this sets nothing: every use of the block '{block.name}' gives '{name}'."
                    yield Problem(message, node.place, f"change it there; the first is {giving[0]}")

    def _blocks_in_vain(self) -> Iterator[Problem]:
        """As `_params_in_vain`, of blocks; and of those that an override adds."""
        known = _base_names(self.block, "blocks")
        first = {name: (*inner.node.earlier, inner.node)[0] for name, inner in self.block.blocks.items()}
        added = {
            name: node
            for name, node in first.items()
            if node.source.name == OVERRIDE or (known is not None and name not in known)
        }
        if not added:
            return
        used = {level.find_block(name) for level in self.block.levels() for name in _called(level)}
        for name, node in added.items():
            if self.block.blocks[name] not in used:
                hint = nearest(name, first.keys() - added.keys())
                yield Problem(f"nothing uses the block '{name}'.", node.place, hint)

    def _unused(self) -> Iterator[Problem]:
        """What nothing reads; but for what a misspelt name, told already, was probably meant to be."""
        read = _read_names(value for _, value in self._graph_values())
        read |= {close for name in self.unknown for close in get_close_matches(name, self._own_names(), n=1)}
        for statement in self.block.graph.values():
            unread = [target for target in statement.targets if target not in read]
            if len(unread) == len(statement.targets):
                hint = "read it somewhere, or remove it"
                yield Problem(f"nothing uses the node '{statement.key}'.", statement.place, hint)
                continue
            for target in unread:
                if target != "_":
                    message = f"nothing uses '{target}' of the node '{statement.key}'."
                    yield Problem(message, statement.place, "write _ for what is not needed")
        paths = read_paths(ast.walk(one.tree) for _, value in self._graph_values() for one in expressions(value))
        for name, place in self.block.module_places.items():
            if name in read:
                leaves = [*member_paths((name,), self.block.modules[name], {})]
                yield from unnamed_members(self.block, name, leaves, paths)
            else:
                yield Problem(f"nothing uses the module '{name}'.", place, NEVER_TRAIN)


def _parts(tree: ast.expr) -> Iterator[ast.expr]:
    """The parts of a condition that `and`, `or`, `not` and comparisons put together."""
    match tree:
        case ast.BoolOp():
            below = tree.values
        case ast.UnaryOp(op=ast.Not()):
            below = [tree.operand]
        case ast.Compare() if not _is_none_test(tree):
            below = [tree.left, *tree.comparators]
        case _:
            yield tree
            return
    for part in below:
        yield from _parts(part)


def _is_none_test(tree: ast.expr) -> bool:
    """Whether a test is `x is None` or `x is not None`."""
    match tree:
        case ast.Compare(ops=[ast.Is() | ast.IsNot()], comparators=[ast.Constant(value=None)]):
            return True
    return False


def _everything(block: Block) -> list[Expression]:
    """Every expression of a block but those in the shapes of its inputs."""
    values = [*block.modules.values(), *(statement.value for statement in block.graph.values()), *block.init.values()]
    return [expression for value in (*values, block.outputs or []) for expression in expressions(value)]


def _called(block: Block) -> set[str]:
    """The names that are called anywhere in a block."""
    return {_callee(part) for expression in _everything(block) for part in ast.walk(expression.tree)}


def _param_nodes(block: Block) -> dict[str, Node]:
    section = block.node.value.get("params") if isinstance(block.node.value, dict) else None
    return section.value if section is not None and isinstance(section.value, dict) else {}


def _is_another_value(node: Node) -> bool:
    """Whether a param was set to another value of the same type, and not just declared anew."""
    if node.how or not node.earlier:
        return False
    before = node.earlier[-1].plain
    return node.plain != before and type(node.plain) is type(before) and node.plain not in tuple(PARAM_TYPES)


def _uses(block: Block, home: Block) -> Iterator[tuple[set[str], Place]]:
    """Each call of a block that stands on the level `home`: the params that it gives, and its place."""
    for level in home.levels():
        for expression in _everything(level):
            for call in (part for part in ast.walk(expression.tree) if isinstance(part, ast.Call)):
                if level.find_block(_callee(call)) is block:
                    names = [[k.arg] if k.arg else level.params.keys() & block.params.keys() for k in call.keywords]
                    yield {name for some in names for name in some}, expression.place(call)


def _base_names(block: Block, section: str) -> set[str] | None:
    """The names in a section of what a file's `defaults` come to; None of a file without any."""
    base = block.node.earlier[-1].value if block.node.earlier else None
    if not isinstance(base, dict):  # the path of a block's file
        return None
    known = base[section].value if section in base else None
    return {*known} if isinstance(known, dict) else set()


def unread_params(block: Block) -> set[str]:
    """The params of a block that nothing in it reads, or hands on."""
    found = _everything(block)
    entries = (entry for declared in block.inputs.values() for entry in declared.shape or ())
    read = {name.id for one in (*found, *entries) if isinstance(one, Expression) for name in one.names()}
    templates = (template for param in block.params.values() for template in param.templates.values())
    read |= {str(path[0]) for template in templates for _, path, _ in template.references()}
    for call in (part for one in found for part in ast.walk(one.tree) if isinstance(part, ast.Call)):
        inner = block.find_block(_callee(call))
        if inner is not None and any(keyword.arg is None for keyword in call.keywords):  # **params
            read |= inner.params.keys()
    return block.params.keys() - read


def _read_names(values: Iterable[Value]) -> set[str]:
    return {name.id for value in values for expression in expressions(value) for name in expression.names()}


def _callee(tree: ast.AST) -> str:
    return tree.func.id if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) else ""


def _is_tensor_constructor(value: Value) -> bool:
    tree = value.tree if isinstance(value, Expression) else None
    while isinstance(tree, ast.IfExp):
        tree = tree.body
    return tree is not None and _callee(tree) in ("Param", "Buffer")
