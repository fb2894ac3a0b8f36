"""zoo/groot is lerobot 0.4.4's action head of GR00T N1.5, and of N1 what that version leaves of it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from key_map import KeyMap, read_key_map
from lerobot.policies.groot.action_head.cross_attention_dit import DiT, SelfAttentionTransformer
from lerobot.policies.groot.action_head.flow_matching_action_head import (
    FlowmatchingActionHead,
    FlowmatchingActionHeadConfig,
)
from proof import ZOO, count, prove_equal, prove_initial
from torch import Tensor, nn

from model_constructor import GraphModel, build_model

GROOT = ZOO / "groot"
KEYS = {name: read_key_map(GROOT / f"{name}.keys.yaml") for name in ("dit", "vl_self_attention", "head", "head_n1")}
DIT = {"dim": 16, "depth": 3, "heads": 4, "context_dim": 10, "out_dim": 6, "dropout": 0.0}
VL = {"dim": 16, "depth": 2, "heads": 4, "dropout": 0.0}
HEAD = {
    "embodiments": 3, "state_dim": 5, "action_dim": 3, "hidden": 6, "longest": 9, "future": 2, "dim": 16, "depth": 2,
    "heads": 4, "context_dim": 12, "context_depth": 1, "context_heads": 3, "dropout": 0.0,
}  # fmt: skip


def dit_config(sizes: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_attention_heads": sizes["heads"],
        "attention_head_dim": sizes["dim"] // sizes["heads"],
        "output_dim": sizes["out_dim"],
        "num_layers": sizes["depth"],
        "dropout": sizes["dropout"],
        "positional_embeddings": None,
        "interleave_self_attention": True,
        "cross_attention_dim": sizes["context_dim"],
    }


def vl_config(sizes: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_attention_heads": sizes["heads"],
        "attention_head_dim": sizes["dim"] // sizes["heads"],
        "num_layers": sizes["depth"],
        "dropout": sizes["dropout"],
        "positional_embeddings": None,
    }


def dits(**params: Any) -> tuple[GraphModel, nn.Module, KeyMap]:
    ours = build_model(GROOT / "dit.yaml", params=params)
    return ours, DiT(**dit_config(ours.params)), KEYS["dit"]


def vls(**params: Any) -> tuple[GraphModel, nn.Module, KeyMap]:
    ours = build_model(GROOT / "vl_self_attention.yaml", params=params)
    return ours, SelfAttentionTransformer(**vl_config(ours.params)), KEYS["vl_self_attention"]


class OneStep(FlowmatchingActionHead):
    """The reference's sampler of actions, with gradients. A head of N1 has a projection in front of it.

    One step from time 0 ends at the noise it began with plus the velocity, of `steps` the k-th is at time k / steps.
    """

    def __init__(self, config: FlowmatchingActionHeadConfig, project: nn.Module | None = None) -> None:
        super().__init__(config)
        if project is not None:
            self.project = project

    def forward(
        self, context: Tensor, state: Tensor, embodiment: Tensor, horizon: int, steps: int, seed: int
    ) -> Tensor:
        self.config.action_horizon = self.action_horizon = horizon
        self.num_inference_timesteps = steps
        torch.manual_seed(seed)
        seen = self.project(context) if hasattr(self, "project") else context
        observed = SimpleNamespace(state=state, embodiment_id=embodiment)
        backbone = Features(backbone_features=seen)
        return FlowmatchingActionHead.get_action.__wrapped__(self, backbone, observed)["action_pred"]


class Features(dict):
    __getattr__ = dict.__getitem__


def heads(name: str = "head", **params: Any) -> tuple[GraphModel, nn.Module, KeyMap]:
    """Ours and theirs. Of N1, whose context is projected, theirs has neither layers over it nor future tokens."""
    first = name == "head_n1"
    unread = ("context_heads", "context_depth", "future") if first else ()
    read = {key: value for key, value in params.items() if key not in unread}
    ours = build_model(GROOT / f"{name}.yaml", params=read)
    sizes = ours.params
    inner = {**sizes, "out_dim": sizes["hidden"], "context_dim": sizes["dim"] if first else sizes["context_dim"]}
    over = {"dim": sizes["context_dim"], "heads": sizes["context_heads"], "depth": sizes["context_depth"]}
    config = FlowmatchingActionHeadConfig(
        diffusion_model_cfg=dit_config(inner),
        vl_self_attention_cfg=vl_config({**over, "dropout": sizes["dropout"]}),
        use_vlln=not first,
        num_target_vision_tokens=0 if first else sizes["future"],
        input_embedding_dim=sizes["dim"],
        backbone_embedding_dim=sizes["context_dim"],
        hidden_size=sizes["hidden"],
        max_seq_len=sizes["longest"],
        max_state_dim=sizes["state_dim"],
        action_dim=sizes["action_dim"],
        max_num_embodiments=sizes["embodiments"],
        add_pos_embed=True,
        num_timestep_buckets=1000,
        num_inference_timesteps=1,
        action_horizon=1,
        noise_beta_alpha=1.5,
        noise_beta_beta=1.0,
        tune_projector=True,
        tune_diffusion_model=True,
    )
    theirs = OneStep(config, nn.Linear(sizes["context_dim"], sizes["dim"]) if first else None)
    if first:
        del theirs.future_tokens
        theirs.future_tokens = SimpleNamespace(weight=torch.zeros(0, sizes["dim"]))
    return ours, theirs, KEYS[name]


def sampled(context: Tensor, state: Tensor, embodiment: Tensor, horizon: int, steps: int, seed: int = 1) -> Callable:
    """Actions by Euler's method from the same noise, for ours."""

    def call(model: nn.Module) -> Tensor:
        if not isinstance(model, GraphModel):
            return model(context, state, embodiment, horizon, steps, seed)
        torch.manual_seed(seed)
        actions = torch.randn(len(state), horizon, model.params["action_dim"])
        for k in range(steps):
            step = torch.full([len(state)], int(k / steps * 1000))
            actions = actions + model(context, state, actions, step, embodiment) / steps
        return actions

    return call


