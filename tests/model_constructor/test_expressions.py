"""Expressions: the grammar, where an expression is wrong, and its value over params."""

from __future__ import annotations

import ast
import contextlib
import math
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from model_constructor import ConfigError, build_model
from model_constructor.expressions import Expression, evaluate, parse
from model_constructor.source import Node, read_text


def node(text: str) -> Node:
    tree = read_text(text, "m.yaml")
    assert isinstance(tree.value, dict)
    return tree.value["y"]


def expression(text: str) -> Expression:
    return parse(node("y: >-\n  " + text))


def value(text: str, **params: Any) -> Any:
    return evaluate(expression(text), params)


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "x + y - z * 2 / 3 // 4 % 5 ** 6 @ w",
        "-x",
        "~mask & keep | other",
        "(x < 1) & (y >= 2)",
        "x[:, None, ..., 1:2:-1]",
        "x['key']",
        "x.shape[0]",
        "layers[depth - 1](x)",
        "f(x, dim=-1)",
        "a if b else c",
        "x is None",
        "x is not None",
        "not a and b or c",
        "side in ['left', 'right']",
        "[1, 2.5, 'a', None, True]",
        "(1, 2)",
        "x, y",
        "{'a': x, 'b': [y]}",
        "A(1) >> B() >> C()",
        "A() * 3",
        "Block(**params)",
        "1e-4",
        "0x10",
        "'text'",
        "(1,)",
        "[]",
        "{}",
    ],
)
def test_the_grammar_reads(text: str):
    assert ast.unparse(expression(text).tree) == ast.unparse(ast.parse(text, mode="eval").body)


REFUSED = [  # (expression, what the caret is under, part of what is said)
    ("lambda: x", "lambda: x", "lambda"),
    ("[a for a in x]", "[a for a in x]", "comprehension"),
    ("{a for a in x}", "{a for a in x}", "comprehension"),
    ("{a: 1 for a in x}", "{a: 1 for a in x}", "comprehension"),
    ("f(a for a in x)", "(a for a in x)", "comprehension"),
    ("f'{x}'", "f'{x}'", "f-string"),
    ("(a := x)", "a := x", ":="),
    ("f(*x)", "*x", "'*'"),
    ("{1, 2}", "{1, 2}", "set"),
    ("x.__class__", "x.__class__", "underscore"),
    ("x._data", "x._data", "underscore"),
    ("x.shape.__class__.__mro__[1]", "x.shape.__class__.__mro__", "underscore"),
    ("b'x'", "b'x'", "bytes"),
    ("2j + x", "2j", "complex"),
    ("{**x}", "{**x}", "**"),
    ("x ^ y", "x ^ y", "operator"),
    ("x << 2", "x << 2", "operator"),
    ("f(x, true)", "true", "True"),
    ("false", "false", "False"),
    ("null", "null", "None"),
    ("x > 1 & y < 2", "x > 1 & y < 2", "parentheses"),
    ("where(m & x > 0, x, 0)", "m & x > 0", "parentheses"),
    ("(m & x > 0)", "m & x > 0", "parentheses"),
    ("(m) & x > 0", "(m) & x > 0", "parentheses"),
    ("f((m | n) & x > 0)", "(m | n) & x > 0", "parentheses"),
    ("f(0 < (m) & (x))", "0 < (m) & (x)", "parentheses"),
    ("f(a == (b | c) == d | e)", "a == (b | c) == d | e", "parentheses"),
    ("await x", "await x", "await"),
]


@pytest.mark.parametrize(("text", "marked", "said"), REFUSED)
def test_what_the_grammar_leaves_out_is_refused_under_a_caret(text: str, marked: str, said: str):
    with pytest.raises(ConfigError) as caught:
        expression(text)
    problem = caught.value.problems[0]
    assert said in f"{problem.message} {problem.hint}"
    place = problem.place
    assert place is not None
    assert (place.line, place.text[place.column - 1 : place.column - 1 + place.length]) == (2, marked)


