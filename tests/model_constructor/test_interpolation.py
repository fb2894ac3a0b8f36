"""`${...}`: values made of other values and of the environment, in train configs and in the params of models."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from model_constructor import ConfigError, Problem, build_model, dump, load_config
from model_constructor.interpolation import escaped
from model_constructor.source import read_text

ENVIRONMENT = {"A_TEXT": "text", "A_NUMBER": "12", "A_LIST": '[1, {"a": 2}]', "A_FLAG": "Yes", "AN_EXPRESSION": "${a}"}
DOCUMENT = {
    "a": 3,
    "b": 2.5,
    "name": "run",
    "flag": True,
    "none": None,
    "l": [10, {"x": 20}],
    "m": {"k-1": 30, "n": {"o": 40}},
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSET", raising=False)


def value_of(text: str) -> object:
    return load_config({**DOCUMENT, "value": text}).data["value"]


def problems_of(document: dict[str, Any]) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load_config(document)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${a}", 3),
        ("${4 * a}", 12),
        ("${a / 2}", 1.5),
        ("${a // 2 + b}", 3.5),
        ("${flag}", True),
        ("${none}", None),
        ("${name}", "run"),
        ("${l}", [10, {"x": 20}]),
        ("${m}", {"k-1": 30, "n": {"o": 40}}),
        ("${m.n.o}", 40),
        ("${m['k-1']}", 30),
        ("${m['n'].o}", 40),
        ("${l[0]}", 10),
        ("${l[-2]}", 10),
        ("${l[1].x + l[1]['x']}", 40),
        ("${l[a - 3]}", 10),
        ("${l + [a]}", [10, {"x": 20}, 3]),
        ("${(a, b)}", [3, 2.5]),
        ("${{'a': a}}", {"a": 3}),
        ("${a if flag else l[7]}", 3),
        ("${'yes' if a == 3 else 'no'}", "yes"),
        ("${max(a, 7) + int(b) + round(2.6)}", 12),
        ("${sqrt(16) + floor(pi)}", 7.0),
        ("${inf}", math.inf),
        ("runs/${name}-${a}", "runs/run-3"),
        ("${a}${b}", "32.5"),
        ("${flag} ${none}", "true null"),
        (" ${a}", " 3"),
        ("$${a}", "${a}"),
        ("$$${a}", "$${a}"),
        ("$${a} ${a} $a {a}", "${a} 3 $a {a}"),
        ("${env:A_TEXT}", "text"),
        ("${env:A_NUMBER}", "12"),
        ("${env:int:A_NUMBER}", 12),
        ("${env:float:A_NUMBER}", 12.0),
        ("${env:bool:A_FLAG}", True),
        ("${env:bool:UNSET,off}", False),
        ("${env:json:A_LIST}", [1, {"a": 2}]),
        ('${env:json:UNSET,{"a": {"b": null}}}', {"a": {"b": None}}),
        ("${env:UNSET,}", ""),
        ("${env:UNSET,a, b: c}", "a, b: c"),
        ("${env:int:UNSET,8}", 8),
        ("${env:int:A_NUMBER,8}", 12),
        ("${env:int:A_NUMBER} of ${a}", "12 of 3"),
        ("${env:AN_EXPRESSION}", "${a}"),  # what the environment holds is never an expression
        ("$${b} ${env:AN_EXPRESSION} ${a}", "${b} ${a} 3"),
    ],
)
def test_what_a_value_becomes(text: str, expected: object):
    value = value_of(text)
    assert value == expected
    assert type(value) is type(expected)


WRONG = [  # (the value, what the caret is under, part of what is said)
    ("${aa}", "aa", "known here: a, "),
    ("${m.n.p}", "m.n.p", "did you mean 'm.n.o'?"),
    ("${m.q.o}", "m.q.o", "known here: m.k-1, m.n"),
    ("${1 + a.x}", "a.x", "no value is called 'a.x'"),
    ("x ${a} ${mm} y", "mm", "did you mean 'm'?"),
    ("${a", "${a", "without its '}'"),
    ("${a +}", "", "not an expression"),
    ("${}", "", "nothing is written"),
    ("${a.b.c()}", "a.b.c", "no function is called 'a.b.c' here"),
    ("${(a + 1).real}", "(a + 1)", "a dotted path"),
    ("${zeros(3)}", "zeros", "no function is called 'zeros' here"),
    ("${open('/etc/passwd')}", "open", "no function is called 'open' here"),
    ("${maxx(1, 2)}", "maxx", "did you mean 'max'?"),
    ("${a.__class__}", "a.__class__", "underscore"),
    ("${[x for x in l]}", "[x", "a comprehension"),
    ("${float32}", "float32", "no value is called"),
    ("${a / 0}", "a / 0", "ZeroDivisionError"),
    ("${l[7]}", "l[7]", "IndexError"),
    ("${a if name else b}", "name", "a condition is true or false"),
    ("x ${l}", "", "a part of a text"),
    ("${(-1) ** 0.5}", "(-1)", "of type complex"),
    ("${{1: 2}}", "{1", "of type dict"),
    ("${2 ** 4096 * 2 ** 4000}", "2 **", "too large"),
    ("${[0] * 600000 + [0] * 600000}", "[0]", "would have more than"),
    ("${env:UNSET}", "env:UNSET", "'UNSET' is not set"),
    ("${env:int:A_TEXT}", "env:int:A_TEXT", "'A_TEXT' is 'text'; it has to be an integer"),
    ("${env:float:UNSET,x}", "env:float", "the default of 'UNSET' is 'x'"),
    ("${env:bool:A_NUMBER}", "env:bool", "true or false"),
    ("${env:json:A_TEXT}", "env:json", "JSON"),
    ("${env:integer:A_NUMBER}", "env:integer", "types: int, float, bool, json"),
    ("${env:}", "env:", "names no variable"),
    ("${env:A NAME}", "env:A NAME", "names no variable"),
]


@pytest.mark.parametrize("style", ["{}", "'{}'", '"{}"', ">-\n    {}"])
@pytest.mark.parametrize(("text", "marked", "said"), WRONG)
def test_a_slip_is_told_where_it_stands(tmp_path: Path, text: str, marked: str, said: str, style: str):
    written = text.replace("'", "''") if style[0] == "'" else text
    if style == "{}" and (": " in text or text[-1] == ":"):
        style = "'{}'"
    path = tmp_path / "m.yaml"
    path.write_text(dump(DOCUMENT) + f"value:\n  é: {style.format(written)}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    (problem,) = caught.value.problems
    assert said in f"{problem.message} {problem.hint}"
    assert problem.place is not None
    start = problem.place.text[problem.place.column - 1 :].replace("''", "'")
    assert start.startswith(marked) and problem.place.text in path.read_text().splitlines()


def test_an_expression_cut_by_a_comment_is_told_what_cut_it(tmp_path: Path):
    path = tmp_path / "m.yaml"
    path.write_text("a: 1\nb: ${2 * a # twice}\n")
    with pytest.raises(ConfigError, match="' #' begins a comment"):
        load_config(path)


def test_all_slips_are_told_together():
    found = problems_of({"a": "${x}", "b": "${1 / 0}", "c": "${a + 1}", "d": 3})
    assert len(found) == 2  # and nothing of c, which is well as it is


def test_values_are_computed_in_the_order_in_which_they_use_each_other():
    links = {f"v{i}": f"${{v{i + 1} + 1}}" for i in range(3000)}
    assert load_config({**links, "v3000": 0}).data["v0"] == 3000


def test_a_value_is_found_inside_and_below_what_another_became():
    document = {"a": "${b.c}", "b": "${d}", "d": {"c": "${e}"}, "e": 5, "l": ["${a}", "${l[0] + 1}"]}
    assert load_config(document).data == {"a": 5, "b": {"c": 5}, "d": {"c": 5}, "e": 5, "l": [5, 6]}


@pytest.mark.parametrize(
    ("document", "chain"),
    [
        ({"a": "${a}"}, "a -> a"),
        ({"a": "${b + 1}", "b": "x${c.d}", "c": {"d": "${a}"}}, "a -> b -> c.d -> a"),
        ({"m": {"x": "${m}"}}, "m.x -> m.x"),
        ({"l": [1, "${l[1] + 1}"]}, "l.1 -> l.1"),
    ],
)
def test_a_circle_names_its_chain(document: dict, chain: str):
    (problem,) = problems_of(document)
    assert "in a circle" in problem.message
    links = problem.message.rstrip(".").split(": ")[1].split(" -> ")
    assert links[0] == links[-1]
    assert set(pairwise(chain.split(" -> "))) <= set(pairwise(links))  # wherever it begins


GROWING = [
    *(("${v + v}", "x"), ("${v}${v}", "x"), ("${[v]}", "x"), ("${v + v}", [1]), ("${v * v}", 3)),
    *(pytest.param(step, "x", marks=pytest.mark.slow) for step in ("${[v, v]}", "${{'a': v, 'b': v}}")),
]


@pytest.mark.parametrize(("step", "first"), GROWING)
def test_values_cannot_grow_without_bound(step: str, first: object):
    document = {f"v{i}": step.replace("v", f"v{i - 1}") for i in range(1, 80)}
    assert any(said in problems_of({"v0": first, **document})[0].message for said in ("too large", "more than"))


@pytest.mark.parametrize("value", ["plain", "${a}", "$${a}", "$$$${", {"k": ["${", 3]}])
def test_an_escaped_value_reads_as_it_is(value: object):
    assert load_config({"v": escaped(value)}).data == {"v": value}


def test_an_override_is_in_place_before_values_are_computed():
    assert load_config({"a": 1, "b": "${2 * a}"}, ["a=5", "c=${a + b}"]).data == {"a": 5, "b": 10, "c": 15}


# --- params of models -------------------------------------------------------------------------------------------------

MODEL = """\
params: {dim: 8, hidden: "${4 * dim}", sizes: [1, "${hidden}", "${2 * sizes[1]}"], name: "net-${dim}"}
inputs: {x: [B, dim]}
modules: {up: "Linear(dim, hidden)", down: "Linear(sizes[1], dim)"}
outputs: [down(up(x)), name]
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"dim": 8, "hidden": 32, "sizes": [1, 32, 64], "name": "net-8"}),
        ({"dim": 2}, {"dim": 2, "hidden": 8, "sizes": [1, 8, 16], "name": "net-2"}),
        ({"hidden": 3}, {"dim": 8, "hidden": 3, "sizes": [1, 3, 6], "name": "net-8"}),
        ({"dim": 2, "sizes": [0, 8], "name": "${dim}"}, {"dim": 2, "hidden": 8, "sizes": [0, 8], "name": "${dim}"}),
    ],
)
def test_a_param_is_computed_after_the_callers_arguments_are_in_place(build: Callable, given: dict, expected: dict):
    model = build(MODEL, params=given)
    assert model.params == expected
    result, name = model(torch.ones(2, expected["dim"]))
    assert (result.shape, name) == ((2, expected["dim"]), expected["name"])
    assert model.up.out_features == expected["hidden"]


