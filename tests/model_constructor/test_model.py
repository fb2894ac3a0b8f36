"""What is built: an ordinary nn.Module with the author's names, which pickles, copies and describes itself."""

from __future__ import annotations

import copy
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model_constructor import GraphModel, build_model, register
from model_constructor.blocks import MLP, Attention

DECODER = """\
params: {dim: 8, depth: 2}
inputs:
  x: [B, T, dim]
  clock: [B, dim]
  mask: {shape: [B, T], dtype: bool, optional: true}
blocks:
  layer:
    params: {dim: int}
    inputs:
      h: [B, T, dim]
      clock: [B, dim]
      mask: {shape: [B, T], dtype: bool, optional: true}
    modules:
      norm: LayerNorm(dim)
      attn: Attention(dim, heads=2)
      mlp: MLP(dim, hidden=2 * dim)
      modulation: Linear(dim, 2 * dim)
    graph:
      shift, scale: modulation(silu(clock))[:, None].chunk(2, -1)
      a: h + attn(norm(h) * (1 + scale) + shift, mask=mask)
    outputs: a + mlp(a)
modules:
  embed: Linear(dim, dim) >> SiLU() >> Linear(dim, dim)
  position: Param(1, 16, dim, init=trunc_normal(std=0.02))
  steps: Buffer(arange(16).float())
  cache: Buffer(ones(2, 2), persistent=False)
  layers: layer(**params) * depth
  heads: {left: "Linear(dim, 3)", right: ["Linear(dim, 3)", "Linear(dim, 3, bias=False)"]}
graph:
  h: layers(embed(x) + position[:, :T] + 0.01 * steps[:T, None], clock, mask=mask)
outputs: heads.left(h) + heads.right[1](h) + heads.right[0](h) * cache[0, 0]
"""


class Layer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads=2)
        self.mlp = MLP(dim, hidden=2 * dim)
        self.modulation = nn.Linear(dim, 2 * dim)

    def forward(self, h, clock, mask=None):
        shift, scale = self.modulation(F.silu(clock))[:, None].chunk(2, -1)
        h = h + self.attn(self.norm(h) * (1 + scale) + shift, mask=mask)
        return h + self.mlp(h)


