"""Graph: a block and the values of its params -> a DAG of its statements, in the order they run.

`build_graph` keeps what these params use: a test on params alone is decided here, and what only its dead branch uses is
dropped. What is wrong with a file whatever its params was told before, by `name_check`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from .block import Block, Statement, Value, expressions
from .errors import MAX_PROBLEMS, ConfigError, Problem
from .expressions import Expression, decide, evaluate
from .members import ModulePath, member_paths, read_paths, unnamed_members
from .names import CONSTANTS, PLAIN_FUNCTIONS

if TYPE_CHECKING:  # imported where it is used: it takes longer to import than all of this package
    import networkx as nx


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """What one use of a block runs. `dag` has a vertex per live statement; an edge leads from a node to its user."""

    block: Block
    params: dict[str, Any]
    dag: nx.DiGraph
    order: tuple[Statement, ...]
    modules: frozenset[str]  # the live ones, by their first name


def build_graph(block: Block, params: Mapping[str, Any]) -> Graph:
    """The live part of a checked block under these params. Raises ConfigError for a cycle."""
    import networkx as nx

    live = _Liveness(block, params)
    producers = {target: s for s in block.graph.values() for target in s.targets if target != "_"}
    dag: nx.DiGraph = nx.DiGraph()
    waiting = [producers[name] for name in live.names(block.outputs) if name in producers]
    while waiting:
        statement = waiting.pop()
        if statement.key in dag and dag.nodes[statement.key].get("statement"):
            continue
        dag.add_node(statement.key, statement=statement)
        for name in live.names(statement.value):
            if name in producers:
                dag.add_edge(producers[name].key, statement.key)
                waiting.append(producers[name])
    problems = [*cycles(dag, block), *_no_sizes(block, params)]
    if problems:
        raise ConfigError(problems)
    rank = {key: position for position, key in enumerate(block.graph)}
    order = tuple(block.graph[key] for key in nx.lexicographical_topological_sort(dag, key=rank.__getitem__))
    used = {name for s in order for name in live.names(s.value)} | set(live.names(block.outputs))
    modules = frozenset(used & block.modules.keys())
    values = [*(statement.value for statement in order), block.outputs or []]
    read = read_paths(live.parts(one) for value in values for one in expressions(value))
    unnamed = (problem for name in block.modules if name in modules for problem in live.unnamed_members(name, read))
    if problems := list(islice(unnamed, MAX_PROBLEMS)):
        raise ConfigError(problems)
    return Graph(block, dict(params), dag, order, modules)


def is_build_time(tree: ast.expr, block: Block) -> bool:
    """Whether an expression is made of params and constants alone."""
    hidden = (block.values() | block.modules.keys()) - block.params.keys()  # a name of the block hides a function
    names = {part.id for part in ast.walk(tree) if isinstance(part, ast.Name)}
    return names <= block.params.keys() | PLAIN_FUNCTIONS.keys() | CONSTANTS.keys() and not names & hidden


def outcome(
    expression: Expression,
    params: Mapping[str, Any],
    test: ast.expr,
    block: Block,
    known: Callable[[ast.expr], bool | None] = lambda test: None,
) -> bool | None:
    """What a test comes to under these params; None where the run decides. `use_vae and training` may be both.

    known: what else is known of tests that params do not decide.
    """
    rest = remaining(expression, params, test, block, known)
    return rest if isinstance(rest, bool) else None


def remaining(
    expression: Expression,
    params: Mapping[str, Any],
    test: ast.expr,
    block: Block,
    known: Callable[[ast.expr], bool | None] = lambda test: None,
) -> bool | ast.expr:
    """As `outcome`; where the run decides, what is left of the test for it: of `use_vae and training`, `training`."""
    if is_build_time(test, block):
        return decide(expression, params, test)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = remaining(expression, params, test.operand, block, known)
        return not inner if isinstance(inner, bool) else ast.copy_location(ast.UnaryOp(ast.Not(), inner), test)
    if isinstance(test, ast.BoolOp):
        decisive = isinstance(test.op, ast.Or)  # one True decides an `or`, one False an `and`
        left: list[ast.expr] = []
        for value in test.values:
            part = remaining(expression, params, value, block, known)
            if part is decisive:
                return decisive  # what follows may not even be computable: `drop is not None and drop > 0`
            left += [part] if isinstance(part, ast.expr) else []
        if not left:
            return not decisive
        return left[0] if len(left) == 1 else ast.copy_location(ast.BoolOp(test.op, left), test)
    found = known(test)
    return test if found is None else found


def may_be_decided(test: ast.expr, block: Block) -> bool:
    """Whether params alone can decide a test, or a part of it that decides it."""
    parts = test.values if isinstance(test, ast.BoolOp) else [test.operand] if isinstance(test, ast.UnaryOp) else []
    return is_build_time(test, block) or any(may_be_decided(part, block) for part in parts)


class _Liveness:
    """What values read once the tests on params are decided."""

    def __init__(self, block: Block, params: Mapping[str, Any]) -> None:
        self.block = block
        self.params = params

    def names(self, value: Value | None) -> Iterator[str]:
        for expression in expressions(value if value is not None else []):
            yield from (part.id for part in self.parts(expression) if isinstance(part, ast.Name))

    def parts(self, expression: Expression, tree: ast.AST | None = None) -> Iterator[ast.AST]:
        """As `ast.walk`, without what is decided."""
        tree = tree or expression.tree
        below: Iterable[ast.AST] = ast.iter_child_nodes(tree)
        if isinstance(tree, ast.IfExp):
            rest = remaining(expression, self.params, tree.test, self.block)
            tests = [rest] if isinstance(rest, ast.expr) else []
            below = [*tests, *([] if rest is False else [tree.body]), *([] if rest is True else [tree.orelse])]
        else:
            yield tree
        for part in below:
            yield from self.parts(expression, part)

    def unnamed_members(self, module: str, read: Mapping[str, set[ModulePath]]) -> Iterator[Problem]:
        """As `unnamed_members`, of what has as many members as the params say; the rest is told for all params."""
        leaves = [*member_paths((module,), self.block.modules[module], self.params)]
        if leaves != [*member_paths((module,), self.block.modules[module], {})]:
            yield from unnamed_members(self.block, module, leaves, read)


def cycles(dag: nx.DiGraph, block: Block) -> Iterator[Problem]:
    import networkx as nx

    rank = {key: position for position, key in enumerate(block.graph)}
    for component in nx.strongly_connected_components(dag):
        first = min(component, key=rank.__getitem__)
        if len(component) == 1 and not dag.has_edge(first, first):
            continue
        edges = nx.find_cycle(dag.subgraph(component), first)
        chain = " -> ".join([edges[0][0], *(edge[1] for edge in edges)])
        hint = "each node may only read nodes that do not need it"
        yield Problem(f"the nodes form a cycle: {chain}.", block.graph[first].place, hint)


def _no_sizes(block: Block, params: Mapping[str, Any]) -> Iterator[Problem]:
    """Entries of the inputs' shapes that come to no size under these params; null is one that is not told."""
    for declared in block.inputs.values():
        for entry in declared.shape or ():
            if not isinstance(entry, Expression) or any(name.id in block.symbols for name in entry.names()):
                continue
            try:
                size = evaluate(entry, params)
            except ConfigError as error:
                yield from error.problems
                continue
            if size is not None and (type(size) is not int or size < 0):
                hint = "'//' divides into whole numbers" if isinstance(size, float) else ""
                yield Problem(f"a size is a whole number from 0; this is {size!r}.", entry.place(), hint)
