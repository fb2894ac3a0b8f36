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

FILES = [path for path in sorted(ZOO.rglob("*.yaml")) if not path.name.endswith(".keys.yaml")]
ACT = {"dim": 16, "heads": 2, "hidden": 24}
PARAMS: dict[str, dict[str, Any]] = {  # what a file does not say itself, and smaller sizes
    "act/act.yaml": {**ACT, "encoder_depth": 1, "posterior_depth": 1},
    "act/decoder.yaml": {**ACT, "depth": 2, "activation": "relu", "dropout": 0.1, "pre_norm": False},
    "act/encoder.yaml": {**ACT, "depth": 2, "activation": "relu", "dropout": 0.1, "pre_norm": True},
    "diffusion_unet.yaml": {"obs_dim": 10, "down_dims": [8, 16]},
}


def pickled(model: GraphModel, folder: Path) -> GraphModel:
    return pickle.loads(pickle.dumps(model))


def saved(model: GraphModel, folder: Path) -> GraphModel:
    model.save_pretrained(folder)
    return GraphModel.from_pretrained(folder)


@pytest.mark.parametrize("again", [pickled, saved])
@pytest.mark.parametrize("name", [str(path.relative_to(ZOO)) for path in FILES])
def test_it_has_a_hash_and_comes_back_as_it_was(name: str, again: Callable[..., GraphModel], tmp_path: Path):
    model = build_model(ZOO / name, params=PARAMS.get(name))
    twin = again(model, tmp_path)
    assert twin.architecture_hash == model.architecture_hash
    theirs, ours = twin.state_dict(), model.state_dict()
    assert list(theirs) == list(ours) and all(torch.equal(theirs[key], ours[key]) for key in ours)