class Decoder(nn.Module):
    """DECODER, written by hand."""

    def __init__(self, dim: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.position = nn.Parameter(torch.zeros(1, 16, dim))
        self.register_buffer("steps", torch.arange(16).float())
        self.layers = nn.ModuleList(Layer(dim) for _ in range(depth))
        self.heads = nn.Module()
        self.heads.left = nn.Linear(dim, 3)
        self.heads.right = nn.ModuleList([nn.Linear(dim, 3), nn.Linear(dim, 3, bias=False)])

    def forward(self, x, clock, mask=None):
        h = self.embed(x) + self.position[:, : x.shape[1]] + 0.01 * self.steps[: x.shape[1], None]
        for layer in self.layers:
            h = layer(h, clock, mask)
        return self.heads.left(h) + self.heads.right[0](h) + self.heads.right[1](h)


@pytest.fixture
def model(build: Callable) -> GraphModel:
    return build(DECODER)


@pytest.fixture
def inputs() -> tuple[torch.Tensor, ...]:
    return torch.randn(3, 5, 8), torch.randn(3, 8), torch.rand(3, 5).argsort(1) < 3


def test_weights_of_a_module_written_by_hand_load_and_give_the_same(model: GraphModel, inputs: tuple):
    by_hand = Decoder()
    nn.init.normal_(by_hand.position)
    assert list(model.state_dict()) == sorted(by_hand.state_dict(), key=list(model.state_dict()).index)
    model.load_state_dict(by_hand.state_dict(), strict=True)
    torch.testing.assert_close(model(*inputs), by_hand(*inputs))
    torch.testing.assert_close(model(*inputs[:2]), by_hand(*inputs[:2]))
    model(*inputs).sum().backward()
    by_hand(*inputs).sum().backward()
    for (name, ours), (_, theirs) in zip(
        sorted(model.named_parameters()), sorted(by_hand.named_parameters()), strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_children_carry_the_authors_names_and_types(model: GraphModel):
    assert [name for name, _ in model.named_children()] == ["embed", "layers", "heads"]
    assert isinstance(model, GraphModel) and isinstance(model, nn.Module)
    assert isinstance(model.embed, nn.Sequential) and isinstance(model.layers, nn.ModuleList)
    assert type(model).__name__ == "model" and type(model.layers[0]).__name__ == "layer"
    assert model.layers[0].params == {"dim": 8}
    assert model.inputs == ("x", "clock", "mask")


def test_params_and_buffers_are_what_they_say(model: GraphModel):
    assert isinstance(model.position, nn.Parameter) and model.position.shape == (1, 16, 8)
    assert 0.001 < model.position.std() < 0.03
    assert set(dict(model.named_buffers())) == {"steps", "cache"}
    assert "cache" not in model.state_dict() and "steps" in model.state_dict()


# pickle, deepcopy, spec


def same(twin: nn.Module, model: nn.Module, inputs: tuple) -> None:
    assert twin is not model
    torch.testing.assert_close(twin(*inputs), model(*inputs))
    shared = {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    assert not shared


def test_a_pickle_brings_the_model_back(model: GraphModel, inputs: tuple):
    model.position.requires_grad_(False)
    model.eval()
    twin = pickle.loads(pickle.dumps(model))
    same(twin, model, inputs)
    assert not twin.training and not twin.layers[0].training and not twin.position.requires_grad
    assert twin.params == model.params and twin.spec == model.spec and twin.code == model.code
    assert len({type(layer) for layer in twin.layers}) == 1
    same(pickle.loads(pickle.dumps(twin)), twin, inputs)


def test_a_pickle_of_an_inner_block_brings_that_block_back(model: GraphModel):
    h, clock = torch.randn(2, 5, 8), torch.randn(2, 8)
    same(pickle.loads(pickle.dumps(model.layers[1])), model.layers[1], (h, clock))


@pytest.mark.slow
def test_a_pickle_is_read_in_a_fresh_process_without_the_file(model: GraphModel, inputs: tuple, tmp_path: Path):
    torch.save(model, tmp_path / "model.pt")
    torch.save((inputs, model(*inputs)), tmp_path / "data.pt")
    (tmp_path / "model.yaml").unlink()
    code = (
        "import torch; model = torch.load('model.pt', weights_only=False); inputs, expected = torch.load('data.pt');"
        "torch.testing.assert_close(model(*inputs), expected); print(type(model).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "model", done.stderr


def test_a_pickle_names_no_code_but_how_to_rebuild(model: GraphModel):
    class Names(pickle.Unpickler):
        found: ClassVar[set[str]] = set()

        def find_class(self, module: str, name: str) -> object:
            self.found.add(f"{module}.{name}")
            return super().find_class(module, name)

    Names(io.BytesIO(pickle.dumps(model))).load()
    ours = {name for name in Names.found if name.startswith("model_constructor")}
    assert ours == {
        "model_constructor.model._rebuild",
        "model_constructor.model.Namespace",
        "model_constructor.blocks.attention.Attention",
        "model_constructor.blocks.mlp.MLP",
    }
    assert {name.split(".")[0] for name in Names.found - ours} <= {"torch", "collections"}


def test_a_pickle_keeps_tied_weights_tied(build: Callable):
    model = build("inputs: {x: any}\nmodules: {a: 'Linear(2, 2)', b: 'Linear(2, 2)'}\noutputs: b(a(x))\n")
    model.b.weight = model.a.weight
    twin = pickle.loads(pickle.dumps(model))
    assert twin.a.weight is twin.b.weight


def test_a_deep_copy_is_a_model_of_its_own(model: GraphModel, inputs: tuple):
    twin = copy.deepcopy(model)
    same(twin, model, inputs)
    assert type(twin) is type(model)
    before = model(*inputs)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    torch.testing.assert_close(model(*inputs), before)
    assert not torch.allclose(twin(*inputs), before)


def test_the_specification_is_plain_data_that_builds_the_same_model(build: Callable, inputs: tuple):
    model = build(DECODER, params={"depth": 3})
    spec = json.loads(json.dumps(model.spec))
    twin = build_model(spec)
    twin.load_state_dict(model.state_dict(), strict=True)
    same(twin, model, inputs)
    assert twin.spec == model.spec and len(twin.layers) == 3


@pytest.mark.parametrize(
    "value",
    [
        3,
        -2.5,
        1e-20,
        1e30,
        float("inf"),
        True,
        None,
        "left",
        "3e-4",
        "0o17",
        "010",
        "12:30",
        "null",
        "true",
        "~",
        "",
        "3",
        "on",
        "e5",
        " space ",
        "two\nlines",
        'it\'s "so"',
        "# no comment",
        "a: b",
        "- a",
        "*x",
        "&x",
        "ünï😀",
        [1, [2.5, "1e3"], None],
        [],
    ],
)
def test_a_specification_keeps_the_value_of_every_param(build: Callable, value: object):
    model = build("params: {p: null}\ninputs: {x: any}\noutputs: p\n", params={"p": value})
    for twin in (build_model(json.loads(json.dumps(model.spec))), pickle.loads(pickle.dumps(model))):
        assert twin(0) == value
        assert type(twin(0)) is type(value)


def test_a_specification_keeps_the_scope_of_a_block_from_a_file(write: Callable):
    write("inputs: {x: [B, 3]}\nmodules: {l: MLP(3)}\noutputs: l(x)\n", "inner.yaml")
    outer = write("""\
        inputs: {x: [B, 3]}
        blocks:
          inner: inner.yaml
          MLP: {params: {dim: int}, inputs: {x: any}, modules: {z: "Linear(dim, dim)"}, outputs: z(x)}
        modules: {i: inner(), m: MLP(dim=3)}
        outputs: m(i(x))
        """)
    model, x = build_model(outer), torch.randn(2, 3)
    for twin in (build_model(model.spec), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert list(twin.state_dict()) == list(model.state_dict())
        twin.load_state_dict(model.state_dict())
        torch.testing.assert_close(twin(x), model(x))


def test_a_registered_type_pickles_by_its_name(build: Callable):
    model = build("inputs: {x: any}\nmodules: {m: DoubleOfTestModel()}\noutputs: m(x)\n")
    assert pickle.loads(pickle.dumps(model))(3) == 6


@register("DoubleOfTestModel")
class Double(nn.Module):
    def forward(self, x):
        return 2 * x


sys.modules.setdefault(Double.__module__, sys.modules[__name__])
