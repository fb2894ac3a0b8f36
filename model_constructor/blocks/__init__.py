"""Modules that torch does not have: one idea per file, each of use in any project."""

from .attention import Attention
from .embedding import SinusoidalEmbedding
from .mlp import MLP

__all__ = ["MLP", "Attention", "SinusoidalEmbedding"]
