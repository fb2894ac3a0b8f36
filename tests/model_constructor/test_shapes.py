"""The shape pass: what it infers, what it refuses, and what it leaves alone because it might run."""

from __future__ import annotations

import contextlib
import itertools
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from model_constructor import ConfigError, build_model, register
from model_constructor.block import bind_params, read_block
from model_constructor.name_check import check_names
from model_constructor.shapes import infer_shapes
from model_constructor.sizes import PROBES, ROUNDED, STEPS, Symbols
from model_constructor.source import read_text


def shapes(text: str, **params: object) -> dict[str, str]:
    """What the pass says of each value, by its path: `layers.0.h`."""
    block = read_block(read_text(f"schema_version: 2\n{text}", "model.yaml"), "model")
    check_names(block)
    rows = infer_shapes(block, bind_params(block, params, {})).rows
    return {f"{row.path}.{row.name}".lstrip("."): row.shape for row in rows}


def outputs(text: str) -> str:
    return shapes(text)["outputs"]


def refusals(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        shapes(text)
    return str(caught.value)


# sizes as formulae


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", lambda b, t, s: 512),
        ("T", lambda b, t, s: t),
        ("T + 4", lambda b, t, s: t + 4),
        ("3*T - 7", lambda b, t, s: 3 * t - 7),
        ("T//2", lambda b, t, s: t // 2),
        ("(T + 1)//2", lambda b, t, s: (t + 2 - 3) // 2 + 1),
        ("(T - 1)//2", lambda b, t, s: (t - 3) // 2 + 1),
        ("3*T//2", lambda b, t, s: t * 3 // 2),
        ("B*T", lambda b, t, s: b * t),
        ("T + S + 1", lambda b, t, s: t + s + 1),
        ("B*T*S", lambda b, t, s: b * t * s),
        ("B + B*T", lambda b, t, s: b * (t + 1)),
        ("~", lambda b, t, s: t % 7),
        ("~", lambda b, t, s: (t + s) // 2),
    ],
)
def test_a_size_is_read_back_from_a_few_probes(text: str, size):
    symbols = Symbols()
    columns = [symbols.take(name) for name in ("B", "T", "S")]
    probes = tuple(size(*row) for row in zip(*columns, strict=True))
    assert symbols.text(probes) == text
    if text != "~":
        for sizes in itertools.product((2, 47, 96), repeat=3):  # the formula holds at other sizes too
            assert symbols.formula(probes).at(dict(zip(("B", "T", "S"), sizes, strict=True))) == size(*sizes)


def test_a_size_that_must_divide_is_read_back_from_sizes_that_do():
    symbols = Symbols(STEPS[2])
    columns = [symbols.take(name) for name in ("B", "T")]
    assert symbols.text(tuple(b * t // 4 for b, t in zip(*columns, strict=True))) == "B*T//4"


@pytest.mark.parametrize("table", ROUNDED)
@pytest.mark.parametrize("stride", [2, 3, 4, 7, 14, 16])
def test_a_formula_of_a_stride_is_right_for_every_size_or_is_not_told(table, stride: int):
    for shift in range(stride):
        symbols = Symbols(table)
        probes = tuple((size + shift) // stride for size in symbols.take("H"))
        formula = symbols.formula(probes)
        known = symbols.text(probes) != "~"
        assert not known or all(formula.at({"H": h}) == (h + shift) // stride for h in range(1, 200))
        assert known or stride != 2


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_however_five_strides_round_the_formula_is_found(depth: int):
    roundings = (lambda h: h // 2, lambda h: (h + 1) // 2, lambda h: (h - 3) // 2 + 1)
    for chain in itertools.product(roundings, repeat=depth):
        symbols = Symbols()
        probes, real = symbols.take("H"), range(100, 200)
        for rounded in chain:
            probes, real = tuple(map(rounded, probes)), list(map(rounded, real))
            formula = symbols.formula(probes)
        assert [formula.at({"H": h}) for h in range(100, 200)] == real


def test_symbols_take_sizes_that_no_sum_or_product_of_few_confuses():
    symbols = Symbols()
    taken = [symbols.take(name) for name in "ABCDEFGHIJ"]
    assert len({size for probes in taken for size in probes}) == 10 * PROBES


# what is inferred


@pytest.mark.parametrize(
    ("expression", "shape"),
    [
        ("x", "[B, T, 8]"),
        ("x + 1", "[B, T, 8]"),
        ("x @ y.mT", "[B, T, S]"),
        ("cat([x, y], 1)", "[B, T + S, 8]"),
        ("x[:, None]", "[B, 1, T, 8]"),
        ("x[:, 1:]", "[B, T - 1, 8]"),
        ("x[..., ::2]", "[B, T, 4]"),
        ("x.flatten(0, 1)", "[B*T, 8]"),
        ("x.flatten()", "[8*B*T]"),
        ("x.reshape(B, -1)", "[B, 8*T]"),
        ("x.unfold(1, 3, 2)", "[B, (T - 1)//2, 8, 3]"),
        ("rearrange(x, 'b t (h d) -> (b h) t d', h=2)", "[2*B, T, 4]"),
        ("einsum('btd,bsd->bts', x, y)", "[B, T, S]"),
        ("einsum(x, y, 'b t d, b s d -> b t s')", "[B, T, S]"),
        ("arange(T + S)", "[T + S] int64"),
        ("zeros(B, max(T, 3))", "[B, T]"),
        ("x > 0", "[B, T, 8] bool"),
        ("x.topk(3)[1]", "[B, T, 3] int64"),
        ("x.max(1)", "([B, 8], [B, 8] int64)"),
        ("x.chunk(2, -1)", "([B, T, 4], [B, T, 4])"),
        ("x.shape", "(B, T, 8)"),
        ("[x.shape[1] // 2, x.ndim]", "[T//2, 3]"),
        ("{'a': x, 'b': [y, None]}", "{a: [B, T, 8], b: [[B, S, 8], None]}"),
        ("interpolate(x, scale_factor=2.0)", "[B, T, 16]"),
        ("scaled_dot_product_attention(x, y, y)", "[B, T, 8]"),
        ("x.bool()", "[B, T, 8] bool"),
        ("one_hot(x.long(), 5)", "[B, T, 8, 5] int64"),
    ],
)
def test_the_shape_of_an_expression_is_told_in_symbols(expression: str, shape: str):
    text = f"inputs:\n  x: [B, T, 8]\n  y: [B, S, 8]\ngraph:\n  unused_y: y\n  out: '{expression.replace(chr(39), chr(39) * 2)}'\noutputs: {{out: out, y: unused_y}}\n"
    assert shapes(text)["out"] == shape


MODULES = [
    ("Linear(8, 5)", "[B, T, 5]"),
    ("Linear(8, 5) >> ReLU() >> LayerNorm(5)", "[B, T, 5]"),
    ("LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True)", "([B, T, 12], ([4, B, 6], [4, B, 6]))"),
    ("LSTM(8, 6, proj_size=3)", "([B, T, 3], ([1, T, 3], [1, T, 6]))"),
    ("GRU(8, 6)", "([B, T, 6], [1, T, 6])"),
    ("TransformerEncoderLayer(8, 2, batch_first=True)", "[B, T, 8]"),
    ("Unflatten(2, [2, 4])", "[B, T, 2, 4]"),
]


@pytest.mark.parametrize(("module", "shape"), MODULES)
def test_the_shape_of_what_a_module_gives_is_told(module: str, shape: str):
    assert outputs(f"inputs: {{x: [B, T, 8]}}\nmodules:\n  m: {module}\noutputs: m(x)\n") == shape


@pytest.mark.parametrize(("module", "_shape"), MODULES)
@pytest.mark.parametrize(("b", "t"), [(2, 3), (5, 4)])
def test_the_shape_told_is_the_shape_at_run_time(module: str, _shape: str, b: int, t: int, tmp_path: Path):
    """Against the model itself, run on data."""
    text = f"inputs: {{x: [B, T, 8]}}\nmodules:\n  m: {module}\noutputs: m(x)\n"
    told = shapes(text)["outputs"]
    path = tmp_path / "model.yaml"
    path.write_text(f"schema_version: 2\n{text}")
    real = build_model(path)(torch.randn(b, t, 8))
    assert _described(real) == str(eval(told, {"B": b, "T": t}))


def _described(value: object) -> str:
    return str(eval(_nest(value)))


def _nest(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + "".join(f"{_nest(entry)}, " for entry in value) + ")"
    assert isinstance(value, torch.Tensor)
    return str(list(value.shape))


def test_the_decoder_of_the_dialect_page_has_these_shapes():
    text = """
params: {dim: 16, depth: 3}
inputs:
  h: [B, T, dim]
  context: [B, S, dim]
  mask: {shape: [B, S], dtype: bool, optional: true}
blocks:
  layer:
    params: {dim: int}
    inputs: {h: [B, T, dim], context: [B, S, dim], mask: {shape: [B, S], dtype: bool, optional: true}}
    modules: {attention: "Attention(dim, heads=2)"}
    outputs: h + attention(h, context, mask=mask)
modules:
  layers: layer(dim=dim) * depth
  head: Linear(_, 3)
outputs: head(layers(h, context, mask=mask))
"""
    assert shapes(text) == {
        "h": "[B, T, 16]",
        "context": "[B, S, 16]",
        "mask": "[B, S] bool or None",
        "layers.0.h": "[B, T, 16]",
        "layers.0.context": "[B, S, 16]",
        "layers.0.mask": "[B, S] bool or None",
        "layers.0.outputs": "[B, T, 16]",  # the two others are the same use of the same block
        "outputs": "[B, T, 3]",
    }


def test_scan_map_and_each_have_the_shapes_of_their_members():
    text = """
inputs: {x: [B, 4, L]}
blocks:
  down: {params: {i: int, o: int}, inputs: {x: [B, i, L]}, modules: {c: "Conv1d(i, o, 3, 2, 1)"}, outputs: c(x)}
  up: {params: {i: int, o: int}, inputs: {x: [B, i, L], skip: [B, i, L]}, modules: {c: "ConvTranspose1d(2 * i, o, 2, 2)"}, outputs: "c(cat([x, skip], 1))"}
modules:
  downs: [down(i=4, o=8), down(i=8, o=16)]
  ups: [up(i=16, o=8), up(i=8, o=4)]
  heads: Conv1d(4, 2, 1) * 3
graph:
  skips: downs.scan(x)
  h: ups(skips[-1], each(skips[::-1]))
outputs: heads.map(h)
"""
    text = text.replace("[down(i=4, o=8), down(i=8, o=16)]", '["down(i=4, o=8)", "down(i=8, o=16)"]')
    text = text.replace("[up(i=16, o=8), up(i=8, o=4)]", '["up(i=16, o=8)", "up(i=8, o=4)"]')
    found = shapes(text)
    assert found["skips"] == "[[B, 8, (L + 1)//2], [B, 16, (L + 3)//4]]"
    assert found["h"] == "[B, 4, L]"
    assert found["outputs"] == "[[B, 2, L], [B, 2, L], [B, 2, L]]"


def test_a_list_of_no_modules_gives_what_it_is_given():
    assert outputs("params: {n: 0}\ninputs: {x: [B, 3]}\nmodules: {l: 'Linear(3, 3) * n'}\noutputs: l(x)\n") == "[B, 3]"


def test_values_threaded_together_stay_together():
    text = """
inputs: {a: [B, 3], b: [B, 5]}
blocks:
  swap: {params: {i: int, o: int}, inputs: {a: [B, i], b: [B, o]}, modules: {f: "Linear(i, o)", g: "Linear(o, i)"}, outputs: "f(a), g(b)"}
modules:
  steps: ["swap(i=3, o=5)", "swap(i=5, o=3)", "swap(i=3, o=5)"]
graph: {"c, d": "steps(a, b)"}
outputs: [c, d]
"""
    assert outputs(text) == "([B, 5], [B, 3])"


def test_what_any_reaches_is_unknown_and_the_rest_is_not():
    text = "inputs: {x: any, y: [B, 3]}\ngraph:\n  a: x['k'] + y\n  b: y * 2\noutputs: [a, b]\n"
    assert shapes(text) == {"x": "?", "y": "[B, 3]", "a": "?", "b": "[B, 3]", "outputs": "(?, [B, 3])"}


@pytest.mark.parametrize(
    ("expression", "shape"),
    [
        ("x * m if m is not None else x", "[B, 3]"),
        ("x if m is None else x * m", "[B, 3]"),
        ("m if m is not None and training else None", "[B, 3] or None"),
        ("x[:, :2] if training else x", "?"),  # one or the other
        ("x[:, :2] if m is None else x", "?"),
        ("x * m if not (m is None or training) else x", "[B, 3]"),
        ("(x, x * 2) if training else (x, None)", "([B, 3], [B, 3] or None)"),  # what is known of each
        ("(x, x[:, :2]) if training else (x, x)", "([B, 3], ?)"),
    ],
)
def test_both_branches_of_a_condition_of_the_run_are_followed(expression: str, shape: str):
    text = f"inputs: {{x: [B, 3], m: {{shape: [B, 3], optional: true}}}}\ngraph:\n  a: x\n  b: {expression.replace('x', 'a', 1) if expression.startswith('m ') else expression}\n  c: m\noutputs: [a, b, c]\n"
    assert shapes(text)["b"] == shape


def test_a_condition_on_params_is_followed_as_it_is_decided():
    text = "params: {wide: true}\ninputs: {x: [B, 3]}\nmodules: {l: 'Linear(3, 5)'}\noutputs: l(x) if wide else x\n"
    assert outputs(text) == "[B, 5]"
    assert outputs(text.replace("wide: true", "wide: false")) == "[B, 3]"


NETS = [
    ("x: [B, 3, H, W]", "Conv2d(3, 4, 3, 2, 1) >> MaxPool2d(2) >> Conv2d(4, 4, 3, 2) >> Flatten()"),
    ("x: [B, 3, H, W]", "Conv2d(3, 4, 7, 2, 3) >> MaxPool2d(3, 2, 1) >> AvgPool2d(2, ceil_mode=True)"),
    ("x: [B, 3, H, W]", "Conv2d(3, 4, 8, 4) >> Conv2d(4, 4, 4, 2) >> Flatten(2)"),
    ("x: [B, 3, H, W]", "Conv2d(3, 4, 14, 14) >> Flatten(2)"),
    ("x: [B, 3, H]", "Conv1d(3, 4, 5, 3, 2) >> ConvTranspose1d(4, 2, 4, 2, 1)"),
    ("x: [B, 3, H]", "Upsample(scale_factor=1.5) >> Conv1d(3, 4, 3, 1, 1)"),
]


@pytest.mark.parametrize(("inputs", "net"), NETS)
def test_the_formula_of_a_stride_holds_for_sizes_that_it_does_not_divide(inputs: str, net: str, tmp_path: Path):
    """Against the model itself, run on data."""
    text = f"inputs: {{{inputs}}}\nmodules:\n  m: {net}\noutputs: m(x)\n"
    told = shapes(text)["outputs"]
    path = tmp_path / "model.yaml"
    path.write_text(f"schema_version: 2\n{text}")
    model = build_model(path)
    for h in range(60, 76):
        sizes = [2, 3, h, 135 - h][: 4 if "W" in inputs else 3]
        assert list(model(torch.zeros(sizes)).shape) == eval(told, {"B": 2, "H": h, "W": 135 - h})


def test_a_size_behind_a_call_that_must_divide_is_told_for_sizes_that_do():
    text = "inputs: {x: [B, 3, H, W]}\nmodules: {c: 'Conv2d(3, 4, 3, 2, 1)'}\ngraph:\n  a: c(x)\n  b: x.view(B, 3, H // 32, 32, W)\noutputs: [a, b]\n"
    found = shapes(text)
    assert found["a"] == "[B, 4, (H + 1)//2, (W + 1)//2]"  # runs for odd sizes
    assert found["b"] == "[B, 3, H//32, 32, W]"


def test_integers_of_a_size_are_rounded_as_python_rounds_them():
    assert outputs("inputs: {x: [B, T]}\noutputs: 'x[:, : T // 2]'\n") == "[B, T//2]"
    assert outputs("inputs: {x: [B, T]}\noutputs: 'x[:, T // 2 :]'\n") == "[B, (T + 1)//2]"


def test_a_size_with_no_simple_formula_is_told_as_that_and_not_as_a_wrong_one():
    assert outputs("inputs: {x: [B, T], y: [B, S]}\noutputs: cat([x, y], 1)[:, ::2]\n") == "[B, ~]"
    nested = "Conv1d(3, 4, 5, 3, 2) >> Upsample(scale_factor=1.5)"  # 3*((T + 2)//3)//2
    assert outputs(f"inputs: {{x: [B, 3, T]}}\nmodules: {{m: {nested!r}}}\noutputs: m(x)\n") == "[B, 4, ~]"


def test_leading_dimensions_are_any_number():
    text = "inputs: {x: [..., 3]}\nmodules: {l: 'Linear(3, 5)'}\noutputs: l(x)\n"
    assert outputs(text) == "[..., 5]"
    convolved = "inputs: {x: [..., 3, 8, 8]}\nmodules: {c: 'Conv2d(3, 5, 1)'}\noutputs: c(c2)\ngraph: {c2: 'x * 1'}\n"
    assert "5, 8, 8]" in outputs(convolved)
    matrix = "inputs: {x: [..., 3]}\noutputs: x.t()\n"  # runs without leading dimensions or with one
    assert outputs(matrix)
    assert outputs("inputs: {x: [..., 3]}\noutputs: x.permute(0, 2, 1, 3)\n")  # runs with three
    assert outputs("inputs: {x: [..., 3]}\noutputs: x.permute(0, 2, 1, 3, 5, 4, 7, 6, 8)\n")  # with eight


def test_building_leaves_the_random_generator_alone(tmp_path: Path):
    path = tmp_path / "model.yaml"
    path.write_text("schema_version: 2\ninputs: {x: [B, 3]}\nmodules: {l: 'Linear(3, 4)'}\noutputs: l(dropout(x))\n")
    torch.manual_seed(3)
    model = build_model(path)
    torch.manual_seed(3)
    assert torch.equal(model.l.weight, nn.Linear(3, 4).weight)


# what `_` stands for


@pytest.mark.parametrize(
    ("module", "shape", "attribute", "size"),
    [
        ("Linear(_, 4)", "[B, T, 6]", "in_features", 6),
        ("Linear(in_features=_, out_features=4)", "[B, 6]", "in_features", 6),
        ("Conv1d(_, 4, 3)", "[B, 6, L]", "in_channels", 6),
        ("Conv2d(_, 4, 3)", "[B, 6, H, W]", "in_channels", 6),
        ("Conv2d(_, 4, 3)", "[6, H, W]", "in_channels", 6),
        ("ConvTranspose3d(_, 4, 3)", "[B, 6, D, H, W]", "in_channels", 6),
        ("BatchNorm1d(_)", "[B, 6]", "num_features", 6),
        ("BatchNorm1d(_)", "[B, 6, L]", "num_features", 6),
        ("BatchNorm2d(_)", "[B, 6, H, W]", "num_features", 6),
        ("GroupNorm(2, _)", "[B, 6, H, W]", "num_channels", 6),
        ("LayerNorm(_)", "[B, T, 6]", "normalized_shape", (6,)),
        ("RMSNorm(_)", "[B, T, 6]", "normalized_shape", (6,)),
        ("LSTM(_, 5)", "[T, B, 6]", "input_size", 6),
        ("TransformerEncoderLayer(_, 2)", "[T, B, 6]", "norm1.normalized_shape", (6,)),
        ("MLP(_)", "[B, 6]", "fc1.in_features", 6),
        ("Attention(_, heads=2)", "[B, T, 6]", "q.in_features", 6),
    ],
)
def test_a_blank_takes_the_size_that_reaches_the_module(module: str, shape: str, attribute: str, size, tmp_path: Path):
    path = tmp_path / "model.yaml"
    path.write_text(f"schema_version: 2\ninputs: {{x: {shape}}}\nmodules:\n  m: {module}\noutputs: m(x * 1)\n")
    assert eval(f"m.{attribute}", {"m": build_model(path).m}) == size


def test_blanks_are_filled_through_chains_lists_namespaces_and_blocks(tmp_path: Path):
    path = tmp_path / "model.yaml"
    path.write_text("""
schema_version: 2
inputs: {x: [B, 6, H, W], y: [B, 5]}
blocks:
  cell: {params: {width: int, out: 4}, inputs: {h: [B, width]}, modules: {l: "Linear(width, out)"}, outputs: l(h)}
modules:
  stem: Conv2d(_, 8, 3) >> BatchNorm2d(_) >> ReLU() >> Conv2d(_, 10, 1)
  towers: {left: "Linear(_, 7)", right: ["Linear(_, 3)", "Linear(_, 2)"]}
  cells: cell(width=_) * 2
  pair: Bilinear(_, _, 2)
graph:
  pooled: stem(x).mean((2, 3))
  left: towers.left(pooled)
  right: towers.right(y)
outputs: [left, right, cells(pooled), "pair(pooled, y)"]
""")
    model = build_model(path)
    assert [model.stem[i].weight.shape[:2] for i in (0, 3)] == [(8, 6), (10, 8)]
    assert model.stem[1].num_features == 8
    assert model.towers.left.in_features == 10
    assert [layer.in_features for layer in model.towers.right] == [5, 3]
    assert [cell.l.in_features for cell in model.cells] == [10, 4]
    assert (model.pair.in1_features, model.pair.in2_features) == (10, 5)
    assert [tuple(v.shape) for v in model(torch.randn(2, 6, 9, 9), torch.randn(2, 5))] == [
        (2, 7),
        (2, 2),
        (2, 4),
        (2, 2),
    ]


def test_a_model_with_blanks_comes_back_from_its_specification(tmp_path: Path):
    path = tmp_path / "model.yaml"
    path.write_text("schema_version: 2\ninputs: {x: [B, 6]}\nmodules: {l: 'Linear(_, 4)'}\noutputs: l(x)\n")
    model = build_model(path)
    assert build_model(model.spec).l.in_features == 6


def test_a_model_with_blanks_comes_back_from_a_pickle_and_so_does_a_block_of_it(tmp_path: Path):
    path = tmp_path / "model.yaml"
    path.write_text(
        """
schema_version: 2
inputs: {x: [B, 6]}
blocks: {cell: {inputs: {h: [B, C]}, modules: {l: "Linear(_, 4)", n: GroupNorm(2, _)}, outputs: n(l(h))}}
modules: {cells: cell() * 2}
outputs: cells(x)
""".replace("GroupNorm(2, _)", '"GroupNorm(2, _)"')
    )
    model, x = build_model(path), torch.randn(2, 6)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(x), model(x))
    cell = pickle.loads(pickle.dumps(model.cells[0]))  # alone, its own file does not tell the size
    assert cell.l.in_features == 6 and torch.equal(cell(x), model.cells[0](x))


def test_what_torch_is_to_find_at_the_first_call_is_left_to_torch(tmp_path: Path):
    path = tmp_path / "model.yaml"
    path.write_text("schema_version: 2\ninputs: {x: [B, 6]}\nmodules: {l: LazyLinear(3)}\noutputs: l(x) + 1\n")
    assert build_model(path)(torch.randn(2, 6)).shape == (2, 3)


def test_an_input_without_a_dtype_has_the_default_one(tmp_path: Path):
    path = tmp_path / "model.yaml"
    path.write_text(
        "schema_version: 2\ninputs: {x: [B, 6]}\nmodules: {l: 'LSTM(6, 3)', c: 'Conv1d(6, 2, 1)'}\noutputs: [\"l(x)[0]\", \"c(x[..., None])\"]\n"
    )
    torch.set_default_dtype(torch.float64)
    try:
        model = build_model(path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert model(torch.randn(2, 6, dtype=torch.float64))[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("inputs", "module", "said"),
    [
        ("x: any", "Linear(_, 4)", "cannot be inferred"),
        ("x: [B, T]", "Linear(_, 4)", "'_' would be T"),
        ("x: [B, 6]", "Linear(6, _)", "cannot be inferred"),
        ("x: [B, 6]", "Linear(_ + 1, 4)", "'_' has no value here"),
        ("x: [B, 6]", "Param(_)", "'_' has no value here"),
        ("x: [B, 6]", "Linear(max(_, 3), 4)", "'_' has no value here"),
    ],
)
def test_a_blank_that_nothing_tells_is_an_error_at_its_place(inputs: str, module: str, said: str):
    call = "m(x)" if "Param" not in module else "m * x"
    message = refusals(f"inputs: {{{inputs}}}\nmodules:\n  m: {module}\noutputs: {call}\n")
    assert said in message
    line, caret = message.splitlines()[1:3]
    assert line[caret.index("^")] == "_"


def test_a_constructor_that_failed_is_told_where_a_blank_behind_it_cannot_be_inferred():
    message = refusals(
        "inputs: {image: [B, 3, 64, 64]}\n"
        "modules:\n  eyes: TimmBackbone('resnt18')\n  head: Linear(_, 4)\noutputs: head(eyes(image))\n"
    )
    first, second = message.index("TimmBackbone cannot be built"), message.index("'_' cannot be inferred")
    assert first < second and "resnt18" in message[first:second]


# what is refused


def test_a_shape_error_names_the_node_the_expression_and_the_shapes():
    text = "inputs: {x: [B, T, 512], y: [B, 256]}\ngraph:\n  h: relu(x @ y)\noutputs: h\n"
    message = refusals(text)
    assert message.startswith("model.yaml:4:11  node 'h': [B, T, 512] @ [B, 256] does not fit: ")
    line, caret = message.splitlines()[1:3]
    assert line[caret.index("^") : caret.rindex("^") + 1] == "x @ y"


REFUSED = [
    ("l(x)", "l([B, T, 8]) does not fit", "l(x)"),
    ("relu(l(x) * 2)", "l([B, T, 8]) does not fit", "l(x)"),
    ("x @ w.weight", "[B, T, 8] @ [12, 8]", "x @ w.weight"),
    ("cat([x, w(x)], 1)", "cat([[B, T, 8], [B, T, 12]], 1)", "cat([x, w(x)], 1)"),
    ("x[:, :, 9]", "index 9 is out of bounds", "x[:, :, 9]"),
    ("x.reshape(B, T, 3, 3)", "shape '[B, T, 3, 3]' is invalid for input of size 8*B*T", "x.reshape(B, T, 3, 3)"),
    (
        "rearrange(x, 'b t (h d) -> b h t d', h=3)",
        "can't divide axis of length 8",
        "rearrange(x, 'b t (h d) -> b h t d', h=3)",
    ),
    ("softmax(x, dims=2)", "unexpected keyword argument 'dims'", "softmax(x, dims=2)"),
    ("x.unflatten(-1, [3, 3])", "unflatten", "x.unflatten(-1, [3, 3])"),
    ("x.permute(0, 1)", "[B, T, 8].permute(0, 1)", "x.permute(0, 1)"),
    ("[x, x][2]", "list index out of range", "[x, x][2]"),
    ("{'a': x}['b']", "there is no 'b'", "{'a': x}['b']"),
    ("layer_norm(x, [9])", "layer_norm([B, T, 8], [9])", "layer_norm(x, [9])"),
    ("x < ones(9)", "[B, T, 8] < [9]", "x < ones(9)"),
]


@pytest.mark.parametrize(("expression", "said", "marked"), REFUSED)
def test_what_can_never_run_is_refused_under_its_expression(expression: str, said: str, marked: str):
    text = f"inputs:\n  x: [B, T, 8]\nmodules:\n  l: Linear(9, 8)\n  w: Linear(8, 12)\ngraph:\n  out: {chr(34)}{expression}{chr(34)}\n  rest: l(w(x)[..., :9])\noutputs: [out, rest]\n"
    message = refusals(text)
    assert said in message
    line, caret = message.splitlines()[1:3]
    assert line[caret.index("^") : caret.rindex("^") + 1] == marked


def test_all_that_does_not_fit_is_told_at_once_and_nothing_that_follows_from_it():
    text = "inputs: {x: [B, 8]}\nmodules: {l: 'Linear(9, 3)', m: 'Linear(7, 3)', n: 'Linear(4, 4)'}\ngraph:\n  a: n(l(x))\n  b: m(x)\noutputs: [a, b]\n"
    assert refusals(text).count("does not fit") == 2


def test_a_wrong_number_of_names_is_told():
    text = "inputs: {x: [B, 8]}\ngraph:\n  a, b: x.chunk(4, -1)\noutputs: a + b\n"
    assert "4 values are given to 2 names" in refusals(text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("x", "the input 'h' of 'f' is declared [B, T, dim]; it is given [B, 8]"),
        ("y", "the input 'h' of 'f' is declared [B, T, dim]; it is given [B, 3, 9]"),
        ("z", "the input 'h' of 'f' is float32; this is int64"),
    ],
)
def test_an_argument_that_contradicts_the_declared_input_is_refused(given: str, said: str):
    text = f"""
inputs: {{x: [B, 8], y: [B, 3, 9], z: {{shape: [B, 3, 8], dtype: int64}}}}
blocks:
  f: {{params: {{dim: int}}, inputs: {{h: {{shape: [B, T, dim], dtype: float32}}}}, modules: {{l: "Linear(dim, dim)"}}, outputs: l(h)}}
modules: {{f: f(dim=8)}}
graph: {{rest: x.sum() + y.sum() + z.sum()}}
outputs: [f({given}), rest]
"""
    message = refusals(text)
    assert said in message and "declared at model.yaml:5" in message


@pytest.mark.parametrize("given", ["floats", "absent", "floats if training else None"])
def test_the_dtype_of_an_optional_input_is_checked_where_it_is_given(given: str):
    def text(dtype: str) -> str:
        return f"""
inputs: {{floats: {{shape: [B, 8], dtype: float32}}, absent: {{shape: [B, 8], dtype: float32, optional: true}}}}
blocks: {{f: {{inputs: {{mask: {{shape: [B, 8], dtype: {dtype}, optional: true}}}}, outputs: mask}}}}
outputs: [f({given}), f(), f(None), floats, absent]
"""

    assert "the input 'mask' of 'f' is bool; this is float32" in refusals(text("bool"))
    assert outputs(text("float32")).startswith("(")


def test_a_symbol_has_one_size_in_a_call():
    block = "  f: {inputs: {a: [B, T], b: [B, T]}, outputs: a.sum() + b.sum()}"
    message = refusals(f"inputs: {{x: [K, 3], y: [K, 4]}}\nblocks:\n{block}\noutputs: f(x, y)\n")
    assert "the input 'b' of 'f' is declared [B, T]; it is given [K, 4]" in message


def test_a_size_that_computes_with_symbols_is_checked():
    text = "inputs: {x: [B, 3], y: [B, %d]}\nblocks:\n  f: {inputs: {a: [B, T], b: [B, T + 1]}, outputs: a.sum() + b.sum()}\noutputs: f(x, y)\n"
    assert outputs(text % 4) == "[]"
    assert "declared [B, T + 1]; it is given [B, 5]" in refusals(text % 5)


def test_each_of_another_length_is_refused():
    text = "inputs: {x: [B, 3]}\nmodules: {l: 'Linear(3, 3) * 3'}\ngraph: {xs: '[x, x]'}\noutputs: l(x, each(xs))\n"
    assert "each() is given 2 values for 3 modules" in refusals(text)


# what is left alone: every one of these runs for some input


@pytest.mark.parametrize(
    ("inputs", "expression", "arguments"),
    [
        ("x: [B, T], y: [B, S]", "x + y", [(2, 3), (2, 3)]),
        ("x: [B, T], y: [B, S]", "cat([x, y], 0)", [(2, 3), (1, 3)]),
        ("x: [B, T]", "x.view(-1, 7)", [(2, 7)]),
        ("x: [B, T]", "x.reshape(B, 5, 3)", [(2, 15)]),
        ("x: [B, T]", "linear(x, ones(4, 13))", [(2, 13)]),
        ("x: [B, T]", "rearrange(x, 'b (a c) -> b a c', a=11)", [(2, 22)]),
        ("x: [B, T]", "x.view(B, T // 32, 32)", [(2, 64)]),
        ("x: [B, T]", "x[:, 4]", [(2, 5)]),
        ("x: [B, T, 2]", "x @ x", [(3, 2, 2)]),
        ("x: [B, C, H, W]", "pixel_shuffle(x, 3)", [(1, 9, 2, 2)]),
        ("x: [B]", "x.nonzero()", [(3,)]),
        ("x: [B, T]", "x[x > 0]", [(2, 3)]),
        ("x: [B, T]", "embedding(x, ones(4, 2))", [torch.zeros(2, 3, dtype=torch.int64)]),
        ("x: [B, T]", "x & ~x", [torch.ones(2, 3, dtype=torch.bool)]),
        ("x: [B, T], y: [B, T]", "where(x, y, -y)", [torch.ones(2, 3, dtype=torch.bool), (2, 3)]),
        ("x: [B, T]", "unique(x)", [(2, 3)]),
        ("x: [B, T]", "x.view(-1, 7) @ ones(7, 2)", [(7, 2)]),
        ("x: [B, T]", "x.view(B, 3, T - 100)", [(2, 150)]),
        ("x: [B, T, 8], y: [B, S, 8]", "cat([x[:, 2:], y], 2)", [(2, 5, 8), (2, 3, 8)]),
        ("x: [B, T], y: [B, S]", "x[:, 2:] + y", [(2, 5), (2, 3)]),
        ("x: [B, D]", "x.split([3, 7], 1)[0]", [(2, 10)]),
        ("x: [B, 27, L]", "fold(x, (8, 8), 3)", [(2, 27, 36)]),
        ("x: [B, D], y: [B, D]", "cross(x, y, dim=-1)", [(2, 3), (2, 3)]),
        ("x: [B, T]", "x[:, 4000]", [(2, 4001)]),
        ("x: [B, T]", "x[:, [0, 2500]]", [(2, 2501)]),
        ("x: [B, T]", "[x, -x, x][T - 3]", [(2, 4)]),
        ("x: [B, T]", "x[:, T - 2000]", [(2, 2001)]),
        ("x: [B, T]", "zeros(B, T - 20000) + x.sum()", [(2, 20001)]),
        ("x: [B, C, H, W]", "layer_norm(x, [5, 7, 9])", [(2, 5, 7, 9)]),
        ("x: [B, C, H, W]", "pixel_shuffle(x, 7)", [(1, 49, 2, 2)]),
        ("x: [B, C, H, W]", "rearrange(x, 'b c (h p) (w q) -> b (h w) (c p q)', p=14, q=15)", [(1, 2, 28, 30)]),
        ("x: [B, T, 4], y: [B, S, 4]", "linear(cat([x, y], 1).mT, ones(2, 100))", [(2, 60, 4), (2, 40, 4)]),
        ("x: [B, N, C], y: [B, H]", "x.view(B, H, H, C) + y.sum()", [(2, 9, 5), (2, 3)]),
        ("x: [B, T], i: [S, U]", "gather(x, 1, i)", [(2, 3), torch.zeros(2, 2, dtype=torch.int64)]),
        ("x: [B, T]", "linear(x[:, :3], ones(2, 2))", [(2, 2)]),  # a slice gives less than it is asked for
        ("x: [T, 3]", "x @ x", [(3, 3)]),
        ("x: [..., 3]", "x.permute(0, 1, 2, 3, 4, 6, 5)", [(1, 1, 1, 1, 1, 2, 3)]),
    ],
)
def test_what_runs_for_some_input_is_never_refused(inputs: str, expression: str, arguments: list, tmp_path: Path):
    path = tmp_path / "model.yaml"
    path.write_text(f'schema_version: 2\ninputs: {{{inputs}}}\noutputs: "{expression}"\n')
    given = [torch.ones(a) if isinstance(a, tuple) else a for a in arguments]
    build_model(path)(*given)


@pytest.mark.parametrize("padding", [0, 1])
def test_a_network_of_strides_before_a_fixed_layer_is_not_refused(padding: int, tmp_path: Path):
    down = " >> ".join(f"Conv2d({i}, 16, 3, 2, {padding})" for i in (3, 16, 16))
    path = tmp_path / "model.yaml"
    net = f"{down} >> Flatten() >> Linear(144, 10)"
    path.write_text(f"schema_version: 2\ninputs: {{x: [B, 3, H, W]}}\nmodules:\n  m: {net}\noutputs: m(x)\n")
    assert build_model(path)(torch.zeros(2, 3, *(((24, 24), (31, 31))[1 - padding]))).shape == (2, 10)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("x.view(B, 3, T - 100)", "outputs: [B, T].view(B, 3, T - 100) runs for some sizes only, such as T = 150."),
        ("fold(x.view(B, 27, -1), (8, 8), 3)", "runs for some sizes only"),
    ],
)
def test_a_call_that_runs_for_some_sizes_only_is_noted(expression: str, said: str):
    block = read_block(read_text(f"schema_version: 2\ninputs: {{x: [B, T]}}\noutputs: {expression}\n", "m.yaml"), "m")
    check_names(block)
    (note,) = infer_shapes(block, {}).notes
    assert said in note.message and note.place.line == 3


@pytest.mark.parametrize(
    "expression",
    ["cat([x, x[:, 1:]], 2)", "x @ x", "bmm(x, ones(2, 9, 1)) + x", "x.split([3, 4], 2)[0]", "x.view(B, T, 2, 5)"],
)
def test_what_no_size_of_a_symbol_helps_is_refused(expression: str):
    inputs = "x: [B, T, 8]" if "x @ x" not in expression else "x: [B, 3, 8]"
    assert "does not fit" in refusals(f'inputs: {{{inputs}}}\noutputs: "{expression}"\n')


def test_an_op_that_checks_its_own_sizes_is_never_refused(tmp_path: Path):
    @register.op("shapes_test_pairs")
    def pairs(x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] % 7 != 5:
            raise ValueError("the shape must match the table")
        assert x.shape[1] % 11 == 8, "sizes must match"
        return x.view(len(x), 19, -1)

    path = tmp_path / "model.yaml"
    path.write_text("schema_version: 2\ninputs: {x: [B, T]}\noutputs: shapes_test_pairs(x)\n")
    assert build_model(path)(torch.zeros(2, 19)).shape == (2, 19, 1)


def test_a_registered_module_is_refused_only_for_what_torch_says_of_sizes(tmp_path: Path):
    @register("ShapesTestPicky")
    class Picky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[1] != 17:
                raise ValueError("seventeen, please")
            return x * float(x.sum())

    @register("ShapesTestProjection")
    class Projection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    path = tmp_path / "model.yaml"
    path.write_text("schema_version: 2\ninputs: {x: [B, T]}\nmodules: {p: ShapesTestPicky()}\noutputs: p(x)\n")
    assert build_model(path)(torch.ones(2, 17)).shape == (2, 17)
    assert "p([B, 5]) does not fit" in refusals(
        "inputs: {x: [B, 5]}\nmodules: {p: ShapesTestProjection()}\noutputs: p(x)\n"
    )
    assert outputs("inputs: {x: [B, 4]}\nmodules: {p: ShapesTestProjection()}\noutputs: p(x)\n") == "[B, 3]"


def test_a_type_that_needs_data_to_be_built_is_left_to_the_real_construction(tmp_path: Path):
    @register("ShapesTestScale")
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.linspace(0, 3, 4)[2].item()  # not to be had on the meta device

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    path = tmp_path / "model.yaml"
    path.write_text("schema_version: 2\ninputs: {x: [B]}\nmodules: {s: ShapesTestScale()}\noutputs: s(x)\n")
    assert build_model(path)(torch.ones(2)).tolist() == [2.0, 2.0]


# bounds


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "expression",
    [
        "x.unbind(0)",
        "x.split(1)",
        "zeros(10 ** 5, 10 ** 5)",
        "x.repeat(10 ** 6, 10 ** 6)",
        "2 ** (T ** T)",
        "[x] * (T * T * T)",
        "combinations(x[0], 5)",
        "x.tensor_split(10 ** 6)",
    ],
)
def test_no_expression_makes_the_pass_work_without_bound(expression: str):
    with contextlib.suppress(ConfigError):
        assert outputs(f'inputs: {{x: [1000000000, T]}}\noutputs: "{expression}"\n')


def test_equal_layers_are_followed_once(tmp_path: Path):
    layer = "blocks:\n  layer: {inputs: {x: [B, 4]}, modules: {l: 'Linear(4, 4)'}, outputs: l(x)}\n"
    rows = shapes(f"{layer}inputs: {{x: [B, 4]}}\nmodules: {{layers: layer() * 50}}\noutputs: layers(x)\n")
    assert [name for name in rows if name.startswith("layers")] == ["layers.0.x", "layers.0.outputs"]


# found by those who used it first


def test_five_free_dimensions_are_no_crash():
    assert outputs("inputs: {video: [B, T, C, H, W]}\noutputs: video.mean((1, 2))\n") == "[B, H, W]"
    assert outputs("inputs: {video: [B, N, T, 3, H, W]}\noutputs: video.mean((1, 2))\n") == "[B, 3, H, W]"


def test_modules_that_differ_in_an_option_are_not_taken_for_one_another():
    text = "inputs: {x: [B, 4], z: [B, 4]}\nmodules: {m: MSELoss(), n: MSELoss(reduction='none')}\noutputs: m(x, z) + n(x, z).mean((0, 1))\n"
    assert outputs(text) == "[]"


@pytest.mark.parametrize(
    ("inputs", "modules", "expression", "arguments"),
    [
        ("x: [B, T, 7]", "l: 'Linear(84, 4)'", "l(x.flatten(1))", [(2, 12, 7)]),
        ("x: [B, 2]", "l: 'Linear(2, 2)'", "l(view_as_real(x)[..., 0])", [torch.zeros(2, 2, dtype=torch.complex64)]),
    ],
)
def test_a_size_that_only_arithmetic_finds_is_not_refused(
    inputs: str, modules: str, expression: str, arguments: list, tmp_path: Path
):
    path = tmp_path / "model.yaml"
    path.write_text(f'schema_version: 2\ninputs: {{{inputs}}}\nmodules: {{{modules}}}\noutputs: "{expression}"\n')
    build_model(path)(*(torch.ones(a) if isinstance(a, tuple) else a for a in arguments))


def test_no_formula_is_invented():
    text = "inputs: {image: [B, 3, H, W], words: [B, L, 64]}\nmodules: {c: 'Conv2d(3, 64, 8, stride=8)'}\noutputs: cat([c(image).flatten(2).mT, words], 1)\n"
    assert outputs(text) == "[B, L + (H//8)*(W//8), 64]"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        "inputs: {x: [B]}\ngraph:\n  n0: (x, x)\n"
        + "".join(f"  n{i}: (n{i - 1}, n{i - 1})\n" for i in range(1, 30))
        + "outputs: n29\n",
        f"inputs: {{x: [{', '.join(f'S{i}' for i in range(80))}]}}\noutputs: x.flatten()\n",
        "inputs: {x: [B, 8]}\nmodules: {l: 'Linear(8, 8) >> Linear(9, 9)'}\ngraph:\n"
        + "".join(f"  n{i}: l(x)\n" for i in range(2000))
        + f"outputs: [{', '.join(f'n{i}' for i in range(2000))}]\n",
        "inputs: {x: any}\noutputs: ones(30000, 30000, device='cpu').sum()\n",
    ],
)
def test_a_small_file_asks_for_little_work(text: str):
    with contextlib.suppress(ConfigError):
        assert shapes(text)


@pytest.mark.parametrize("module", ["Linear(30000, 30000, device='cpu')", "Buffer(eye(4, device='cpu'))"])
def test_a_file_names_no_device_when_a_model_is_built(module: str):
    use = "m(x)" if "Linear" in module else "x @ m"
    assert "a file names no device" in refusals(f'inputs: {{x: any}}\nmodules: {{m: "{module}"}}\noutputs: {use}\n')