def test_params_are_computed_in_any_order_of_writing_and_in_block_style(build: Callable):
    text = "params:\n  c: ${a + params.b}\n  b: ${2 * a}\n  a: 1\ninputs: {x: any}\noutputs: x * c\n"
    assert build(text, params={"a": 2}).params == {"c": 6, "b": 4, "a": 2}


def test_the_params_of_a_block_are_computed_for_each_use(build: Callable):
    text = """
    inputs: {x: [B, 4]}
    blocks:
      layer:
        params: {dim: int, hidden: "${2 * dim}"}
        inputs: {x: [B, T]}
        modules: {l: "Linear(dim, hidden)"}
        outputs: l(x)
      scale: {params: {by: 1, twice: "${2 * by}"}, inputs: {x: any}, outputs: x * twice}
    modules: {a: layer(dim=4), b: "layer(dim=8, hidden=3)"}
    outputs: scale(b(a(x)), by=5)
    """
    model = build(text)
    assert (model.a.params, model.b.params) == ({"dim": 4, "hidden": 8}, {"dim": 8, "hidden": 3})
    x = torch.randn(2, 4)
    assert torch.equal(model(x), model.b.l(model.a.l(x)) * 10)


def test_a_given_param_breaks_a_circle_and_spares_an_error(build: Callable, problems: Callable):
    text = "params: {a: '${b + 1}', b: '${a - 1}', c: '${1 // 0}'}\ninputs: {x: any}\noutputs: x + a + b + c\n"
    assert build(text, params={"a": 3, "c": 0}).params == {"a": 3, "b": 2, "c": 0}
    (found,) = problems(text, params={"c": 0})
    assert "in a circle: a -> b -> a" in found.message or "in a circle: b -> a -> b" in found.message
    (found,) = problems(text, params={"a": 3})
    assert "ZeroDivisionError" in found.message and found.place.text[found.place.column - 1 :].startswith("1 // 0")


