"""What holds for every module that is added to torch's: the tools of PyTorch, the page that lists them, and YAML."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

import model_constructor
from model_constructor import blocks

X = torch.linspace(-1, 1, 2 * 5 * 8).sin().reshape(2, 5, 8)
IMAGE = torch.linspace(-9, 9, 2 * 3 * 32 * 32).sin().reshape(2, 3, 32, 32)
MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
VISION = {"model_type": "dinov2", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 16}
TEXT = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "self-attention": (lambda: blocks.Attention(8, heads=2), (X,)),
    "masked attention": (lambda: blocks.Attention(8, heads=2, dropout=0.1), (X, None, MASK)),
    "language attention": (
        lambda: blocks.Attention(8, heads=2, kv_heads=1, qk_norm=True, causal=True, rotary_base=100.0),
        (X, None, MASK, torch.arange(10).reshape(2, 5)),
    ),
    "MLP": (lambda: blocks.MLP(8), (X,)),
    "GatedMLP": (lambda: blocks.GatedMLP(8), (X,)),
    "SinusoidalEmbedding": (lambda: blocks.SinusoidalEmbedding(8), (X,)),
    "RotaryEmbedding": (lambda: blocks.RotaryEmbedding(), (X, torch.arange(10).reshape(2, 5))),
    "SpatialSoftArgmax": (lambda: blocks.SpatialSoftArgmax(learned=True), (IMAGE,)),
    "VectorQuantizer": (lambda: blocks.VectorQuantizer(6, 8), (X,)),
    "VectorQuantizer with noise": (lambda: blocks.VectorQuantizer(6, 8, noise_substitution=True), (X,)),
    "NoisyTopKGate": (lambda: blocks.NoisyTopKGate(8, experts=4), (X,)),
    "FrozenBatchNorm": (lambda: blocks.FrozenBatchNorm(3), (IMAGE,)),
    "TimmBackbone": (lambda: blocks.TimmBackbone("test_resnet", [1, 2]), (IMAGE,)),
    "HuggingFaceBackbone": (lambda: blocks.HuggingFaceBackbone(VISION), (IMAGE,)),
    "HuggingFaceBackbone of text": (lambda: blocks.HuggingFaceBackbone(TEXT), (torch.arange(10).reshape(2, 5),)),
}
NO_META = {"HuggingFaceBackbone of text"}  # transformers 4.57 asks for autocast of the device, which meta has not


SLOW = {"HuggingFaceBackbone of text"}
SLOW_TO_COMPILE = SLOW | {  # networks of others' code, and what is compiled in test_torch_tools.py or beside it here
    *("TimmBackbone", "HuggingFaceBackbone", "MLP", "SinusoidalEmbedding"),
    *("masked attention", "VectorQuantizer with noise"),
}


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[Any, ...]]:
    make, arguments = CASES[request.param]
    module = make()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # what begins at zero would hide differences
    return module, arguments


def same(result: Any, expected: Any, **close: float) -> None:
    assert len(tree_leaves(result)) == len(tree_leaves(expected))
    for one, other in zip(tree_leaves(result), tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, **close)


def test_every_shipped_type_has_a_case():
    assert {type(make()).__name__ for make, _ in CASES.values()} == set(blocks.__all__)


@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_TO_COMPILE)) for name in CASES],
    indirect=True,
)
@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_compiles_whole(case: tuple[nn.Module, tuple[Any, ...]], training: bool):
    module, arguments = case[0].train(training), case[1]
    torch.manual_seed(1)
    expected = copy.deepcopy(module)(*arguments)
    torch.manual_seed(1)
    same(torch.compile(module, fullgraph=True, backend="aot_eager")(*arguments), expected, atol=1e-5, rtol=1e-4)


def test_it_exports(case: tuple[nn.Module, tuple[Any, ...]]):
    module, arguments = case[0].eval(), case[1]
    same(torch.export.export(module, arguments).module()(*arguments), module(*arguments), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in CASES if name not in NO_META])
@pytest.mark.parametrize("training", [False, True])
def test_on_the_meta_device_it_is_made_and_called_for_its_shapes(name: str, training: bool):
    make, arguments = CASES[name]
    with torch.device("meta"):
        module = make().train(training)
    assert all(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    result = module(*tree_map(lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, arguments))
    expected = make().train(training)(*arguments)
    for one, other in zip(tree_leaves(result), tree_leaves(expected), strict=True):
        assert (one.shape, one.dtype, one.is_meta) == (other.shape, other.dtype, True)


def test_its_copies_are_equal_and_apart(case: tuple[nn.Module, tuple[Any, ...]]):
    module, arguments = case[0].eval(), case[1]
    expected = module(*arguments)
    copies = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data.zero_()
    for twin in copies:
        same(twin(*arguments), expected)


def test_in_autocast_it_gives_nearly_the_same_and_trains(case: tuple[nn.Module, tuple[Any, ...]]):
    module, arguments = case[0].eval(), case[1]
    expected = module(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        result = module(*arguments)
    floats = [leaf for leaf in tree_leaves(result) if leaf.is_floating_point()]
    same(
        [leaf.float() for leaf in floats],
        [leaf for leaf in tree_leaves(expected) if leaf.is_floating_point()],
        atol=0.1,
        rtol=0.05,
    )
    if any(leaf.requires_grad for leaf in floats):
        sum(leaf.float().square().sum() for leaf in floats if leaf.requires_grad).backward()
        assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


def test_in_bfloat16_it_runs_whole(case: tuple[nn.Module, tuple[Any, ...]]):
    module, arguments = case
    halved = tree_map(lambda x: x.bfloat16() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, arguments)
    result = [leaf for leaf in tree_leaves(module.bfloat16()(*halved)) if leaf.is_floating_point()]
    assert {leaf.dtype for leaf in result} == {torch.bfloat16}


def test_the_page_of_the_blocks_lists_exactly_the_shipped_types():
    page = Path(model_constructor.__file__).parents[1] / "docs" / "blocks.md"
    rows = re.findall(r"^\| `(\w+)\(", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(blocks.__all__)


def test_the_signatures_on_the_page_are_those_of_the_code():
    page = (Path(model_constructor.__file__).parents[1] / "docs" / "blocks.md").read_text(encoding="utf-8")
    for name, arguments in re.findall(r"^\| `(\w+)\((.*?)\)`", page, flags=re.MULTILINE):
        written = [part.split("=")[0].strip() for part in arguments.split(",") if part.strip()]
        assert written == list(inspect.signature(getattr(blocks, name)).parameters), name


MIXTURE = """
params: {dim: 8, experts: 3}
inputs: {x: [B, T, dim], images: [B, 3, 32, 32]}
modules:
  eyes: TimmBackbone("test_resnet", "features")
  points: Conv2d(_, 4, 1) >> SpatialSoftArgmax() >> Flatten() >> Linear(8, dim)
  gate: NoisyTopKGate(dim, experts)
  expert: GatedMLP(dim) * experts
  codes: VectorQuantizer(16, dim, noise_substitution=True)
graph:
  seen: x + points(eyes(images))[:, None]
  weights, _, logits: gate(seen)
  mixed: (stack(expert.map(seen), -1) * weights[..., None, :]).sum(-1)
  code, chosen: codes(mixed)
outputs:
  code: code
  chosen: chosen
  codebook_loss: mse_loss(embedding(chosen, codes.codebook), mixed)
  z_loss: logits.logsumexp(-1).square().mean()
"""


def test_yaml_joins_them(build: Callable[..., nn.Module]):
    result = build(MIXTURE)(X, IMAGE)
    assert result["code"].shape == X.shape and result["chosen"].shape == (2, 5)
    assert result["codebook_loss"] > 0 and result["z_loss"] > 0
