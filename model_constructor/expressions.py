"""Expressions: the text of a value -> a checked Python syntax tree whose positions are those in the YAML file.

Also the evaluation of an expression at build time, over params: by walking the tree, never by running it as code.
"""

from __future__ import annotations

import ast
import io
import itertools
import math
import operator
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError, Place, Problem, nearest
from .names import (
    ANY_DIM,
    CONSTANTS,
    CREATION_OPS,
    DTYPES,
    METHODS,
    NEEDS_DIM,
    PLAIN_FUNCTIONS,
    WRITE_DIM,
    torch_ops,
)
from .source import Node

MAX_DEPTH = 100  # of nested expressions
MAX_POWER_BITS = 4096
MAX_PRODUCT_BITS = 65_536
MAX_LIST = 10_000
MAX_DIGITS = 1000  # that a number is rounded to
MAX_ELEMENTS = 2**26  # of a tensor made when the model is built
MAX_COSTLY = 2**16  # the same, of what is given to an op that may take longer than to write its result

_GRAMMAR: tuple[type[ast.AST], ...] = (
    ast.Expression, ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.keyword,
    ast.Name, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call,
    ast.Attribute, ast.Subscript, ast.Slice, ast.Tuple, ast.List, ast.Dict,
)  # fmt: skip
_REFUSED: dict[type[ast.AST], str] = {
    ast.Lambda: "a lambda", ast.ListComp: "a comprehension", ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension", ast.GeneratorExp: "a comprehension", ast.JoinedStr: "an f-string",
    ast.NamedExpr: "':='", ast.Starred: "'*'", ast.Set: "a set", ast.Await: "await", ast.Yield: "yield",
}  # fmt: skip
SWITCHES = {"on", "off", "yes", "no", "y", "n", "true", "false"}  # strings that read as an answer
_SLIPS = {"true": "True", "false": "False", "null": "None", "nil": "None"}

BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.MatMult: operator.matmul,
    ast.BitAnd: operator.and_, ast.BitOr: operator.or_,
}  # fmt: skip
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert, ast.Not: operator.not_,
}  # fmt: skip
COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip

# Ops and methods that take no longer than it takes to write their result: masks and tables are made of these.
_LINEAR = frozenset(
    (
        "abs add all amax amin any arange argmax argmin bool broadcast_to cat ceil clamp clone contiguous cos cumsum "
        "diag diagonal dim div double eq exp expand eye flatten flip float floor full ge gt half int le linspace log "
        "logical_and logical_not logical_or logical_xor logspace long lt masked_fill max maximum mean min minimum "
        "movedim mul narrow ne neg new_full new_ones new_zeros numel ones outer pad permute pow prod rand randint "
        "randn rearrange reciprocal repeat repeat_interleave reshape roll round rsqrt select sigmoid sign sin size "
        "sqrt square squeeze stack sub sum t tan tanh tensor tile to transpose tril triu type_as unflatten unsqueeze "
        "view where zeros"
    ).split()
)


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """`tree` is checked against the grammar; its line numbers and column offsets are those of the YAML file."""

    tree: ast.expr
    node: Node

    @property
    def text(self) -> str:
        return self.node.text

    def place(self, part: ast.expr | ast.keyword | None = None) -> Place:
        """Where `part` of the expression stands; without a part, the whole."""
        part = part or self.tree
        line, start = part.lineno - 1, part.col_offset
        raw = self.node.source.lines[line].encode()
        end = part.end_col_offset if part.end_lineno == part.lineno else len(raw)
        column = len(raw[:start].decode(errors="replace"))
        return self.node.source.place(line, column, len(raw[start:end].decode(errors="replace")))

    def names(self) -> Iterator[ast.Name]:
        """Every name in the expression, in the order written."""
        found = [part for part in ast.walk(self.tree) if isinstance(part, ast.Name)]
        return iter(sorted(found, key=lambda name: (name.lineno, name.col_offset)))


