"""The architecture hash: one for all spellings of a model, another for every change of what it computes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_constructor import build_model

MODEL = """\
params: {dim: 8, depth: 2, side: left, rate: 0.5, unused: 3}
inputs:
  x: [B, T, dim]
  clock: [B, dim]
  mask: {shape: [B, T], dtype: bool, optional: true}
blocks:
  double: {params: {by: 2}, inputs: {h: any}, graph: {d: h * by}, outputs: d + 1}
  layer:
    params: {dim: int, wide: true}
    inputs: {h: [B, T, dim], clock: [B, dim]}
    modules:
      norm: LayerNorm(dim)
      fc: Linear(dim, 2 * dim if wide else dim) >> GELU() >> Linear(2 * dim if wide else dim, dim)
      gate: Linear(dim, 2 * dim)
    graph:
      shift, scale: gate(silu(clock))[:, None].chunk(2, -1)
      a: norm(h) * (1 + scale) + shift
    outputs: h + fc(a)
modules:
  layers: layer(**params) * depth
  towers: {left: "Linear(dim, 4)", right: "Linear(dim, 4)"}
  position: Param(1, dim, init=normal(std=0.02))
  table: Buffer(arange(dim).float() * rate)
  drop: Dropout(rate)
graph:
  start: x + position + table
  noisy: drop(start)
  h: layers(noisy, clock)
  masked: h if mask is None else h * mask[..., None]
  summed: masked + start
