"""What the expressions of a graph do: each against plain torch, and `model.code` as a person would have written it."""

from __future__ import annotations

from collections.abc import Callable

import einops
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model_constructor import ConfigError, build_model, register

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
Y = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2))

EXPRESSIONS = [  # (expression over x, y [2, 3, 4] and p = 3, the same in plain torch)
    ("x + y - x * y / 2", X + Y - X * Y / 2),
    ("x // 0.5 + x % 0.3 + x ** 2", X // 0.5 + X % 0.3 + X**2),
    ("-x + +y", -X + Y),
    ("x @ y.mT", X @ Y.mT),
    ("(x > 0) & ~(y > 0) | (x == y)", (X > 0) & ~(Y > 0)),
    ("(x < y) == (y > x)", torch.ones_like(X, dtype=torch.bool)),
    ("x[0]", X[0]),
    ("x[:, None, ..., 1:3]", X[:, None, ..., 1:3]),
    ("x[:, [2, 0]]", X[:, [2, 0]]),
    ("x[x > 0]", X[X > 0]),
    ("x[..., -p:]", X[..., -3:]),
    ("relu(x)", X.relu()),
    ("softmax(x, dim=-1)", X.softmax(-1)),
    ("x.softmax(-1).flatten(1)", X.softmax(-1).flatten(1)),
    ("layer_norm(x, (4,))", F.layer_norm(X, (4,))),
    ("cat([x, y], -1)", torch.cat([X, Y], -1)),
    ("stack((x, y))", torch.stack((X, Y))),
    ("rearrange(x, 'b t d -> b (t d)')", X.reshape(2, 12)),
    ("rearrange(x, 'b t (h e) -> b h t e', h=2)", einops.rearrange(X, "b t (h e) -> b h t e", h=2)),
    ("reduce(x, 'b t d -> b d', 'mean')", X.mean(1)),
    ("repeat(x, 'b t d -> (n b) t d', n=2)", X.repeat(2, 1, 1)),
    ("einsum('btd,bsd->bts', x, y)", X @ Y.mT),
    ("einsum(x, y, 'b t d, b s d -> b t s')", X @ Y.mT),
    ("einsum('b t d, b s d -> b t s', x, y)", X @ Y.mT),
    ("einsum('batch time d, batch other d -> batch time other', x, y)", X @ Y.mT),
    ("einsum('... d, ... d -> ...', x, y)", (X * Y).sum(-1)),
    ("einsum('bt..., bt... -> bt', x, y)", (X * Y).sum(-1)),
    ("pack([x, y], 'b * d')[0]", torch.cat([X, Y], 1)),
    ("unpack(x, [[2], [1]], 'b * d')[1]", X[:, 2:]),
    ("vector_norm(x, dim=-1)", X.norm(dim=-1)),
    ("cholesky(x @ x.mT + 9 * eye(3))", torch.linalg.cholesky(X @ X.mT + 9 * torch.eye(3))),
    ("normalize(x, dim=-1)", X / X.norm(dim=-1, keepdim=True)),
    ("arange(T).float() + zeros(T)", torch.arange(3.0)),
    ("x.expand(2, -1, -1) * T + B", X * 3 + 2),
    ("x.sum(dim=(0, 1))", X.sum((0, 1))),
    ("x.shape[0] * x.ndim + x.shape[-1] + 0 * x", 0 * X + 10),
    ("x.to(float64)", X.double()),
    ("x.to(y.device, dtype=int64)", X.long()),
    ("x + empty_like(x).shape[0]", X + 2),
    ("full((2, 2), p)", torch.full((2, 2), 3)),
    ("where(x > 0, x, -inf)", torch.where(X > 0, X, -torch.inf)),
    ("x * pi", X * torch.pi),
    ("max(x.size(1) // 2, 2) * sqrt(x.shape[0] + 2) + round(x.numel() / 5) + 0 * x", 2 * 2 + 5 + 0 * X),
    ("x * (0 < T < 5) * (1 < x.dim() <= 3)", X),
    ("x * sqrt(p) + min(p, T) + max(p, 7) + abs(-p)", X * 3**0.5 + 3 + 7 + 3),
    ("sqrt(abs(x)) + exp(y) + floor(x)", X.abs().sqrt() + Y.exp() + X.floor()),
    ("max(x, dim=1)[0]", X.amax(1)),
    ("round(x) + int(2.7) + len([1, 2]) + sum([1, 2])", X.round() + 2 + 2 + 3),
    ("x.chunk(2, -1)[1]", X[..., 2:]),
    ("pad(x, (1, 0))[..., 1:]", X),
    ("one_hot(arange(T), 5)", F.one_hot(torch.arange(3), 5)),
    ("x.masked_fill(x > 0, 0.0)", X.clamp(max=0)),
    ("{'a': x, 'b': [y, x]}['b'][0]", Y),
    ("(x, y)[1]", Y),
    ("topk(x, 2)[0]", X.topk(2)[0]),
    ("x.unflatten(-1, (2, -1))", X.reshape(2, 3, 2, 2)),
    ("scaled_dot_product_attention(x, y, y)", F.scaled_dot_product_attention(X, Y, Y)),
]


@pytest.mark.parametrize(("text", "expected"), EXPRESSIONS, ids=[text for text, _ in EXPRESSIONS])
def test_an_expression_does_what_torch_does(build: Callable, text: str, expected: torch.Tensor):
    model = build(f"params: {{p: 3}}\ninputs: {{x: [B, T, 4], y: [B, T, 4]}}\noutputs: >-\n  {text}\n")
    result = model(X, Y)
    assert result.dtype == expected.dtype
    torch.testing.assert_close(result, expected)


def test_where_two_have_a_name_the_functional_one_is_meant(build: Callable):
    assert "F.softmax" in build("inputs: {x: [B]}\noutputs: softmax(x, -1)\n").code
    assert "F.sigmoid" not in build("inputs: {x: [B]}\noutputs: tanh(x) + cos(x)\n").code


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x", 1),
        ("[x, 2]", (1, 2)),
        ("{a: x, b: '2 * x'}", {"a": 1, "b": 2}),
        ("{a: [x, {b: x}]}", {"a": [1, {"b": 1}]}),
        ("[x]", (1,)),
        ("[[x, x], {c: x}]", ([1, 1], {"c": 1})),
        ("None", None),
        ("'\"text\"'", "text"),
    ],
)
def test_outputs_are_an_expression_a_tuple_or_a_dict(build: Callable, text: str, expected: object):
    result = build(f"inputs: {{x: any}}\noutputs: {text}\n")(1)
    assert result == expected
    assert type(result) is type(expected)


