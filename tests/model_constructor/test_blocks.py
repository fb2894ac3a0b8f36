"""The modules that torch does not have, against slow ones written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from model_constructor.blocks import MLP, Attention, SinusoidalEmbedding


def slow_attention(module: Attention, query, context, keep) -> torch.Tensor:
    """Position by position and head by head, in float64. keep [B, T, S] says what may be attended to."""

    def project(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        bias = 0 if layer.bias is None else layer.bias.double()
        return x.double() @ layer.weight.double().T + bias

    q, k, v = (project(layer, x).detach() for layer, x in ((module.q, query), (module.k, context), (module.v, context)))
    width = q.shape[-1] // module.heads
    result = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            for head in range(module.heads):
                part = slice(head * width, (head + 1) * width)
                allowed = [s for s in range(k.shape[1]) if keep[b, t, s]]
                scores = [math.exp(float(q[b, t, part] @ k[b, s, part]) / math.sqrt(width)) for s in allowed]
                for s, score in zip(allowed, scores, strict=True):
                    result[b, t, part] += score / sum(scores) * v[b, s, part]
    return project(module.out, result).detach()


@pytest.mark.parametrize("bias", [True, False])
def test_self_attention_equals_the_slow_sum(bias: bool):
    module, x = Attention(8, heads=2, bias=bias), torch.randn(2, 3, 8)
    expected = slow_attention(module, x, x, torch.ones(2, 3, 3))
    torch.testing.assert_close(module(x).double(), expected, atol=1e-6, rtol=1e-5)


def test_cross_attention_reads_a_context_of_another_width():
    module = Attention(8, heads=4, context_dim=5)
    query, context = torch.randn(2, 3, 8), torch.randn(2, 6, 5)
    expected = slow_attention(module, query, context, torch.ones(2, 3, 6))
    torch.testing.assert_close(module(query, context).double(), expected, atol=1e-6, rtol=1e-5)


def test_a_mask_of_keys_is_true_where_a_key_may_be_attended_to():
    module, query, context = Attention(8, heads=2), torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0]], dtype=torch.bool)
    expected = slow_attention(module, query, context, mask[:, None].expand(2, 3, 4))
    torch.testing.assert_close(module(query, context, mask=mask).double(), expected, atol=1e-6, rtol=1e-5)
    hidden = context + 100 * ~mask[..., None]
    torch.testing.assert_close(module(query, hidden, mask=mask), module(query, context, mask=mask))


def test_a_mask_of_pairs_makes_attention_causal():
    module, x = Attention(8, heads=2), torch.randn(2, 5, 8)
    mask = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 5, 5)
    expected = slow_attention(module, x, x, mask)
    torch.testing.assert_close(module(x, mask=mask).double(), expected, atol=1e-6, rtol=1e-5)
    later = x.clone()
    later[:, 3:] += 1
    torch.testing.assert_close(module(later, mask=mask)[:, :3], module(x, mask=mask)[:, :3])


def test_heads_have_to_divide_the_width():
    with pytest.raises(ValueError, match="8 is not a multiple of heads 3"):
        Attention(8, heads=3)


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


def test_a_sinusoidal_embedding_is_cosines_then_sines_of_geometric_frequencies():
    x = torch.tensor([[0.0, 1.0], [2.5, 300.0]])
    embedded = SinusoidalEmbedding(6, max_period=100.0)(x)
    assert embedded.shape == (2, 2, 6)
    for i in range(2):
        for j in range(2):
            angles = [float(x[i, j]) * 100.0 ** (-k / 3) for k in range(3)]
            expected = [*map(math.cos, angles), *map(math.sin, angles)]
            torch.testing.assert_close(embedded[i, j], torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_a_sinusoidal_embedding_takes_whole_numbers_and_half_precision():
    module = SinusoidalEmbedding(4)
    torch.testing.assert_close(module(torch.tensor([3])), module(torch.tensor([3.0])))
    assert module(torch.tensor([3.0], dtype=torch.float16)).isfinite().all()


def test_a_sinusoidal_embedding_has_an_even_width_and_no_parameters():
    assert not SinusoidalEmbedding(4).state_dict()
    with pytest.raises(ValueError, match="5 is odd"):
        SinusoidalEmbedding(5)
