"""Every architecture of the zoo has a hash, and comes back from a pickle and from a folder as it was."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from proof import ZOO

from model_constructor import GraphModel, build_model

FILES = [path.relative_to(ZOO) for path in sorted(ZOO.rglob("*.yaml")) if not path.name.endswith(".keys.yaml")]
ACT = {"dim": 16, "heads": 2, "hidden": 24}
GEMMA = {"vocab": 9, "dim": 16, "depth": 2, "heads": 2, "kv_heads": 1, "head_dim": 4, "hidden": 24}
GROOT = {"embodiments": 2, "hidden": 8, "dim": 16, "depth": 2, "heads": 2, "context_dim": 8}
JOINT = {"dim": 16, "hidden": 24, "expert_dim": 8, "expert_hidden": 12}
PARAMS: dict[str, dict[str, Any]] = {  # what a file does not say itself, and smaller sizes
    "act/act.yaml": {**ACT, "encoder_depth": 1, "posterior_depth": 1},
    "act/decoder.yaml": {**ACT, "depth": 2, "activation": "relu", "dropout": 0.1, "pre_norm": False},
    "act/encoder.yaml": {**ACT, "depth": 2, "activation": "relu", "dropout": 0.1, "pre_norm": True},
    "diffusion_unet.yaml": {"obs_dim": 10, "down_dims": [8, 16]},
    "diffusion_encoder.yaml": {"width": 16},
    "dit.yaml": {"dim": 16, "depth": 2, "heads": 2},
    "gemma/gemma.yaml": GEMMA,
    "gemma/norm.yaml": {"dim": 8},
    "gpt.yaml": {"in_dim": 3, "out_dim": 2, "dim": 16, "depth": 2, "heads": 2},
    "groot/dit.yaml": {"dim": 16, "depth": 2, "heads": 2, "context_dim": 8},
    "groot/head.yaml": {**GROOT, "context_heads": 2},
    "groot/head_n1.yaml": GROOT,
    "groot/vl_self_attention.yaml": {"dim": 16, "depth": 2, "heads": 2},
    "perceiver_resampler.yaml": {"dim": 16, "depth": 2, "heads": 2, "head_dim": 4},
    "pi0/joint_layer.yaml": {**JOINT, "heads": 2, "kv_heads": 1, "head_dim": 4},
    "pi0/pi0.yaml": {
        **GEMMA,
        **JOINT,
        "image_size": 28,
        "vision_dim": 16,
        "vision_depth": 1,
        "vision_heads": 2,
        "vision_hidden": 8,
    },
    "resnet50.yaml": {"width": 8},
    "siglip.yaml": {"size": 28, "dim": 16, "depth": 2, "heads": 2, "hidden": 8},
}

# One of each kind: lists of blocks, blocks from files, files laid over each other, namespaces, buffers, optional inputs.
DEFAULT = (
    "act/act.yaml",
    "act/backbone.yaml",
    "diffusion_unet.yaml",
    "pi0/pi0.yaml",
    "transformer/decoder.yaml",
    "vit_tiny.yaml",
)


def pickled(model: GraphModel, folder: Path) -> GraphModel:
    return pickle.loads(pickle.dumps(model))


def saved(model: GraphModel, folder: Path) -> GraphModel:
    model.save_pretrained(folder)
    return GraphModel.from_pretrained(folder)


@pytest.mark.parametrize("again", [pickled, pytest.param(saved, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in DEFAULT else pytest.mark.slow) for name in map(str, FILES)],
)
def test_it_has_a_hash_and_comes_back_as_it_was(name: str, again: Callable[..., GraphModel], tmp_path: Path):
    model = build_model(ZOO / name, params=PARAMS.get(name))
    twin = again(model, tmp_path)
    assert twin.architecture_hash == model.architecture_hash
    theirs, ours = twin.state_dict(), model.state_dict()
    assert list(theirs) == list(ours) and all(torch.equal(theirs[key], ours[key]) for key in ours)
