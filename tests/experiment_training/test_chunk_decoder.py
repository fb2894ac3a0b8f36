"""Chunks as vectors: the decoder, and a mixture of them, against the same in plain functions."""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, silu

from model_constructor import GraphModel, build_model

SIZES = {"dim": 8, "width": 12, "depth": 2, "tokens": 3, "horizon": 5, "action_dim": 2}
CHUNK = "experiment_models/blocks/chunk_decoder.yaml"
MIXTURE = "experiment_models/variational_flow_matching_policy/metaworld/action_decoder.yaml"


def by_hand(model: GraphModel, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
    held = dict(model.named_parameters())

    def through(name: str, value: Tensor) -> Tensor:
        return linear(value, held[f"{name}.weight"], held[f"{name}.bias"])

    clock = model.embed_time[0](1000 * time)
    assert torch.allclose(clock.square().sum(-1), torch.full_like(time, SIZES["dim"] / 2))  # sines and cosines
    known = silu(through("embed_time.1", clock) + through("embed_context", context.flatten(1)))
    h = through("embed_action", x.flatten(1))
    for number in range(SIZES["depth"]):
        scale, shift, gate = through(f"layers.{number}.modulation", known).chunk(3, -1)
        moved = layer_norm(h, h.shape[1:]) * (1 + scale) + shift
        mlp = model.layers[number].mlp
        h = h + gate * mlp(moved)
    out = layer_norm(h, h.shape[1:], held["norm.weight"], held["norm.bias"])
    return through("head", out).unflatten(1, x.shape[1:])


def inputs(batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    sizes = SIZES
    x = torch.randn(batch, sizes["horizon"], sizes["action_dim"])
    return x, torch.rand(batch), torch.randn(batch, sizes["tokens"], sizes["dim"])


def test_it_begins_at_no_velocity_and_computes_what_its_formula_says() -> None:
    model = build_model(CHUNK, params=SIZES)
    assert not model(*inputs()).any()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    given = inputs()
    assert torch.allclose(model(*given), by_hand(model, *given), atol=1e-5)


def test_each_expert_of_a_mixture_is_such_a_decoder_that_sees_the_latent_as_a_token() -> None:
    model = build_model(MIXTURE, params={**SIZES, "latent_dim": 6, "experts": 3})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    (x, time, context), latent = inputs(), torch.randn(4, 6)
    velocities = model(x, time, context, latent)  # [B, E, T, A]
    token = linear(latent, model.embed_latent.weight, model.embed_latent.bias)
    known = torch.cat([token[:, None], context], 1)
    for number, expert in enumerate(model.expert):
        assert torch.allclose(velocities[:, number], by_hand(expert, x, time, known), atol=1e-5)
