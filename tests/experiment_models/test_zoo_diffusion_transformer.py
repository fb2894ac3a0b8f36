"""zoo/dit.yaml is diffusers' DiTTransformer2DModel, once that one's layers share their embeddings, as the paper's do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from key_map import KeyMap, load_foreign, read_key_map
from proof import ZOO, assert_close, count, prove_equal, randomise
from torch import Tensor, nn

from model_constructor import GraphModel, build_model

KEYS = read_key_map(ZOO / "dit.keys.yaml")
DIT = {"size": 6, "patch": 2, "channels": 3, "dim": 16, "depth": 2, "heads": 2, "classes": 5, "label_dropout": 0.0}


def dits(**params: Any) -> tuple[GraphModel, nn.Module, KeyMap]:
    """Ours and theirs. In theirs each layer embeds step and label anew, and at frequencies of another spacing."""
    ours = build_model(ZOO / "dit.yaml", params=params)
    sizes = ours.params
    theirs = DiTTransformer2DModel(
        num_attention_heads=sizes["heads"],
        attention_head_dim=sizes["dim"] // sizes["heads"],
        in_channels=sizes["channels"],
        out_channels=2 * sizes["channels"],
        num_layers=sizes["depth"],
        sample_size=sizes["size"],
        patch_size=sizes["patch"],
        num_embeds_ada_norm=sizes["classes"],
        norm_eps=1e-6,
    )
    shared = theirs.transformer_blocks[0].norm1.emb
    shared.time_proj.downscale_freq_shift = 0
    shared.class_embedder.dropout_prob = sizes["label_dropout"]
    for block in theirs.transformer_blocks:
        block.norm1.emb = shared
    return ours, theirs, KEYS


def dit_inputs(batch: int, sizes: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    latent = torch.randn(batch, sizes["channels"], sizes["size"], sizes["size"])
    return latent, torch.randint(0, 1000, (batch,)), torch.randint(0, sizes["classes"] + 1, (batch,))


def call_theirs(inputs: tuple[Tensor, Tensor, Tensor]):
    return lambda model: model(*inputs).sample


@pytest.mark.parametrize("sizes", [{}, {"size": 8, "patch": 4, "dim": 24, "depth": 3, "heads": 3}])
def test_the_diffusion_transformer_is_diffusers(sizes: dict[str, int]) -> None:
    ours, theirs, keys = dits(**{**DIT, **sizes})
    inputs = dit_inputs(3, ours.params)
    prove_equal(ours, theirs, keys, lambda model: model(*inputs), call_theirs(inputs))


def test_the_diffusion_transformer_begins_as_nothing() -> None:
    """With adaLN-Zero each layer begins as the identity and the output as zero (Peebles & Xie 2023, section 3.2)."""
    model = build_model(ZOO / "dit.yaml", params=DIT)
    latent, step, label = dit_inputs(2, DIT)
    assert not model(latent, step, label).any()
    h, cond = torch.randn(2, 9, 16), torch.randn(2, 16)
    assert all(torch.equal(layer(h, cond), h) for layer in model.layers)


def test_a_dropped_label_is_no_label_and_only_in_training() -> None:
    ours, theirs, keys = dits(**{**DIT, "label_dropout": 1.0})
    randomise(theirs)
    load_foreign(ours, theirs.state_dict(), keys)
    latent, step, label = dit_inputs(4, DIT)
    without = torch.full_like(label, DIT["classes"])
    assert_close([ours.train()(latent, step, label % 5)], [ours.eval()(latent, step, without)])
    assert not torch.allclose(ours.eval()(latent, step, label % 5), ours(latent, step, without))
    half = build_model(ZOO / "dit.yaml", params={**DIT, "label_dropout": 0.5, "classes": 5}).train()
    half.load_state_dict(ours.state_dict())
    outputs = half(latent[:1].expand(400, -1, -1, -1), step[:1].expand(400), torch.zeros(400, dtype=torch.int64))
    dropped = (outputs - ours.eval()(latent[:1], step[:1], without[:1])).abs().amax((1, 2, 3)) < 1e-4
    assert 150 < dropped.sum() < 250  # of 400; five sigma are 50


def test_dit_xl_has_the_size_of_the_published_one() -> None:
    with torch.device("meta"):
        ours, theirs, _ = dits()
    table = 16**2 * 1152  # of positions, which the published code counts and nothing trains
    assert count(ours) + table == count(theirs) + table == 675_129_632
