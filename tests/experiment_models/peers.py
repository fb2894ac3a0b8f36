"""The models of the zoo beside their references, as docs/zoo.md compares them: sizes, weights, inputs of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import timm
import torch
from proof import ZOO, Call
from test_zoo_diffusion_transformer import call_theirs as call_diffusers
from test_zoo_diffusion_transformer import dit_inputs, dits
from test_zoo_encoders import keypoint_encoders, resamplers, siglips
from test_zoo_gemma import GEMMA, GEMMA_KEYS, PI0, PI0_KEYS, call_pi0, gemmas, pi0_inputs, pi0s
from test_zoo_gpt import gpts
from test_zoo_groot import HEAD, heads, sampled, vls
from test_zoo_groot import dits as groots
from test_zoo_policies import ACT_KEYS, UNET_KEYS, act_inputs, acts, lerobots_unet
from test_zoo_policies import call_theirs as call_act
from test_zoo_transformer import both as transformers
from torch import nn

from model_constructor import build_model
from model_constructor.key_map import KeySource


class Peers(NamedTuple):
    """A model, its reference, and how each is called."""

    ours: nn.Module
    theirs: nn.Module
    keys: KeySource
    call: Call
    call_theirs: Call | None = None


@dataclass(frozen=True)
class Entry:
    """A line of the page. `reference`: modules, each before what it defines of the reference.

    params: what the file does not say itself. small: compared at the sizes of the tests. depth: unfolded in the picture.
    """

    file: str
    reference: str
    peers: Callable[[], Peers]
    params: Mapping[str, Any] = field(default_factory=dict)
    small: bool = False
    keyed: bool = True
    depth: int = 0

    @property
    def keys(self) -> str | None:
        """The file of the key map, beside the file or beside its folder."""
        if not self.keyed:
            return None
        beside = self.file.replace(".yaml", ".keys.yaml")
        return beside if (ZOO / beside).exists() else beside.split("/")[-1]


def of_images(name: str, reference: str, keys: KeySource) -> Peers:
    image = torch.randn(2, 3, 224, 224)
    return Peers(build_model(ZOO / name), timm.create_model(reference), keys, lambda model: model(image))


def siglip() -> Peers:
    image = torch.randn(1, 3, 224, 224)
    return Peers(*siglips(), lambda model: model(image), lambda model: model(image).last_hidden_state)


def diffusion_encoder() -> Peers:
    image = torch.rand(2, 3, 96, 96)
    return Peers(*keypoint_encoders(), lambda model: model(image))


def perceiver_resampler() -> Peers:
    features = torch.randn(2, 300, 1024)
    return Peers(*resamplers(), lambda model: model(features))


def encoder() -> Peers:
    x = torch.randn(2, 50, 512)
    ours, theirs, keys = transformers("encoder", 512, 8, 6, 2048)
    return Peers(ours.float(), theirs.float(), keys, lambda model: model(x))


def decoder() -> Peers:
    x, memory = torch.randn(2, 50, 512), torch.randn(2, 30, 512)
    ours, theirs, keys = transformers("decoder", 512, 8, 6, 2048)
    return Peers(ours.float(), theirs.float(), keys, lambda model: model(x, memory))


def gpt() -> Peers:
    x = torch.randn(2, 100, 20)
    return Peers(*gpts(in_dim=20, out_dim=30, dropout=0.0), lambda model: model(x))


def diffusion_unet() -> Peers:
    inputs = torch.randn(2, 16, 2), torch.randint(0, 100, (2,)), torch.randn(2, 132)
    ours = build_model(ZOO / "diffusion_unet.yaml", params={"obs_dim": 132})
    return Peers(ours, lerobots_unet(action_dim=2, obs_dim=132), UNET_KEYS, lambda model: model(*inputs))


def act() -> Peers:
    ours, theirs = acts(dropout=0.0)
    inputs = act_inputs(ours.params, 2, (64, 96))

    def some(outputs: tuple) -> tuple:
        return tuple(output for output in outputs if output is not None)

    def ours_of_seed(model: nn.Module) -> tuple:
        torch.manual_seed(1)  # of the noise in the latent
        return some(model(**inputs))

    def theirs_of_seed(model: nn.Module) -> tuple:
        torch.manual_seed(1)
        outputs = call_act(model, inputs)
        return some(outputs if model.training else (outputs[0],))

    return Peers(ours, theirs, ACT_KEYS, ours_of_seed, theirs_of_seed)


def dit() -> Peers:
    ours, theirs, keys = dits(label_dropout=0.0)
    inputs = dit_inputs(1, ours.params)
    return Peers(ours, theirs, keys, lambda model: model(*inputs), call_diffusers(inputs))


def gemma() -> Peers:
    tokens = torch.randint(0, 20, (2, 7))
    return Peers(*gemmas(**GEMMA), GEMMA_KEYS, lambda m: m(tokens), lambda m: m(tokens).last_hidden_state)


def pi0() -> Peers:
    return Peers(*pi0s(**PI0), PI0_KEYS, call_pi0(pi0_inputs(2, 2, 5)))


def groot_dit() -> Peers:
    inputs = torch.randn(1, 49, 1536), torch.randn(1, 60, 2048), torch.tensor([250])
    return Peers(*groots(dropout=0.0), lambda model: model(*inputs))


def groot_vl() -> Peers:
    h = torch.randn(1, 60, 2048)
    return Peers(*vls(dropout=0.0), lambda model: model(h))


def groot_head(name: str) -> Peers:
    call = sampled(torch.randn(3, 7, 12), torch.randn(3, 1, 5), torch.tensor([2, 0, 1]), horizon=4, steps=4)
    return Peers(*heads(name, **HEAD), call)


TIMM = "timm.models.resnet ResNet make_blocks downsample_conv get_padding drop_blocks"
TORCHVISION = "torchvision.models.resnet ResNet BasicBlock conv3x3 conv1x1"
ACT = (
    "lerobot.policies.act.modeling_act ACT ACTEncoder ACTEncoderLayer ACTDecoder ACTDecoderLayer "
    f"ACTSinusoidalPositionEmbedding2d create_sinusoidal_pos_embedding get_activation_fn {TORCHVISION}"
)
SIGLIP = (
    "transformers.models.siglip.modeling_siglip SiglipVisionModel SiglipVisionTransformer SiglipVisionEmbeddings "
    "SiglipEncoder SiglipEncoderLayer SiglipMultiheadAttentionPoolingHead"
)
GEMMA_CLASSES = "transformers.models.gemma.modeling_gemma GemmaModel GemmaDecoderLayer GemmaRMSNorm"
PI0_CLASSES = (
    "lerobot.policies.pi0.modeling_pi0 PI0Pytorch PaliGemmaWithExpertModel compute_layer_complete "
    f"create_sinusoidal_pos_embedding make_att_2d_masks {SIGLIP}"
)
GROOT = "lerobot.policies.groot.action_head"
GROOT_LAYER = f"{GROOT}.cross_attention_dit BasicTransformerBlock"
GROOT_DIT = f"{GROOT_LAYER} DiT AdaLayerNorm TimestepEncoder"
GROOT_HEAD = (
    f"{GROOT}.flow_matching_action_head FlowmatchingActionHead CategorySpecificLinear CategorySpecificMLP "
    f"MultiEmbodimentActionEncoder {GROOT}.action_encoder SinusoidalPositionalEncoding swish {GROOT_DIT}"
)

ENTRIES = (
    Entry("resnet18.yaml", f"{TIMM} BasicBlock", lambda: of_images("resnet18.yaml", "resnet18", {}), keyed=False),
    Entry("resnet50.yaml", f"{TIMM} Bottleneck", lambda: of_images("resnet50.yaml", "resnet50", {}), keyed=False),
    Entry(
        "vit_tiny.yaml",
        "timm.models.vision_transformer VisionTransformer Block timm.layers.patch_embed PatchEmbed",
        lambda: of_images("vit_tiny.yaml", "vit_tiny_patch16_224", ZOO / "vit_tiny.keys.yaml"),
        depth=1,
    ),
    Entry("siglip.yaml", SIGLIP, siglip, depth=1),
    Entry(
        "diffusion_encoder.yaml",
        f"lerobot.policies.diffusion.modeling_diffusion DiffusionRgbEncoder _replace_submodules {TORCHVISION}",
        diffusion_encoder,
    ),
    Entry(
        "perceiver_resampler.yaml",
        "transformers.models.idefics.perceiver IdeficsPerceiverResampler IdeficsPerceiverAttention IdeficsMLP",
        perceiver_resampler,
        depth=1,
    ),
    Entry(
        "transformer/encoder.yaml",
        "torch.nn.modules.transformer TransformerEncoder TransformerEncoderLayer",
        encoder,
        depth=1,
    ),
    Entry(
        "transformer/decoder.yaml",
        "torch.nn.modules.transformer TransformerDecoder TransformerDecoderLayer",
        decoder,
        depth=1,
    ),
    Entry("gpt.yaml", "lerobot.policies.vqbet.vqbet_utils GPT Block", gpt, {"in_dim": 20, "out_dim": 30}, depth=1),
    Entry("gemma/gemma.yaml", GEMMA_CLASSES, gemma, small=True, depth=1),
    Entry(
        "diffusion_unet.yaml",
        "lerobot.policies.diffusion.modeling_diffusion DiffusionConditionalUnet1d DiffusionConditionalResidualBlock1d "
        "DiffusionConv1dBlock DiffusionSinusoidalPosEmb",
        diffusion_unet,
        {"obs_dim": 132},
    ),
    Entry("act/act.yaml", ACT, act),
    Entry(
        "dit.yaml",
        "diffusers.models.transformers.dit_transformer_2d DiTTransformer2DModel diffusers.models.attention "
        "BasicTransformerBlock diffusers.models.normalization AdaLayerNormZero diffusers.models.embeddings PatchEmbed "
        "CombinedTimestepLabelEmbeddings LabelEmbedding get_2d_sincos_pos_embed",
        dit,
        depth=1,
    ),
    Entry("groot/dit.yaml", GROOT_DIT, groot_dit, depth=1),
    Entry("groot/vl_self_attention.yaml", f"{GROOT_LAYER} SelfAttentionTransformer", groot_vl, depth=1),
    Entry("groot/head.yaml", f"{GROOT_HEAD} SelfAttentionTransformer", lambda: groot_head("head"), small=True),
    Entry("groot/head_n1.yaml", GROOT_HEAD, lambda: groot_head("head_n1"), small=True),
    Entry("pi0/pi0.yaml", PI0_CLASSES, pi0, small=True),
)