def test_a_given_param_has_the_type_of_what_its_default_becomes(problems: Callable, build: Callable):
    (found,) = problems(MODEL, params={"hidden": "wide"})
    assert "'hidden'" in found.message and "an integer" in found.message
    (found,) = problems(MODEL, params={"sizes": 3})
    assert "a list" in found.message
    (found,) = problems(MODEL, params={"name": 3})
    assert "a string" in found.message


@pytest.mark.parametrize(
    ("text", "marked", "said"),
    [
        ("params: {a: 1, b: '${aa}'}", "aa", "did you mean 'a'?"),
        ("params: {a: 1, b: '${inputs.x}'}", "inputs.x", "no param is called 'inputs.x'"),
        ("params: {a: 1, b: '${a'}", "${a", "without its '}'"),
        ("params: {a: 1, b: \"${{'x': a}}\"}", "", "a param is"),
        ("params: {a: x, b: '${a}', c: \"${'int'}\"}", "", "no name of a type"),
        ("params: {a: 1, b: ${4 * a}}", "${4 * a}", 'write it in quotes, as in "${4 * a}"'),
        ("params: {a: 1, b: [${a}, 2]}", "${a}", 'write it in quotes, as in "${a}"'),
        ("params: {a: 1, b: x-${a}-y}", "${a}", "write it in quotes"),
        ("params: {a: 1,\n  b: ${max(a, 2)}}", "${max(a, 2)}", 'as in "${max(a, 2)}"'),
    ],
)
def test_a_slip_in_a_param_is_told_where_it_stands(problems: Callable, text: str, marked: str, said: str):
    found = problems(text + "\ninputs: {x: any}\noutputs: x\n")
    assert said in f"{found[0].message} {found[0].hint}"
    assert found[0].place.text[found[0].place.column - 1 :].startswith(marked)


