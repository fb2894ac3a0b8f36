"""Attention, against a slow sum over positions and heads, nn.MultiheadAttention, and the layers of two language models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from model_constructor.blocks import Attention

CLOSE = {"atol": 1e-6, "rtol": 1e-5}


def slow_attention(module: Attention, query, context, keep) -> torch.Tensor:
    """Position by position and head by head, in float64. keep [B, T, S] says what may be attended to."""

    def project(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        bias = 0 if layer.bias is None else layer.bias.double()
        return (x.double() @ layer.weight.double().T + bias).detach()

    q, k, v = project(module.q, query), project(module.k, context), project(module.v, context)
    width = module.head_dim
    result = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            for head in range(module.heads):
                part = slice(head * width, (head + 1) * width)
                shared = head * module.kv_heads // module.heads  # the head of keys and values that this query head uses
                kv_part = slice(shared * width, (shared + 1) * width)
                allowed = [s for s in range(k.shape[1]) if keep[b, t, s]]
                scores = [math.exp(float(q[b, t, part] @ k[b, s, kv_part]) / math.sqrt(width)) for s in allowed]
                for s, score in zip(allowed, scores, strict=True):
                    result[b, t, part] += score / sum(scores) * v[b, s, kv_part]
    return project(module.out, result)


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"kv_heads": 2}, {"kv_heads": 1, "head_dim": 3}, {"head_dim": 5}],
    ids=str,
)
def test_self_attention_equals_the_slow_sum(options: dict):
    module, x = Attention(8, heads=4, **options), torch.randn(2, 3, 8)
    expected = slow_attention(module, x, x, torch.ones(2, 3, 3))
    torch.testing.assert_close(module(x).double(), expected, **CLOSE)


def test_cross_attention_reads_a_context_of_another_width():
    module = Attention(8, heads=4, context_dim=5)
    query, context = torch.randn(2, 3, 8), torch.randn(2, 6, 5)
    expected = slow_attention(module, query, context, torch.ones(2, 3, 6))
    torch.testing.assert_close(module(query, context).double(), expected, **CLOSE)


def test_a_mask_of_keys_is_true_where_a_key_may_be_attended_to():
    module, query, context = Attention(8, heads=2), torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0]], dtype=torch.bool)
    expected = slow_attention(module, query, context, mask[:, None].expand(2, 3, 4))
    torch.testing.assert_close(module(query, context, mask=mask).double(), expected, **CLOSE)
    hidden = context + 100 * ~mask[..., None]
    torch.testing.assert_close(module(query, hidden, mask=mask), module(query, context, mask=mask))


def test_a_mask_of_pairs_closes_single_pairs():
    module, x = Attention(8, heads=2), torch.randn(2, 5, 8)
    mask = torch.rand(2, 5, 5) < 0.5
    torch.testing.assert_close(module(x, mask=mask).double(), slow_attention(module, x, x, mask), **CLOSE)


def test_a_float_mask_is_added_to_the_scores_of_each_head_as_in_torchs_own_attention():
    module, reference = Attention(8, heads=2), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([module.q.weight, module.k.weight, module.v.weight]))
        reference.in_proj_bias.copy_(torch.cat([module.q.bias, module.k.bias, module.v.bias]))
    reference.out_proj.load_state_dict(module.out.state_dict())
    x, bias = torch.randn(3, 5, 8), torch.randn(3, 2, 5, 5)
    expected, _ = reference(x, x, x, attn_mask=bias.flatten(0, 1))
    torch.testing.assert_close(module(x, mask=bias), expected, **CLOSE)
    expected, _ = reference(x, x, x, attn_mask=bias[:, :1].expand(3, 2, 5, 5).flatten(0, 1))
    torch.testing.assert_close(module(x, mask=bias[:, 0]), expected, **CLOSE)


def test_causal_attention_sees_itself_and_the_past():
    module, x = Attention(8, heads=2, causal=True), torch.randn(2, 5, 8)
    past = torch.ones(2, 5, 5).tril()
    torch.testing.assert_close(module(x).double(), slow_attention(module, x, x, past), **CLOSE)


def test_a_mask_of_causal_attention_closes_more():
    module, x = Attention(8, heads=2, causal=True), torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 0, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    expected = slow_attention(module, x, x, (torch.ones(5, 5).tril() * mask[:, None]).bool())
    torch.testing.assert_close(module(x, mask=mask).double(), expected, **CLOSE)
    as_float = torch.zeros(2, 5).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(module(x, mask=as_float).double(), expected, **CLOSE)


@pytest.mark.parametrize("options", [{}, {"kv_heads": 1}, {"causal": True}, {"dropout": 0.5}], ids=str)
def test_a_query_that_may_attend_to_nothing_gets_the_bias_alone_and_a_finite_gradient(options: dict):
    module, x = Attention(8, heads=2, **options), torch.randn(2, 4, 8, requires_grad=True)
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[0, 2] = False
    y = module(x, mask=mask)
    torch.testing.assert_close(y[0, 2], module.out.bias, atol=0, rtol=0)
    assert not torch.equal(y[0, 1], module.out.bias)
    y.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.any()


def test_dropout_drops_attention_weights_in_training_alone():
    module, x = Attention(4, heads=1, dropout=0.25), torch.randn(1, 6, 4)
    plain = Attention(4, heads=1)
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(module.eval()(x), plain(x))
    module.train()
    draws = torch.stack([module(x) for _ in range(4000)])
    assert draws.std(0).min() > 0.01
    torch.testing.assert_close(draws.mean(0), plain(x), atol=0.03, rtol=0)  # what is kept is scaled up


def test_grouped_rotary_attention_is_that_of_llama():
    from transformers.models.llama import modeling_llama as llama

    config = llama.LlamaConfig(hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=6)
    config._attn_implementation = "eager"
    reference = llama.LlamaAttention(config, layer_idx=0)
    module = Attention(24, heads=4, kv_heads=2, head_dim=6, bias=False, causal=True, rotary_base=config.rope_theta)
    module.load_state_dict(
        {key.replace("_proj", "").replace("o.", "out."): value for key, value in reference.state_dict().items()}
    )
    x, positions = torch.randn(2, 7, 24), torch.stack([torch.arange(7), torch.arange(7) + 11])
    future = torch.full((1, 1, 7, 7), -torch.inf).triu(1)
    turn = llama.LlamaRotaryEmbedding(config)
    for given, theirs in ((None, torch.arange(7)[None]), (positions, positions), (positions[1], positions[1:])):
        expected, _ = reference(x, turn(x, theirs), attention_mask=future)
        torch.testing.assert_close(module(x, positions=given), expected, **CLOSE)


def test_attention_with_normed_queries_and_keys_is_that_of_qwen3():
    from transformers.models.qwen3 import modeling_qwen3 as qwen

    config = qwen.Qwen3Config(
        hidden_size=16, num_attention_heads=4, num_key_value_heads=2, head_dim=6, num_hidden_layers=1, rope_theta=500.0
    )
    config._attn_implementation = "eager"
    reference = qwen.Qwen3Attention(config, layer_idx=0)
    for norm in (reference.q_norm, reference.k_norm):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    module = Attention(16, heads=4, kv_heads=2, head_dim=6, bias=False, qk_norm=True, rotary_base=500.0)
    module.load_state_dict(
        {key.replace("_proj", "").replace("o.", "out."): value for key, value in reference.state_dict().items()}
    )
    x = torch.randn(2, 5, 16)
    expected, _ = reference(x, qwen.Qwen3RotaryEmbedding(config)(x, torch.arange(5)[None]), attention_mask=None)
    torch.testing.assert_close(module(x), expected, **CLOSE)


def test_rotary_attention_depends_on_the_distance_of_positions_alone():
    module, x = Attention(8, heads=2, rotary_base=100.0), torch.randn(2, 5, 8)
    moved = module(x, positions=torch.arange(5) + 40)
    torch.testing.assert_close(moved, module(x), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(module(x, positions=2 * torch.arange(5)), module(x), atol=1e-3)


def test_the_keys_of_the_weights_are_q_k_v_out():
    assert {key.split(".")[0] for key in Attention(8).state_dict()} == {"q", "k", "v", "out"}
    assert {"q_norm.weight", "k_norm.weight"} < Attention(8, qk_norm=True).state_dict().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "8 is not a multiple of heads 3"),
        ({"heads": 0}, "8 is not a multiple of heads 0"),
        ({"heads": 4, "kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"heads": 4, "kv_heads": 0}, "heads 4 is not a multiple of kv_heads 0"),
        ({"heads": 8, "rotary_base": 10.0}, "a head_dim of 1 is odd"),
        ({"context_dim": 4, "causal": True}, "are of self-attention"),
        ({"heads": 2, "context_dim": 4, "rotary_base": 10.0}, "are of self-attention"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_said(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Attention(8, **options)


def test_what_would_be_ignored_is_refused():
    x = torch.randn(1, 2, 8)
    with pytest.raises(ValueError, match="no rotary_base that would use them"):
        Attention(8)(x, positions=torch.arange(2))
    for options in ({"causal": True}, {"rotary_base": 10.0, "heads": 2}):
        with pytest.raises(ValueError, match="take no context"):
            Attention(8, **options)(x, x)