def parse(node: Node) -> Expression:
    """The expression in a scalar. Raises ConfigError for a slip of syntax or what the grammar leaves out."""
    text = node.text
    if isinstance(node.value, list | dict):
        raise ConfigError(Problem("an expression is needed here, not a list or mapping.", node.place))
    if not text.strip():
        raise ConfigError(Problem("an expression is needed here; nothing is written.", node.place))
    lead = len(text) - len(text.lstrip())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # Python's doubts about `1if x else y`
            tree = ast.parse(text.lstrip().replace("\n", " "), mode="eval").body
    except SyntaxError as error:
        raise ConfigError(_syntax_problem(error, node, lead)) from None
    except (ValueError, RecursionError, MemoryError):
        raise ConfigError(Problem("this expression is nested too deeply, or holds a NUL.", node.place)) from None
    if (comment := _comment(text.lstrip().replace("\n", " "))) is not None:
        hint = "YAML has no comments inside '>-', '|' and quotes: write it on a line above the key"
        place = node.part(lead + comment, lead + comment + 1).place
        raise ConfigError(Problem("what follows this '#' would be no part of the expression.", place, hint))
    if _depth(tree) > MAX_DEPTH:
        raise ConfigError(Problem(f"this expression is nested more than {MAX_DEPTH} deep.", node.place))
    _relocate(tree, node, lead)
    expression = Expression(tree, node)
    problems = list(_outside_grammar(expression))
    if problems:
        raise ConfigError(problems)
    return expression


def _comment(text: str) -> int | None:
    """Where a comment begins in a text that Python can read: to Python everything behind it is one."""
    if "#" not in text:
        return None
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return next((token.start[1] for token in tokens if token.type == tokenize.COMMENT), None)


def links(tree: ast.expr) -> list[ast.expr]:
    """The links of `A() >> B() >> C()`."""
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.RShift):
        return [*links(tree.left), *links(tree.right)]
    return [tree]


def is_plain(tree: ast.AST, plain_names: Callable[[str], bool]) -> bool:
    """Whether a value is made of plain numbers only: params, symbols, literals, sizes, and functions of these."""
    if isinstance(tree, ast.Name):
        return plain_names(tree.id)
    if isinstance(tree, ast.Attribute):
        return tree.attr in ("shape", "ndim")
    if isinstance(tree, ast.IfExp):  # whatever decides
        return is_plain(tree.body, plain_names) and is_plain(tree.orelse, plain_names)
    if isinstance(tree, ast.Compare) and isinstance(tree.ops[0], ast.Is | ast.IsNot):
        return True
    if isinstance(tree, ast.Call):
        arguments = [*tree.args, *(keyword.value for keyword in tree.keywords)]
        named = isinstance(tree.func, ast.Name) and tree.func.id in PLAIN_FUNCTIONS
        asked = isinstance(tree.func, ast.Attribute) and tree.func.attr in ("size", "dim", "numel")
        return (named or asked) and all(is_plain(argument, plain_names) for argument in arguments)
    if isinstance(tree, ast.Subscript):
        return is_plain(tree.value, plain_names)
    return all(is_plain(child, plain_names) for child in ast.iter_child_nodes(tree) if isinstance(child, ast.expr))


def evaluate(expression: Expression, values: Mapping[str, Any], tree: ast.expr | None = None) -> Any:
    """The value of an expression over params, at build time. Raises ConfigError at the part that fails."""
    return _Evaluator(expression, values).visit(tree or expression.tree)


def decide(expression: Expression, values: Mapping[str, Any], test: ast.expr) -> bool:
    """The outcome of a test on params. A string is no outcome: YAML's `off` is one here."""
    return truth(expression, test, evaluate(expression, values, test))


def truth(expression: Expression, tree: ast.expr, value: Any) -> bool:
    """Whether what `tree` came to holds."""
    if isinstance(value, str):
        message = f"a condition is true or false; this is the string '{value}'."
        hint = "on, off, yes and no are strings here: write true or false"
        raise ConfigError(Problem(message, expression.place(tree), hint))
    return bool(value)