def test_a_sequence_or_mapping_node_is_a_list_or_dict(build: Callable):
    model = build("""\
        inputs: {x: any}
        graph:
          xs:
            - x
            - x + 1
          d:
            a: xs
            "b c": x
        outputs: [xs, d]
        """)
    assert model(1) == ([1, 2], {"a": [1, 2], "b c": 1})


def test_a_tuple_node_unpacks_and_an_underscore_discards(build: Callable):
    model = build("inputs: {x: [B]}\ngraph:\n  a, _, c: x.chunk(3)\n  d, _: topk(x, 1)\noutputs: [a, c, d]\n")
    a, c, d = model(torch.arange(6))
    assert (a.tolist(), c.tolist(), d.tolist()) == ([0, 1], [4, 5], [5])


# lists of modules

ONES = """\
params: {{n: 3}}
inputs: {{x: [B, 4], c: [B, 4]}}
blocks:
  one:
    inputs: {{h: [B, 4], clock: {{shape: [B, 4], optional: true}}}}
    modules: {{l: "Linear(4, 4)"}}
    outputs: l(h) if clock is None else l(h) * clock
modules: {{ones: one() * n}}
outputs: {outputs}
"""
TWOS = """\
params: {{n: 3}}
inputs: {{x: [B, 4], c: [B, 4]}}
blocks:
  two:
    inputs: {{a: [B, 4], b: [B, 4], clock: [B, 4]}}
    modules: {{l: "Linear(4, 4)"}}
    outputs: {pair}
modules: {{twos: two() * n}}
graph:
  {graph}
outputs: {outputs}
"""
XC = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(3))


def threaded(members: nn.ModuleList, x: torch.Tensor, c: torch.Tensor) -> list[torch.Tensor]:
    results = []
    for member in members:
        x = (x @ member.l.weight.T + member.l.bias) * c
        results.append(x)
    return results


def only_ones(build: Callable, outputs: str, n: int = 3) -> nn.Module:
    return build(ONES.format(outputs=f'"{outputs}"'), params={"n": n})


@pytest.mark.parametrize("n", [1, 3])
def test_calling_a_list_threads(build: Callable, n: int):
    x, c = XC
    model = only_ones(build, "ones(x, c)", n)
    torch.testing.assert_close(model(x, c), threaded(model.ones, x, c)[-1])


def test_a_threaded_call_can_stand_anywhere_in_an_expression(build: Callable):
    x, c = XC
    model = only_ones(build, "2 * ones(relu(ones(x, c)), clock=c + 1) + ones(x)")
    first = threaded(model.ones, x, c)[-1].relu()
    expected = 2 * threaded(model.ones, first, c + 1)[-1] + threaded(model.ones, x, torch.ones(()))[-1]
    torch.testing.assert_close(model(x, c), expected)


def test_scan_gives_every_result(build: Callable):
    x, c = XC
    model = only_ones(build, "ones.scan(x, c)")
    results = model(x, c)
    assert isinstance(results, list) and len(results) == 3
    torch.testing.assert_close(results, threaded(model.ones, x, c))


def test_map_calls_each_with_the_same(build: Callable):
    x, c = XC
    model = only_ones(build, "stack(ones.map(x, clock=c))")
    expected = torch.stack([(x @ member.l.weight.T + member.l.bias) * c for member in model.ones])
    torch.testing.assert_close(model(x, c), expected)


@pytest.mark.parametrize("call", ["ones(x, each(CS))", "ones(x, clock=each(CS))", "ones.scan(x, each(CS))[-1]"])
def test_each_hands_every_member_its_own_entry(build: Callable, call: str):
    x, c = XC
    model = only_ones(build, call.replace("CS", "[c, c + 1, c * 2]"))
    expected = x
    for member, own in zip(model.ones, [c, c + 1, c * 2], strict=True):
        expected = (expected @ member.l.weight.T + member.l.bias) * own
    torch.testing.assert_close(model(x, c), expected)


def test_each_in_a_map(build: Callable):
    x, c = XC
    model = only_ones(build, "ones.map(each([x, c, x + c]), c)")
    expected = [(own @ m.l.weight.T + m.l.bias) * c for m, own in zip(model.ones, [x, c, x + c], strict=True)]
    torch.testing.assert_close(model(x, c), expected)


DOTTED = {"spaces.some.ones": "{some: {ones: one() * 3}}", "spaces.rows[1]": "{rows: [ReLU(), one() * 3]}"}