@pytest.mark.parametrize(("batch", "tokens", "seen"), [(2, 5, 3), (3, 1, 7)])
def test_the_diffusion_transformer_is_lerobots(batch: int, tokens: int, seen: int) -> None:
    ours, theirs, keys = dits(**DIT)
    arguments = torch.randn(batch, tokens, 16), torch.randn(batch, seen, 10), torch.randint(0, 1000, (batch,))
    prove_equal(ours, theirs, keys, lambda model: model(*arguments))


@pytest.mark.parametrize(("batch", "tokens"), [(2, 5), (3, 1)])
def test_the_attention_over_vision_and_language_is_lerobots(batch: int, tokens: int) -> None:
    ours, theirs, keys = vls(**VL)
    h = torch.randn(batch, tokens, 16, dtype=torch.float64)
    prove_equal(ours.double(), theirs.double(), keys, lambda model: model(h))


@pytest.mark.parametrize(("name", "steps"), [("head", 3), ("head_n1", 2)])
def test_the_head_samples_the_actions_of_lerobots(name: str, steps: int) -> None:
    ours, theirs, keys = heads(name, **HEAD)
    call = sampled(torch.randn(3, 7, 12), torch.randn(3, 1, 5), torch.tensor([2, 0, 1]), horizon=4, steps=steps)
    prove_equal(ours, theirs, keys, call)


@pytest.mark.parametrize("pair", [lambda: dits(**{**DIT, "dropout": 0.4}), lambda: vls(**{**VL, "dropout": 0.4})])
def test_dropout_drops_what_lerobot_drops(pair: Callable) -> None:
    """Of one seed the same entries: after each attention twice, inside and after the MLP."""
    ours, theirs, keys = pair()
    h, context = torch.randn(2, 5, 16), torch.randn(2, 3, 10)

    def call(model: nn.Module) -> Tensor:
        torch.manual_seed(1)
        return model(h, context, torch.tensor([3, 500])) if keys is KEYS["dit"] else model(h)

    prove_equal(ours, theirs, keys, call)
    assert not torch.allclose(call(ours.train()), call(ours.eval()))


def test_the_weights_begin_as_lerobots() -> None:
    prove_initial(*heads(**HEAD))


@pytest.mark.parametrize(("pair", "parameters"), [(dits, 550_386_688), (vls, 201_433_088)])
def test_the_transformers_have_the_sizes_of_the_published_ones(pair: Callable, parameters: int) -> None:
    with torch.device("meta"):
        ours, theirs, _ = pair()
    assert count(ours) == count(theirs) == parameters


@pytest.mark.slow
def test_the_heads_have_the_sizes_of_the_published_ones() -> None:
    with torch.device("meta"):
        n15, n1 = (build_model(GROOT / f"{name}.yaml") for name in ("head", "head_n1"))
    assert count(n1) == 857_884_160  # as NVIDIA's own training prints it
    assert (count(n15.dit), count(n1.dit)) == (550_386_688, 537_803_776)
    assert count(n15.vl_self_attention) == 201_433_088
    between = count(n15) - count(n15.dit) - count(n15.vl_self_attention) - count(n15.norm_context) - 32 * 1536
    assert between == 316_933_120  # what meets the robot, and the table of positions
