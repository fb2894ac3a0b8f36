"""Modules that torch does not have: one idea per file, each of use in any project. docs/blocks.md lists them."""

from .attention import Attention
from .embedding import SinusoidalEmbedding
from .frozen_batch_norm import FrozenBatchNorm
from .gate import NoisyTopKGate
from .hugging_face_backbone import HuggingFaceBackbone
from .mlp import MLP, GatedMLP
from .rotary import RotaryEmbedding
from .spatial_soft_argmax import SpatialSoftArgmax
from .timm_backbone import TimmBackbone
from .vector_quantizer import VectorQuantizer

__all__ = [
    "MLP",
    "Attention",
    "FrozenBatchNorm",
    "GatedMLP",
    "HuggingFaceBackbone",
    "NoisyTopKGate",
    "RotaryEmbedding",
    "SinusoidalEmbedding",
    "SpatialSoftArgmax",
    "TimmBackbone",
    "VectorQuantizer",
]