def test_comparisons_in_parentheses_beside_an_ampersand_are_fine():
    assert expression("(x > 1) & (y < 2)")
    assert expression("(a & b) == c")


@pytest.mark.parametrize(
    "text", ["x +", "f(x", "x y", "x = 1", "import os", "1 +* 2", "'open", "", "  ", "x;y", "a ! b"]
)
def test_what_is_no_expression_is_refused(text: str):
    with pytest.raises(ConfigError) as caught:
        expression(text)
    assert caught.value.problems[0].place is not None


def test_an_expression_cut_by_a_comment_says_so():
    with pytest.raises(ConfigError) as caught:
        parse(node("y: f(x, # the input\n"))
    assert "comment" in caught.value.problems[0].hint


def test_an_unquoted_interpolation_is_told_to_be_a_plain_name():
    with pytest.raises(ConfigError) as caught:
        parse(node("y: ${dim}\n"))
    assert "plain names" in caught.value.problems[0].hint


WRITTEN = [
    "y: first + wrong\n",
    "y: 'first + wrong'\n",
    'y: "first + wrong"\n',
    "y: >-\n  first\n  + wrong\n",
    "y: >-\n\n  first + (\n\n    wrong)\n",
    "y: |\n  (first +\n     wrong)\n",
    "y: first\n   + wrong\n",
    'y: "first\n   + wrong"\n',
    "y: é + first + ü * 'ü😀' + wrong\n",
    "y: '\"é\" + first + wrong' # wrong\n",
    'y: "\\"é\\" + first + wrong"\n',
    "é: 1\ny: ü.mean() + first + wrong\n",
    "y: &first2 first + wrong\n",
    "y: # wrong\n  first + wrong\n",
    "y:      first + wrong      \n",
]


@pytest.mark.parametrize("text", WRITTEN)
@pytest.mark.parametrize("name", ["first", "wrong"])
def test_a_name_is_found_where_it_is_written_however_the_scalar_is(text: str, name: str):
    read = parse(node("# the head of the file\n" + text))
    found = [part for part in read.names() if part.id == name]
    assert len(found) == 1
    place = read.place(found[0])
    assert place.text[place.column - 1 : place.column - 1 + place.length] == name
    assert "# wrong" not in place.text[: place.column]
    raw = place.text.encode()  # as Python counts columns, in UTF-8: what tracebacks use
    assert raw[found[0].col_offset : found[0].end_col_offset].decode() == name
    assert found[0].lineno == found[0].end_lineno == place.line


def test_an_escape_in_double_quotes_moves_no_later_name():
    read = parse(node('y: "x\\x20+ wrong + \\u0062ad"\n'))
    place = next(read.place(part) for part in read.names() if part.id == "wrong")
    assert place.text[place.column - 1 : place.column - 1 + place.length] == "wrong"


@pytest.mark.parametrize(
    ("text", "params", "expected"),
    [
        ("4 * dim", {"dim": 8}, 32),
        ("dim // 3 + 7 % 4", {"dim": 8}, 5),
        ("-2 ** 2", {}, -4),
        ("sqrt(dim) * 2", {"dim": 16}, 8.0),
        ("max(a, b) - min(a, b)", {"a": 3, "b": 5}, 2),
        ("round(2.6) + int(3.9) + len(sizes) + sum(sizes) + abs(-1)", {"sizes": [4, 5]}, 3 + 3 + 2 + 9 + 1),
        ("sizes[1:] + [7] * 2", {"sizes": [1, 2, 3]}, [2, 3, 7, 7]),
        ("sizes[-1]", {"sizes": [1, 2, 3]}, 3),
        ("a if flag else b", {"flag": False, "a": 1, "b": 2}, 2),
        ("side == 'left'", {"side": "left"}, True),
        ("side in ['left', 'right']", {"side": "up"}, False),
        ("1 < n <= 3", {"n": 3}, True),
        ("n is None", {"n": None}, True),
        ("not flag and n > 1", {"flag": False, "n": 2}, True),
        ("hidden or 4 * dim", {"hidden": None, "dim": 2}, 8),
        ("flag and dim", {"flag": True, "dim": 2}, 2),
        ("pi", {}, math.pi),
        ("-inf", {}, -math.inf),
        ("ceil(2.1) + floor(2.9)", {}, 5),
        ("{'a': dim}['a']", {"dim": 3}, 3),
        ("float32", {}, torch.float32),
        ("(dim, 1)", {"dim": 3}, (3, 1)),
        ("'a' + 'b'", {}, "ab"),
    ],
)
def test_the_value_over_params(text: str, params: dict, expected: object):
    result = value(text, **params)
    assert result == expected
    assert type(result) is type(expected)