class _Evaluator:
    def __init__(self, expression: Expression, values: Mapping[str, Any]) -> None:
        self.expression = expression
        self.values = values

    def visit(self, tree: ast.expr) -> Any:
        try:
            value = self._visit(tree)
        except ConfigError:
            raise
        except _Limit as error:
            raise self.error(f"{error}.", tree) from None
        except Exception as error:
            raise self.error(f"{type(error).__name__}: {error}.", tree) from error
        # Told before memory is touched, since a model is first laid out on the meta device.
        if getattr(value, "numel", int)() > MAX_ELEMENTS:
            raise self.error(f"this tensor would have more than {MAX_ELEMENTS} elements.", tree)
        return value

    def error(self, message: str, tree: ast.expr, hint: str = "") -> ConfigError:
        return ConfigError(Problem(message, self.expression.place(tree), hint))

    def _visit(self, tree: ast.expr) -> Any:
        match tree:
            case ast.Constant():
                return tree.value
            case ast.Name():
                return self._name(tree)
            case ast.BinOp():
                return self._binary(tree)
            case ast.UnaryOp(op=ast.Not()):
                return not self._truth(tree.operand, self.visit(tree.operand))
            case ast.UnaryOp():
                return unary(tree.op, self.visit(tree.operand))
            case ast.BoolOp():
                for value in tree.values[:-1]:
                    result = self.visit(value)
                    if self._truth(value, result) == isinstance(tree.op, ast.Or):
                        return result
                return self.visit(tree.values[-1])
            case ast.Compare():
                return self._compare(tree)
            case ast.IfExp():
                return self.visit(tree.body if decide(self.expression, self.values, tree.test) else tree.orelse)
            case ast.Tuple():
                return tuple(self.visit(entry) for entry in tree.elts)
            case ast.List():
                return [self.visit(entry) for entry in tree.elts]
            case ast.Dict():
                return {self.visit(k): self.visit(v) for k, v in zip(tree.keys, tree.values, strict=True) if k}
            case ast.Subscript():
                return self.visit(tree.value)[self.visit(tree.slice)]
            case ast.Slice():
                parts = (tree.lower, tree.upper, tree.step)
                return slice(*(None if part is None else self.visit(part) for part in parts))
            case ast.Call():
                return self._call(tree)
        raise self.error("this cannot be computed when the model is built.", tree)

    def _truth(self, tree: ast.expr, value: Any) -> bool:
        """Of a part of a condition: a string that is there, as in `name or 'unnamed'`, but not one that says no."""
        switch = isinstance(value, str) and value.lower() in SWITCHES
        return truth(self.expression, tree, value) if switch else bool(value)

    def _name(self, tree: ast.Name) -> Any:
        name = tree.id
        if name in self.values:
            return self.values[name]
        if name in CONSTANTS:
            return CONSTANTS[name][1]
        if name in DTYPES:
            import torch

            return getattr(torch, name)
        hint = nearest(name, self.values) or "here only params have values"
        raise self.error(f"no param is called '{name}'.", tree, hint)

    def _binary(self, tree: ast.BinOp) -> Any:
        return binary(tree.op, self.visit(tree.left), self.visit(tree.right))

    def _compare(self, tree: ast.Compare) -> bool:
        left = self.visit(tree.left)
        for op, comparator in zip(tree.ops, tree.comparators, strict=True):
            right = self.visit(comparator)
            if not COMPARE[type(op)](left, right):
                return False
            left = right
        return True

    def _call(self, tree: ast.Call) -> Any:
        arguments = [self.visit(argument) for argument in tree.args]
        keywords = {keyword.arg: self.visit(keyword.value) for keyword in tree.keywords if keyword.arg}
        if isinstance(tree.func, ast.Attribute) and tree.func.attr in METHODS:
            owner = self.visit(tree.func.value)
            if not _is_tensor(owner):
                raise self.error(f"{type(owner).__name__} has no method here; tensors have.", tree.func)
            _check_work(tree.func.attr, (owner, *arguments, *keywords.values()))
            return getattr(owner, tree.func.attr)(*arguments, **keywords)
        name = tree.func.id if isinstance(tree.func, ast.Name) else ""
        if name in PLAIN_FUNCTIONS and not any(_is_tensor(argument) for argument in arguments):
            if name == "sum" and any(isinstance(entry, list | tuple) for entry in arguments[1:]):
                raise self.error("'sum' adds numbers; lists are added with '+'.", tree)
            return call_plain(name, *arguments, **keywords)
        if name in torch_ops():
            if "device" in keywords:
                raise self.error("a file names no device when a model is built.", tree)
            if name in NEEDS_DIM and keywords.get("dim", arguments[1] if len(arguments) > 1 else None) is None:
                raise self.error(ANY_DIM.format(name), tree, WRITE_DIM)
            _check_work(name, (*arguments, *keywords.values()))
            return torch_ops()[name][1](*arguments, **keywords)
        known = [*PLAIN_FUNCTIONS, *torch_ops()]
        raise self.error(f"no function is called '{ast.unparse(tree.func)}'.", tree.func, nearest(name, known))


class _Limit(ValueError):
    """More work than an expression may ask for."""