outputs: {y: "towers[side](summed)", z: "double(summed, by=3) + noisy"}
init: {position: zeros}
"""


@pytest.fixture
def hash_of(build: Callable) -> Callable[..., str]:
    return lambda text, **arguments: build(text, **arguments).architecture_hash


SAME = {
    "nodes renamed": [("start", "begin"), ("masked", "m"), ("  h: l", "  out: l"), ("h if", "out if"), ("else h *", "else out *")],
    "nodes reordered": [("  start: x + position + table\n", ""), ("outputs: {y", "  start: x + position + table\noutputs: {y")],
    "comments and blank lines": [("graph:\n  start", "# a comment\n\ngraph:   # another\n\n  start")],
    "spaces in expressions": [("norm(h) * (1 + scale) + shift", "norm( h )*(1+scale)  +  shift")],
    "symbols renamed": [("[B, T, dim]\n  clock: [B, dim]\n  mask: {shape: [B, T]", "[N, S, dim]\n  clock: [N, dim]\n  mask: {shape: [N, S]")],
    "a block renamed": [("  layer:\n", "  residual:\n"), ("layer(**params)", "residual(**params)")],
    "a function renamed": [("double:", "twice:"), ("double(", "twice(")],
    "a param renamed": [("rate", "p")],
    "a param written out": [("Dropout(rate)", "Dropout(0.5)")],
    "params passed one by one": [("layer(**params)", "layer(dim=dim)")],
    "a default of a block given": [("layer(**params)", "layer(wide=True, **params)")],
    "a default of a type given": [("LayerNorm(dim)", "LayerNorm(normalized_shape=dim, eps=1e-5)")],
    "an argument by keyword": [("towers: {left: \"Linear(dim, 4)\"", "towers: {left: \"Linear(in_features=dim, out_features=4)\"")],
    "a size inferred": [("gate: Linear(dim, 2 * dim)", "gate: Linear(_, 2 * dim)")],
    "an unused param": [(", unused: 3", "")],
    "a dead branch": [("h if mask is None else h * mask[..., None]", "x if depth > 9 else h if mask is None else h * mask[..., None]")],
    "another initial value": [("std=0.02", "std=0.5"), ("init: {position: zeros}", "init: {towers: ones}")],
    "no init": [("init: {position: zeros}\n", "")],
    "modules reordered": [("  drop: Dropout(rate)\n", ""), ("modules:\n  layers", "modules:\n  drop: Dropout(rate)\n  layers")],
    "a list of sequence": [("layers: layer(**params) * depth", "layers: [layer(**params), layer(**params)]")],
}  # fmt: skip

DIFFERENT = {
    "an op": [("silu(clock)", "gelu(clock)")],
    "a method": [(".chunk(2, -1)", ".split(dim, -1)")],
    "an operator": [("masked + start", "masked - start")],
    "an operand": [("masked + start", "masked + noisy")],
    "the order of operands": [("masked + start", "start + masked")],
    "a constant": [("(1 + scale)", "(2 + scale)")],
    "the type of a constant": [("(1 + scale)", "(1.0 + scale)")],
    "the sign of a constant": [("* (1 + scale) + shift", "* (-1 + scale) + shift")],
    "an index": [("[:, None]", "[None, :]")],
    "which target of a tuple": [("shift, scale:", "scale, shift:")],
    "an output": [("h + fc(a)", "a + fc(a)")],
    "the order of outputs": [('{y: "towers[side](summed)", z: "double(summed, by=3) + noisy"}', '{z: "double(summed, by=3) + noisy", y: "towers[side](summed)"}')],
    "the name of an output": [("{y:", "{yy:")],
    "which module is called": [("towers[side](summed)", "towers.right(summed) + 0 * towers.left(summed)")],
    "a value of a param in the graph": [("by=3", "by=4")],
    "a default of a function that is used": [("double(summed, by=3)", "double(summed)")],
    "a number of layers": [("depth: 2", "depth: 3")],
    "a width": [("dim: 8", "dim: 16")],
    "a param of a block": [("layer(**params)", "layer(wide=False, **params)")],
    "an argument of a type": [("LayerNorm(dim)", "LayerNorm(dim, eps=1e-6)")],
    "an argument without weights": [("Dropout(rate)", "Dropout(0.25)")],
    "the type of a module": [("GELU()", "ReLU()")],
    "the arguments of a link": [("GELU()", "GELU('tanh')")],
    "a link of a chain": [(">> GELU() ", ">> GELU() >> GELU() ")],
    "the name of a module": [("norm:", "norm1:"), ("norm(h)", "norm1(h)")],
    "the name of a module in a namespace": [("right:", "up:")],
    "the shape of a parameter": [("Param(1, dim", "Param(1, 1, dim")],
    "whether a parameter is trained": [("init=normal(std=0.02)", "requires_grad=False")],
    "the value of a buffer": [("* rate", "* 2 * rate")],
    "whether a buffer is stored": [(".float() * rate", ".float() * rate, persistent=False")],
    "the order of inputs": [("  x: [B, T, dim]\n  clock: [B, dim]\n  mask", "  clock: [B, dim]\n  x: [B, T, dim]\n  mask")],
    "the name of an input": [("clock: [B, dim]\n  mask", "time: [B, dim]\n  mask"), ("(noisy, clock)", "(noisy, time)")],
    "the shape of an input": [("clock: [B, dim]\n  mask", "clock: [1, dim]\n  mask")],
    "which symbols agree": [("mask: {shape: [B, T]", "mask: {shape: [B, S]")],
    "the dtype of an input": [("dtype: bool", "dtype: float32")],
    "whether an input is optional": [(", optional: true", "")],
    "a runtime condition": [("h if mask is None else h * mask[..., None]", "start if mask is None else h * mask[..., None]")],
    "training in a condition": [("masked + start", "masked + start if training else masked")],
    "how a list is called": [("layers(noisy, clock)", "layers.scan(noisy, clock)[-1]")],
    "one evaluation or two of what draws numbers": [("double(summed, by=3) + noisy", "double(summed, by=3) + drop(start)")],
}  # fmt: skip


def edited(changes: list[tuple[str, str]]) -> str:
    text = MODEL
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("what", SAME)
def test_another_spelling_has_the_same_hash(hash_of: Callable, what: str):
    text = edited(SAME[what])
    assert hash_of(text) == hash_of(MODEL)


@pytest.mark.parametrize("what", DIFFERENT)
def test_any_change_of_what_is_computed_has_another_hash(hash_of: Callable, what: str):
    text = edited(DIFFERENT[what])
    assert hash_of(text) != hash_of(MODEL)


@pytest.mark.slow
def test_no_two_of_the_changes_have_the_same_hash(hash_of: Callable):
    hashes = [hash_of(edited(changes)) for changes in DIFFERENT.values()]
    assert len({*hashes}) == len(hashes)


def test_nodes_that_draw_numbers_are_told_apart_by_who_uses_them(hash_of: Callable):
    text = "inputs: {x: any}\ngraph: {a: rand_like(x), b: rand_like(x)}\noutputs: %s\n"
    hashes = {hash_of(text % outputs) for outputs in ("(a + a) * (b + b)", "(a + b) * (a + b)", "(a + b) * (b + a)")}
    assert len(hashes) == 3
    assert hash_of(text % "(a + a) * (b + b)") == hash_of(text % "(b + b) * (a + a)")


def test_a_block_in_a_file_of_its_own_is_the_same_as_inline(hash_of: Callable, write: Callable):
    inline = hash_of(MODEL)
    begin, end = MODEL.index("  layer:\n"), MODEL.index("modules:\n  layers")
    body = MODEL[begin:end].removeprefix("  layer:\n")
    write("".join(line[4:] + "\n" for line in body.splitlines()), "elsewhere.yaml")
    assert hash_of(MODEL[:begin] + "  layer: elsewhere.yaml\n" + MODEL[end:]) == inline


def test_an_inner_block_has_the_hash_of_the_same_model_on_its_own(build: Callable, hash_of: Callable):
    text = 'inputs: {x: [B, 3]}\nmodules: {l: "Linear(3, 3)"}\noutputs: l(x) * 2\n'
    inner = "\n".join(f"    {line}" for line in text.splitlines())
    outer = build(f"inputs: {{x: [B, 3]}}\nblocks:\n  inner:\n{inner}\nmodules: {{i: inner()}}\noutputs: i(x)\n")
    assert outer.i.architecture_hash == hash_of(text) != outer.architecture_hash


def test_sizes_inferred_in_each_use_of_a_block_are_those_written_out(hash_of: Callable):
    text = """\
        inputs: {{x: [B, 3], y: [B, 5]}}
        blocks:
          inner: {{params: {{size: 0}}, inputs: {{h: [B, W]}}, modules: {{l: "Linear({size}, 4)"}}, outputs: l(h)}}
        modules: {{a: inner(size={a}), b: inner(size={b})}}
        outputs: a(x) + b(y)
        """
    assert hash_of(text.format(size="_", a=0, b=0)) == hash_of(text.format(size="size", a=3, b=5))


def test_blocks_given_to_a_type_count(hash_of: Callable):
    text = """\
        inputs: {x: [B, 4]}
        blocks: {half: {params: {by: 2}, inputs: {h: any}, modules: {l: "Linear(4, 4)"}, outputs: l(h) / by}}
        modules: {s: "Sequential(half(by=%s), Linear(4, 4))"}
        outputs: s(x)
        """
    assert hash_of(text % 2) != hash_of(text % 3)


def test_a_negative_number_is_the_same_from_a_param_and_written_out(hash_of: Callable):
    by_param, written, other = (
        f"params: {{axis: -1}}\ninputs: {{x: [B, 3]}}\noutputs: x.sum({axis})\n" for axis in ("axis", "-1", "1")
    )
    assert hash_of(by_param) == hash_of(written) != hash_of(other)


def test_a_constructor_chosen_from_a_table_is_the_one_written_out(hash_of: Callable):
    text = 'params: {{kind: gelu, wide: 1}}\ninputs: {{x: [B, 3]}}\nmodules: {{m: "{0}"}}\noutputs: m(x)\n'
    table, entries, branch, direct, other = (
        hash_of(text.format(constructor))
        for constructor in (
            "Sequential({'relu': ReLU(), 'gelu': GELU()}[kind])",
            "Sequential([ReLU(), GELU()][wide])",
            "Sequential(ReLU() if kind == 'relu' else {'gelu': GELU()}[kind])",
            "Sequential(GELU())",
            "Sequential(ReLU())",
        )
    )
    assert table == entries == branch == direct != other
    whole = hash_of(text.format("{'relu': ReLU(), 'gelu': GELU()}[kind]"))
    assert whole == hash_of(text.format("GELU()")) != hash_of(text.format("ReLU()"))


@pytest.mark.parametrize(
    ("test", "same"),
    [
        ("on and training", "training"),
        ("training or off", "training"),
        ("not (off or training)", "not training"),
        ("off and training", "off"),
        ("training or on", "on"),
    ],
)
def test_what_params_decide_of_a_test_does_not_count(hash_of: Callable, test: str, same: str):
    text = "params: {on: true, off: false}\ninputs: {x: [B, 3]}\noutputs: x + 1 if %s else x * 2\n"
    assert hash_of(text % test) == hash_of(text % same)
    assert len({hash_of(text % decided) for decided in ("training", "on", "off")}) == 3


def test_params_given_by_the_caller_count_as_those_written(hash_of: Callable):
    assert hash_of(MODEL, params={"depth": 3}) == hash_of(MODEL.replace("depth: 2", "depth: 3"))


def test_weights_copies_devices_and_dtypes_do_not_count(build: Callable):
    model = build(MODEL)
    expected = model.architecture_hash
    with torch.device("meta"):
        meta = build(MODEL)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), build_model(model.spec), model.double(), meta]
    assert {twin.architecture_hash for twin in twins} == {expected}


@pytest.mark.slow
def test_it_is_the_same_in_every_process(build: Callable, tmp_path: Path):
    expected = build(MODEL).architecture_hash
    assert len(expected) == 64 and int(expected, 16)
    code = "from model_constructor import build_model; print(build_model('model.yaml').architecture_hash)"
    for seed in "1", "2":
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.stdout.strip() == expected, done.stderr


def test_it_does_not_change_from_one_release_to_the_next(hash_of: Callable):
    text = 'inputs: {x: [B, 3]}\nmodules: {l: "Linear(3, 2)"}\ngraph: {h: l(x)}\noutputs: relu(h) + 1\n'
    assert hash_of(text) == "c3246fcfa22549e62ecd35d0427c48fa6fd6907587a21ba0af9b77162084660a"
