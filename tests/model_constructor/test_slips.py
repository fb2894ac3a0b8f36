"""Slips that would build another network than the one that was meant: each is told at its place."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch

from model_constructor import ConfigError, GraphModel, build_model

X = torch.arange(8.0).reshape(2, 4)

SLIPS = {  # what: (text; its first line is line 2, line, what the caret is under, what is said)
    "a comment in a folded expression": (
        "inputs: {x: [B, 4]}\nmodules:\n  net: >-\n    Linear(4, 8)    # widen\n    >> ReLU() >> Linear(8, 4)\n"
        "outputs: net(x)\n",
        5,
        "#",
        "no part of the expression",
    ),
    "a comment in quotes": (
        "inputs: {x: [B, 4]}\noutputs: 'x * 2 # twice'\n",
        3,
        "#",
        "a line above the key",
    ),
    "not off": (
        "params: {use_norm: off}\ninputs: {x: [B, 4]}\nmodules: {n: Identity() if not use_norm else LayerNorm(4)}\n"
        "outputs: n(x)\n",
        4,
        "use_norm",
        "write true or false",
    ),
    "no and training": (
        "params: {noisy: no}\ninputs: {x: [B, 4]}\nmodules: {n: 'Attention(4, heads=2, causal=noisy and True)'}\n"
        "outputs: n(x[None])[0]\n",
        4,
        "noisy",
        "write true or false",
    ),
    "requires_grad off": (
        "params: {trained: off}\ninputs: {x: [B, 4]}\nmodules: {p: 'Param(4, requires_grad=trained)'}\noutputs: x + p\n",
        4,
        "trained",
        "write true or false",
    ),
    "an initialiser by name for a Param": (
        "inputs: {x: [B, 4]}\nmodules: {p: Param(4)}\noutputs: x + p\ninit: {p: {weight: normal(std=0.02)}}\n",
        5,
        "p",
        "write the initialiser alone",
    ),
    "the size of a vocabulary": (
        "inputs: {x: {shape: [B, 4], dtype: int64}}\nmodules: {e: 'Embedding(_, 8)'}\noutputs: e(x)\n",
        3,
        "_",
        "'num_embeddings' of '_' cannot be inferred",
    ),
    "in place of a number of groups": (
        "inputs: {x: [B, 4]}\nmodules: {e: 'GroupNorm(_, 4)'}\noutputs: e(x)\n",
        3,
        "_",
        "'num_groups' of '_' cannot be inferred",
    ),
    "a size that is divided": (
        "params: {dim: 4}\ninputs: {x: [B, dim / 2]}\nmodules: {l: 'Linear(999, 8)'}\noutputs: l(x)\n",
        3,
        "dim / 2",
        "this is 2.0. '//' divides",
    ),
    "a negative size": (
        "params: {dim: 4}\ninputs: {x: [B, dim - 8]}\noutputs: x\n",
        3,
        "dim - 8",
        "this is -4",
    ),
    "a size that is divided, of a block without modules": (
        "inputs: {x: [B, 4]}\nblocks:\n  half: {params: {n: 3}, inputs: {h: [B, n / 2]}, outputs: h}\noutputs: half(x)\n",
        4,
        "n / 2",
        "this is 1.5",
    ),
    "a member of a list that nothing calls": (
        "inputs: {x: [B, 4]}\nmodules: {heads: '[Linear(4, 2), Linear(4, 3)]'}\noutputs: heads[0](x)\n",
        3,
        "heads",
        "nothing uses the module 'heads[1]'",
    ),
    "a member of a list of lines that nothing calls": (
        "inputs: {x: [B, 4]}\nmodules:\n  heads:\n    - Linear(4, 2)\n    - Linear(4, 3)\noutputs: heads[1](x)\n",
        4,
        "heads",
        "nothing uses the module 'heads[0]'",
    ),
    "a Param with half the size": (
        "params: {dim: 4}\ninputs: {x: [B, 4]}\nmodules: {p: Param(dim / 2)}\noutputs: x * p\n",
        4,
        "dim / 2",
        "write Param(float(dim / 2))",
    ),
    "a Param with half the size, as a product": (
        "params: {dim: 4}\ninputs: {x: [B, 4]}\nmodules: {p: Param(dim * 0.5)}\noutputs: x * p\n",
        4,
        "dim * 0.5",
        "write Param(float(dim * 0.5))",
    ),
    "a Param of a list of sizes": (
        "params: {dim: 4}\ninputs: {x: [B, 4]}\nmodules: {p: 'Param([1, dim])'}\noutputs: x * p\n",
        4,
        "[1, dim]",
        "for sizes write Param(1, dim)",
    ),
    "a symbol that only a calculation names": (
        "params: {dim: 2}\ninputs: {x: [B, 2 * dmi]}\noutputs: x * dim\n",
        3,
        "dmi",
        "nothing binds the symbol 'dmi'.",
    ),
    "a size without a name": (
        "inputs: {x: [B, _]}\noutputs: x\n",
        2,
        "_",
        "'_' is no name of a size",
    ),
    "softmax over no dimension": (
        "params: {axis: null}\ninputs: {x: [B, 4]}\noutputs: 'softmax(x, dim=axis)'\n",
        4,
        "softmax(x, dim=axis)",
        "without 'dim'",
    ),
    "softmax over no dimension, of a Buffer": (
        "inputs: {x: [B, 4]}\nmodules: {b: 'Buffer(softmax(ones(2, 4)))'}\noutputs: x + b[0]\n",
        3,
        "softmax(ones(2, 4))",
        "without 'dim'",
    ),
    "a member of a list as long as a param says that nothing calls": (
        "params: {n: 3}\ninputs: {x: [B, 4]}\nmodules: {heads: 'Linear(4, 2) * n'}\noutputs: heads[0](x) + heads[1](x)\n",
        4,
        "heads",
        "nothing uses the module 'heads[2]'",
    ),
    "members of a list that only a dead branch names": (
        "params: {n: 3}\ninputs: {x: [B, 4]}\nmodules: {l: Identity() * n}\n"
        "outputs: 'l[0](x) + l[1](x) + l[2](x) if n > 5 else l[0](x) + l[1](x)'\n",
        4,
        "l",
        "nothing uses the module 'l[2]'",
    ),
    "a value and an initialiser": (
        "inputs: {x: [B, 2]}\nmodules: {b: 'Buffer([1.0, 2.0], init=ones)'}\noutputs: x + b\n",
        3,
        "ones",
        "has a value already",
    ),
    "a device by position": (
        "inputs: {x: [B, 4]}\nmodules: {l: \"Linear(4, 4, True, 'cpu')\"}\noutputs: l(x)\n",
        3,
        "Linear(4, 4, True, 'cpu')",
        "names no device",
    ),
    "a device of an LSTM by position": (
        "inputs: {x: [B, T, 4]}\nmodules: {l: \"LSTM(4, 4, 1, True, True, 0.0, False, 0, 'cpu')\"}\noutputs: l(x)[0]\n",
        3,
        "LSTM(4, 4, 1, True, True, 0.0, False, 0, 'cpu')",
        "names no device",
    ),
    "all params in one": (
        "params: {dim: 4, n: '${len(params)}'}\ninputs: {x: [B, dim]}\noutputs: x * n\n",
        2,
        "params",
        "no param is called 'params'",
    ),
    "None for null": (
        "params: {norm: None}\ninputs: {x: [B, 4]}\noutputs: x if norm is None else -x\n",
        2,
        "None",
        "write null, or quote it",
    ),
    "None for null in a list": (
        "params: {sizes: [4, None]}\ninputs: {x: [B, 4]}\noutputs: x * len(sizes)\n",
        2,
        "None",
        "write null, or quote it",
    ),
    "not of a flag by ~": (
        "params: {flag: true}\ninputs: {x: [B, 4]}\noutputs: x if ~flag else -x\n",
        4,
        "~flag",
        "'~' of True is the number -2: write 'not'",
    ),
    "~ of a flag in the run": (
        "params: {flag: true}\ninputs: {x: [B, 4]}\noutputs: x * ~flag\n",
        4,
        "~flag",
        "write 'not'",
    ),
    "and by &": (
        "params: {flag: true, n: 2}\ninputs: {x: [B, 4]}\noutputs: x if flag & n else -x\n",
        4,
        "flag & n",
        "'&' of True and 2 is the number 0: write 'and'",
    ),
    "or by |": (
        "params: {flag: false, n: 2}\ninputs: {x: [B, 4]}\noutputs: x * (n | flag)\n",
        4,
        "n | flag",
        "write 'or'",
    ),
    "is a text": (
        "params: {norm: layer}\ninputs: {x: [B, 4]}\noutputs: \"x if norm is 'layer' else -x\"\n",
        4,
        "norm is 'layer'",
        "compared so: write == or !=",
    ),
    "is not a number": (
        "params: {n: 1}\ninputs: {x: [B, 4]}\noutputs: x if n is not 1 else -x\n",
        4,
        "n is not 1",
        "compared so: write == or !=",
    ),
    "a Softmax over any dimension": (
        "inputs: {x: [B, T, 4]}\nmodules: {s: Softmax()}\noutputs: s(x)\n",
        3,
        "Softmax()",
        "write dim=-1",
    ),
    "a softmax over any dimension": (
        "inputs: {x: [B, T, 4]}\noutputs: softmax(x)\n",
        3,
        "softmax(x)",
        "write dim=-1",
    ),
    "a log_softmax over any dimension": (
        "inputs: {x: [B, T, 4]}\noutputs: 2 * log_softmax(x, dtype=float32)\n",
        3,
        "log_softmax(x, dtype=float32)",
        "write dim=-1",
    ),
    "a tuple of numbers": (
        "params:\n  n: 2\n  dims: n, 2, 6\ninputs: {x: [B, 4]}\noutputs: x * n * len(dims)\n",
        4,
        "n, 2, 6",
        "write the value, or quote it",
    ),
    "a calculation in a list": (
        "params: {n: 2, dims: [2 * n, 6]}\ninputs: {x: [B, 4]}\noutputs: x * n * len(dims)\n",
        2,
        "2 * n",
        "write the value, or quote it",
    ),
    "a calculation beside ${}": (
        "params:\n  n: 2\n  wide: ${n} * 4\ninputs: {x: [B, 4]}\noutputs: x * len(wide)\n",
        4,
        "${n} * 4",
        "write one ${...} around all of it, or quote it",
    ),
    "a deviation for a mean": (
        "inputs: {x: [B, 4]}\nmodules: {l: 'Linear(4, 4)'}\noutputs: l(x)\ninit: {l.weight: trunc_normal(0.02)}\n",
        5,
        "0.02",
        "write std=0.02 (or mean=0.02)",
    ),
    "a deviation for a mean of a Param": (
        "inputs: {x: [B, 4]}\nmodules: {p: 'Param(4, init=normal(0.02))'}\noutputs: x + p\n",
        3,
        "0.02",
        "write std=0.02 (or mean=0.02)",
    ),
}


@pytest.mark.parametrize(("text", "line", "marked", "said"), SLIPS.values(), ids=SLIPS)
def test_a_slip_is_told_at_its_place(problems: Callable, text: str, line: int, marked: str, said: str):
    (problem,) = problems(text)
    place = problem.place
    assert (place.line, place.text[place.column - 1 : place.column - 1 + place.length]) == (line, marked)
    assert said in f"{problem.message} {problem.hint}"


RUNS = {  # what: (text, what it gives for X)
    "lists that are used by any index, or whole": (
        "params: {k: 1}\ninputs: {x: [B, 4]}\nmodules:\n  a: '[Identity(), Identity()]'\n  b: '[Identity(), Identity()]'\n"
        "  c: [Identity(), Identity()]\noutputs: a[0](x) + a[1](x) + b[k](x) + c(x) + c.map(x)[0]\n",
        lambda x: 5 * x,
    ),
    "a string that is there": (
        "params: {name: none, kind: null}\ninputs: {x: [B, 4]}\n"
        "outputs: \"x * {'none': 2, 'one': 3}[name or 'one'] * {'none': 2, 'one': 3}[kind or 'one']\"\n",
        lambda x: 6 * x,
    ),
    "a test that decides before the next can be computed": (
        "params: {drop: null}\ninputs: {x: [B, 4]}\n"
        "outputs: dropout(x, drop) if drop is not None and training and drop > 0 else x\n",
        lambda x: x,
    ),
    "a size that is not told": (
        "params: {context: null}\ninputs: {x: [B, 4], c: {shape: [B, context], optional: true}}\n"
        "outputs: x if c is None else x + c\n",
        lambda x: x,
    ),
    "a value that needs data": (
        "inputs: {x: [B, 4]}\nmodules: {pairs: 'Buffer(ones(4, 4).tril().nonzero())'}\noutputs: x[:, pairs[:, 0]]\n",
        lambda x: x[:, torch.ones(4, 4).tril().nonzero()[:, 0]],
    ),
    "lists as long as a param says that are used by all their indices, or by any": (
        "params: {n: 2, k: 0}\ninputs: {x: [B, 4]}\nmodules: {a: Identity() * n, b: Identity() * n}\n"
        "outputs: a[0](x) + a[1](x) + b[k](x)\n",
        lambda x: 3 * x,
    ),
    "values that are no sizes": (
        "params: {warmth: 0.5, n: 4}\ninputs: {x: [B, 4]}\nmodules: {a: Param(warmth * 2), b: Buffer(n ** 0.5)"
        ", c: 'Buffer([1, 2, 3, n])', d: Param(float(n / 2)), e: 'Param([float(n)])'}\noutputs: x * a * b * c * d * e\n",
        lambda x: 16 * x * torch.arange(1, 5),
    ),
    "float as a dtype": ("inputs: {x: [B, 4]}\noutputs: (x > 2).to(float)\n", lambda x: (x > 2).double()),
    "a module called map": (
        "inputs: {x: [B, 4]}\nmodules: {ns: {map: Identity()}}\noutputs: ns.map(x).relu()\n",
        lambda x: x,
    ),
    "the same file as two blocks, one of them changed": (
        "inputs: {x: [B, 4]}\nblocks: {f: op.yaml, g: op.yaml}\noutputs: f(x) + g(x)\n",
        lambda x: 5 * x,
    ),
}


@pytest.mark.parametrize(("text", "expected"), RUNS.values(), ids=RUNS)
def test_what_is_no_slip_runs_as_it_is_written(build: Callable, write: Callable, text: str, expected: Callable):
    write("params: {k: 2}\ninputs: {x: any}\noutputs: k * x\n", "op.yaml")
    overrides = ["blocks.g.params.k=3"] if "op.yaml" in text else []
    model = build(text, overrides=overrides).eval()
    assert torch.equal(model(X), expected(X).to(model(X).dtype))


def test_a_model_of_another_floating_dtype_may_be_moved_to_it(build: Callable):
    model = build("inputs: {x: {shape: [B, 4], dtype: bfloat16}}\nmodules: {l: 'Linear(4, 2)'}\noutputs: l(x)\n")
    assert model.to(torch.bfloat16)(X.bfloat16()).shape == (2, 2)


def test_an_override_over_several_lines_is_told_where_it_is_wrong(write: Callable):
    path = write("inputs: {x: [B, 4]}\ngraph: {h: x}\noutputs: h\n")
    with pytest.raises(ConfigError, match="called 'nope'"):
        build_model(path, overrides={"graph.h": "x\n+ nope"})


def chain(length: int) -> dict:
    last = {f"b{length}": {"inputs": {"x": "any"}, "outputs": "x"}}
    blocks = {f"b{i}": {"inputs": {"x": "any"}, "outputs": f"b{i + 1}(x)"} for i in range(length)}
    return {"schema_version": 2, "inputs": {"x": "any"}, "blocks": {**blocks, **last}, "outputs": "b0(x)"}


def test_blocks_may_use_blocks_and_so_on_but_not_without_end():
    assert build_model(chain(55))(X) is X
    with pytest.raises(ConfigError, match="blocks use blocks more than 60 deep"):
        build_model(chain(200))


def test_values_may_be_nested_but_not_without_end():
    nodes = {"n0": "[x]", **{f"n{i}": f"[n{i - 1}]" for i in range(1, 1200)}}
    model = build_model({"schema_version": 2, "inputs": {"x": "any"}, "graph": nodes, "outputs": "n1199"})
    assert isinstance(model(X), list)
    nested: list = []
    for _ in range(5000):
        nested = [nested]
    with pytest.raises(ConfigError, match="nested too deeply"):
        build_model({"schema_version": 2, "inputs": {"x": "any"}, "outputs": nested})


# what is written down of a model builds the same


def again(model: GraphModel) -> GraphModel:
    anew = build_model(model.spec)
    anew.load_state_dict(model.state_dict())
    assert torch.equal(anew(X), model(X))
    return pickle.loads(pickle.dumps(model))


def test_a_block_that_takes_the_name_of_another_one_changes_nothing_when_pickled(build: Callable):
    """The inner model is written down by itself, with what it sees; `g` means the `f` beside it."""
    model = build("""\
        inputs: {x: [B, 4]}
        blocks:
          f: {inputs: {x: any}, outputs: 2 * x}
          g: {inputs: {x: any}, outputs: f(x)}
          layer:
            inputs: {x: [B, 4]}
            blocks: {f: {inputs: {x: any}, outputs: 10 * x}}
            modules: {l: "Linear(4, 4)"}
            outputs: g(l(x)) + f(x)
        modules: {a: layer()}
        outputs: a(x)
        """)
    expected = 2 * model.a.l(X) + 10 * X
    assert torch.equal(model(X), expected) and torch.equal(again(model)(X), expected)
    assert torch.equal(again(model.a)(X), expected)


def test_true_and_false_are_written_down_as_expressions(build: Callable):
    model = build("inputs: {x: [B, 4]}\noutputs: {h: x, done: False}\n")
    assert build_model(model.spec)(X)["done"] is False
    assert pickle.loads(pickle.dumps(model))(X)["done"] is False


def test_a_text_that_looks_like_a_calculation_stays_a_text():
    document = {
        "schema_version": 2,
        "params": {"label": "3 - 4"},
        "inputs": {"x": [4]},
        "outputs": "{'3 - 4': x}[label]",
    }
    model = build_model(document)
    assert model.params == {"label": "3 - 4"} and torch.equal(again(model)(X), X)


def test_a_model_whose_sizes_were_inferred_is_unpickled_whatever_they_have_to_divide(build: Callable):
    model = build("inputs: {x: [B, T, 1600]}\nmodules: {attn: 'Attention(_, heads=25)'}\noutputs: attn(x)\n")
    x = torch.randn(1, 2, 1600)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


def test_texts_in_params_that_look_like_values_stay_texts(build: Callable):
    """What is quoted, is text between others, or is handed over by Python."""
    model = build("""\
        params: {a: "None", b: [x, "2 * 3"], c: "1, 2", n: 2, name: "net-${n}x4", d: "${n} * 4", e: none}
        inputs: {x: [B, 4]}
        outputs: x if a == 'None' and len(b) == 2 and c == '1, 2' and e == 'none' else -x
        """)
    assert torch.equal(model(X), X) and torch.equal(again(model)(X), X)
    assert model.params["d"] == "2 * 4" and model.params["name"] == "net-2x4"


def test_none_is_told_in_an_override_and_is_a_text_in_one_of_python(write: Callable):
    path = write("params: {norm: null}\ninputs: {x: [B, 4]}\noutputs: x if norm is None else -x\n")
    with pytest.raises(ConfigError, match="write null, or quote it"):
        build_model(path, overrides=["params.norm=None"])
    assert build_model(path, overrides={"params.norm": "None"}).params == {"norm": "None"}


def test_integers_have_their_bits_and_tensors_their_masks(build: Callable):
    model = build("""\
        params: {n: 6, m: 3, a: true, b: false}
        inputs: {x: [B, 4]}
        outputs: x * (n & m | ~n) * ((x > 1) & (x < 6) & a) if (n > m) & (a | b) else -x
        """)
    assert torch.equal(model(X), X * (6 & 3 | ~6) * ((X > 1) & (X < 6)))


@pytest.mark.parametrize(
    ("given", "switches"),
    [
        ("None, p", 1),
        ("dropout_p=p", 1),
        ("dropout_p=0.5", 1),
        ("dropout_p=p if training else 0.0", 1),
        ("None, 0.0", 0),
        ("dropout_p=none", 0),
    ],
)
def test_the_dropout_of_attention_is_off_in_eval(build: Callable, given: str, switches: int):
    model = build(f"""\
        params: {{p: 0.5, none: 0.0}}
        inputs: {{x: [B, T, 4]}}
        outputs: scaled_dot_product_attention(x, x * p, x + none, {given})
        """)
    x = torch.randn(2, 6, 4)
    whole = torch.nn.functional.scaled_dot_product_attention(x, x * 0.5, x)
    torch.testing.assert_close(model.eval()(x), whole)
    assert torch.allclose(model.train()(x), whole) == (not switches)
    assert model.code.count("training else") == switches


def test_the_dropout_of_attention_is_off_in_eval_in_a_block_that_is_called(build: Callable):
    model = build("""\
        inputs: {x: [B, T, 4]}
        blocks: {attend: {inputs: {x: any}, outputs: "scaled_dot_product_attention(x, x, x, dropout_p=0.5)"}}
        outputs: attend(x)
        """)
    x = torch.randn(2, 6, 4)
    whole = torch.nn.functional.scaled_dot_product_attention(x, x, x)
    torch.testing.assert_close(model.eval()(x), whole)
    assert not torch.allclose(model.train()(x), whole)