@pytest.mark.parametrize("path", DOTTED)
def test_a_list_is_called_in_each_way_by_its_path(build: Callable, path: str):
    x, c = XC
    model = build(f"""\
        inputs: {{x: [B, 4], c: [B, 4]}}
        blocks:
          one: {{inputs: {{h: [B, 4], c: [B, 4]}}, modules: {{l: "Linear(4, 4)"}}, outputs: l(h) * c}}
        modules: {{spaces: {DOTTED[path]}}}
        graph:
          used: {"spaces.rows[0](x)" if "rows" in path else "x"}
        outputs:
          - {path}.scan(x, each([c, c, c]))
          - {path}.map(x, c)
          - {path}.map(each({path}.scan(x, c)), c)
          - used
        """)
    ones = model.get_submodule(path.replace("[1]", ".1"))
    scanned, mapped, both, _ = model(x, c)
    torch.testing.assert_close(scanned, threaded(ones, x, c))
    torch.testing.assert_close(mapped, [one(x, c) for one in ones])
    torch.testing.assert_close(both, [one(h, c) for one, h in zip(ones, scanned, strict=True)])


def test_each_of_another_length_fails_when_it_runs(build: Callable):
    x, c = XC
    model = only_ones(build, "ones(x, each(x.unbind(0)))")  # as many values as the batch has entries
    with pytest.raises(ValueError):
        model(x, c)


@pytest.mark.parametrize("pair", ["[l(a) + b, a * clock]", "l(a) + b, a * clock", "(l(a) + b, a * clock)"])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_block_that_returns_two_values_threads_two(build: Callable, n: int, pair: str):
    x, c = XC
    if not pair.startswith("["):
        pair = f'"{pair}"'
    text = TWOS.format(pair=pair, graph="u, v: twos(x, c, c)", outputs="[u, v]")
    model = build(text, params={"n": n})
    a, b = x, c
    for member in model.twos:
        a, b = a @ member.l.weight.T + member.l.bias + b, a * c
    torch.testing.assert_close(model(x, c), (a, b))


PAIRS = {  # how a block says that it returns l(a) + b, a * clock: modules, graph, outputs
    "a function": ("{}", "{}", "swap(a * clock, l(a) + b)"),
    "a node": ("{}", "{pair: '(l(a) + b, a * clock)'}", "pair"),
    "a node that a node names": ("{}", "{pair: '(l(a) + b, a * clock)', same: pair}", "same"),
    "a module": ("{i: inner()}", "{}", "i(l(a) + b, a * clock)"),
    "a module in a namespace": ("{n: {i: outer()}}", "{}", "n.i(l(a) + b, a * clock)"),
    "a list": ("{i: inner() * 2}", "{}", "i(l(a) + b, a * clock)"),
    "an empty list": ("{i: outer() * 0}", "{}", "i(l(a) + b, a * clock)"),
    "a choice of params": ("{}", "{}", "(l(a) + b, a * clock) if both else l(a)"),
    "a choice at run time": ("{}", "{}", "(l(a) + b, a * clock) if training else swap(a * clock, l(a) + b)"),
    "a choice of modules": ("{i: {left: inner(), right: outer()}}", "{}", "i[way](l(a) + b, a * clock)"),
}
SPACES = {"twos": "two() * n", "spaces": "{some: {twos: two() * n}}", "rows": "[two() * n]"}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("n", [0, 2])
@pytest.mark.parametrize("path", ["twos", "spaces.some.twos", "rows[0]"])
def test_however_a_block_returns_two_values_a_list_threads_two(build: Callable, pair: str, n: int, path: str):
    modules, graph, outputs = PAIRS[pair]
    root = path.partition(".")[0].partition("[")[0]
    x, c = XC
    model = build(f"""\
        params: {{n: {n}}}
        inputs: {{x: [B, 4], c: [B, 4]}}
        blocks:
          swap: {{inputs: {{a: any, b: any}}, outputs: "b, a"}}
          inner: {{inputs: {{a: any, b: any}}, modules: {{i: Identity()}}, outputs: "i(a), b"}}
          outer: {{inputs: {{a: any, b: any}}, modules: {{inner: inner()}}, outputs: "inner(a, b)"}}
          two:
            params: {{both: true, way: left}}
            inputs: {{a: [B, 4], b: [B, 4], clock: [B, 4]}}
            modules: {{l: "Linear(4, 4)", {modules[1:]}
            graph: {graph}
            outputs: {outputs}
        modules: {{{root}: {SPACES[root]}}}
        outputs: {path}(x, c, c)
        """)
    a, b = x, c
    for member in model.get_submodule(path.replace("[0]", ".0")):
        a, b = a @ member.l.weight.T + member.l.bias + b, a * c
    torch.testing.assert_close(model(x, c), (a, b))


def test_what_an_empty_list_would_hold_need_not_be_possible(build: Callable):
    model = build("""\
        params: {widths: []}
        inputs: {x: [B, 4]}
        blocks: {one: {params: {width: int}, inputs: {h: any}, modules: {l: "Linear(4, width)"}, outputs: l(h)}}
        modules: {ones: "one(width=widths[index]) * len(widths)"}
        outputs: ones(x)
        """)
    assert torch.equal(model(X[0]), X[0])


