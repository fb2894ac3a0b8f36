"""zoo/transformer/encoder.yaml and decoder.yaml are nn.TransformerEncoder and nn.TransformerDecoder."""

import itertools
from functools import partial

import pytest
import torch
from key_map import read_key_map
from proof import ZOO, count, prove_equal, prove_initial
from torch import nn

from model_constructor import build_model

KINDS = {
    "encoder": (nn.TransformerEncoderLayer, partial(nn.TransformerEncoder, enable_nested_tensor=False)),
    "decoder": (nn.TransformerDecoderLayer, nn.TransformerDecoder),
}


def both(kind, dim=16, heads=2, depth=2, hidden=24, dropout=0.0, activation="relu", norm_first=False, final_norm=True):
    params = {
        "dim": dim,
        "heads": heads,
        "depth": depth,
        "hidden": hidden,
        "dropout": dropout,
        "activation": activation,
    }
    params |= {"norm_first": norm_first, "final_norm": final_norm}
    ours = build_model(ZOO / "transformer" / f"{kind}.yaml", params=params)
    layer_type, stack_type = KINDS[kind]
    layer = layer_type(dim, heads, hidden, dropout, activation, batch_first=True, norm_first=norm_first)
    theirs = stack_type(layer, depth, nn.LayerNorm(dim) if final_norm else None)
    return ours.double(), theirs.double(), read_key_map(ZOO / "transformer" / f"{kind}.keys.yaml")


def some_of(*size):
    """A mask that lets every row attend to something."""
    return (torch.rand(*size) < 0.5).index_fill(-1, torch.tensor(0), True)


def sequence(batch, length):
    return torch.randn(batch, length, 16, dtype=torch.float64)


@pytest.mark.parametrize("masks", [(), ("padding",), ("causal",), ("padding", "causal")])
@pytest.mark.parametrize(("norm_first", "activation", "final_norm"), [(False, "relu", True), (True, "gelu", False)])
@pytest.mark.parametrize(("batch", "length"), [(2, 5), (3, 1)])
def test_the_encoder_is_torchs(norm_first, activation, final_norm, masks, batch, length):
    ours, theirs, key_map = both("encoder", norm_first=norm_first, activation=activation, final_norm=final_norm)
    x = sequence(batch, length)
    padding_mask = some_of(batch, length) if "padding" in masks else None
    mask = torch.ones(length, length).tril().bool() if "causal" in masks else None
    prove_equal(
        ours,
        theirs,
        key_map,
        lambda model: model(x, padding_mask=padding_mask, mask=mask),
        lambda model: model(x, src_key_padding_mask=torchs(padding_mask), mask=torchs(mask)),
    )


@pytest.mark.parametrize("masks", [*itertools.combinations(("padding", "causal", "memory_padding", "memory"), 2), ()])
@pytest.mark.parametrize(("norm_first", "activation"), [(False, "gelu"), (True, "relu")])
@pytest.mark.parametrize(("batch", "length", "memory_length"), [(2, 5, 3), (3, 2, 4)])
def test_the_decoder_is_torchs(norm_first, activation, masks, batch, length, memory_length):
    ours, theirs, key_map = both("decoder", norm_first=norm_first, activation=activation)
    x, memory = sequence(batch, length), sequence(batch, memory_length)
    given = {
        "padding": ("padding_mask", "tgt_key_padding_mask", some_of(batch, length)),
        "causal": ("mask", "tgt_mask", torch.ones(length, length).tril().bool()),
        "memory_padding": ("memory_padding_mask", "memory_key_padding_mask", some_of(batch, memory_length)),
        "memory": ("memory_mask", "memory_mask", some_of(length, memory_length)),
    }
    prove_equal(
        ours,
        theirs,
        key_map,
        lambda model: model(x, memory, **{given[name][0]: given[name][2] for name in masks}),
        lambda model: model(x, memory, **{given[name][1]: torchs(given[name][2]) for name in masks}),
    )


def torchs(mask):
    """Torch's masks are True where a position must not be attended to."""
    return None if mask is None else ~mask


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_drops_what_torch_drops(kind, norm_first):
    """Of one seed the same entries: of the attention, of the hidden layer, of each branch.

    Of one sequence, since torch lays a batch out the other way round in memory, which is the order it draws in.
    """
    ours, theirs, key_map = both(kind, dropout=0.4, norm_first=norm_first)
    inputs = [sequence(1, 5)] if kind == "encoder" else [sequence(1, 5), sequence(1, 3)]

    def call(model):
        torch.manual_seed(1)
        return model(*inputs)

    prove_equal(ours, theirs, key_map, call)
    assert not torch.allclose(call(ours.train()), call(ours.eval()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_defaults_are_the_base_model_of_the_paper(kind):
    layer_type, stack_type = KINDS[kind]
    with torch.device("meta"):
        ours = build_model(ZOO / "transformer" / f"{kind}.yaml")
        theirs = stack_type(layer_type(512, 8, 2048), 6, nn.LayerNorm(512))
    assert count(ours) == count(theirs)
    assert ours.params["dropout"] == 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_begin_as_torchs(kind):
    prove_initial(*both(kind, dim=64, hidden=128))
