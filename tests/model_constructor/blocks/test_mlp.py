"""The feed-forward layers, against their formulas."""

from __future__ import annotations

import math

import torch
from torch import nn

from model_constructor.blocks import MLP, GatedMLP


def test_an_mlp_is_two_linear_layers_with_an_activation_between():
    x = torch.randn(2, 3, 4)
    module = MLP(4, hidden=6, out=5, activation=nn.Tanh())
    expected = torch.tanh(x @ module.fc1.weight.T + module.fc1.bias) @ module.fc2.weight.T + module.fc2.bias
    torch.testing.assert_close(module(x), expected)
    assert module(x).shape == (2, 3, 5)


def test_an_mlp_is_four_times_as_wide_inside_and_keeps_its_width_and_uses_gelu():
    module, x = MLP(4), torch.randn(2, 4)
    assert (module.fc1.out_features, module.fc2.out_features) == (16, 4)
    h = module.fc1(x)
    gelu = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
    torch.testing.assert_close(module(x), module.fc2(gelu))


def test_a_gated_mlp_multiplies_what_goes_up_by_an_activated_gate():
    module, x = GatedMLP(4, hidden=6, out=5, activation=nn.Tanh(), bias=True), torch.randn(2, 3, 4)
    gate, up = (x @ layer.weight.T + layer.bias for layer in (module.gate, module.up))
    expected = (torch.tanh(gate) * up) @ module.down.weight.T + module.down.bias
    torch.testing.assert_close(module(x), expected)
    assert module(x).shape == (2, 3, 5)


def test_a_gated_mlp_is_that_of_llama():
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

    reference = LlamaMLP(LlamaConfig(hidden_size=6, intermediate_size=16))
    module = GatedMLP(6)  # 8 * 6 / 3 = 16
    module.load_state_dict({key.replace("_proj", ""): value for key, value in reference.state_dict().items()})
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(module(x), reference(x))


def test_a_gated_mlp_has_about_as_many_weights_as_a_plain_one():
    plain, gated = (sum(weight.numel() for weight in kind(96).parameters()) for kind in (MLP, GatedMLP))
    assert abs(gated / plain - 1) < 0.01