@pytest.mark.parametrize("n", [0, 1, 3])
def test_two_threaded_values_as_one_result(build: Callable, n: int):
    x, c = XC
    text = TWOS.format(pair="[l(a) + b, a * clock]", graph="pair: twos(x, c, c)", outputs="pair")
    model = build(text, params={"n": n})
    a, b = x, c
    for member in model.twos:
        a, b = a @ member.l.weight.T + member.l.bias + b, a * c
    torch.testing.assert_close(model(x, c), (a, b))


def test_a_list_of_none_hands_back_what_it_was_given(build: Callable):
    x, c = XC
    assert torch.equal(only_ones(build, "ones(x, c)", n=0)(x, c), x)
    assert only_ones(build, "ones.scan(x, c)", n=0)(x, c) == []
    assert only_ones(build, "ones.map(x, c)", n=0)(x, c) == []


def test_arguments_of_a_list_are_computed_once(build: Callable):
    calls = []

    @register.op("count_calls_of_test_compiler")
    def count(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x

    x, c = XC
    model = only_ones(build, "ones(x, count_calls_of_test_compiler(c))")
    calls.clear()  # the shape pass has called it too
    model(x, c)
    assert len(calls) == 1


def test_the_u_net_of_a_diffusion_policy(build: Callable):
    model = build("""\
        inputs: {x: [B, C, T], clock: [B, C]}
        blocks:
          down:
            params: {width: int}
            inputs: {h: any, clock: any}
            modules: {conv: "Conv1d(width, 2 * width, 3, padding=1)"}
            outputs: conv(h) + clock.mean()
          up:
            params: {width: int}
            inputs: {h: any, clock: any, skip: any}
            modules: {conv: "Conv1d(4 * width, width, 3, padding=1)"}
            outputs: conv(cat([h, skip], 1)) + clock.mean()
        modules:
          downs: down(width=2 * 2 ** index) * 2
          mids: ["Conv1d(8, 8, 1)"]
          ups: up(width=4 // 2 ** index) * 2
        graph:
          skips: downs.scan(x, clock)
          h: ups(mids(skips[-1]), clock, each(skips[::-1]))
        outputs: h
        """)
    x, clock = torch.randn(2, 2, 5), torch.randn(2, 2)
    skips, h = [], x
    for member in model.downs:
        h = member.conv(h) + clock.mean()
        skips.append(h)
    h = model.mids[0](h)
    for member, skip in zip(model.ups, skips[::-1], strict=True):
        h = member.conv(torch.cat([h, skip], 1)) + clock.mean()
    torch.testing.assert_close(model(x, clock), h)


# sharing, stateless blocks, training, devices


def test_a_module_called_twice_shares_its_weights(build: Callable):
    model = build("inputs: {x: [B, 3]}\nmodules: {l: 'Linear(3, 3)'}\noutputs: l(l(x))\n")
    x = torch.randn(2, 3)
    assert len(list(model.parameters())) == 2
    torch.testing.assert_close(
        model(x), F.linear(F.linear(x, model.l.weight, model.l.bias), model.l.weight, model.l.bias)
    )


def test_a_tied_weight_is_read_by_path(build: Callable):
    model = build("""\
        inputs: {ids: {shape: [B, T], dtype: int64}}
        modules: {wte: "Embedding(7, 4)", layers: "Linear(4, 4) * 2"}
        outputs: "linear(layers(wte(ids)), wte.weight) + layers[0].bias.sum()"
        """)
    ids = torch.tensor([[1, 2, 3]])
    h = model.layers[1](model.layers[0](model.wte.weight[ids]))
    expected = h @ model.wte.weight.T + model.layers[0].bias.sum()
    torch.testing.assert_close(model(ids), expected)
    model(ids).sum().backward()
    assert model.wte.weight.grad is not None and len(list(model.parameters())) == 5


def test_a_stateless_block_is_called_like_an_op_with_params_by_keyword(build: Callable):
    model = build("""\
        inputs: {x: [B, 4]}
        blocks:
          scale:
            params: {by: 2.0, twice: false}
            inputs: {x: any, shift: {shape: any, optional: true}}
            graph: {y: "x * by if not twice else x * by * 2"}
            outputs: y if shift is None else y + shift
        outputs: "scale(x) + scale(x, 1.0, by=3) + scale(x, shift=x, by=5, twice=True)"
        """)
    x = torch.randn(2, 4)
    torch.testing.assert_close(model(x), 2 * x + (3 * x + 1) + (10 * x + x))
    assert not list(model.children())


def test_a_stateless_block_reads_training_and_device_and_symbols(build: Callable):
    model = build("""\
        inputs: {x: [B, T]}
        blocks:
          noise:
            inputs: {x: [B, T]}
            outputs: "(dropout(x, 1.0) if training else x) + arange(T)"
        outputs: noise(x)
        """)
    x = torch.ones(2, 3)
    assert torch.equal(model.eval()(x), 1 + torch.arange(3.0).expand(2, 3))
    assert torch.equal(model.train()(x), torch.arange(3.0).expand(2, 3))


RECURSIVE = [
    "blocks:\n  f: {inputs: {x: any}, outputs: f(x)}\noutputs: f(x)\n",
    "blocks:\n  f: {inputs: {x: any}, outputs: g(x)}\n  g: {inputs: {x: any}, outputs: f(x)}\noutputs: f(x)\n",
    "blocks:\n  f: {inputs: {x: any}, modules: {m: f()}, outputs: m(x)}\nmodules: {f1: f()}\noutputs: f1(x)\n",
    "blocks:\n  f: {inputs: {x: any}, modules: {m: g()}, outputs: m(x)}\n"
    "  g: {inputs: {x: any}, modules: {m: f()}, outputs: m(x)}\nmodules: {f1: f()}\noutputs: f1(x)\n",
]


@pytest.mark.parametrize("text", RECURSIVE)
def test_a_block_may_not_contain_itself(problems: Callable, text: str):
    assert "contains itself" in problems("inputs: {x: any}\n" + text)[0].message


@pytest.mark.parametrize(
    "call",
    ["dropout(x, 0.5)", "dropout(x, p=0.5)", "alpha_dropout(x, 0.5)", "feature_alpha_dropout(x, 0.5)", "rrelu(x - 2)"],
)
def test_an_op_that_takes_training_is_given_it(build: Callable, call: str):
    model, x = build(f"inputs: {{x: [B, T]}}\noutputs: {call}\n"), torch.ones(4, 100)
    still = model.eval()(x)
    assert torch.equal(still, model(x))
    assert not torch.equal(model.train()(x), still)
    assert "training=self.training" in model.code


@pytest.mark.parametrize(
    ("call", "off"),
    [
        ("dropout(x, 0.5, False)", True),
        ("dropout(x, 0.5, training=False)", True),
        ("dropout(x, 0.5, training=True)", False),
        ("dropout(x, 0.5, True)", False),
    ],
)
def test_unless_the_call_says_otherwise(build: Callable, call: str, off: bool):
    model, x = build(f"inputs: {{x: [B, T]}}\noutputs: {call}\n"), torch.ones(4, 100)
    for mode in (True, False):
        assert torch.equal(model.train(mode)(x), x) == off


def test_a_registered_op_that_takes_training_is_given_it(build: Callable):
    @register.op("negate_in_training_of_test_compiler")
    def negate(x: torch.Tensor, training: bool = False) -> torch.Tensor:
        return -x if training else x

    model = build("inputs: {x: [B]}\noutputs: negate_in_training_of_test_compiler(x)\n")
    x = torch.ones(2)
    assert torch.equal(model.train()(x), -x) and torch.equal(model.eval()(x), x)


@pytest.mark.parametrize(
    "call", ["arange(T)", "zeros(2, T)", "ones(T)", "randn(T)", "eye(T)", "linspace(0, 1, 3)", "tensor(p)"]
)
def test_a_creation_op_is_made_on_the_device_of_the_first_input(build: Callable, call: str):
    model = build(f"params: {{p: [1, 2]}}\ninputs: {{x: [B, T]}}\noutputs: {call}\n")
    assert model(torch.zeros(2, 3, device="meta")).device.type == "meta"
    assert model(torch.zeros(2, 3)).device.type == "cpu"
    assert "device=x.device" in model.code
    model = build(f"params: {{p: [1, 2]}}\ninputs: {{x: [B, T]}}\noutputs: {call[:-1]}, device='cpu')\n")
    assert model(torch.zeros(2, 3, device="meta")).device.type == "cpu"


WHERE = {  # how a block is given its tensors
    "any": ("{x: any}", lambda x: {"x": x}),
    "the second of any": ("{n: any, x: any}", lambda x: {"n": 3, "x": x}),
    "a dict of lists": ("{x: any}", lambda x: {"x": {"n": 3, "images": [None, x]}}),
    "optional": ("{m: {shape: [B, T], optional: true}, x: {shape: [B, T], optional: true}}", lambda x: {"x": x}),
    "not at all": ("{n: any}", lambda x: {"n": 3}),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("call", ["zeros(3)", "function(3)", "outer(3)", "block(3)"])
def test_what_is_created_is_on_the_device_of_the_first_tensor_wherever_that_is(build: Callable, where: str, call: str):
    inputs, arguments = WHERE[where]
    model = build(f"""\
        inputs: {inputs}
        blocks:
          function: {{inputs: {{device: any}}, outputs: arange(device)}}
          outer: {{inputs: {{n: any}}, blocks: {{inner: {{inputs: {{n: any}}, outputs: zeros(n)}}}}, outputs: inner(n)}}
          held: {{inputs: {{n: any}}, modules: {{l: "Linear(3, 3)"}}, outputs: l(zeros(n))}}
        modules: {{block: held()}}
        outputs: [{call}, block(3)]
        """)
    for device in "meta", "cpu":
        created, _ = model.to_empty(device=device)(**arguments(torch.zeros(2, 3, device=device)))
        assert created.device.type == device


def test_a_function_that_is_given_a_tensor_creates_where_that_is(build: Callable):
    model = build("""\
        inputs: {x: [B]}
        blocks: {like: {inputs: {y: [N]}, outputs: zeros(N)}}
        outputs: like(tensor([1, 2], device='cpu'))
        """)
    assert model(torch.zeros(2, device="meta")).device.type == "cpu"


@pytest.mark.parametrize("inputs", ["{y: any}", "{n: any, y: any}", "{y: {shape: [N], optional: true}}"])
def test_a_function_creates_where_its_first_tensor_is_and_not_its_callers(build: Callable, inputs: str):
    model = build(f"""\
        inputs: {{x: [B], y: any}}
        blocks:
          function:
            inputs: {inputs}
            blocks: {{inner: {{inputs: {{size: any}}, outputs: zeros(size)}}}}
            outputs: [zeros(3), inner(3)]
        outputs: function({"3, y" if "n:" in inputs else "y"})
        """)
    here, there = torch.zeros(2), torch.zeros(2, device="meta")
    for x, y in (here, there), (there, here), (there, None):
        expected = "meta" if y is None else y.device.type
        assert [created.device.type for created in model(x, y)] == [expected, expected]


def test_normal_around_tensors_creates_nothing_of_its_own(build: Callable):
    model = build("inputs: {x: [B]}\noutputs: normal(x, 0.0) + normal(mean=x, std=0.0)\n")
    assert torch.equal(model(torch.arange(3.0)), 2 * torch.arange(3.0))


def test_a_device_found_at_run_time_is_found_by_torchs_tools_too(build: Callable):
    model = build('inputs: {n: any, x: any}\nmodules: {l: "Linear(3, 3)"}\noutputs: l(x["a"][0] + ones(3))\n')
    arguments = (3, {"a": [torch.ones(2, 3)]})
    expected = model(*arguments)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(*arguments), expected)
    torch.testing.assert_close(torch.export.export(model, arguments).module()(*arguments), expected)


# conditionals at run time


def test_an_optional_input_chooses_at_run_time_and_the_other_branch_does_not_run(build: Callable):
    model = build("""\
        inputs: {x: [B, 3], mask: {shape: [B, 3], optional: true}}
        modules: {masked: "Linear(3, 3)", layers: "Linear(3, 3) * 2"}
        graph:
          h: masked(x * mask) if mask is not None else x
          y: layers(h) if mask is None else layers(h * mask) if training else h
        outputs: [h, y]
        """)
    ran: list[str] = []
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    x, mask = torch.randn(2, 3), torch.ones(2, 3)
    h, y = model(x)
    assert torch.equal(h, x) and ran == ["layers.0", "layers.1"]
    torch.testing.assert_close(y, model.layers[1](model.layers[0](x)))
    ran.clear()
    model.train()(x, mask)
    assert ran == ["masked", "layers.0", "layers.1"]
    ran.clear()
    model.eval()(x, mask)
    assert ran == ["masked"]


def test_conditionals_with_list_calls_stand_in_outputs_and_arguments(build: Callable):
    model = build("""\
        inputs: {x: [B, 3], m: {shape: [B, 3], optional: true}}
        modules: {ls: "Linear(3, 3) * 2"}
        outputs: "relu(ls(x) if m is None else ls.scan(m)[0]) + (x if m is None else ls(x + m) if training else x)"
        """)
    x, m = torch.randn(2, 3), torch.randn(2, 3)

    def ls(value: torch.Tensor) -> torch.Tensor:
        return model.ls[1](model.ls[0](value))

    torch.testing.assert_close(model(x), ls(x).relu() + x)
    torch.testing.assert_close(model.train()(x, m), model.ls[0](m).relu() + ls(x + m))
    torch.testing.assert_close(model.eval()(x, m), model.ls[0](m).relu() + x)


def test_the_flag_of_training_is_a_value(build: Callable):
    model = build("inputs: {x: any}\noutputs: [training, x if training and x is not None else 0]\n")
    assert model.train()(3) == (True, 3)
    assert model.eval()(3) == (False, 0)
    assert model.train()(None) == (True, 0)


# calls that bind no inputs

CALLS = [
    ("inner1(x)", "needs the input b"),
    ("inner1(x, x, x)", "takes 2 inputs"),
    ("inner1(x, c=x)", "has no input 'c'"),
    ("inner1(x, a=x)", "given twice"),
    ("free(x)", "needs the input b"),
    ("free(x, x, by=x)", "known when the model is built"),
    ("free(x, x, bye=3)", "did you mean 'by'?"),
    ("inner(x, x)", "holds modules"),
    ("names(x)", "only holds modules"),
    ("names.r(x) + names.q(x)", "has no 'q'"),
]


@pytest.mark.parametrize(("call", "said"), CALLS)
def test_a_call_of_a_block_has_to_bind_its_inputs(problems: Callable, call: str, said: str):
    text = f"""\
        inputs: {{x: any}}
        blocks:
          inner: {{inputs: {{a: any, b: any}}, modules: {{l: ReLU()}}, outputs: l(a + b)}}
          free: {{params: {{by: 1}}, inputs: {{a: any, b: any}}, outputs: a + b * by}}
        modules: {{inner1: inner(), names: {{r: ReLU()}}}}
        graph:
          used: names.r(x) + inner1(x, x)
        outputs: "[used, {call}]"
        """
    found = problems(text)
    assert any(said in f"{problem.message} {problem.hint}" for problem in found), found
    assert all(problem.place.line == 9 for problem in found)


def test_all_wrong_calls_are_told_together(problems: Callable):
    found = problems("""\
        inputs: {x: any}
        blocks:
          free: {inputs: {a: any, b: any}, outputs: a + b}
        graph:
          one: free(x)
          two: free(x, x, x)
        outputs: one + two
        """)
    assert [problem.place.line for problem in found] == [6, 7]


# the code

DECODER = """\
params: {dim: 8, depth: 2}
inputs:
  x: [B, T, dim]
  mask: {shape: [B, T], dtype: bool, optional: true}
blocks:
  layer:
    params: {dim: int}
    inputs: {h: [B, T, dim], mask: {shape: [B, T], optional: true}}
    modules: {norm: LayerNorm(dim), attn: "Attention(dim, heads=2)", mlp: MLP(dim)}
    graph:
      a: h + attn(norm(h), mask=mask)
    outputs: a + mlp(a)
modules:
  position: Param(1, 16, dim)
  layers: layer(**params) * depth
graph:
  h: layers(x + position[:, :T], mask=mask)
outputs: dropout(h, 0.1)
"""
CODE = """\
class layer(GraphModel):

    def forward(self, h, mask=None):
        a = h + self.attn(self.norm(h), mask=mask)
        return a + self.mlp(a)


class model(GraphModel):

    def forward(self, x, mask=None):
        T = x.shape[1]
        h = x + self.position[:, :T]
        for layer in self.layers:
            h = layer(h, mask=mask)
        return F.dropout(h, 0.1, training=self.training)"""


def test_the_code_reads_as_written_by_hand(build: Callable):
    assert build(DECODER).code == CODE


def test_the_code_is_the_same_each_time(build: Callable):
    assert build(DECODER).code == build(DECODER).code


def test_there_is_one_class_per_distinct_block_and_not_per_instance(build: Callable):
    model = build(DECODER, params={"depth": 5})
    assert len({type(layer) for layer in model.layers}) == 1
    assert len({type(layer).forward for layer in model.layers}) == 1
    again = build_model(model.spec)
    assert len({type(layer) for layer in again.layers}) == 1


def test_blocks_whose_code_differs_by_a_param_have_classes_of_their_own(build: Callable):
    model = build("""\
        inputs: {x: any}
        blocks:
          scale: {params: {by: 1}, inputs: {x: any}, modules: {r: Identity()}, outputs: r(x) * by}
        modules: {a: scale(by=2), b: scale(by=3), c: scale(by=2)}
        outputs: [a(x), b(x), c(x)]
        """)
    assert model(1) == (2, 3, 2)
    assert type(model.a) is type(model.c) is not type(model.b)


def test_nothing_is_built_while_the_model_runs(build: Callable):
    """A forward is bytecode of a function with plain locals: no exec, no import, no look-up in the model's description."""
    names = build(DECODER).forward.__code__.co_names
    assert set(names) <= {"shape", "position", "layers", "F", "dropout", "training"}


def test_an_op_named_by_a_string_param_takes_its_pattern_first_too(build: Callable):
    model = build("params: {p: 'b i, b i -> b'}\ninputs: {x: [B, 3]}\noutputs: einsum(p, x, x)\n")
    x = torch.randn(2, 3)
    torch.testing.assert_close(model(x), (x * x).sum(1))


def test_literals_of_params_keep_their_value(build: Callable):
    text = "params: {a: -3, b: -.inf, c: [1, [-2.5]], d: 'it''s', e: null, f: true}\ninputs: {x: any}\noutputs: [a ** 2, -a, b, c, d, e, f]\n"
    assert build(text)(0) == (9, 3, float("-inf"), [1, [-2.5]], "it's", None, True)


def test_a_file_that_cannot_be_lowered_is_a_config_error_and_never_a_crash(build: Callable):
    for text in ["sqrt(x, x=1)(x)", "len(x)", "int(x)", "x.shape()", "x[each(x)]", "f.weight"]:
        with pytest.raises(ConfigError):
            build(f"inputs: {{x: [B]}}\noutputs: {text}\n")


LIST_SLIPS = [
    ("Linear(3, 3) * 2", "t[:1](x)", "one by one"),
    ("(Linear(3, 3) * 2) * 2", "t(x)", ""),
    ("(Linear(3, 3) * 2) * 2", "t.map(x)", ""),
    ("one() * 2", "t(x, x, x)", "takes 2 inputs"),
    ("one() * 2", "t(x, q=x)", "has no input 'q'"),
    ("one() * 2", "t()", "its first argument"),
    ("one() * 2", "t(a=x)", "by position"),
    ("two() * 2", "t.map(x)", "needs the input b"),
    ("two() * 2", "t(x)", "its first 2 arguments"),
    ("two() * 2", "t.scan(x)[0]", "its first 2 arguments"),
    ("one() * 2", "t(x, each(x, x))", "each"),
    ("one() * 2", "t(x, each())", "each"),
]


@pytest.mark.parametrize(("constructor", "call", "said"), LIST_SLIPS)
def test_a_call_of_a_list_has_to_bind_its_members_inputs(problems: Callable, constructor: str, call: str, said: str):
    found = problems(f"""\
        inputs: {{x: [B, 3]}}
        blocks:
          one: {{inputs: {{a: any, s: {{shape: any, optional: true}}}}, modules: {{l: "Linear(3, 3)"}}, outputs: l(a)}}
          two: {{inputs: {{a: any, b: any}}, modules: {{l: "Linear(3, 3)"}}, outputs: ["l(a)", b]}}
        modules:
          t: {constructor}
        outputs: {call}
        """)
    assert found[0].place.line == 8
    assert said in f"{found[0].message} {found[0].hint}"


@pytest.mark.parametrize("members", ["[two(), one()]", "[one(), two()]", "(one() if index == 1 else two()) * 3"])
def test_a_list_whose_blocks_return_different_numbers_of_values_cannot_be_threaded(problems: Callable, members: str):
    found = problems(f"""\
        inputs: {{x: [B, 3]}}
        blocks:
          one: {{inputs: {{a: any, b: any}}, modules: {{l: "Linear(3, 3)"}}, outputs: l(a)}}
          two: {{inputs: {{a: any, b: any}}, modules: {{l: "Linear(3, 3)"}}, outputs: ["l(a)", b]}}
        modules:
          t: "{members}"
        outputs: t(x, x)
        """)
    assert found[0].place.line == 8


def test_a_list_may_mix_blocks_and_modules_of_torch_where_one_value_is_threaded(build: Callable):
    model = build("""\
        inputs: {x: [B, 3]}
        blocks:
          one: {inputs: {a: any}, modules: {l: "Linear(3, 3)"}, outputs: l(a)}
        modules: {t: ["Linear(3, 3)", one(), ReLU()]}
        outputs: t(x)
        """)
    x = torch.randn(2, 3)
    torch.testing.assert_close(model(x), model.t[1].l(model.t[0](x)).relu())


def test_a_function_that_several_blocks_call_is_listed_once(build: Callable):
    model = build("""\
        inputs: {x: [B, 4]}
        blocks:
          twice: {inputs: {x: any}, outputs: 2 * x}
          one: {inputs: {x: [B, 4]}, modules: {l: "Linear(4, 4)"}, outputs: twice(l(x))}
          two: {inputs: {x: [B, 4]}, modules: {l: "Linear(4, 4)"}, outputs: l(twice(x))}
        modules: {a: one(), b: two()}
        outputs: b(a(x))
        """)
    assert model.code.count("def twice(x):") == 1 and model.code.count("class ") == 3


def test_a_module_among_the_shared_arguments_of_a_list_is_called_once(build: Callable):
    model = build(
        """\
        inputs: {x: [B, 4], c: [B, 4]}
        blocks:
          one: {inputs: {h: [B, 4], c: [B, 4]}, outputs: h + c, modules: {}}
        modules: {ones: ["Identity()", "Identity()", "Identity()"], n: "BatchNorm1d(4)", s: "Bilinear(4, 4, 4) * 3"}
        outputs: s(x, n(c))
        """.replace('ones: ["Identity()", "Identity()", "Identity()"], ', "")
    )
    model(torch.randn(3, 4), torch.randn(3, 4))
    assert model.n.num_batches_tracked == 1 and "for " in model.code


def test_a_block_hides_a_plain_function_of_its_name(build: Callable):
    model = build("inputs: {x: [B, T]}\nblocks: {sqrt: {inputs: {n: any}, outputs: n * 3}}\noutputs: x * sqrt(T)\n")
    assert model(torch.ones(1, 4)).tolist() == [[12.0] * 4]


def test_infinity_does_not_depend_on_the_names_of_a_file(build: Callable):
    model = build("""\
        params: {m: .inf, n: -.inf}
        inputs: {x: [B, 2]}
        modules: {floats: "Linear(2, 2) * 2"}
        outputs: clamp(floats(x), min=n, max=m)
        """)
    assert model(torch.ones(1, 2)).isfinite().all()


def test_a_node_of_plain_numbers_is_a_plain_number(build: Callable):
    model = build("""\
        inputs: {x: [B, T], y: {shape: [B, T], optional: true}}
        graph:
          root: sqrt(most)
          most: max(mid, 1)
          mid: T // 2
          rows, columns: x.shape
          size: mid if y is None else columns
          last: min(size, rows)
          numbers: [mid, rows]
          total: sum(numbers)
        outputs: [root, last, total]
        """)
    x = torch.zeros(5, 18)
    assert model(x) == (3.0, 5, 14) and model(x[:1]) == (3.0, 1, 10)
    assert "torch." not in model.code


@pytest.mark.parametrize("chain", ["0 < x < 1", "0 < h <= T", "0 < l(x) < 1", "(x == x == x)", "0 < x.sum() < 1"])
def test_a_chain_of_comparisons_of_tensors_is_told(problems: Callable, chain: str):
    head = 'inputs: {x: [B, T]}\nmodules: {l: "Linear(4, 4)"}\n'
    (problem,) = problems(f"{head}graph:\n  h: l(x)\n  c: {chain}\noutputs: where(c, h, x)\n")
    assert problem.place.line == 6 and "(0 < x) & (x < 1)" in problem.hint


def test_a_chain_of_comparisons_of_what_may_be_a_number_is_pythons(build: Callable):
    model = build("inputs: {n: any}\ngraph: {m: n + 1}\noutputs: 0 < m < 5\n")
    assert model(2) is True and model(4) is False


HOLDERS = {  # expressions whose value is certainly no tensor
    "l.scan(x)": "list",
    "l.map(x)": "list",
    "l.scan(x)[1:]": "list",
    "both": "list",
    "named": "dict",
    "[x, x]": "list",
    "(x, x)": "tuple",
    "pair(x)": "tuple",
    "p(x)": "tuple",
    "p(x) if training else pair(x)": "tuple",
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_method_of_what_is_no_tensor_is_told(problems: Callable, holder: str):
    (problem,) = problems(f"""\
        inputs: {{x: any}}
        blocks:
          pair: {{inputs: {{x: any}}, outputs: "x, x"}}
          held: {{inputs: {{x: any}}, modules: {{l: "Linear(4, 4)"}}, outputs: "l(x), x"}}
        modules: {{l: "Linear(4, 4) * 2", p: held()}}
        graph: {{both: "[l.map(x), p(x)]", named: {{a: x}}}}
        outputs: [both, named, "({holder}).mean(1)"]
        """)
    assert problem.message.startswith(f"a {HOLDERS[holder]} has no method 'mean'") and "stack" in problem.hint


def test_an_entry_of_a_list_or_what_an_empty_list_hands_back_has_methods(build: Callable):
    model = build("""\
        inputs: {x: any}
        blocks: {both: {inputs: {x: any}, modules: {l: "Linear(4, 4)"}, outputs: "[l(x), x]"}}
        modules: {l: "Linear(4, 4) * 2", n: both() * 0}
        outputs: ["l.scan(x)[-1].mean(1)", n(x).mean(1)]
        """)
    last, first = model(X[0])
    torch.testing.assert_close(last, model.l[1](model.l[0](X[0])).mean(1))
    torch.testing.assert_close(first, X[0].mean(1))
