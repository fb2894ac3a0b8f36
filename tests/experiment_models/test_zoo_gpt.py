"""zoo/gpt.yaml is the GPT of lerobot 0.4.4's VQ-BeT, which is that of minGPT."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from key_map import KeyMap, read_key_map
from lerobot.policies.vqbet.configuration_vqbet import VQBeTConfig
from lerobot.policies.vqbet.vqbet_utils import GPT
from proof import ZOO, count, prove_equal, prove_initial
from torch import Tensor, nn

from model_constructor import GraphModel, build_model

KEYS = read_key_map(ZOO / "gpt.keys.yaml")
SMALL = {"in_dim": 5, "out_dim": 3, "longest": 9, "dim": 16, "depth": 2, "heads": 2, "dropout": 0.0}


def gpts(**params: Any) -> tuple[GraphModel, nn.Module, KeyMap]:
    ours = build_model(ZOO / "gpt.yaml", params=params)
    sizes = ours.params
    theirs = GPT(
        SimpleNamespace(
            gpt_input_dim=sizes["in_dim"],
            gpt_output_dim=sizes["out_dim"],
            gpt_block_size=sizes["longest"],
            gpt_hidden_dim=sizes["dim"],
            gpt_n_layer=sizes["depth"],
            gpt_n_head=sizes["heads"],
            dropout=sizes["dropout"],
        )
    )
    return ours, theirs, KEYS


@pytest.mark.parametrize(("batch", "length"), [(2, 9), (3, 4)])
def test_the_gpt_is_lerobots(batch: int, length: int) -> None:
    ours, theirs, keys = gpts(**SMALL)
    x = torch.randn(batch, length, 5, dtype=torch.float64)
    prove_equal(ours.double(), theirs.double(), keys, lambda model: model(x))


DROPOUTS = {  # where a layer drops: (in ours, in theirs)
    "the embedding": ("drop", "transformer.drop"),
    "attention weights": ("attn", "attn_dropout"),
    "after the attention": ("drop", "resid_dropout"),
    "after the MLP": ("mlp.3", "mlp.3"),
}


@pytest.mark.parametrize("where", DROPOUTS)
def test_the_gpt_drops_where_lerobots_does(where: str) -> None:
    ours, theirs, keys = gpts(**SMALL)
    inside = where != "the embedding"
    for model, name in zip((ours, theirs), DROPOUTS[where], strict=True):
        for path, module in model.named_modules():
            if path.endswith(f".{name}") if inside else path == name:
                setattr(module, "dropout" if hasattr(module, "dropout") else "p", 1.0)
    x = torch.randn(2, 6, 5)
    before = ours.eval()(x)

    def call(model: nn.Module) -> Tensor:
        return model(x) + 0 * sum(parameter.sum() for parameter in model.parameters())  # all of them have a gradient

    prove_equal(ours, theirs, keys, call)
    assert not torch.allclose(ours.train()(x), before)


def test_the_gpt_begins_as_lerobots() -> None:
    prove_initial(*gpts(**{**SMALL, "dim": 64}))


def test_the_gpt_has_lerobots_sizes_by_default() -> None:
    config = VQBeTConfig()
    with torch.device("meta"):
        ours, theirs, _ = gpts(in_dim=3, out_dim=3)
    expected = config.gpt_block_size, config.gpt_hidden_dim, config.gpt_n_layer, config.gpt_n_head, config.dropout
    assert tuple(ours.params[name] for name in ("longest", "dim", "depth", "heads", "dropout")) == expected
    assert count(ours) == count(theirs)
