"""The zoo's policies equal those of lerobot 0.4.4: same weights, outputs, gradients and number of parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from key_map import load_foreign, read_key_map, translate
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACT
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionConditionalUnet1d
from proof import ZOO, assert_close, count, prove_equal, randomise, trained
from torch import Tensor, nn

from model_constructor import GraphModel, build_model

# The 1-D U-Net of Diffusion Policy

UNET_KEYS = read_key_map(ZOO / "diffusion_unet.keys.yaml")


@contextmanager
def in_double() -> Iterator[None]:
    """Double precision of what is computed from integers, such as the embedding of a step."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def lerobots_unet(action_dim: int, obs_dim: int, **sizes: Any) -> nn.Module:
    action = PolicyFeature(FeatureType.ACTION, (action_dim,))
    return DiffusionConditionalUnet1d(DiffusionConfig(output_features={"action": action}, **sizes), obs_dim)


@pytest.mark.parametrize("film_scale", [True, False])
@pytest.mark.parametrize(
    ("down_dims", "length", "batch"), [([16, 32], 6, 3), ([16, 32, 24], 8, 2), ([8, 16, 16, 32], 16, 1)]
)
def test_the_diffusion_unet_equals_lerobots(down_dims: list[int], length: int, batch: int, film_scale: bool) -> None:
    sizes: dict[str, Any] = {"action_dim": 3, "obs_dim": 10, "down_dims": down_dims, "kernel_size": 3}
    theirs = lerobots_unet(**sizes, n_groups=4, diffusion_step_embed_dim=12, use_film_scale_modulation=film_scale)
    params = {**sizes, "groups": 4, "step_dim": 12, "film_scale": film_scale}
    ours = build_model(ZOO / "diffusion_unet.yaml", params=params)
    with in_double():
        arguments = torch.randn(batch, length, 3), torch.randint(0, 100, (batch,)), torch.randn(batch, 10)
        prove_equal(ours.double(), theirs.double(), UNET_KEYS, lambda model: model(*arguments))


def test_the_diffusion_unet_has_lerobots_sizes_by_default() -> None:
    with torch.device("meta"):
        ours = build_model(ZOO / "diffusion_unet.yaml", params={"obs_dim": 132})
        theirs = lerobots_unet(action_dim=2, obs_dim=132)
    load_foreign(ours, theirs.state_dict(), UNET_KEYS)  # raises where a shape differs
    assert count(ours) == count(theirs)
    assert ours.params["groups"] == DiffusionConfig().n_groups  # the one size that no shape shows


# ACT

ACT_KEYS = read_key_map(ZOO / "act.keys.yaml")
ACT_NAMES = {  # our params: their names in ACTConfig
    "chunk": "chunk_size",
    "latent_dim": "latent_dim",
    "dim": "dim_model",
    "heads": "n_heads",
    "hidden": "dim_feedforward",
    "activation": "feedforward_activation",
    "dropout": "dropout",
    "pre_norm": "pre_norm",
    "encoder_depth": "n_encoder_layers",
    "decoder_depth": "n_decoder_layers",
    "posterior_depth": "n_vae_encoder_layers",
    "use_vae": "use_vae",
}
SMALL = {
    "state_dim": 5, "action_dim": 3, "chunk": 6, "latent_dim": 4, "dim": 16, "heads": 2, "hidden": 24, "dropout": 0.0,
    "encoder_depth": 2, "decoder_depth": 2, "posterior_depth": 1,
}  # fmt: skip


def acts(**params: Any) -> tuple[GraphModel, ACT]:
    """Ours and theirs with the same sizes."""
    ours = build_model(ZOO / "act" / "act.yaml", params=params)
    sizes = ours.params
    features = {"observation.state": PolicyFeature(FeatureType.STATE, (sizes["state_dim"],))}
    if sizes["env_dim"]:
        features["observation.environment_state"] = PolicyFeature(FeatureType.ENV, (sizes["env_dim"],))
    for camera in range(sizes["cameras"]):
        features[f"observation.images.{camera}"] = PolicyFeature(FeatureType.VISUAL, (3, 64, 96))
    config = ACTConfig(
        input_features=features,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (sizes["action_dim"],))},
        pretrained_backbone_weights=None,
        n_action_steps=1,
        **{theirs: sizes[name] for name, theirs in ACT_NAMES.items()},
    )
    theirs = ACT(config)
    if config.use_vae:  # no weight, but a table that we compute
        theirs.register_buffer("vae_encoder_pos_enc", theirs.vae_encoder_pos_enc, persistent=False)
    return ours, theirs


