"""The page of the dialect, section by section: what the tests of the single stages do not say already."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model_constructor import ConfigError, build_model, select_parameters
from model_constructor.names import METHODS, NEEDS_DIM

X = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))


# 1. The file


def test_an_inline_block_takes_all_keys_of_a_block(build: Callable):
    model = build("""\
        inputs: {x: [B, 4]}
        blocks:
          outer:
            params: {by: 1}
            inputs: {x: [B, 4]}
            blocks:
              inner: {inputs: {x: [B, 4]}, modules: {l: "Linear(4, 4)"}, outputs: l(x)}
            modules: {i: inner()}
            graph: {y: i(x) * by}
            outputs: y + 1
            init: {i.l.weight: zeros, i.l.bias: ones}
        modules: {o: outer(by=3)}
        outputs: o(x)
        """)
    assert torch.equal(model(X[:, 0]), torch.full((2, 4), 4.0))


@pytest.mark.parametrize(
    ("key", "nearest"), [("modul", "modules"), ("imports", ""), ("defaults", ""), ("settings", "")]
)
def test_an_inline_block_has_no_other_key(problems: Callable, key: str, nearest: str):
    found = problems(
        f"inputs: {{x: any}}\nblocks:\n  f: {{inputs: {{x: any}}, {key}: [], outputs: x}}\noutputs: f(x)\n"
    )
    assert f"'{key}'" in found[0].message and found[0].place.line == 4
    assert f"did you mean '{nearest}'" in found[0].hint or not nearest


def test_a_block_may_have_the_name_of_a_type_and_is_meant_then(build: Callable):
    model = build("""\
        inputs: {x: any}
        blocks: {Linear: {params: {by: int}, inputs: {x: any}, outputs: x * by}}
        modules: {l: Linear(by=3)}
        outputs: l(x)
        """)
    assert model(2) == 6


def test_a_name_hides_an_op_in_its_own_block_alone(build: Callable):
    model = build("""\
        inputs: {x: [B, T, 4]}
        blocks: {f: {inputs: {abs: any}, outputs: abs + 1}}
        outputs: abs(f(x))
        """)
    assert torch.equal(model(X), (X + 1).abs())


@pytest.mark.parametrize(
    ("yaml", "expected"), [("true", True), ("false", False), ("yes", "yes"), ("on", "on"), ('"true"', "true")]
)
def test_a_boolean_is_written_as_yaml_does_in_a_value(build: Callable, yaml: str, expected: object):
    assert build(f"params: {{p: {yaml}}}\ninputs: {{x: any}}\noutputs: [p, True, False]\n")(0) == (
        expected,
        True,
        False,
    )


# 2. Inputs and shapes


def test_compiled_code_does_not_check_sizes(build: Callable):
    model = build("inputs: {x: [B, T, 4], y: [B, T], z: [B, T + 1]}\noutputs: [T, y.sum() + z.sum()]\n")
    assert model(X, torch.ones(3, 5), torch.ones(7)) == (6, 22)


def test_symbols_belong_to_one_block(build: Callable):
    model = build("""\
        inputs: {x: [B, T, D]}
        blocks:
          turned: {inputs: {x: [T, B, D]}, modules: {n: Identity()}, outputs: n(x) * T + B}
          flat: {inputs: {x: [T, D]}, outputs: x * T + D}
        modules: {t: turned()}
        outputs: [t(x), "flat(x.flatten(1))", T]
        """)
    turned, flat, size = model(X)
    assert torch.equal(turned, X * 2 + 6) and torch.equal(flat, X.flatten(1) * 2 + 24) and size == 6


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (2, 3, 1, 2)])
def test_leading_dimensions_are_any_number_in_every_block(build: Callable, lead: tuple):
    model = build("""\
        inputs: {x: [..., T, 4]}
        blocks:
          layer: {inputs: {h: [..., T, D]}, modules: {l: "Linear(4, 4)"}, outputs: l(h) + T * D}
          last: {inputs: {h: [..., T, D]}, outputs: "h[..., T - 1, :]"}
        modules: {layers: layer() * 2}
        outputs: last(layers(x))
        """)
    x = torch.randn(*lead, 5, 4)
    expected = model.layers[1].l(model.layers[0].l(x) + 20) + 20
    torch.testing.assert_close(model(x), expected[..., -1, :])


def test_an_entry_may_compute_with_a_symbol_that_a_later_input_binds(build: Callable):
    model = build('inputs: {y: [B, 2 * T + 1], x: [B, T]}\noutputs: "y[:, :T] + x"\n')
    x, y = torch.randn(2, 3), torch.randn(2, 7)
    assert torch.equal(model(y, x), y[:, :3] + x)


def test_of_optional_inputs_the_first_present_binds_a_symbol_also_behind_leading_dimensions(build: Callable):
    model = build("""\
        inputs: {a: {shape: [B, S], optional: true}, b: {shape: [..., S, B], optional: true}}
        outputs: [S, B]
        """)
    a, b = torch.zeros(2, 7), torch.zeros(5, 9, 3)
    assert [model(a), model(b=b), model(a, b)] == [(7, 2), (9, 3), (7, 2)]


def test_sizes_that_broadcast_are_written_1_or_have_a_symbol_of_their_own(build: Callable):
    text = "inputs: {{x: [B, T, 4]}}\nblocks: {{f: {{inputs: {{a: [B, T, D], b: {shape}}}, outputs: a * b}}}}\n"
    for shape in ("[B, 1, D]", "[B, S, D]"):
        model = build(text.format(shape=shape) + 'outputs: "f(x, x[:, :1])"\n')
        assert torch.equal(model(X), X * X[:, :1])


RUNS = [  # (declared, expression, modules, a shape for which it runs)
    ("[B, C, H, W]", "m(x)", "PixelShuffle(3)", (1, 9, 2, 2)),
    ("[B, C, H, W]", "channel_shuffle(x, 7)", "", (1, 7, 2, 2)),
    ("[B, T]", "x[:, 2000]", "", (1, 2001)),
    ("[B, T]", "x.kthvalue(9999)[0]", "", (1, 9999)),
    ("[B, 1, T]", "m(x)", "Conv1d(1, 1, 99999)", (1, 1, 99999)),
    ("[B, T]", "arange(100 - T)", "", (1, 60)),
    ("[B, T]", "x[:, :1] + zeros(T - 5000).sum()", "", (1, 5001)),
    ("[B, T]", "x @ x + x.mT", "", (3, 3)),
    ("[B, T]", "x.split([3, 7], -1)[0]", "", (1, 10)),
    ("[B, T]", "x.reshape(B, 2, 3, 5, 7)", "", (1, 210)),
    ("[T, S]", "det(x)", "", (3, 3)),
    ("[B, C, T]", "m(x)", "GroupNorm(11, 33)", (1, 33, 2)),
    ("[B, T]", "x / (T - 960) + 1 % (T - 960)", "", (1, 3)),
]


@pytest.mark.parametrize(("declared", "text", "module", "shape"), RUNS, ids=[text for _, text, *_ in RUNS])
def test_a_model_that_runs_for_few_sizes_is_not_refused(
    build: Callable, declared: str, text: str, module: str, shape: tuple
):
    modules = f"modules:\n  m: {module}\n" if module else ""
    build(f"inputs: {{x: {declared}}}\n{modules}outputs: >-\n  {text}\n")(torch.ones(shape))


def test_a_value_of_any_kind_may_be_a_dict_or_a_list_of_features(build: Callable):
    model = build("""\
        params: {key: deep}
        inputs: {features: any, xs: any}
        modules: {fuse: "Linear(4, 2) * 2"}
        graph:
          a, b: fuse.map(each(xs))
        outputs: features['flat'] + features[key] + a + b
        """)
    given = {"flat": torch.ones(2), "deep": torch.ones(2)}
    expected = 2 + sum(layer(X[i]) for i, layer in enumerate(model.fuse))
    torch.testing.assert_close(model(given, [X[0], X[1]]), expected)


# 3. Modules


@pytest.mark.parametrize(("call", "runs"), [("c(x)", True), ("c(x, x)", False)])
def test_a_link_of_a_chain_takes_exactly_one_argument(build: Callable, call: str, runs: bool):
    text = f"""\
        inputs: {{x: [B, T, 4]}}
        blocks:
          f: {{inputs: {{a: any, b: {{shape: any, optional: true}}}}, outputs: a * 2 if b is None else b}}
        modules: {{c: f() >> f()}}
        outputs: "{call}"
        """
    if runs:
        assert torch.equal(build(text)(X), X * 4)
        return
    with pytest.raises((TypeError, ConfigError)):  # before it runs, or then
        build(text)(X)


def test_lists_and_namespaces_hold_each_other_and_give_the_keys_that_they_read_as(build: Callable):
    model = build("""\
        params: {depth: 2}
        inputs: {x: [B, T, 4]}
        modules:
          net:
            stages:
              - Linear(4, 4)
              - {deep: "Linear(4, 4) * 2"}
              - [Tanh(), "Linear(4, 4)"]
            heads: Linear(4, 4) * depth
        graph:
          h: net.stages[2][1](net.stages[1].deep(net.stages[0](x)))
        outputs: net.heads[depth - 1](h) + net['heads'][0].bias + net.stages[2][0](x)
        """)
    linears = ["heads.0", "heads.1", "stages.0", "stages.1.deep.0", "stages.1.deep.1", "stages.2.1"]
    assert sorted(model.state_dict()) == [f"net.{name}.{key}" for name in linears for key in ("bias", "weight")]
    weights = {name: model.get_submodule(f"net.{name}") for name in linears}
    h = X
    for name in ("stages.0", "stages.1.deep.0", "stages.1.deep.1", "stages.2.1", "heads.1"):
        h = F.linear(h, weights[name].weight, weights[name].bias)
    torch.testing.assert_close(model(X), h + weights["heads.0"].bias + X.tanh())


THREE = """\
params: {n: 2}
inputs: {x: [B, 4]}
blocks:
  three:
    inputs: {a: [B, 4], b: [B, 4], c: [B, 4], scale: any, shift: any}
    modules: {l: "Linear(4, 4)"}
    outputs: "b, l(a) + shift, c * scale"