def test_a_tensor_may_be_made_when_the_model_is_built():
    built = value("ones(n, n, dtype=bool).tril()", n=3)
    assert torch.equal(built, torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool))
    assert torch.equal(value("exp(arange(3) / 2)"), torch.exp(torch.arange(3) / 2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dimm + 1", "did you mean 'dim'?"),
        ("dim / 0", "ZeroDivisionError"),
        ("sizes[5]", "IndexError"),
        ("dim + 'a'", "TypeError"),
        ("sqr(dim)", "did you mean 'sqrt'?"),
        ("dim.foo", "cannot be computed"),
        ("open('/etc/passwd')", "no function is called 'open'"),
        ("eval('1')", "no function is called 'eval'"),
        ("__import__('os')", "no function is called '__import__'"),
        ("getattr(dim, 'real')", "no function"),
        ("print(dim)", "no function"),
        ("save(dim, 'f')", "no function"),
        ("load('f')", "no function"),
        ("'{}'.format(dim)", "no function"),
    ],
)
def test_a_value_that_cannot_be_had_says_why(text: str, said: str):
    with pytest.raises(ConfigError) as caught:
        value(text, dim=8, sizes=[1, 2])
    assert said in str(caught.value)
    assert caught.value.problems[0].place is not None


@pytest.mark.parametrize(
    "text",
    [
        "9 ** 9 ** 9",
        "2 ** 10000000",
        "2 ** -100000000",
        "[0] * 10 ** 9",
        "10 ** 9 * 'a'",
        "[[0] * 1000] * 10 ** 7",
        "'%1000000000d' % 1",
        "sum([[0] * 10000] * 10000, [])",
        "(2 ** 4000) ** 4000",
        "+".join(["1"] * 5000),
        "-" * 5000 + "1",
        "(" * 150 + "1" + ")" * 150 + "(" * 100,
        "[" * 190 + "]" * 190,
        "1" + ".real" * 3000,
        "not " * 5000 + "1",
        "1 if 1 else " * 2000 + "1",
        "x" * 100_000,
    ],
)
def test_work_without_bound_is_refused_quickly(text: str):
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError):
        value(text)
    assert time.monotonic() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_params_are_never_changed_by_an_expression():
    sizes = [3, 1, 2]
    with pytest.raises(ConfigError):
        value("sizes.sort()", sizes=sizes)
    assert sizes == [3, 1, 2]


def test_a_repeat_of_a_list_of_reasonable_length_is_fine():
    assert len(value("[0] * n", n=1000)) == 1000


@pytest.mark.parametrize("text", ["1if flag else 2", "'\\d'", "1 is None", "'a' is not None"])
def test_where_python_only_warns_and_warnings_are_errors_comes_a_model_or_a_config_error(text: str, tmp_path: Path):
    (tmp_path / "m.yaml").write_text(
        f"schema_version: 2\nparams: {{flag: true}}\ninputs: {{x: any}}\noutputs: >-\n  {text}\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with contextlib.suppress(ConfigError):
            assert build_model(tmp_path / "m.yaml")(0) is not None


@pytest.mark.parametrize(
    "text", ["[0] * 900000 + [0] * 900000", "'a' * 900000 + 'a' * 900000", "2 ** 4000 * 2 ** 4000 * " * 9 + "2 ** 4000"]
)
def test_lists_and_numbers_cannot_grow_without_bound(text: str):
    with pytest.raises(ConfigError, match=r"too large|more than"):
        value(text)
