"""Names and edges: what is unknown, unused or cyclic is told; what these params do not use is not built."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from model_constructor import ConfigError

HEAD = "inputs: {x: [B, 3]}\nmodules:\n  head: Linear(3, 3)\n"

UNKNOWN = [  # (text; its first line is line 2, line, what the caret is under, part of what is said)
    (HEAD + "outputs: hed(x)\n", 5, "hed", "did you mean 'head'?"),
    (HEAD + "outputs: head(X)\n", 5, "X", "did you mean 'x'?"),
    (HEAD + "outputs: sotfmax(head(x), -1)\n", 5, "sotfmax", "did you mean 'softmax'?"),
    (HEAD + "outputs: head(x).flaten()\n", 5, "head(x).flaten", "did you mean 'flatten'?"),
    (HEAD + "outputs: head(x).shap\n", 5, "head(x).shap", "did you mean 'shape'?"),
    (HEAD + "outputs: head(x).mean\n", 5, "head(x).mean", "call it"),
    (HEAD + "outputs: head(x).data\n", 5, "head(x).data", "data"),
    (HEAD + "outputs: head(x).add_(1)\n", 5, "head(x).add_", "add"),
    (HEAD + "outputs: head(x).cuda()\n", 5, "head(x).cuda", "x.to(y.device)"),
    (HEAD + "outputs: head(x).item()\n", 5, "head(x).item", "registered"),
    (HEAD + "outputs: head\n", 5, "head", "call it"),
    (HEAD + "outputs: head(relu)\n", 5, "relu", "call it"),
    (HEAD + "outputs: head.wieght * x\n", 5, "head.wieght", "did you mean 'weight'?"),
    (HEAD + "outputs: head(x) + head.sub(x)\n", 5, "head.sub", "'sub'"),
    (HEAD + "outputs: head[0](x)\n", 5, "head[0]", "'0'"),
    (HEAD + "outputs: head(x)(x)\n", 5, "head(x)", "called"),
    (HEAD + "outputs: x(head(x))\n", 5, "x", "called"),
    (HEAD + "outputs: each(head(x))\n", 5, "each", "list"),
    (HEAD + "outputs: head(x) and x\n", 5, "head(x) and x", "'&'"),
    (HEAD + "outputs: head(x) if x else x\n", 5, "x", "tensor"),
    (HEAD + "outputs: head(x) if x.sum() > 0 else x\n", 5, "x.sum() > 0", "tensor"),
    (HEAD + "outputs: head(x) if flag else x\n", 5, "flag", "'flag'"),
    (HEAD + "outputs: head(**x)\n", 5, "x", "'**'"),
    (HEAD + "outputs: head(index)\n", 5, "index", "index"),
    (HEAD + "outputs: head(self)\n", 5, "self", "'self'"),
    (HEAD + "outputs: head(open)\n", 5, "open", "'open'"),
    (HEAD + "outputs: head(x) + __import__('os')\n", 5, "__import__", "'__import__'"),
    (HEAD.replace("Linear(3", "Linaer(3") + "outputs: head(x)\n", 4, "Linaer", "did you mean 'Linear'?"),
    (HEAD.replace("Linear(3, 3)", "Linear(dim, 3)") + "outputs: head(x)\n", 4, "dim", "'dim'"),
    (HEAD.replace("Linear(3, 3)", "Linear") + "outputs: head(x)\n", 4, "Linear", "Linear(...)"),
    (HEAD.replace("Linear(3, 3)", "Linear(_ + 1, 3)") + "outputs: head(x)\n", 4, "_", "'_'"),
    (HEAD.replace("Linear(3, 3)", "Linear(x, 3)") + "outputs: head(x)\n", 4, "x", "'x'"),
    (HEAD.replace("Linear(3, 3)", "Linear(B, 3)") + "outputs: head(x)\n", 4, "B", "'B'"),
]


@pytest.mark.parametrize(("text", "line", "marked", "said"), UNKNOWN)
def test_an_unknown_name_is_told_with_the_nearest(problems: Callable, text: str, line: int, marked: str, said: str):
    problem = next(one for one in problems(text) if said in f"{one.message} {one.hint}")
    place = problem.place
    assert (place.line, place.text[place.column - 1 : place.column - 1 + place.length]) == (line, marked)


def test_all_wrong_names_of_all_blocks_are_told_together_in_file_order(problems: Callable):
    found = problems("""\
        params: {dim: 3}
        inputs: {x: [B, 3]}
        blocks:
          inner:
            inputs: {y: any}
            modules: {l: "Linear(dim, 3)"}
            outputs: l(z)
        modules:
          head: Linaer(3, 3)
        graph:
          h: hed(x)
          unused: x + 1
        outputs: inner1(h)
        """)
    assert [problem.place.line for problem in found] == [7, 8, 10, 12, 13, 14]


def test_an_inline_block_sees_neither_params_nor_modules_of_the_level_around_it(problems: Callable):
    found = problems("""\
        params: {dim: 3}
        inputs: {x: [B, 3]}
        blocks:
          inner: {inputs: {y: any}, outputs: y * dim + norm(y)}
        modules: {norm: LayerNorm(3)}
        outputs: inner(x) + norm(x)
        """)
    assert any("'dim'" in problem.message for problem in found)


def test_a_cycle_is_named(problems: Callable):
    found = problems("inputs: {x: [B]}\ngraph:\n  a: b + x\n  b: c\n  c: a\noutputs: c\n")
    assert len(found) == 1
    assert "a -> b -> c -> a" in found[0].message or "a -> c -> b -> a" in found[0].message
    assert found[0].place.line == 4


def test_a_node_that_reads_itself_is_a_cycle(problems: Callable):
    assert "a -> a" in problems("inputs: {x: [B]}\ngraph:\n  a: a + x\noutputs: a\n")[0].message


def test_two_cycles_are_told_together(problems: Callable):
    found = problems("inputs: {x: [B]}\ngraph:\n  a: b\n  b: a\n  c: d\n  d: c\noutputs: a + c\n")
    assert len(found) == 2


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("inputs: {x: [B]}\ngraph:\n  a: x + 1\n  b: x\noutputs: b\n", "a"),
        ("inputs: {x: [B]}\ngraph:\n  p, q: x.chunk(2)\n  b: x\noutputs: b\n", "p, q"),
        ("inputs: {x: [B]}\nmodules:\n  m: ReLU()\noutputs: x\n", "m"),
        ("inputs: {x: [B]}\nmodules:\n  m: Param(3)\noutputs: x\n", "m"),
        ("inputs: {x: [B]}\nmodules:\n  m: {a: ReLU()}\noutputs: x\n", "m"),
    ],
)
def test_what_nothing_uses_is_told(problems: Callable, text: str, name: str):
    found = problems(text)
    assert len(found) == 1
    assert f"'{name}'" in found[0].message and found[0].place.line == 4


def test_a_node_of_which_one_target_is_used_is_used(build: Callable):
    model = build("inputs: {x: [B]}\ngraph:\n  p, _: x.chunk(2)\noutputs: p\n")
    assert torch.equal(model(torch.arange(4)), torch.arange(2))


def test_nodes_run_in_the_order_of_their_needs_however_they_are_written(build: Callable):
    model = build("inputs: {x: [B]}\ngraph:\n  c: b * 2\n  b: a + 1\n  a: x - 3\noutputs: c\n")
    assert torch.equal(model(torch.arange(4)), (torch.arange(4) - 2) * 2)


def test_ties_run_in_file_order(build: Callable):
    code = build("inputs: {x: [B]}\ngraph:\n  z: x + 1\n  y: x + 2\n  a: x + 3\noutputs: a + y + z\n").code
    assert code.index("z =") < code.index("y =") < code.index("a =")


# what these params use

DEAD = """\
params: {deep: true, width: 4}
inputs: {x: [B, 4]}
modules:
  big: Linear(width, 7, bais=True) if width > 100 else Linear(width, width)
  never: Conv2d(1, 2) if deep else ReLU()
  first: Linear(4, 4)