modules: {ls: three() * n}
"""


def three(members: nn.ModuleList, x: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    a, b, c, results = x, x + 1, x + 2, []
    for member, scale in zip(members, (2, 3), strict=False):
        a, b, c = b, a @ member.l.weight.T + member.l.bias + 5, c * scale
        results.append((a, b, c))
    return results


@pytest.mark.parametrize(
    "call", ["ls(x, x + 1, x + 2, each([2, 3]), 5)", "ls(x, x + 1, x + 2, 5 - 3 + 0 * x, shift=5)"]
)
def test_a_block_that_returns_three_values_threads_its_first_three_arguments(build: Callable, call: str):
    model = build(
        THREE + f'graph:\n  p, q, r: "{call}"\noutputs: [p, q, r]\n', params={"n": 2 if "each" in call else 1}
    )
    torch.testing.assert_close(model(X[:, 0]), three(model.ls, X[:, 0])[-1])


def test_scan_and_map_give_the_tuple_of_each_member(build: Callable):
    scan = build(THREE + 'outputs: "ls.scan(x, x + 1, x + 2, each([2, 3]), 5)"\n')
    torch.testing.assert_close(scan(X[:, 0]), three(scan.ls, X[:, 0]))
    both = build(THREE + 'outputs: "ls.map(x, x + 1, x + 2, shift=5, scale=each([2, 3]))"\n')
    first = three(both.ls[:1], X[:, 0]) + three(both.ls[1:], X[:, 0])
    expected = [first[0], (*first[1][:2], (X[:, 0] + 2) * 3)]
    torch.testing.assert_close(both(X[:, 0]), expected)


@pytest.mark.parametrize(
    "values", ["[2 * x, 3 * x]", "(2 * x, 3 * x)", "stack([2 * x, 3 * x])", "{'a': [2 * x, 3 * x]}['a']", "ls.scan(x)"]
)
def test_each_takes_the_entries_of_whatever_has_as_many(build: Callable, values: str):
    model = build(f"""\
        inputs: {{x: [B, T, 4]}}
        modules: {{ls: "Linear(4, 4) * 2"}}
        outputs: "ls.map(each({values}))"
        """)
    first, second = model.ls
    own = (first(X), second(first(X))) if values == "ls.scan(x)" else (2 * X, 3 * X)
    torch.testing.assert_close(model(X), [first(own[0]), second(own[1])])


def test_params_are_passed_together_and_a_size_among_them_inferred(build: Callable):
    model = build("""\
        params: {dim: 7, heads: 3}
        inputs: {x: [B, T, 4]}
        blocks:
          layer: {params: {dim: int, heads: int}, inputs: {h: [B, T, dim]}, modules: {l: "Linear(dim, heads)"}, outputs: l(h)}
        modules: {l: "layer(dim=_, **params)"}
        outputs: l(x)
        """)
    assert model.l.params == {"dim": 4, "heads": 3} and model.l.l.weight.shape == (3, 4)


def test_a_scalar_param_may_be_filled_and_a_value_frozen(build: Callable):
    model = build("""\
        inputs: {x: [B, T, 4]}
        modules:
          scale: Param(init=constant(3.0))
          table: Param([1.0, 2.0, 3.0, 4.0], requires_grad=False)
          steps: Buffer([0, 1, 2, 3], persistent=False)
        outputs: x * scale + table * steps
        """)
    assert model.scale.shape == () and not model.table.requires_grad and model.steps.dtype == torch.int64
    assert list(model.state_dict()) == ["scale", "table"]
    assert torch.equal(model(X), X * 3 + torch.tensor([0.0, 2.0, 6.0, 12.0]))


def test_of_a_choice_between_constructors_the_other_is_not_looked_at(build: Callable):
    model = build("""\
        params: {wide: false}
        inputs: {x: [B, T, 4]}
        modules:
          a: Linear(4, -4) if wide else Identity()
          b: Identity() >> (Linear(4, -4) if wide else Tanh())
          c: ["Linear(4, -4) if wide else ReLU()"]
        outputs: c(b(a(x)))
        """)
    assert torch.equal(model(X), X.tanh().relu())


# 4. The graph


def test_what_only_a_dead_branch_calls_is_never_constructed(build: Callable):
    model = build("""\
        params: {deep: false}
        inputs: {x: [B, T, 4]}
        modules: {broken: "Linear(4, -4)"}
        graph: {y: broken(x), z: y + 1}
        outputs: z if deep else x
        """)
    assert torch.equal(model(X), X) and not list(model.children())


def test_nodes_and_outputs_may_be_none_and_a_none_may_be_passed_on(build: Callable):
    model = build("""\
        inputs: {x: [B, T, 4], mask: {shape: [B, T, 4], optional: true}}
        blocks:
          f: {inputs: {h: any, m: {shape: any, optional: true}}, modules: {i: Identity()}, outputs: i(h) if m is None else h * m}
        modules: {g: f()}
        graph:
          nothing: None
          twice: None if mask is None else 2 * mask
        outputs: {a: "g(x, m=twice)", b: nothing, c: twice}
        """)
    without, given = model(X), model(X, torch.full_like(X, 3.0))
    assert torch.equal(without["a"], X) and without["b"] is without["c"] is None
    assert torch.equal(given["a"], X * 6) and given["b"] is None


CONDITIONS = [  # (a test on side = "left", sides = ["left", "right"] and n = 2; the same in Python)
    ("side == 'left'", True),
    ("side != 'left'", False),
    ("side in ['up', 'down']", False),
    ("side not in ('up', 'down')", True),
    ("side in sides", True),
    ("'up' in sides or n > 1", True),
    ("not side in sides", False),
    ("1 < n <= 2 and side == sides[0]", True),
    ("n is None", False),
    ("side == 'left' and x is not None and not training", True),
    ("side == 'up' and x is not None or training", False),
    ("(x is None or n == 2) and not (training and n == 2)", True),
]


@pytest.mark.parametrize(("test", "expected"), CONDITIONS)
def test_a_condition_is_what_it_is_in_python(build: Callable, test: str, expected: bool):
    params = "params: {side: left, sides: [left, right], n: 2}\n"
    model = build(f'{params}inputs: {{x: any}}\noutputs: "1 if {test} else 0"\n').eval()
    assert model(3) == expected
    assert (" if " in model.code) == ("training" in test)  # what params decide alone is decided when it is built


PLAIN = [
    *("sqrt(p)", "exp(p / 9)", "log(p)", "3 + cos(p)", "3 + sin(p)", "floor(p / 2)", "ceil(p / 2)"),
    *("min(p, 7)", "max(p, 12, 3)", "abs(3 - p)", "round(p / 4, 1)", "int(p / 2)", "float(p)"),
    *("len(ls)", "sum(ls)", "ls[-1]", "(ls[1:] + [p] * 2)[1]", "int(sqrt(p)) * max(1, len(ls))", "min([p, 4])"),
]


@pytest.mark.parametrize("text", PLAIN)
def test_functions_of_plain_numbers_are_pythons_wherever_they_stand(build: Callable, text: str):
    functions = {name: getattr(math, name) for name in ("sqrt", "exp", "log", "cos", "sin", "floor", "ceil")}
    expected = eval(text, functions, {"p": 9, "ls": [4, 5, 6]})
    of_symbol = text.replace("p)", "T)").replace("(p", "(T").replace("- p", "- T").replace("[p", "[T")
    model = build(f"""\
        params: {{p: 9, ls: [4, 5, 6], interpolated: "${{{text}}}"}}
        inputs: {{x: [B, T], y: [B, "int({text})"]}}
        modules: {{value: "Param([{text}])", l: "Linear(_, 1)"}}
        graph:
          param: "{text}"
          symbol: "{of_symbol}"
        outputs: [interpolated, param, symbol, value, l(y)]
        """)
    *values, value, _ = model(torch.zeros(2, 9), torch.zeros(2, int(expected)))
    assert values == [expected] * 3 and all(type(one) is type(expected) for one in values)
    torch.testing.assert_close(value.detach(), torch.tensor([float(expected)]))
    assert model.l.in_features == int(expected)


@pytest.mark.parametrize(
    "name", ["sqrt", "exp", "log", "cos", "sin", "floor", "ceil", "min", "max", "abs", "round", "sum"]
)
def test_of_a_tensor_the_same_names_are_ops(build: Callable, name: str):
    x = X.abs() + 0.5
    assert torch.equal(build(f"inputs: {{x: [B, T, 4]}}\noutputs: {name}(x)\n")(x), getattr(torch, name)(x))


def test_five_attributes_of_a_value_are_read(build: Callable):
    model = build("inputs: {x: any}\noutputs: [x.shape, x.dtype, x.device, x.ndim, x.mT]\n")
    x = torch.zeros(2, 3, dtype=torch.float64, device="meta")
    *read, turned = model(x)
    assert read == [(2, 3), torch.float64, torch.device("meta"), 2] and turned.shape == (3, 2)


@pytest.mark.parametrize(
    "name", "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool long half double complex64".split()
)
def test_a_dtype_is_a_value_by_its_name(build: Callable, name: str):
    model = build(f"inputs: {{x: any}}\nmodules:\n  b: Buffer(zeros(2, dtype={name}))\noutputs: [x.to({name}), b]\n")
    assert [value.dtype for value in model(torch.zeros(2))] == [getattr(torch, name)] * 2


def functional() -> list[str]:
    """The public functions of torch.nn.functional: those that are documented and leave their input alone."""
    names = [
        name for name in dir(F) if not name.startswith("_") and not name.endswith("_") and "torch_function" not in name
    ]
    return [name for name in names if callable(getattr(F, name)) and not inspect.isclass(getattr(F, name))]


def test_every_public_function_of_torch_nn_functional_is_an_op_and_wins(build: Callable):
    helpers = {"assert_int_or_pair", "boolean_dispatch", "Callable", "Optional"}
    for name in sorted({*functional()} - helpers):
        given = "x, dim=-1" if name in NEEDS_DIM else "x"
        assert f"F.{name}(x" in build(f"inputs: {{x: any}}\noutputs: {name}({given})\n").code


def test_every_op_that_takes_training_is_given_it(build: Callable):
    takers = [name for name in functional() if "training" in _parameters(getattr(F, name))]
    assert {"dropout", "batch_norm", "rrelu", "multi_head_attention_forward"} <= {*takers}
    for name in takers:
        assert "training=self.training" in build(f"inputs: {{x: any}}\noutputs: {name}(x)\n").code
        assert "self" not in build(f"inputs: {{x: any}}\noutputs: {name}(x, training=False)\n").code.split("return")[1]


def _parameters(function: Callable) -> list[str]:
    with suppress(TypeError, ValueError):
        return list(inspect.signature(function).parameters)
    return []


OPS_OF_TORCH = {  # how they are called (x, y [3, 3] floats, v [3], z [2, 3, 3], k integers, b booleans, i an index), and their names
    "(x)": "abs absolute acos acosh all amax amin aminmax angle any arccos arccosh arcsin arcsinh arctan arctanh argmax "
    "argmin argsort asin asinh atan atanh atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors ceil "
    "chain_matmul cholesky clone conj corrcoef cos cosh count_nonzero cov deg2rad det diag diag_embed diagonal diff "
    "digamma eigh erf erfc erfinv exp exp2 expm1 fix flatten fliplr flipud floor frac gradient histc i0 inverse isfinite "
    "isinf isnan isneginf isposinf isreal lgamma log log10 log1p log2 logdet logical_not logit matrix_exp matrix_norm "
    "max mean median min mode msort nan_to_num nanmean nanmedian nansum neg negative nonzero norm normal ones_like "
    "pinverse poisson positive prod qr rad2deg rand_like randn_like ravel real reciprocal rot90 round rsqrt sgn sign "
    "signbit sin sinc sinh slogdet sort sqrt square squeeze std std_mean sum svd t tan trace trapezoid tril triu trunc unbind "
    "unique unique_consecutive var var_mean vector_norm where zeros_like",
    "(x, 0)": "bernoulli cummax cummin cumprod cumsum full_like logcumsumexp logsumexp nanquantile quantile "
    "repeat_interleave roll topk unsqueeze",
    "(x, 0, 1)": "moveaxis movedim randint_like select swapaxes swapdims transpose",
    "(x, 2)": "chunk kthvalue multinomial mvlgamma split",
    "(x, y)": "add allclose arctan2 atan2 cdist clamp clamp_max clamp_min clip complex copysign cross dist div divide eq "
    "equal float_power floor_divide fmax fmin fmod ge greater greater_equal gt heaviside hypot igamma igammac inner "
    "isclose isin kron ldexp le less less_equal logaddexp logaddexp2 logical_and logical_or logical_xor lstsq lt matmul "
    "maximum minimum mm mul multiply ne nextafter not_equal polar pow remainder rsub searchsorted slice_scatter solve "
    "sub subtract tensordot true_divide xlogy",
    "(x, y[0], 0, 1)": "select_scatter",
    "(x, y, v)": "addcdiv addcmul",
    "(x, y, y)": "addmm",
    "(x, y, 0.5)": "lerp",
    "(x, z, z)": "addbmm baddbmm",
    "(z, z)": "bmm",
    "(z, 1)": "dsplit",
    "(x, v)": "mv",
    "(v)": "cartesian_prod combinations vander",
    "(v, indexing='ij')": "meshgrid",
    "(v, v)": "bucketize dot ger outer vdot",
    "(v, x, v)": "addmv",
    "(v, v, v)": "addr",
    "(2, x)": "polygamma",
    "(x, 2, 0, 1.0)": "renorm",
    "([x, y])": "cat column_stack concat concatenate dstack hstack row_stack stack vstack",
    "(x, (3, 3))": "broadcast_to expand_copy hsplit reshape tensor_split tile vsplit",
    "(x, (1, 0))": "flip permute",
    "(x, 0, (3, 1))": "unflatten",
    "(x, 0, 0, 1)": "narrow",
    "(k)": "bitwise_not",
    "(i)": "bincount",
    "(k, k)": "bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor take take_along_dim",
    "(x, 0, k)": "gather",
    "(x, 0, k, y)": "scatter scatter_add",
    "(x, 0, k, y, 'sum')": "scatter_reduce",
    "(x, 0, i)": "index_select",
    "(x, 0, i, y)": "index_add index_copy",
    "(x, 0, i, 2.0)": "index_fill",
    "(x, 0, i, y, 'mean')": "index_reduce",
    "(x, b)": "masked_select",
    "(x, b, 1.0)": "masked_fill",
    "(x, b, y)": "masked_scatter",
    "(z[..., :2].clone())": "view_as_complex",
    "(complex(x, y))": "imag view_as_real",
}
OF_LINALG = (
    "cholesky eigh lstsq matrix_norm qr slogdet solve svd vector_norm".split()
)  # those of torch itself are older


@pytest.mark.filterwarnings("ignore")  # torch means to rename some, or to drop them
@pytest.mark.parametrize("arguments", OPS_OF_TORCH)
def test_the_pure_functions_of_torch_are_ops_and_do_what_they_do_there(build: Callable, arguments: str):
    names = OPS_OF_TORCH[arguments].split()
    calls = [f"{name}{arguments}" for name in names]
    listed = "".join(f"  - {call}\n" for call in calls)
    model = build(f"inputs: {{x: any, y: any, z: any, v: any, k: any, b: any, i: any}}\noutputs:\n{listed}")
    x = torch.rand(3, 3) / 2
    given = {
        **{"x": x @ x.mT / 2 + torch.eye(3) / 4, "y": torch.rand(3, 3), "z": torch.rand(2, 3, 3), "v": torch.rand(3)},
        **{"k": torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0]]), "b": x > 0.2, "i": torch.tensor([2, 0, 1])},
    }
    functions = {name: getattr(torch.linalg if name in OF_LINALG else torch, name) for name in names}
    torch.manual_seed(1)  # some draw
    found = model(**given)
    torch.manual_seed(1)
    for call, one in zip(calls, found, strict=True):
        expected = eval(call, {**functions, **given, "complex": torch.complex})
        torch.testing.assert_close(one, expected, equal_nan=True, msg=lambda said, call=call: f"{call}: {said}")


CREATED = [
    *(
        "arange(3)",
        "empty(3)",
        "eye(3)",
        "full((3,), 1)",
        "linspace(0, 1, 3)",
        "logspace(0, 1, 3)",
        "ones(3)",
        "rand(3)",
    ),
    *("randint(0, 9, (3,))", "randn(3)", "randperm(3)", "tensor([1, 2])", "tril_indices(3, 3)", "triu_indices(3, 3)"),
    *("zeros(3)", "normal(0.0, 1.0, (3,))", "normal(0.0, 1.0, size=(3,))"),
]


@pytest.mark.parametrize("call", CREATED)
def test_what_is_created_in_a_block_or_function_is_on_the_device_of_its_first_tensor(build: Callable, call: str):
    model = build(f"""\
        inputs: {{n: any, x: [B, T, 4]}}
        blocks:
          block: {{inputs: {{n: any, y: [B, T, D]}}, modules: {{i: Identity()}}, outputs: "i({call})"}}
          function: {{inputs: {{y: [B, T, D]}}, outputs: "{call}"}}
        modules: {{b: block()}}
        outputs: ["b(n, x)", function(x), "{call}"]
        """)
    for device in ("cpu", "meta"):
        assert [value.device.type for value in model(3, torch.zeros(2, 3, 4, device=device))] == [device] * 3


@pytest.mark.filterwarnings("ignore:This overload", "ignore:Using torch.cross")
@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_method_has_side_effects(name: str):
    method = getattr(torch.Tensor, name)
    value, other = torch.rand(3, 3), torch.rand(3, 3)
    kept, kept_other = value.clone(), other.clone()
    for arguments in [
        (),
        (0,),
        (1, 1),
        (other,),
        (0, other.argmax(1)),
        (other > 0.5, 2.0),
        (0, torch.tensor([1]), 2.0),
    ]:
        with suppress(Exception):
            method(value, *arguments)
    assert torch.equal(value, kept) and torch.equal(other, kept_other)


# 5. What is built


def test_the_forward_has_the_signature_of_its_inputs(build: Callable):
    model = build("inputs: {x: [B], y: any, mask: {shape: [B], optional: true}}\noutputs: x\n")
    assert isinstance(model, nn.Module)
    assert str(inspect.signature(model.forward)) == "(x, y, mask=None)"


# 6. Init


SELECTED = [
    ("net.layers[1]", ["net.layers.1"]),
    ("net.layers.1", ["net.layers.1"]),
    ("net.layers[*]", ["net.layers.0", "net.layers.1"]),
    ("net.*[1]", ["net.layers.1"]),
    ("*.stages[0].deep", ["net.stages.0.deep"]),
    ("**.deep", ["net.stages.0.deep"]),
    ("type:Linear", ["net.layers.0", "net.layers.1", "net.stages.0.deep"]),
    ("net.stages.type:Linear", ["net.stages.0.deep"]),
]


@pytest.mark.parametrize(("selector", "names"), SELECTED)
def test_a_selector_names_the_same_in_init_in_code_and_in_a_tap(build: Callable, selector: str, names: list[str]):
    model = build(f"""\
        inputs: {{x: [B, T, 4]}}
        modules:
          net: {{layers: "Linear(4, 4) * 2", stages: [{{deep: "Linear(4, 4)"}}]}}
        outputs: net.stages[0].deep(net.layers(x))
        init:
          "{selector}": constant(7.0)
        """)
    parameters = {f"{name}.{key}" for name in names for key in ("weight", "bias")}
    assert {name for name, value in model.named_parameters() if (value == 7).all()} == parameters
    assert set(select_parameters(selector, model)) == parameters
    with model.tap(selector) as taps:
        model(X)
    assert list(taps) == names


# 7. Composition


def test_a_dotted_path_names_a_param_too_and_a_lone_value_keeps_its_type(build: Callable):
    model = build("""\
        params: {dim: 3, list: [1, 2], wide: "${4 * params.dim}", both: "${params.list + [dim]}", text: "d${dim}"}
        inputs: {x: any}
        blocks: {f: {params: {dim: 2, wide: "${params.dim * 10}"}, inputs: {x: any}, outputs: x * wide}}
        outputs: [wide, both, text, f(x), "f(x, dim=5)"]
        """)
    assert model(1) == (12, [1, 2, 3], "d3", 20, 50)


# 9. Errors


def test_an_error_reads_as_on_the_page(write: Callable):
    path = write("inputs: {h: [B, 4]}\nmodules:\n  head: Linear(4, 4)\n  norm: LayerNorm(4)\noutputs: hed(norm(h))\n")
    with pytest.raises(ConfigError) as caught:
        build_model(path)
    assert str(caught.value).splitlines() == [
        f"{path}:6:10  outputs: no value, module or op is called 'hed'.",
        "    outputs: hed(norm(h))",
        "             ^^^",
        "    known here: B, h, head, norm   did you mean 'head'?",
    ]


@pytest.mark.parametrize(
    "slip", ["x > 0 & keep", "keep & x > 0", "x > 0 | x < 1", "relu(x > 0 & x < 1)", "x == keep | keep", "1 & n == 1"]
)
def test_a_bitwise_operator_beside_a_bare_comparison_is_told(problems: Callable, slip: str):
    (problem,) = problems(f"params: {{n: 1}}\ninputs: {{x: [B], keep: [B]}}\noutputs: {slip}\n")
    assert "parentheses" in problem.hint and problem.place.line == 4


def test_a_string_param_called_like_a_function_is_told_at_the_call(problems: Callable):
    (problem,) = problems("params: {activation: relu}\ninputs: {x: [B]}\noutputs: 2 * activation(x)\n")
    assert "'activation' is a value" in problem.message and (problem.place.line, problem.place.column) == (4, 14)


@pytest.mark.parametrize("slip", ["Linear(4, 4, bias=true)", "Linear(4, 4) if null else ReLU()", "Buffer([false])"])
def test_a_stray_word_of_yaml_is_told_in_a_constructor_too(problems: Callable, slip: str):
    (problem,) = problems(f"inputs: {{x: any}}\nmodules:\n  m: {slip}\noutputs: m(x)\n")
    assert "in an expression it is written" in problem.hint and problem.place.line == 4