def unary(op: ast.unaryop, value: Any) -> Any:
    """`op value`, but for what would hold where its opposite is meant."""
    if isinstance(op, ast.Invert) and isinstance(value, bool):
        raise _Limit(f"'~' of {value} is the number {~value:d}: write 'not'")
    return UNARY[type(op)](value)


def binary(op: ast.operator, left: Any, right: Any) -> Any:
    """`left op right`, within the limits of what a file may ask for."""
    both = isinstance(left, int) and isinstance(right, int)
    if isinstance(op, ast.Pow) and both and left.bit_length() * abs(right) > MAX_POWER_BITS:
        raise _Limit("this power is too large")
    if isinstance(op, ast.Mult):
        for sequence, times in ((left, right), (right, left)):
            repeats = isinstance(sequence, str | list | tuple) and isinstance(times, int)
            if repeats and _leaves(sequence, {}) * times > MAX_LIST:
                raise _Limit(f"this list would have more than {MAX_LIST} entries")
    lists = isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple)
    if isinstance(op, ast.Add) and lists and _leaves(left, {}) + _leaves(right, {}) > MAX_LIST:
        raise _Limit(f"this list would have more than {MAX_LIST} entries")
    if isinstance(op, ast.Mult) and both and left.bit_length() + right.bit_length() > MAX_PRODUCT_BITS:
        raise _Limit("this product is too large")
    if isinstance(op, ast.MatMult):
        _check_work("matmul", (left, right))
    if isinstance(op, ast.Mod) and isinstance(left, str):
        raise _Limit("'%' of a string is not part of an expression")
    if isinstance(op, ast.BitAnd | ast.BitOr) and both and isinstance(left, bool) != isinstance(right, bool):
        sign, word = ("&", "and") if isinstance(op, ast.BitAnd) else ("|", "or")
        raise _Limit(f"'{sign}' of {left} and {right} is the number {BINARY[type(op)](left, right)}: write '{word}'")
    if type(op) not in BINARY:
        raise _Limit("this operator is not known here")
    return BINARY[type(op)](left, right)


def call_plain(name: str, *arguments: Any, **keywords: Any) -> Any:
    """One of the plain functions, within the same limits."""
    digits = keywords.get("ndigits", arguments[1] if len(arguments) > 1 else None)
    if name == "round" and isinstance(digits, int) and abs(digits) > MAX_DIGITS:
        raise _Limit(f"a number is rounded to at most {MAX_DIGITS} digits")
    return PLAIN_FUNCTIONS[name][1](*arguments, **keywords)


def _check_work(name: str, arguments: Iterable[Any]) -> None:
    """Refuse a call of an op or method, at build time, that could take long."""
    arguments = [*arguments]
    sizes = math.prod(size for size in arguments if type(size) is int and size > 1)
    if name in CREATION_OPS and sizes > MAX_ELEMENTS:
        raise _Limit(f"this tensor would have more than {MAX_ELEMENTS} elements")
    if name not in _LINEAR and sizes * _elements(arguments) > MAX_COSTLY:
        raise _Limit(f"'{name}' is given more than {MAX_COSTLY} elements when the model is built")


def _elements(value: Any) -> int:
    """Of a tensor, or of the tensors in a list together."""
    if isinstance(value, list | tuple):
        return max(1, sum(map(_elements, value)))
    return value.numel() if _is_tensor(value) else 0


def _leaves(value: Any, known: dict[int, int]) -> int:
    """How many entries a list has when the lists in it are written out."""
    if not isinstance(value, list | tuple):
        return len(value) if isinstance(value, str) else 1
    if id(value) not in known:
        known[id(value)] = sum(_leaves(entry, known) for entry in value)
    return known[id(value)]


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _depth(tree: ast.expr) -> int:
    deepest = 0
    level: list[ast.AST] = [tree]
    while level:
        deepest += 1
        level = [child for part in level for child in ast.iter_child_nodes(part)]
    return deepest


def _relocate(tree: ast.expr, node: Node, lead: int) -> None:
    """Move the positions of a freshly parsed tree from its text to the YAML file (columns stay UTF-8 offsets)."""
    positions = node.positions()
    lines = node.source.lines
    offsets = [0]  # of each character of the text, in UTF-8
    for character in node.text[lead:]:
        offsets.append(offsets[-1] + len(character.encode()))
    index_of = {offset: index for index, offset in enumerate(offsets)}

    def move(offset: int) -> tuple[int, int]:
        line, column = positions[lead + index_of[offset]]
        return line + 1, len(lines[line][:column].encode()) if line < len(lines) else 0

    for part in ast.walk(tree):
        if not isinstance(part, ast.expr | ast.keyword):
            continue
        start, end = part.col_offset, part.end_col_offset or 0
        part.lineno, part.col_offset = move(start)
        # The end is the place after the last character: on the line of that character, not of the next one.
        last = index_of[end] - 1
        line, column = positions[lead + last]
        part.end_lineno = line + 1
        part.end_col_offset = len(lines[line][: column + 1].encode()) if line < len(lines) else 0


