"""zoo/gemma is transformers' GemmaModel, and zoo/pi0 two of them, with SigLIP, in the loop that openpi describes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from key_map import read_key_map
from proof import ZOO, as_tuple, assert_close, count, prove_equal, prove_initial
from torch import Tensor, nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GemmaModel,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
)

from model_constructor import GraphModel, build_model

GEMMA_KEYS = read_key_map(ZOO / "gemma" / "gemma.keys.yaml")
PI0_KEYS = read_key_map(ZOO / "pi0" / "pi0.keys.yaml")
GEMMA = {"vocab": 20, "dim": 16, "depth": 2, "heads": 4, "kv_heads": 2, "head_dim": 6, "hidden": 24}


def gemma_config(params: dict[str, Any]) -> GemmaConfig:
    return GemmaConfig(
        vocab_size=params["vocab"],
        hidden_size=params["dim"],
        num_hidden_layers=params["depth"],
        num_attention_heads=params["heads"],
        num_key_value_heads=params["kv_heads"],
        head_dim=params["head_dim"],
        intermediate_size=params["hidden"],
        pad_token_id=None,
    )


def gemmas(**params: Any) -> tuple[GraphModel, GemmaModel]:
    ours = build_model(ZOO / "gemma" / "gemma.yaml", params=params)
    return ours, GemmaModel(gemma_config(ours.params))


@pytest.mark.parametrize(("batch", "length", "kv_heads"), [(2, 7, 2), (3, 4, 1), (1, 5, 4)])
def test_gemma_is_transformers(batch: int, length: int, kv_heads: int) -> None:
    ours, theirs = gemmas(**{**GEMMA, "kv_heads": kv_heads})
    tokens = torch.randint(0, 20, (batch, length))
    prove_equal(ours, theirs, GEMMA_KEYS, lambda m: m(tokens), lambda m: m(tokens).last_hidden_state)


def test_gemma_reads_padding_and_positions_as_transformers_does() -> None:
    ours, theirs = gemmas(**GEMMA)
    tokens, positions = torch.randint(0, 20, (2, 6)), torch.randint(0, 40, (2, 6))
    mask = torch.arange(6) < torch.tensor([6, 4])[:, None]
    prove_equal(
        ours,
        theirs,
        GEMMA_KEYS,
        lambda m: m(tokens, mask, positions)[mask],
        lambda m: m(tokens, mask.long(), positions).last_hidden_state[mask],
    )


def test_gemma_begins_as_transformers_does() -> None:
    prove_initial(*gemmas(**GEMMA), GEMMA_KEYS)


@pytest.mark.parametrize(
    ("params", "parameters"),
    [
        ({}, 2_506_172_416),
        pytest.param(
            {"dim": 3072, "depth": 28, "heads": 16, "kv_heads": 16, "hidden": 24576},
            8_537_680_896,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_gemma_has_the_sizes_of_transformers(params: dict[str, int], parameters: int) -> None:
    with torch.device("meta"):
        ours, theirs = gemmas(**params)
    assert count(ours) == count(theirs) == parameters


# pi0

PI0 = {
    "image_size": 8, "patch": 4, "vision_dim": 12, "vision_depth": 2, "vision_heads": 2, "vision_hidden": 20, "vocab": 20,
    "dim": 16, "hidden": 24, "expert_dim": 8, "expert_hidden": 12, "depth": 2, "heads": 4, "kv_heads": 1, "head_dim": 6,
    "state_dim": 5, "action_dim": 3, "horizon": 4,
}  # fmt: skip


class LoopedPi0(nn.Module):
    """pi0 out of transformers' PaliGemma and Gemma, token by token and head by head; its names are those of openpi."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        expert = {**sizes, "dim": sizes["expert_dim"], "hidden": sizes["expert_hidden"], "vocab": 1}
        vision = SiglipVisionConfig(
            image_size=sizes["image_size"],
            patch_size=sizes["patch"],
            hidden_size=sizes["vision_dim"],
            num_hidden_layers=sizes["vision_depth"],
            num_attention_heads=sizes["vision_heads"],
            intermediate_size=sizes["vision_hidden"],
            vision_use_head=False,
        )
        both = PaliGemmaConfig(vision, gemma_config(sizes), projection_dim=sizes["dim"])
        self.paligemma_with_expert = nn.ModuleDict(
            {
                "paligemma": PaliGemmaForConditionalGeneration(both),
                "gemma_expert": GemmaForCausalLM(gemma_config(expert)),
            }
        )
        for model in self.paligemma_with_expert.values():
            del model.lm_head
        del self.expert.embed_tokens
        dim = sizes["expert_dim"]
        self.state_proj = nn.Linear(sizes["state_dim"], dim)
        self.action_in_proj = nn.Linear(sizes["action_dim"], dim)
        self.action_time_mlp_in, self.action_time_mlp_out = nn.Linear(2 * dim, dim), nn.Linear(dim, dim)
        self.action_out_proj = nn.Linear(dim, sizes["action_dim"])

    @property
    def language(self) -> nn.Module:
        return self.paligemma_with_expert["paligemma"].model.language_model

    @property
    def expert(self) -> nn.Module:
        return self.paligemma_with_expert["gemma_expert"].model

    def forward(
        self,
        images: Tensor,
        image_mask: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        state: Tensor,
        noisy_action: Tensor,
        time: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The velocity, and what the language model makes of the tokens that are no padding [N, dim]."""
        results = [
            self.one(*arguments)
            for arguments in zip(images, image_mask, tokens, token_mask, state, noisy_action, time, strict=True)
        ]
        return torch.stack([velocity for velocity, _ in results]), torch.cat([prefix for _, prefix in results])

    def one(self, images, image_mask, tokens, token_mask, state, noisy_action, time) -> tuple[Tensor, Tensor]:
        """A single example: what is masked is left out."""
        paligemma = self.paligemma_with_expert["paligemma"].model
        cameras = paligemma.multi_modal_projector(paligemma.vision_tower(images[image_mask]).last_hidden_state)
        words = self.language.embed_tokens(tokens[token_mask]) * self.language.config.hidden_size**0.5
        half = self.state_proj.out_features // 2
        angles = [2 * math.pi * time.item() / (4e-3 * (4 / 4e-3) ** (i / (half - 1))) for i in range(half)]
        clock = torch.tensor([math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles])
        suffix = [self.state_proj(state)]
        for action in noisy_action:
            mixed = self.action_time_mlp_in(torch.cat([self.action_in_proj(action), clock]))
            suffix.append(self.action_time_mlp_out(F.silu(mixed)))
        streams = [torch.cat([cameras.flatten(0, 1), words]), torch.stack(suffix)]
        for layers in zip(self.language.layers, self.expert.layers, strict=True):
            streams = self.layer(layers, streams)
        return self.action_out_proj(self.expert.norm(streams[1])[1:]), self.language.norm(streams[0])

    def layer(self, layers: tuple[nn.Module, ...], streams: list[Tensor]) -> list[Tensor]:
        config = self.language.config
        queries, keys, values = [], [], []  # of all tokens, each [heads, head_dim]
        for layer, stream in zip(layers, streams, strict=True):
            for token in layer.input_layernorm(stream):
                position = len(queries)
                attention = layer.self_attn
                queries.append(turned(attention.q_proj(token).view(config.num_attention_heads, -1), position))
                keys.append(turned(attention.k_proj(token).view(config.num_key_value_heads, -1), position))
                values.append(attention.v_proj(token).view(config.num_key_value_heads, -1))
        read, shared = len(streams[0]), config.num_attention_heads // config.num_key_value_heads
        attended = []
        for i, query in enumerate(queries):
            sees = read if i < read else read + 1 if i == read else len(queries)
            heads = []
            for head, q in enumerate(query):
                scores = torch.stack([q @ key[head // shared] for key in keys[:sees]]) / config.head_dim**0.5
                heads.append(scores.softmax(0) @ torch.stack([value[head // shared] for value in values[:sees]]))
            attended.append(torch.cat(heads))
        results = []
        for layer, stream, rows in zip(layers, streams, (attended[:read], attended[read:]), strict=True):
            h = stream + layer.self_attn.o_proj(torch.stack(rows))
            results.append(h + layer.mlp(layer.post_attention_layernorm(h)))
        return results


def turned(x: Tensor, position: int) -> Tensor:
    """[heads, head_dim], each pair (i, i + head_dim / 2) as a complex number turned by position * 10000 ** (-2i / E)."""
    half = x.shape[-1] // 2
    angle = torch.tensor([position * 10_000 ** (-i / half) for i in range(half)])
    pairs = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones(half), angle)
    return torch.cat([pairs.real, pairs.imag], -1)


def pi0s(**params: Any) -> tuple[GraphModel, LoopedPi0]:
    ours = build_model(ZOO / "pi0" / "pi0.yaml", params=params)
    theirs = LoopedPi0(ours.params)
    theirs.register_state_dict_post_hook(with_heads_over_words)
    return ours, theirs


def with_heads_over_words(model: nn.Module, state_dict: dict[str, Tensor], *_: Any) -> None:
    """What the published weights hold beside: of PaliGemma tied to its embedding, of the expert never used."""
    for name in ("paligemma", "gemma_expert"):
        state_dict[f"paligemma_with_expert.{name}.lm_head.weight"] = torch.zeros(1, 1)


def pi0_inputs(batch: int, cameras: int, text: int) -> dict[str, Tensor]:
    """Of all but the first example a camera is missing and tokens are padding."""
    first = torch.arange(batch) == 0
    return {
        "images": torch.randn(batch, cameras, 3, 8, 8),
        "image_mask": first[:, None] | (torch.arange(cameras) != 1),
        "tokens": torch.randint(0, 20, (batch, text)),
        "token_mask": first[:, None] | (torch.arange(text) < text - 2),
        "state": torch.randn(batch, 5),
        "noisy_action": torch.randn(batch, 4, 3),
        "time": torch.rand(batch),
    }


def call_pi0(inputs: dict[str, Tensor]):
    """What both give: of our prefix the rows that are no padding."""
    valid = torch.cat([inputs["image_mask"].repeat_interleave(4, 1), inputs["token_mask"]], 1)

    def call(model: nn.Module) -> tuple[Tensor, ...]:
        result = model(**inputs)
        return (result["velocity"], result["prefix"][valid]) if isinstance(result, dict) else result

    return call


@pytest.mark.parametrize(
    ("batch", "cameras", "text", "kv_heads"), [(2, 2, 5, 1), pytest.param(1, 3, 3, 2, marks=pytest.mark.slow)]
)
def test_pi0_is_the_loop_over_transformers_layers(batch: int, cameras: int, text: int, kv_heads: int) -> None:
    ours, theirs = pi0s(**{**PI0, "kv_heads": kv_heads})
    prove_equal(ours, theirs, PI0_KEYS, call_pi0(pi0_inputs(batch, cameras, text)))


def test_what_is_masked_changes_no_velocity_of_pi0() -> None:
    ours, inputs = build_model(ZOO / "pi0" / "pi0.yaml", params=PI0), pi0_inputs(2, 2, 5)
    other = pi0_inputs(2, 2, 5)
    images = torch.where(inputs["image_mask"][..., None, None, None], inputs["images"], other["images"])
    tokens = torch.where(inputs["token_mask"], inputs["tokens"], (inputs["tokens"] + 1) % 20)
    changed = ours(**{**inputs, "images": images, "tokens": tokens})
    assert_close(as_tuple(changed["velocity"]), as_tuple(ours(**inputs)["velocity"]))


@pytest.mark.slow
def test_pi0_has_the_size_of_the_published_one() -> None:
    with torch.device("meta"):
        ours, theirs = pi0s()
    assert count(ours) == count(theirs) == 3_238_048_528
