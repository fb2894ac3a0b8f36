"""The zoo's encoders of images: SigLIP and the Perceiver resampler of transformers, ResNet-50, lerobot's keypoints."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from key_map import KeyMap, read_key_map
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionRgbEncoder
from proof import ZOO, count, prove_equal, prove_initial
from timm.models.resnet import Bottleneck, ResNet
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from model_constructor import GraphModel, build_model

Both = tuple[GraphModel, nn.Module, KeyMap]


def both(name: str, theirs: nn.Module, params: dict[str, Any]) -> Both:
    return build_model(ZOO / f"{name}.yaml", params=params), theirs, read_key_map(ZOO / f"{name}.keys.yaml")


# SigLIP

SIGLIP = {"size": 12, "patch": 4, "dim": 16, "depth": 2, "heads": 2, "hidden": 20}


def siglips(**params: Any) -> Both:
    sizes = build_model(ZOO / "siglip.yaml", params=params).params
    config = SiglipVisionConfig(
        image_size=sizes["size"],
        patch_size=sizes["patch"],
        hidden_size=sizes["dim"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["hidden"],
        vision_use_head=sizes["pool"],
    )
    return both("siglip", SiglipVisionModel(config), params)


@pytest.mark.parametrize(("pool", "batch", "sizes"), [(False, 2, {}), (True, 1, {"size": 8, "heads": 4, "depth": 3})])
def test_siglip_is_transformers(pool: bool, batch: int, sizes: dict[str, int]) -> None:
    ours, theirs, keys = siglips(**{**SIGLIP, **sizes, "pool": pool})
    image = torch.randn(batch, 3, ours.params["size"], ours.params["size"], dtype=torch.float64)
    output = "pooler_output" if pool else "last_hidden_state"
    prove_equal(
        ours.double(), theirs.double(), keys, lambda model: model(image), lambda model: getattr(model(image), output)
    )


@pytest.mark.parametrize(("params", "parameters"), [({}, 412_442_352), ({"size": 384, "pool": True}, 428_225_600)])
def test_siglip_has_the_sizes_of_the_published_ones(params: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        ours, theirs, _ = siglips(**params)
    assert count(ours) == count(theirs) == parameters


# The Perceiver resampler

RESAMPLER = {"dim": 12, "tokens": 3, "depth": 2, "heads": 2, "head_dim": 5, "qk_norm": True}


def resamplers(**params: Any) -> Both:
    sizes = build_model(ZOO / "perceiver_resampler.yaml", params=params).params
    config = SimpleNamespace(
        perceiver_config=SimpleNamespace(qk_layer_norms_perceiver=sizes["qk_norm"]),
        vision_config=SimpleNamespace(embed_dim=sizes["dim"]),
    )
    theirs = IdeficsPerceiverResampler(
        config, sizes["dim"], sizes["depth"], sizes["heads"], sizes["head_dim"], sizes["tokens"]
    )
    return both("perceiver_resampler", theirs, params)


@pytest.mark.parametrize(("batch", "length", "qk_norm"), [(2, 7, True), (3, 1, False)])
def test_the_perceiver_resampler_is_transformers(batch: int, length: int, qk_norm: bool) -> None:
    ours, theirs, keys = resamplers(**{**RESAMPLER, "qk_norm": qk_norm})
    features = torch.randn(batch, length, 12, dtype=torch.float64)
    prove_equal(ours.double(), theirs.double(), keys, lambda model: model(features))


def test_the_perceiver_resampler_has_the_size_of_transformers() -> None:
    with torch.device("meta"):
        ours, theirs, _ = resamplers()
    assert count(ours) == count(theirs)


# ResNet-50


def resnets(layers: list[int]) -> Both:
    ours = build_model(ZOO / "resnet50.yaml", params={"layers": layers, "classes": 10})
    return ours, ResNet(Bottleneck, tuple(layers), num_classes=10), KeyMap()


def test_resnet50_is_timms() -> None:
    ours, theirs, keys = resnets([1, 2, 1, 1])
    image = torch.randn(2, 3, 33, 40)
    prove_equal(ours, theirs, keys, lambda model: model(image))


@pytest.mark.parametrize(
    ("layers", "reference"),
    [
        ([3, 4, 6, 3], torchvision.models.resnet50),
        pytest.param([3, 4, 23, 3], torchvision.models.resnet101, marks=pytest.mark.slow),
    ],
)
def test_resnet50_and_101_have_the_keys_and_shapes_of_torchvision(layers: list[int], reference) -> None:
    with torch.device("meta"):
        ours, theirs = build_model(ZOO / "resnet50.yaml", params={"layers": layers}), reference()
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


# The keypoints of Diffusion Policy


def keypoint_encoders(size: tuple[int, int] = (96, 96), **params: Any) -> Both:
    ours, keys = (
        build_model(ZOO / "diffusion_encoder.yaml", params=params),
        read_key_map(ZOO / "diffusion_encoder.keys.yaml"),
    )
    config = DiffusionConfig(
        input_features={"observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, *size))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        crop_shape=None,
        spatial_softmax_num_keypoints=ours.params["keypoints"],
    )
    return ours, DiffusionRgbEncoder(config), keys


@pytest.mark.parametrize(
    ("batch", "size", "keypoints"), [(2, (33, 48), 4), pytest.param(1, (96, 64), 32, marks=pytest.mark.slow)]
)
def test_the_keypoints_are_lerobots(batch: int, size: tuple[int, int], keypoints: int) -> None:
    ours, theirs, keys = keypoint_encoders(size, keypoints=keypoints)
    image = torch.rand(batch, 3, *size)
    prove_equal(ours, theirs, keys, lambda model: model(image))


@pytest.mark.slow
def test_the_keypoints_have_lerobots_sizes_by_default() -> None:
    ours, theirs, _ = keypoint_encoders()
    assert count(ours) == count(theirs) and ours.params["keypoints"] == DiffusionConfig().spatial_softmax_num_keypoints


@pytest.mark.slow
def test_the_encoders_begin_as_their_references() -> None:
    prove_initial(*keypoint_encoders())
    prove_initial(*resamplers(**RESAMPLER))
    prove_initial(*siglips(**{**SIGLIP, "dim": 64}))
