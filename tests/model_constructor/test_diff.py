"""`model-constructor diff`: what is different between two models, and what becomes of the weights of the first."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_constructor import build_model
from model_constructor.tools.cli import main

MODEL = textwrap.dedent("""
    params: {dim: 8, depth: 2, std: 0.02}
    inputs: {x: [B, T, 4]}
    blocks:
      layer:
        params: {dim: int}
        inputs: {h: [B, T, dim]}
        modules:
          norm: LayerNorm(dim)
          mlp: MLP(dim, hidden=4 * dim)
        outputs: h + mlp(norm(h))
    modules:
      embed: Linear(4, dim)
      position: Param(1, 1, dim, init=normal(std=std))
      layers: layer(dim=dim) * depth
      head: Linear(dim, 2)
    graph:
      e: embed(x) + position
      tokens: layers(e)
      pooled: tokens.mean(1)
    outputs: head(pooled)
    init: {head: zeros}
""")


@pytest.fixture
def diff(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The status and the output for MODEL and a change of it: pairs of texts, of which each stands in it once."""

    def diff(*changes: tuple[str, str], options: tuple[str, ...] = ("--size", "T=3")) -> tuple[int, str]:
        text = MODEL
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        status = main(["diff", str(write(MODEL, "a.yaml")), str(write(text, "b.yaml")), *options])
        return status, capsys.readouterr().out

    return diff


def lines(out: str) -> list[str]:
    return [" ".join(line.split()) for line in out.splitlines()[3:]]


def test_a_model_is_equal_to_itself(diff: Callable):
    status, out = diff()
    assert (status, lines(out)) == (0, ["They compute the same, and begin with the same values."])


def test_other_names_and_spellings_of_the_same_are_equal_and_are_shown(diff: Callable):
    status, out = diff(
        ("e: embed(x)", "embedded: embed( x )"), ("layers(e)", "layers(embedded)"), ("Linear(4, dim)", "Linear(4,dim)")
    )
    assert (status, lines(out)) == (
        0,
        [
            "They compute the same, and begin with the same values; they are written differently:",
            "",
            "renamed",
            "e -> embedded",
        ],
    )


@pytest.mark.parametrize(
    "change", [("std: 0.02", "std: 0.1"), ("head: zeros", "head: ones"), ("init=normal(std=std)", "init=zeros")]
)
def test_other_initial_values_are_a_difference_of_their_own(diff: Callable, change: tuple[str, str]):
    status, out = diff(change)
    assert status == 1
    assert lines(out)[0] == "They compute the same from the same weights, and begin with other values:"
    assert lines(out)[-1] == "of the tensors of a checkpoint of A, in B: 17 load"


def test_wiring_modules_and_numbers_that_differ_are_shown_by_name(diff: Callable):
    status, out = diff(
        ("outputs: h + mlp(norm(h))", "outputs: mlp(norm(h))"),
        ("head: Linear(dim, 2)", "head: Linear(dim, 3)"),
        ("  pooled: tokens.mean(1)", "  top: tokens.amax(1)\n  pooled: tokens.mean(1) + top"),
    )
    assert status == 1
    layers = 2 * 3 * (2 * 8 * 32)  # multiply-adds for T=3
    assert lines(out) == [
        "modules",
        "- head: Linear(dim, 2)",
        "+ head: Linear(dim, 3)",
        "graph",
        "- pooled: tokens.mean(1)",
        "+ pooled: tokens.mean(1) + top",
        "+ top: tokens.amax(1)",
        "",
        "block layer",
        "- outputs: h + mlp(norm(h))",
        "+ outputs: mlp(norm(h))",
        "",
        "before after",
        "parameters 1,202 1,211 +9 +0.7%",
        f"multiply-adds {layers + 3 * 32 + 16:,} {layers + 3 * 32 + 24:,} +8 +0.3%",
        "outputs [B, 2] -> [B, 3]",
        "",
        "of the tensors of a checkpoint of A, in B: 15 load, 2 resize",
        "resize head.weight [2, 8] -> [3, 8]",
        "resize head.bias [2] -> [3]",
    ]


def test_tensors_that_are_new_or_orphaned_are_gathered_by_module(diff: Callable):
    status, out = diff(
        ("depth: 2", "depth: 4"), ("  head: Linear", "  heads: Linear"), ("head(p", "heads(p"), ("{head", "{heads")
    )
    assert status == 1
    assert lines(out)[0:2] == ["params", "depth: 2 -> 4"]
    assert lines(out)[-4:] == [
        "of the tensors of a checkpoint of A, in B: 15 load, 14 new, 2 orphaned",
        "new layers.2-3 12 tensors, 1.14k values",
        "new heads 2 tensors, 18 values",
        "orphaned head 2 tensors, 18 values",
    ]


def test_the_tensors_that_load_are_those_that_torch_loads(diff: Callable, tmp_path: Path):
    _, out = diff(("depth: 2", "depth: 1"), ("dim, 2)", "dim, 5)"), options=("--json",))
    tensors = json.loads(out)["tensors"]
    names = {kind: {one["name"] for one in tensors[kind]} for kind in tensors}
    before, after = build_model(tmp_path / "a.yaml"), build_model(tmp_path / "b.yaml")
    state = {name: tensor for name, tensor in before.state_dict().items() if name not in names["resize"]}
    result = after.load_state_dict(state, strict=False)
    assert {*result.unexpected_keys} == names["orphaned"] == {name for name in state if name.startswith("layers.1.")}
    assert {*result.missing_keys} - names["resize"] == names["new"] == set()
    assert names["resize"] == {"head.weight", "head.bias"}
    assert all(torch.equal(after.state_dict()[name], state[name]) for name in names["load"])


def test_a_block_that_only_one_of_them_has_is_named(diff: Callable):
    _, out = diff(("  layer:\n", "  stage:\n"), ("layer(dim=dim) *", "stage(dim=dim) *"))
    assert "- block layer\n\n+ block stage" in out


def test_values_of_the_second_are_set_from_outside(write: Callable, capsys: pytest.CaptureFixture[str]):
    path = str(write(MODEL))
    assert main(["diff", path, path, "--set", "params.depth=3"]) == 1
    out = capsys.readouterr().out
    assert f"- {path}\n+ {path}  --set params.depth=3\n" in out
    assert "depth: 2 -> 3" in out
    assert "multiply-adds are not counted: give a size: --size T=..." in out


def test_a_wrong_file_or_size_is_no_difference(write: Callable, capsys: pytest.CaptureFixture[str]):
    path, wrong = str(write(MODEL)), str(write("outputs: y\n", "wrong.yaml"))
    assert main(["diff", path, wrong]) == main(["diff", wrong, path]) == 2
    assert "wrong.yaml:2:10" in capsys.readouterr().err
    assert main(["diff", path, path, "--size", "N=3"]) == 2
    assert "--size: the inputs have no symbol 'N'" in capsys.readouterr().err


def test_values_of_a_parameter_are_initial_values(write: Callable, capsys: pytest.CaptureFixture[str]):
    text = "inputs: {x: [B, 2]}\nmodules: {p: 'Param([1.0, 2.0])'}\noutputs: x * p\n"
    files = [str(write(one, name)) for one, name in ((text, "a.yaml"), (text.replace("1.0", "5.0"), "b.yaml"))]
    assert main(["diff", *files]) == 1
    assert "begin with other values" in capsys.readouterr().out
    assert main(["diff", files[0], files[0]]) == 0