def act_inputs(params: dict[str, Any], batch: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """A batch by the names of our inputs. The chunks end 0, 1, 2, ... actions before their end."""
    left = params["chunk"] - torch.arange(batch)
    inputs = {
        "state": torch.randn(batch, params["state_dim"]),
        "actions": torch.randn(batch, params["chunk"], params["action_dim"]),
        "is_pad": torch.arange(params["chunk"]) >= left[:, None],
    }
    if params["cameras"]:
        inputs["images"] = torch.randn(batch, params["cameras"], 3, *size)
    if params["env_dim"]:
        inputs["env_state"] = torch.randn(batch, params["env_dim"])
    return inputs


def call_theirs(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
    names = {
        "state": "observation.state", "env_state": "observation.environment_state", "actions": "action",
        "is_pad": "action_is_pad",
    }  # fmt: skip
    batch: dict[str, Any] = {names[name]: tensor for name, tensor in inputs.items() if name != "images"}
    if "images" in inputs:
        batch["observation.images"] = list(inputs["images"].unbind(1))
    actions, (mean, log_variance) = model(batch)
    return actions, mean, log_variance


def run(ours: nn.Module, theirs: nn.Module, inputs: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What both give that is not None, with the same noise in the latent."""
    torch.manual_seed(1)
    result = ours(**inputs)
    torch.manual_seed(1)
    expected = call_theirs(theirs, inputs)
    assert [output is None for output in result] == [output is None for output in expected]
    return [one for one in result if one is not None], [one for one in expected if one is not None]


@pytest.mark.parametrize(
    ("params", "batch", "size"),
    [
        pytest.param({"cameras": 0, "env_dim": 4}, 3, (0, 0), id="environment state"),
        pytest.param({"cameras": 0, "env_dim": 4, "pre_norm": True}, 2, (0, 0), id="pre-norm"),
        pytest.param({"cameras": 0, "env_dim": 4, "activation": "gelu"}, 1, (0, 0), id="gelu"),
        pytest.param({"cameras": 0, "env_dim": 4, "use_vae": False}, 2, (0, 0), id="no VAE"),
        pytest.param({"cameras": 0, "env_dim": 4, "chunk": 100, "dim": 32}, 2, (0, 0), id="long chunk"),
        pytest.param({"cameras": 1}, 2, (64, 96), id="one camera"),
        pytest.param({"cameras": 2, "env_dim": 4}, 1, (96, 64), id="two cameras"),
    ],
)
def test_act_equals_lerobots(params: dict[str, Any], batch: int, size: tuple[int, int]) -> None:
    ours, theirs = acts(**{**SMALL, **params})
    randomise(theirs)
    load_foreign(ours, theirs.state_dict(), ACT_KEYS)
    assert count(ours) == count(theirs)
    inputs = act_inputs(ours.params, batch, size)
    assert_close(*run(ours.eval(), theirs.eval(), inputs))
    result, expected = run(ours.train(), theirs.train(), inputs)
    assert_close(result, expected)
    weights = [torch.randn_like(output) for output in expected]
    for outputs in (result, expected):
        torch.stack([(output * weight).sum() for output, weight in zip(outputs, weights, strict=True)]).sum().backward()
    gradients = translate(trained(ours), trained(theirs), ACT_KEYS)
    assert_close(trained(ours).values(), (gradients[name] for name in trained(ours)))


DROPOUTS = {  # where a layer drops: (in ours, in theirs)
    "attention weights": (("self_attn", "cross_attn"), ("self_attn", "multihead_attn")),
    "inside the MLP": (("mlp.2",), ("dropout",)),
    "on the way to the sum": (("drop",), ("dropout1", "dropout2", "dropout3")),
}


@pytest.mark.parametrize("where", DROPOUTS)
def test_act_drops_where_lerobots_does(where: str) -> None:
    ours, theirs = acts(**{**SMALL, "cameras": 0, "env_dim": 4})
    load_foreign(ours, theirs.state_dict(), ACT_KEYS)
    inputs = act_inputs(ours.params, 2, (0, 0))
    before, _ = run(ours.train(), theirs.train(), inputs)
    for model, names in zip((ours, theirs), DROPOUTS[where], strict=True):
        for path, module in model.named_modules():
            if path.endswith(tuple(f".{name}" for name in names)):
                setattr(module, "dropout" if isinstance(module, nn.MultiheadAttention) else "p", 1.0)
    result, expected = run(ours, theirs, inputs)
    assert_close(result, expected)
    assert not torch.allclose(result[0], before[0])


def test_act_has_lerobots_sizes_by_default() -> None:
    with torch.device("meta"):
        ours, theirs = acts()
    assert {name: ours.params[name] for name in ACT_NAMES} == {
        name: getattr(ACTConfig(), theirs) for name, theirs in ACT_NAMES.items()
    }
    load_foreign(ours, theirs.state_dict(), ACT_KEYS)
    assert count(ours) == count(theirs)


def test_act_starts_as_lerobots_does() -> None:
    ours, theirs = acts(**{**SMALL, "cameras": 0, "env_dim": 4, "dim": 64})
    started = translate(ours.state_dict(), theirs.state_dict(), ACT_KEYS)
    for name, weight in ours.named_parameters():
        if weight.numel() >= 256:  # enough to tell distributions apart by their spread
            assert weight.std().item() == pytest.approx(started[name].std().item(), rel=0.2), name