def _outside_grammar(expression: Expression) -> Iterator[Problem]:
    for part in ast.walk(expression.tree):
        if not isinstance(part, _GRAMMAR):
            if isinstance(part, ast.expr):  # and not the pieces that it alone consists of
                what = _REFUSED.get(type(part), f"'{type(part).__name__}'")
                hint = "put such code into a registered op or module"
                yield Problem(f"{what} is not part of an expression.", expression.place(part), hint)
        elif isinstance(part, ast.Attribute) and part.attr.startswith("_"):
            yield Problem(f"the attribute '{part.attr}' begins with an underscore.", expression.place(part))
        elif isinstance(part, ast.Constant) and isinstance(part.value, bytes | complex):
            yield Problem("bytes and complex numbers are not part of an expression.", expression.place(part))
        elif isinstance(part, ast.Name) and part.id in _SLIPS:
            hint = f"in an expression it is written {_SLIPS[part.id]}"
            yield Problem(f"'{part.id}' has no meaning here.", expression.place(part), hint)
        elif isinstance(part, ast.Dict) and None in part.keys:
            yield Problem("'**' inside a dict is not part of an expression.", expression.place(part))
        elif isinstance(part, ast.BinOp) and isinstance(part.op, ast.LShift | ast.BitXor):
            yield Problem("this operator is not part of an expression.", expression.place(part))
        elif isinstance(part, ast.Compare) and _asks_identity(part):
            hint = "only None, True and False are compared so: write == or !="
            yield Problem("'is' asks whether both are one object.", expression.place(part), hint)
        elif isinstance(part, ast.Compare) and _bitwise_beside_comparison(part, expression):
            hint = "'&' and '|' bind tighter than comparisons: put each comparison in parentheses"
            yield Problem("'&' or '|' beside a comparison without parentheses.", expression.place(part), hint)


def _asks_identity(compare: ast.Compare) -> bool:
    """Whether an `is` stands between two values of which neither is written None, True or False."""

    def is_single(tree: ast.expr) -> bool:
        return isinstance(tree, ast.Constant) and (tree.value is None or isinstance(tree.value, bool))

    sides = itertools.pairwise((compare.left, *compare.comparators))
    return any(
        isinstance(op, ast.Is | ast.IsNot) and not any(map(is_single, pair))
        for op, pair in zip(compare.ops, sides, strict=True)
    )


def _bitwise_beside_comparison(compare: ast.Compare, expression: Expression) -> bool:
    """Whether `a & b` is a side of a comparison, with no parenthesis between it and the sign."""
    lines = expression.node.source.lines
    for side in (compare.left, *compare.comparators):
        if not isinstance(side, ast.BinOp) or not isinstance(side.op, ast.BitAnd | ast.BitOr):
            continue
        first, last = side.lineno - 1, (side.end_lineno or side.lineno) - 1
        if side is compare.left:
            behind = (lines[last].encode()[side.end_col_offset :].decode(), *lines[last + 1 :])
            is_apart = next((line.lstrip() for line in behind if line.strip()), "").startswith(")")
        else:
            before = (lines[first].encode()[: side.col_offset].decode(), *reversed(lines[:first]))
            is_apart = next((line.rstrip() for line in before if line.strip()), "").endswith("(")
        if not is_apart:
            return True
    return False


def _syntax_problem(error: SyntaxError, node: Node, lead: int) -> Problem:
    positions = node.positions()
    index = min(max((error.offset or 1) - 1 + lead, 0), len(positions) - 1)
    line, column = positions[index]
    place = node.source.place(line, column)
    hint = ""
    end_line = node.source.text[node.span[1] :].split("\n", 1)[0]
    if not node.style and end_line.lstrip().startswith("#"):
        hint = "' #' begins a comment in YAML: was the expression cut there? then put it in quotes"
    elif "${" in node.text:
        hint = "params are plain names in expressions, without '${}'"
    return Problem(f"this is not an expression: {error.msg}.", place, hint)
