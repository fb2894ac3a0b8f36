"""`init` fills what nothing else has set: not what a model file's `init` or Param gives, not what a type loaded."""

import math

import pytest
import torch
import yaml
from torch import nn

from model_constructor import build_model, register
from model_constructor.init import given_parameters
from trainer.modeling.initialise import initialise

MODEL = """\
schema_version: 2
inputs: {x: [B, 64]}
blocks:
  inner:
    inputs: {x: [B, 64]}
    modules: {a: "Linear(64, 64)", b: "Linear(64, 64)"}
    outputs: b(a(x))
    init: {a: zeros}
modules:
  inner: inner()
  c: Linear(64, 64)
  token: Param(64, init=ones)
  norm: LayerNorm(64)
outputs: norm(c(inner(x)) + token)
init: {c.weight: constant(0.25)}
"""


@register("KnownNet")
class KnownNet(nn.Module):
    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.net = nn.Linear(4, 4)
        nn.init.constant_(self.net.weight, 7.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def test_what_the_file_fills_stays_and_the_rest_is_xavier() -> None:
    model = build_model(yaml.safe_load(MODEL))
    bias = model.c.bias.detach().clone()
    nn.init.constant_(model.norm.weight, 3.0)
    assert not torch.equal(bias, torch.zeros(64))
    initialise(model)
    assert torch.equal(model.inner.a.weight, torch.zeros(64, 64))
    assert torch.equal(model.c.weight, torch.full((64, 64), 0.25))
    assert torch.equal(model.token, torch.ones(64))
    assert torch.equal(model.c.bias, torch.zeros(64))  # the file says nothing of it
    assert torch.equal(model.norm.weight, torch.ones(64))
    bound = math.sqrt(6 / (64 + 64))
    assert bound * 0.95 < model.inner.b.weight.abs().max() <= bound  # torch's own filling ends at 1 / 8


@pytest.mark.parametrize("pretrained", [True, False])
def test_what_a_type_has_loaded_stays(pretrained: bool) -> None:
    document = {"inputs": {"x": ["B", 4]}, "modules": {"net": f"KnownNet({pretrained})"}, "outputs": "net(x)"}
    model = build_model({"schema_version": 2, **document})
    initialise(model)
    assert torch.equal(model.net.net.weight, torch.full((4, 4), 7.0)) == pretrained
    assert given_parameters(model) == ({*model.parameters()} if pretrained else set())


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(8, 16, 3), nn.ConvTranspose1d(8, 16, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.RMSNorm(8)],
    ids=lambda layer: type(layer).__name__,
)
def test_convolutions_are_kaiming_and_norms_begin_at_one(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 5.0)
    torch.manual_seed(0)
    initialise(layer)
    if layer.weight.ndim == 1:
        assert torch.equal(layer.weight, torch.ones(8))
    else:
        torch.manual_seed(0)
        expected = nn.init.kaiming_normal_(torch.empty_like(layer.weight), nonlinearity="relu")
        assert torch.equal(layer.weight, expected)
    assert getattr(layer, "bias", None) is None or not layer.bias.any()


@pytest.mark.parametrize("sizes", [{}, {"kdim": 4, "vdim": 6}], ids=["packed", "three widths"])
def test_attention_is_xavier_with_zero_biases(sizes: dict[str, int]) -> None:
    attention = nn.MultiheadAttention(8, 2, **sizes)
    for parameter in attention.parameters():
        nn.init.constant_(parameter, 5.0)
    initialise(attention)
    for name, parameter in attention.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert 0 < parameter.abs().max() <= math.sqrt(6 / sum(parameter.shape))