graph:
  a: first(x)
  b: never(a)
outputs: "a if deep else b + big(x)"
"""


def test_what_only_a_dead_branch_uses_is_not_built_and_is_no_error(build: Callable):
    model = build(DEAD)
    assert list(model.state_dict()) == ["first.weight", "first.bias"]
    assert "if" not in model.code and "never" not in model.code
    other = build(DEAD, params={"deep": False})
    assert {name.split(".")[0] for name in other.state_dict()} == {"first", "big"}
    assert isinstance(other.never, torch.nn.ReLU)


def test_a_dead_branch_is_still_checked_for_its_names(problems: Callable):
    text = "params: {deep: true}\ninputs: {x: [B]}\noutputs: x if deep else unknown_name\n"
    assert "'unknown_name'" in problems(text)[0].message


@pytest.mark.parametrize(
    ("test", "params", "taken"),
    [
        ("side == 'left'", {"side": "left"}, True),
        ("side in ['up', 'down']", {"side": "left"}, False),
        ("n > 1 and not n == 3", {"n": 2}, True),
        ("hidden is None", {"hidden": None}, True),
        ("len(sizes) == 2", {"sizes": [1, 2]}, True),
        ("flag", {"flag": False}, False),
        ("sizes[0] % 2 == 0 or flag", {"sizes": [1], "flag": False}, False),
    ],
)
def test_a_test_on_params_is_decided_when_the_model_is_built(build: Callable, test: str, params: dict, taken: bool):
    declared = "".join(f"  {name}: null\n" for name in params)
    model = build(f'params:\n{declared}inputs: {{x: [B]}}\noutputs: "x + 1 if {test} else x - 1"\n', params=params)
    assert " if " not in model.code
    assert model(torch.zeros(1)).item() == (1 if taken else -1)


def test_a_cycle_through_dead_branches_alone_is_none(build: Callable):
    text = "params: {f: true}\ninputs: {x: [B]}\ngraph:\n  a: x if f else b\n  b: a if f else x\noutputs: b\n"
    x = torch.ones(2)
    assert torch.equal(build(text)(x), x)


@pytest.mark.parametrize(
    ("modules", "outputs", "unused"),
    [
        ("{heads: 'Linear(4, 4) * 3'}", "heads[0](x) + heads[0](x)", ["heads[1]", "heads[2]"]),
        ("{ns: {heads: 'Linear(4, 4) * 2'}}", "ns.heads[1](x)", ["ns.heads[0]"]),
        ("{net: 'Linear(4, 4) >> Linear(4, 4)'}", "net[0](x)", ["net[1]"]),
        ("{pair: '[[Linear(4, 4), ReLU()], [ReLU(), Linear(4, 4)]]'}", "pair[0][0](x)", ["pair[0][1]", "pair[1][0]", "pair[1][1]"]),
        ("{s: [{a: 'Linear(4, 4)', b: 'Linear(4, 4)'}]}", "s[0].a(x)", ["s[0].b"]),
        ("{l: '(Linear(4, 4) >> ReLU()) * 2'}", "l[0](x)", ["l[1][0]", "l[1][1]"]),
    ],
)  # fmt: skip
def test_each_member_that_no_index_names_is_told(problems: Callable, modules: str, outputs: str, unused: list[str]):
    found = problems(f"params: {{n: 2}}\ninputs: {{x: [B, 4]}}\nmodules: {modules}\noutputs: {outputs}\n")
    told = [problem.message for problem in found if "nothing uses" in problem.message]
    assert told == [f"nothing uses the module '{name}'." for name in unused]


@pytest.mark.parametrize("outputs", ["ls(x)", "ls[n - 1](x)", "ls[-1](x)", "ls.map(x)[0]", "ls[0](x) + ls[1](x)"])
def test_members_of_a_list_that_is_read_whole_are_used(build: Callable, outputs: str):
    text = f"params: {{n: 2}}\ninputs: {{x: [B, 4]}}\nmodules: {{ls: 'Linear(4, 4) * n'}}\noutputs: {outputs}\n"
    assert build(text)(torch.zeros(2, 4)).shape == (2, 4)


def test_modules_may_be_chosen_by_a_param(build: Callable):
    text = """\
        params: {side: left, depth: 2}
        inputs: {x: [B, 3]}
        modules:
          towers: {left: "Linear(3, 3)", right: "Linear(3, 3)"}
          heads: Linear(3, 3) * 3
        outputs: heads[depth - 1](towers[side](x)) + towers.right.bias + heads[-1].weight.mean()
        """
    model, x = build(text, params={"side": "right"}), torch.randn(2, 3)
    expected = model.heads[1](model.towers.right(x)) + model.towers.right.bias + model.heads[2].weight.mean()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    ("params", "said"),
    [({"side": "up"}, "'up'"), ({"depth": 9}, "[8]"), ({"depth": -5}, "[-6]"), ({"side": "lef"}, "'left'?")],
)
def test_a_choice_that_is_not_there_is_told(problems: Callable, params: dict, said: str):
    text = """\
        params: {side: left, depth: 2}
        inputs: {x: [B, 3]}
        modules:
          towers: {left: "Linear(3, 3)", right: "Linear(3, 3)"}
          heads: Linear(3, 3) * 3
        outputs: heads[depth - 1](towers[side](x))
        """
    found = problems(text, params=params)[0]
    assert said in f"{found.message} {found.hint}" and found.place.line == 7


def test_a_module_cannot_be_chosen_by_a_tensor(problems: Callable):
    found = problems("inputs: {x: [B, 3], i: [B]}\nmodules: {ls: ReLU() * 2}\noutputs: ls[i](x)\n")
    assert "depends on the input" in found[0].message


def test_an_entry_of_a_namespace_that_nothing_uses_is_an_error(problems: Callable):
    found = problems("""\
        inputs: {x: any}
        modules:
          towers: {left: "Linear(3, 3)", right: {up: "Linear(3, 3)", down: "Linear(3, 3)"}}
        outputs: towers.right.up(x)
        """)
    assert [problem.message for problem in found] == [
        "nothing uses the module 'towers.left'.",
        "nothing uses the module 'towers.right.down'.",
    ]


@pytest.mark.parametrize("used", ["towers[side](x) + 1", "towers.left(x) @ towers.right.weight"])
def test_a_parameter_or_a_choice_by_param_uses_an_entry_too(build: Callable, used: str):
    build(f"""\
        params: {{side: left}}
        inputs: {{x: any}}
        modules:
          towers: {{left: "Linear(3, 3)", right: "Linear(3, 3)"}}
        outputs: {used}
        """)


@pytest.mark.parametrize("name", ["my-block", "class", "Param"])
def test_a_block_that_could_not_be_called_is_refused(problems: Callable, name: str):
    found = problems(f"inputs: {{x: any}}\nblocks:\n  {name}: {{inputs: {{x: any}}, outputs: x}}\noutputs: x\n")
    assert f"'{name}' cannot name a block" in found[0].message


@pytest.mark.parametrize(
    ("test", "kept"),
    [
        ("wide and training", False),
        ("training and wide", False),
        ("not (training or not wide)", False),
        ("narrow and training", True),
        ("wide or training", True),
        ("narrow or training", True),
    ],
)
def test_a_test_is_decided_at_build_when_params_decide_it_whatever_the_rest(build: Callable, test: str, kept: bool):
    model = build(f"""\
        params: {{wide: false, narrow: true}}
        inputs: {{x: [B, 3]}}
        modules: {{l: "Linear(3, 3)"}}
        outputs: l(x) if {test} else x
        """)
    assert hasattr(model, "l") == kept
    left = {"narrow and training", "wide or training"}  # to the run
    assert model.code.count("self.l(x) if self.training else x") == (test in left)
    assert ("training" in model.code) == (test in left)


def test_a_cycle_through_a_branch_that_params_cut_is_none(build: Callable):
    text = """\
        params: {loop: false}
        inputs: {x: [B, 3]}
        graph:
          a: b if loop and training else x
          b: a + 1
        outputs: b
        """
    assert build(text)(torch.zeros(2, 3)).sum() == 6
    with pytest.raises(ConfigError, match="cycle"):
        build(text, params={"loop": True})


@pytest.mark.parametrize(
    "call",
    [
        "relu(x, True)",
        "relu(x, inplace=True)",
        "dropout(x, 0.1, True, True)",
        "embedding(x, x, None, 1.0)",
        "embedding(x, x, max_norm=1.0)",
        "add(x, x, out=x)",
    ],
)
def test_no_op_changes_what_it_is_given(problems: Callable, call: str):
    assert "is not part of the dialect" in problems(f"inputs: {{x: any}}\noutputs: {call}\n")[0].message


BASE = """\
params: {depth: 2, width: 3, unread: 7}
inputs: {x: [B, 3]}
modules: {l: "Linear(3, width) * depth"}
outputs: l.map(x)
"""


@pytest.mark.parametrize("name", ["dpeth", "entirely"])
def test_a_param_that_a_file_adds_to_its_defaults_and_nothing_reads_is_told(
    write: Callable, problems: Callable, name: str
):
    write(BASE, "base.yaml")
    (problem,) = problems(f"defaults: [base.yaml]\nparams: {{width: 4, {name}: 5}}\n")
    assert f"'{name}'" in problem.message and problem.place.line == 3
    assert "known here: depth, unread, width" in problem.hint
    assert ("did you mean 'depth'?" in problem.hint) == (name == "dpeth")


READ = {
    "a constructor": 'params: {more: 5}\nmodules: {l: "Linear(3, more) * depth"}',
    "a shape": "params: {more: 5}\ninputs: {y: [B, more]}",
    "the outputs": "params: {more: 5}\noutputs: l.map(x) + [more]",
    "another param": 'params: {more: 5, width: "${more + 1}"}',
    "an initialiser": 'params: {more: 5}\ninit: {"l[0].weight": constant(more)}',
    "a block that it is passed to": "params: {more: 5}\nmodules: {l: b(**params) * depth}\nblocks:\n"
    "  b: {params: {more: 1}, inputs: {x: any}, modules: {l: 'Linear(3, more)'}, outputs: l(x)}",
}


@pytest.mark.parametrize("reader", READ)
def test_a_param_that_is_added_and_read_is_fine(write: Callable, build: Callable, reader: str):
    write(BASE, "base.yaml")
    assert build(f"defaults: [base.yaml]\n{READ[reader]}\n").params["more"] == 5


SIDES = [  # (a condition, whether it holds for m alone in eval mode)
    ("training == flag", False),
    ("training != flag", True),
    ("(m is None) == (n is None)", False),
    ("(m is not None) == (not training)", True),
    ("(m is None or n is None) != (training and flag)", True),
    ("(flag == training) in [True]", False),
]


@pytest.mark.parametrize(("test", "holds"), SIDES)
def test_conditions_may_be_compared(build: Callable, test: str, holds: bool):
    optional = "{shape: any, optional: true}"
    model = build(f"""\
        params: {{flag: true}}
        inputs: {{x: any, m: {optional}, n: {optional}}}
        outputs: "x if {test} else 0"
        """)
    assert model.eval()(3, m=1) == (3 if holds else 0)


@pytest.mark.parametrize("test", ["B", "B > 1", "0 < B < 3", "B == size", "x.shape[0] > 1", "flag and not B % 2"])
def test_a_size_of_the_run_is_no_condition(problems: Callable, test: str):
    (problem,) = problems(f"params: {{flag: true, size: 2}}\ninputs: {{x: [B]}}\noutputs: x if {test} else -x\n")
    assert "or on its size" in problem.message
    assert "a condition is made of params, training, 'x is None', comparisons of these" in problem.hint


@pytest.mark.parametrize("test", ["(x > 0) == flag", "training == x", "(m is None) == m"])
def test_what_depends_on_a_tensor_cannot_be_compared_in_a_condition(problems: Callable, test: str):
    text = (
        f"params: {{flag: true}}\ninputs: {{x: [B], m: {{shape: [B], optional: true}}}}\noutputs: x if {test} else -x\n"
    )
    assert "depends on the value of a tensor" in problems(text)[0].message


@pytest.mark.parametrize(
    "where", ["outputs: activation(x)", "modules: {c: 'Linear(3, 3) >> activation()'}\noutputs: c(x)"]
)
@pytest.mark.parametrize("declared", ["relu", "str"])
def test_a_string_that_is_called_is_told_how_it_chooses(problems: Callable, where: str, declared: str):
    given = {"params": {"activation": "relu"}} if declared == "str" else {}
    (problem,) = problems(f"params: {{activation: {declared}}}\ninputs: {{x: [B]}}\n{where}\n", **given)
    assert "[activation]" in problem.hint


def test_a_target_that_nothing_reads_is_told_beside_those_that_are_read(build: Callable, problems: Callable):
    text = "inputs: {{x: [B, 6]}}\ngraph:\n  {targets}: x.chunk(3, -1)\noutputs: q * k\n"
    (problem,) = problems(text.format(targets="q, k, v"))
    assert problem.message == "nothing uses 'v' of the node 'q, k, v'." and problem.place.line == 4
    assert problem.hint == "write _ for what is not needed"
    assert build(text.format(targets="q, k, _"))(torch.ones(1, 6)).shape == (1, 2)


@pytest.mark.parametrize("how", ["derived", "override"])
def test_a_block_that_is_added_to_those_of_a_file_and_nothing_uses_is_told(
    write: Callable, problems: Callable, build: Callable, how: str
):
    write("inputs: {x: any}\noutputs: x * 2\n", "b.yaml")
    base = "inputs: {x: any}\nblocks: {layer: {inputs: {x: any}, outputs: x + 1}}\noutputs: layer(x)\n"
    write(base, "base.yaml")

    def written(name: str) -> tuple[str, list[str]]:
        if how == "derived":
            return f"defaults: [base.yaml]\nblocks: {{{name}: b.yaml}}\n", []
        return base, [f"blocks.{name}=b.yaml"]

    text, overrides = written("lyaer")
    (problem,) = problems(text, overrides=overrides)
    assert problem.message == "nothing uses the block 'lyaer'." and "did you mean 'layer'?" in problem.hint
    text, overrides = written("layer")
    assert build(text, overrides=overrides)(torch.ones(1)) == 2
    used = {"overrides": ["blocks.more=b.yaml", "outputs=layer(more(x))"]}
    assert build(base, **used)(torch.ones(1)) == 3


USES_LAYER = (
    "params: {{dim: 4}}\ninputs: {{x: [B, dim]}}\nblocks:\n  layer:\n    params: {{dim: 8, n: 1}}\n"
    "    inputs: {{h: [B, dim]}}\n    modules: {{a: 'Linear(dim, dim) * n'}}\n    outputs: a(h)\n"
    "modules: {{l: {used}, m: {used}}}\noutputs: m(l(x))\n"
)


@pytest.mark.parametrize("used", ["layer(dim=dim)", "layer(**params)"])
@pytest.mark.parametrize("how", ["derived", "override"])
def test_a_default_that_every_use_of_the_block_replaces_cannot_be_set(
    write: Callable, problems: Callable, build: Callable, used: str, how: str
):
    base = USES_LAYER.format(used=used)
    write(base, "base.yaml")

    def written(name: str, value: int) -> tuple[str, list[str]]:
        if how == "derived":
            return f"defaults: [base.yaml]\nblocks: {{layer: {{params: {{{name}: {value}}}}}}}\n", []
        return base, [f"blocks.layer.params.{name}={value}"]

    text, overrides = written("dim", 16)
    (problem,) = problems(text, overrides=overrides)
    assert problem.message == "this sets nothing: every use of the block 'layer' gives 'dim'."
    assert problem.hint.startswith("change it there; the first is ") and ":10:" in problem.hint
    assert problem.place.text[problem.place.column - 1 :].startswith("16")
    text, overrides = written("n", 3)
    assert len(build(text, overrides=overrides).l.a) == 3
    one_without = base.replace(f"m: {used}", "m: layer()")
    assert build(one_without, overrides=["blocks.layer.params.dim=4"])(torch.ones(1, 4)).shape == (1, 4)


def test_to_declare_a_default_anew_is_not_to_set_it(write: Callable, build: Callable):
    base = USES_LAYER.format(used="layer(dim=dim)")
    write(base, "base.yaml")
    for declared in ("dim: 8", "dim: int", "dim: null"):
        text = f"defaults: [base.yaml]\nblocks: {{layer: {{params: {{{declared}}}, outputs: 2 * a(h)}}}}\n"
        assert build(text)(torch.ones(1, 4)).shape == (1, 4), declared


def test_the_file_of_a_block_may_change_defaults_of_those_it_starts_from(write: Callable, build: Callable):
    write("params: {n: 2}\ninputs: {x: any}\noutputs: x * n\n", "base.yaml")
    write("defaults: [base.yaml]\nparams: {n: 3}\n", "twice.yaml")  # which holds where the file is built by itself
    assert build("inputs: {x: any}\nblocks: {f: twice.yaml}\noutputs: 'f(x, n=5)'\n")(torch.ones(1)) == 5


def test_a_param_that_nothing_reads_cannot_be_given(write: Callable, problems: Callable, build: Callable):
    text = "params: {dim: 4, dpeth: 2}\ninputs: {x: [B, dim]}\noutputs: x\n"
    assert build(text)(torch.ones(1, 4)).shape == (1, 4)  # it may be there, as an argument that is not used may
    told = "nothing reads the param 'dpeth': to {} it changes nothing."
    (problem,) = problems(text, params={"dpeth": 3})
    assert (problem.message, problem.place) == (told.format("give"), None) and "model.yaml:2:18" in problem.hint
    (problem,) = problems(text, overrides=["params.dpeth=3"])
    assert problem.message == told.format("set") and problem.place.file == "--set"
    assert build(text, params={"dim": 3})(torch.ones(1, 3)).shape == (1, 3)
    required = "params: {dim: int}\ninputs: {x: [B]}\noutputs: x\n"
    assert build(required, params={"dim": 3})(torch.ones(1)).shape == (1,)  # who asks for it has to get it
    write("params: {dim: 4, depth: 2}\ninputs: {x: [B, dim]}\noutputs: x * depth\n", "base.yaml")
    shorter = "defaults: [base.yaml]\noutputs: x\n"
    assert build(shorter)(torch.ones(1, 4)).shape == (1, 4)
    assert problems(shorter, params={"depth": 3})[0].message == told.format("give").replace("dpeth", "depth")
    assert problems(shorter, overrides=["params.depth=3"])[0].message == told.format("set").replace("dpeth", "depth")
