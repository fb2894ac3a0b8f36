"""The form of a file: its keys, its version, its names, its params and inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_constructor import ConfigError, build_model

GOOD = """\
params: {dim: 3}
inputs: {x: [B, dim]}
modules:
  head: Linear(dim, dim)
graph:
  h: head(x)
outputs: h
"""


def test_a_file_with_every_key_builds(build: Callable):
    text = "imports: []\n" + GOOD.replace("modules:", "blocks:\n  f: {inputs: {a: any}, outputs: a}\nmodules:")
    assert build(text)(torch.zeros(2, 3)).shape == (2, 3)


def test_sections_may_be_empty_or_absent(build: Callable):
    x = torch.ones(2)
    assert torch.equal(build("params:\ninputs: {x: [B]}\nblocks:\nmodules:\ngraph:\noutputs: x + 1\n")(x), x + 1)
    assert torch.equal(build("inputs: {x: [B]}\noutputs: x + 1\n")(x), x + 1)


FORM = [  # (text; its first line is line 2, line, what the caret is under, part of what is said)
    (GOOD.replace("modules:", "moduls:"), 4, "moduls", "did you mean 'modules'?"),
    (GOOD.replace("outputs: h", "output: h"), 8, "output", "did you mean 'outputs'?"),
    ("inputs: {x: [B]}\n", 1, "", "outputs"),
    (GOOD.replace("{dim: 3}", "[3]"), 2, "[3]", "mapping"),
    (GOOD.replace("dim: 3", "dim: {a: 3}"), 2, "", "a param is"),
    (GOOD.replace("dim: 3", "dim: [{a: 3}]"), 2, "", "a param is"),
    (GOOD.replace("dim: 3", "dim: 3, h: '${4 * dmi}'"), 2, "dmi", "did you mean 'dim'?"),
    (GOOD.replace("dim: 3", "dim: '${4 *'"), 2, "${4 *", "without its '}'"),
    (GOOD.replace("[B, dim]", "B"), 3, "B", "shape"),
    (GOOD.replace("[B, dim]", "{dtype: bool}"), 3, "", "shape"),
    (GOOD.replace("[B, dim]", "{shape: [B, dim], dtyp: bool}"), 3, "dtyp", "did you mean 'dtype'?"),
    (GOOD.replace("[B, dim]", "{shape: [B, dim], dtype: boole}"), 3, "boole", "did you mean 'bool'?"),
    (GOOD.replace("[B, dim]", "{shape: [B, dim], optional: 3}"), 3, "3", "true or false"),
    (GOOD.replace("[B, dim]", "[B, -1]"), 3, "-1", "negative"),
    (GOOD.replace("[B, dim]", "[B, ...]"), 3, "...", "first"),
    (GOOD.replace("[B, dim]", "[B, 1.5]"), 3, "1.5", "shape"),
    (GOOD.replace("[B, dim]", "[B, [2]]"), 3, "[2]", "shape"),
    (GOOD.replace("{x: [B, dim]}", "{o: {shape: any, optional: true}, x: [B, dim]}"), 3, "x", "optional"),
    (GOOD.replace("h: head(x)", "h: "), 7, "", "nothing is written"),
    (GOOD.replace("outputs: h", "outputs: head(h"), 8, "", "not an expression"),
    (GOOD.replace("modules:", "modules: 3\nblocks:"), 4, "3", "mapping"),
]


@pytest.mark.parametrize(("text", "line", "marked", "said"), FORM)
def test_a_slip_of_form_is_told_where_it_stands(problems: Callable, text: str, line: int, marked: str, said: str):
    problem = next(problem for problem in problems(text) if said in f"{problem.message} {problem.hint}")
    assert problem.place.line == line
    if marked:
        place = problem.place
        assert place.text[place.column - 1 : place.column - 1 + place.length] == marked


@pytest.mark.parametrize("version", ["1", "3", "'2'", "true", "null", "two", "[2]"])
def test_a_version_that_is_not_2_is_refused(tmp_path: Path, version: str):
    path = tmp_path / "m.yaml"
    path.write_text(f"schema_version: {version}\n" + GOOD)
    with pytest.raises(ConfigError, match="schema_version") as caught:
        build_model(path)
    assert caught.value.problems[0].place.line == 1  # type: ignore[union-attr]


def test_a_missing_version_says_what_to_write(tmp_path: Path):
    path = tmp_path / "m.yaml"
    path.write_text(GOOD)
    with pytest.raises(ConfigError, match="begin the file with 'schema_version: 2'"):
        build_model(path)


@pytest.mark.parametrize("text", ["- a\n- b\n", "3\n", "text\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="mapping"):
        build_model(path)


def test_all_slips_of_form_are_told_together_in_file_order(problems: Callable):
    text = """\
        parms: {dim: 3}
        inputs: {x: B, self: [B]}
        graph:
          y: x +
          z: lambda x
        outputs: true
        """
    found = problems(text)
    assert [problem.place.line for problem in found] == sorted(problem.place.line for problem in found)
    assert {2, 3, 5, 6, 7} <= {problem.place.line for problem in found}


# names


@pytest.mark.parametrize(
    "name",
    [
        "index",
        "training",
        "params",
        "each",
        "self",
        "class",
        "lambda",
        "2x",
        "a-b",
        "a.b",
        "_x",
        "forward",
        "train",
        "parameters",
        "half",
        "type",
    ],
)
@pytest.mark.parametrize("section", ["params", "inputs", "modules", "graph"])
def test_a_name_that_is_taken_or_no_name_is_refused(problems: Callable, section: str, name: str):
    entry = {"params": "3", "inputs": "[B]", "modules": "ReLU()", "graph": "x"}[section]
    sections = {"params": "", "inputs": "  x: [B]\n", "modules": "", "graph": ""}
    sections[section] += f"  {name}: {entry}\n"
    text = "".join(f"{key}:\n{lines}" for key, lines in sections.items() if lines) + "outputs: x\n"
    places = [problem.place for problem in problems(text) if f"'{name}'" in problem.message]
    assert places
    assert places[0].text[places[0].column - 1 :].startswith(name)


@pytest.mark.parametrize("name", ["block", "returns", "compiled", "graph", "head", "members"])
def test_a_module_may_have_any_name_that_no_module_of_torch_uses(build: Callable, name: str):
    model = build(f"inputs: {{x: [B, 3]}}\nmodules:\n  {name}: Linear(3, 2)\noutputs: {name}(x)\n")
    assert list(model.state_dict()) == [f"{name}.weight", f"{name}.bias"]
    assert model(torch.zeros(1, 3)).shape == (1, 2)


@pytest.mark.parametrize("name", ["spec", "code", "inputs"])
def test_a_module_that_would_hide_what_every_model_has_is_refused(problems: Callable, name: str):
    found = problems(f"inputs: {{x: [B, 3]}}\nmodules:\n  {name}: Linear(3, 2)\noutputs: {name}(x)\n")
    assert found[0].place.line == 4 and f"'{name}'" in found[0].message


@pytest.mark.parametrize("name", ["training", "_modules", "__init__", "class", "forward", "a-b"])
def test_names_inside_a_namespace_follow_the_same_rules(problems: Callable, name: str):
    found = problems(f"inputs: {{x: [B, 3]}}\nmodules:\n  n:\n    {name}: Linear(3, 3)\noutputs: n(x)\n")
    assert any(f"'{name}'" in problem.message for problem in found)


CLASHES = [
    "params: {a: 1}\ninputs: {a: [B]}\noutputs: a\n",
    "inputs: {x: [B], B: [B]}\noutputs: x\n",
    "inputs: {x: [B, 3]}\nmodules: {x: ReLU()}\noutputs: x\n",
    "inputs: {x: [B, 3]}\nmodules: {h: ReLU()}\ngraph: {h: h(x)}\noutputs: h\n",
    "inputs: {x: [B, 3]}\ngraph: {x: x + 1}\noutputs: x\n",
    "inputs: {x: [B, 3]}\ngraph: {B: x + 1}\noutputs: B\n",
    "inputs: {x: [B, 4]}\ngraph:\n  a, b: x.chunk(2, -1)\n  b: x\noutputs: a + b\n",
    "inputs: {x: [B, 4]}\ngraph:\n  a, a: x.chunk(2, -1)\noutputs: a\n",
]


@pytest.mark.parametrize("text", CLASHES)
def test_no_name_stands_twice_in_a_block(problems: Callable, text: str):
    found = [problem for problem in problems(text) if "twice" in problem.message]
    assert found and "first at" in found[0].hint


def test_a_block_and_a_module_may_share_a_name(build: Callable):
    block = "blocks:\n  encoder: {inputs: {x: any}, modules: {l: 'Linear(3, 2)'}, outputs: l(x)}\n"
    model = build(f"inputs: {{x: [B, 3]}}\n{block}modules: {{encoder: encoder()}}\noutputs: encoder(x)\n")
    assert list(model.state_dict()) == ["encoder.l.weight", "encoder.l.bias"]


@pytest.mark.parametrize(
    "name", ["T", "F", "torch", "math", "einops", "zip", "len", "norm", "max", "e5", "GraphModel", "x_2"]
)
@pytest.mark.parametrize("role", ["symbol", "input", "param", "node", "module", "block"])
def test_a_name_of_the_block_hides_what_the_name_means_elsewhere(build: Callable, role: str, name: str):
    x = torch.tensor([[-1.0, 2.0, 4.0]])
    text, expected = {
        "symbol": (f"inputs: {{x: [B, {name}]}}\noutputs: relu(x) + {name} + sqrt(4)", x.relu() + 5),
        "input": (f"inputs: {{{name}: [B, 3]}}\noutputs: relu({name}) + {name}.shape[1] + sqrt(4)", x.relu() + 5),
        "param": (f"params: {{{name}: 7}}\ninputs: {{x: [B, 3]}}\noutputs: relu(x) + {name} + sqrt(4)", x.relu() + 9),
        "node": (
            f"inputs: {{x: [B, 3]}}\nmodules: {{ls: ReLU() * 2}}\ngraph: {{{name}: ls(x)}}\noutputs: relu({name}) + sqrt(4)",
            x.relu() + 2,
        ),
        "module": (f"inputs: {{x: [B, 3]}}\nmodules: {{{name}: Tanh()}}\noutputs: {name}(x) + sqrt(4)", x.tanh() + 2),
        "block": (
            f"inputs: {{x: [B, 3]}}\nblocks: {{{name}: {{inputs: {{y: any}}, outputs: relu(y) + sqrt(4)}}}}\n"
            f"outputs: {name}(x) + sqrt(4)",
            x.relu() + 4,
        ),
    }[role]
    assert torch.equal(build(text)(x), expected)


# params


def test_defaults_are_used_and_the_caller_wins(build: Callable):
    text = "params: {scale: 2.0}\ninputs: {x: [B]}\noutputs: x * scale\n"
    assert build(text)(torch.ones(1)).item() == 2.0
    assert build(text, params={"scale": 5})(torch.ones(1)).item() == 5.0


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("int", 3),
        ("float", 2.5),
        ("float", 2),
        ("bool", True),
        ("str", "a"),
        ("list", [1, "b"]),
        ("2", 3),
        ("2", 1.5),
        ("2", None),
        ("2.5", 3),
        ("true", False),
        ("abc", "d"),
        ("[1]", [2, [3]]),
        ("null", 3),
        ("null", "x"),
    ],
)
def test_a_param_takes_what_its_declaration_allows(build: Callable, declared: str, value: object):
    model = build(f"params: {{p: {declared}}}\ninputs: {{x: any}}\noutputs: p\n", params={"p": value})
    assert model(None) == value
    assert model.params == {"p": value}


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("int", 2.5),
        ("int", "3"),
        ("int", True),
        ("int", None),
        ("float", "2"),
        ("bool", 1),
        ("str", 3),
        ("list", 3),
        ("list", "ab"),
        ("2", "3"),
        ("2", True),
        ("true", 1),
        ("abc", 3),
        ("[1]", 3),
        ("null", {"a": 1}),
        ("null", object()),
        ("null", torch.ones(2)),
        ("[1]", [object()]),
    ],
)
def test_a_param_refuses_what_its_declaration_forbids(problems: Callable, declared: str, value: object):
    found = problems(f"params: {{p: {declared}}}\ninputs: {{x: any}}\noutputs: p\n", params={"p": value})
    assert "'p'" in found[0].message


def test_a_bare_type_has_to_be_given(problems: Callable):
    found = problems("params: {dim: int}\ninputs: {x: any}\noutputs: dim\n")
    assert "needs the param 'dim'" in found[0].message and "model.yaml:2:10" in found[0].hint


def test_an_unknown_param_names_the_nearest(problems: Callable):
    found = problems("params: {depth: 2}\ninputs: {x: any}\noutputs: depth\n", params={"dept": 2})
    assert "did you mean 'depth'?" in found[0].hint


def test_numbers_of_numpy_are_numbers(build: Callable):
    import numpy as np

    text = "params: {n: int, scale: 1.0}\ninputs: {x: [B]}\nmodules: {ls: ReLU() * n}\noutputs: ls(x) * scale\n"
    model = build(text, params={"n": np.int64(2), "scale": np.float64(2.5)})
    assert len(model.ls) == 2 and model(torch.ones(1)).item() == 2.5
    assert type(model.spec["params"]["n"]) is int


def test_all_slips_of_params_are_told_together(problems: Callable):
    text = "params: {a: int, b: int, c: 1}\ninputs: {x: any}\noutputs: a + b + c\n"
    assert len(problems(text, params={"a": "x", "d": 1})) == 3


# inputs


def test_inputs_are_bound_by_position_in_file_order_or_by_keyword(build: Callable):
    model = build("inputs: {b: any, a: any, c: {shape: any, optional: true}}\noutputs: [a, b, c]\n")
    assert model.inputs == ("b", "a", "c")
    assert model(1, 2) == (2, 1, None)
    assert model(a=1, b=2, c=3) == (1, 2, 3)
    with pytest.raises(TypeError):
        model(1)
    with pytest.raises(TypeError):
        model(1, 2, 3, 4)
    with pytest.raises(TypeError):
        model(1, 2, d=4)


def test_an_unused_input_is_allowed(build: Callable):
    assert build("inputs: {x: [B], y: [B]}\noutputs: x\n")(1, 2) == 1


@pytest.mark.parametrize(
    ("shape", "given", "expected"),
    [
        ("[B, T, 3]", (2, 5, 3), [2, 5]),
        ("[..., B, T]", (7, 8, 2, 5), [2, 5]),
        ("[..., B, 9, T]", (2, 9, 5), [2, 5]),
        ("[T, B]", (5, 2), [2, 5]),
        ("{shape: [B, T], dtype: float32}", (2, 5), [2, 5]),
        ("[B, 6 * dim, T]", (2, 12, 5), [2, 5]),
    ],
)
def test_symbols_are_the_sizes_of_the_call(build: Callable, shape: str, given: tuple, expected: list):
    model = build(f"params: {{dim: 2}}\ninputs: {{x: {shape}}}\noutputs: [B, T]\n")
    assert list(model(torch.zeros(given))) == expected
    assert list(model(torch.zeros(tuple(2 * n for n in given)))) == [2 * n for n in expected]  # bound anew at each call


def test_a_symbol_is_bound_by_the_first_input_present_that_has_it(build: Callable):
    model = build("""\
        inputs:
          x: [B, 3]
          a: {shape: [B, S], optional: true}
          b: {shape: [S, B], optional: true}
        outputs: x.sum() * 0 + S
        """)
    x = torch.zeros(2, 3)
    assert model(x, a=torch.zeros(2, 7)).item() == 7
    assert model(x, b=torch.zeros(9, 2)).item() == 9
    assert model(x, torch.zeros(2, 7), torch.zeros(7, 2)).item() == 7


def test_a_symbol_that_is_only_computed_with_has_no_value(problems: Callable):
    found = problems("inputs: {x: [B, T + 1]}\noutputs: x + T\n")
    assert "'T'" in found[0].message and found[0].place.line == 2
    found = problems("params: {dim: 3}\ninputs: {x: [B, 2 * dmi]}\noutputs: x * dim + dmi\n")
    assert "did you mean 'dim'?" in found[0].hint


@pytest.mark.parametrize("key", ["default", "defualts", "Defaults"])
def test_a_misspelt_defaults_is_told_as_that(problems: Callable, key: str):
    (problem,) = problems(f"{key}: [base.yaml]\ninputs: {{x: any}}\noutputs: x\n")
    assert "did you mean 'defaults'?" in problem.hint


def test_a_file_written_inside_another_has_no_defaults():
    inner = {"schema_version": 2, "defaults": ["base.yaml"], "inputs": {"x": "any"}, "outputs": "x"}
    with pytest.raises(ConfigError, match="a file of its own"):
        build_model({"schema_version": 2, "inputs": {"x": "any"}, "blocks": {"b": inner}, "outputs": "b(x)"})


def test_a_param_that_the_model_needs_is_told_as_its_caller_gives_it(problems: Callable):
    (problem,) = problems("params: {dim: int}\ninputs: {x: any}\noutputs: x + dim\n")
    assert "--set params.dim=" in problem.hint and "params={'dim'" in problem.hint
    text = """\
        inputs: {x: any}
        blocks: {b: {params: {dim: int}, inputs: {x: any}, outputs: x + dim}}
        outputs: b(x)
        """
    (problem,) = problems(text)
    assert "b(dim=...)" in problem.hint and "--set" not in problem.hint


def test_params_are_given_as_a_mapping(problems: Callable):
    (problem,) = problems("params: {a: 1}\ninputs: {x: any}\noutputs: x + a\n", params=["a=2"])
    assert "mapping" in problem.message