@pytest.mark.parametrize(
    "text",
    [
        "params: {dim: 2}\ninputs: {x: ['${dim}']}\noutputs: x\n",
        "params: {dim: 2}\ninputs: {x: any}\nmodules: {l: 'Linear(${dim}, 2)'}\noutputs: l(x)\n",
        "params: {dim: 2}\ninputs: {x: any}\ngraph: {y: '${dim} * x'}\noutputs: y\n",
        "params: {dim: 2}\ninputs: {x: any}\noutputs: ${env:A_NUMBER} * x\n",
    ],
)
def test_expressions_have_plain_names_and_no_braces(problems: Callable, text: str):
    (found,) = problems(text)
    assert "not an expression" in found.message or "params are plain names" in found.hint


def test_the_form_of_an_input_may_come_from_the_environment_but_not_from_params(build: Callable, problems: Callable):
    text = "params: {p: true}\ninputs: {x: any, m: {shape: any, optional: '${env:bool:A_FLAG}'}}\noutputs: x\n"
    assert build(text)(3) == 3
    (found,) = problems(text.replace("env:bool:A_FLAG", "p"))
    assert "params are not known here" in found.message


def test_the_specification_holds_values_and_the_environment_as_they_were(build: Callable, monkeypatch: Any):
    text = """
    params: {dim: 4, hidden: "${2 * dim}", label: "${env:A_TEXT}-$${dim}", width: "${env:int:A_NUMBER}"}
    inputs: {x: {shape: [B, dim], dtype: "${env:UNSET,float32}"}}
    blocks:
      layer:
        params: {dim: int, hidden: "${2 * dim}", label: "${env:A_TEXT}-${dim}-$${dim}", more: "${env:AN_EXPRESSION}"}
        inputs: {x: any}
        modules: {l: "Linear(dim, hidden)"}
        outputs: l(x)
    modules: {a: layer(dim=dim)}
    outputs: a(x)
    """
    model = build(text, params={"dim": 3})
    monkeypatch.setenv("A_TEXT", "changed")
    monkeypatch.delenv("A_NUMBER")
    inner = {"dim": 3, "hidden": 6, "label": "text-3-${dim}", "more": "${a}"}
    own = {"dim": 3, "hidden": 6, "label": "text-${dim}", "width": 12}
    assert model.spec["params"] == escaped(own)
    assert model.spec["blocks"]["layer"]["params"]["hidden"] == "${2 * dim}"
    assert model.spec["inputs"]["x"]["dtype"] == "float32"
    for twin in (pickle.loads(pickle.dumps(model)), build_model(model.spec)):
        assert (twin.params, twin.a.params) == (own, inner)
        assert twin.spec == model.spec


def test_a_param_that_a_file_overrides_is_computed_from_what_stands_there_then(write: Callable):
    write(MODEL, "base.yaml")
    path = write("defaults: [base.yaml]\nparams: {dim: 3}\n")
    assert build_model(path, overrides=["params.name=${hidden}"]).params == {
        "dim": 3,
        "hidden": 12,
        "sizes": [1, 12, 24],
        "name": 12,
    }


def test_a_problem_stands_in_the_file_that_holds_the_expression(write: Callable, problems: Callable):
    write("params: {dim: 8, hidden: '${4 // dim}'}\n", "base.yaml")
    (found,) = problems("defaults: [base.yaml]\nparams: {dim: 0}\ninputs: {x: any}\noutputs: x * hidden\n")
    assert Path(found.place.file).name == "base.yaml" and found.place.line == 2


def test_every_part_of_a_scalar_knows_its_place():
    tree = read_text('x: "é ${alpha}\n   ${beta}"\n', "m.yaml")
    assert isinstance(tree.value, dict)
    node = tree.value["x"]
    for name in ("alpha", "beta"):
        place = node.part(node.text.index(name), node.text.index(name) + len(name)).place
        assert place.text[place.column - 1 :][: place.length] == name
