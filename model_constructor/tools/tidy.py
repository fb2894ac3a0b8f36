"""Tidy: names that lowering made up -> the names that they were made from, wherever these are free.

`h_2 = h; for layer in self.layers: h_2 = layer(h_2)` is `for layer in self.layers: h = layer(h)`, if nothing reads the
first `h` any more. Two names can be one unless one is written while the other still has a reader.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping


def tidy(tree: ast.FunctionDef, made_up: Mapping[str, str]) -> None:
    """Rename in a function. made_up: names, each with what it would have been called if that had been free."""
    given = {argument.arg for argument in (*tree.args.args, *tree.args.kwonlyargs)}
    for name, wanted in made_up.items():
        if name != wanted and name not in given and not _interfere(tree.body, name, wanted, wanted in given):
            for part in ast.walk(tree):
                if isinstance(part, ast.Name) and part.id == name:
                    part.id = wanted
            tree.body = _without_copies(tree.body)
    _Sums().visit(tree)


def _interfere(body: list[ast.stmt], one: str, other: str, is_given: bool) -> bool:
    live: set[str] = set()  # which of the two has a reader behind this point
    for statement in reversed(body):
        reads, writes = _reads(statement) & {one, other}, _writes(statement) & {one, other}
        is_simple = not isinstance(statement, ast.For | ast.If) and not _bound_inside(statement)
        around = live | (set() if is_simple else reads | writes)
        if len(writes | (around if writes else set())) > 1 and not _is_copy(statement, one, other):
            return True
        if is_simple:
            live -= writes
        live |= reads
    return is_given and one in live


def _is_copy(statement: ast.stmt, one: str, other: str) -> bool:
    match statement:
        case ast.Assign(targets=[ast.Name(id=target)], value=ast.Name(id=source)):
            return {target, source} == {one, other}
    return False


def _reads(statement: ast.stmt) -> set[str]:
    bound = _bound_inside(statement)
    if isinstance(statement, ast.For):
        bound |= _writes(ast.Expr(statement.target))
    names = {p.id for p in ast.walk(statement) if isinstance(p, ast.Name) and not isinstance(p.ctx, ast.Store)}
    return names - bound


def _bound_inside(statement: ast.stmt) -> set[str]:
    """The variables of comprehensions."""
    loops = [part for part in ast.walk(statement) if isinstance(part, ast.comprehension)]
    return {name for loop in loops for name in _writes(ast.Expr(loop.target))}


def _writes(statement: ast.stmt) -> set[str]:
    return {p.id for p in ast.walk(statement) if isinstance(p, ast.Name) and isinstance(p.ctx, ast.Store)}


def _without_copies(body: list[ast.stmt]) -> list[ast.stmt]:
    """Without `x = x`; what is remarked above it stands above what follows."""
    kept: list[ast.stmt] = []
    above: list[str] = []
    for statement in body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=target)], value=ast.Name(id=source)) if target == source:
                above += getattr(statement, "above", [])
                continue
            case ast.If():
                statement.body = _without_copies(statement.body) or [ast.Pass()]
                statement.orelse = _without_copies(statement.orelse)
        if above:
            statement.above = [*above, *getattr(statement, "above", [])]  # pyrefly: ignore
            above = []
        kept.append(statement)
    return kept


class _Sums(ast.NodeTransformer):
    """`[a] + []` is `[a]`, where params have decided that nothing is added."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.op, ast.Add):
            for side, other in ((node.left, node.right), (node.right, node.left)):
                if isinstance(side, ast.List) and not side.elts and isinstance(other, ast.List):
                    return other
        return node
