"""Multi-head attention (Vaswani et al. 2017, section 3.2.2) through torch's scaled_dot_product_attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rotary import rotate, rotation


class Attention(nn.Module):
    """Self-attention, or cross-attention when a context is given.

    dim: width of the query and of the result. heads: has to divide dim, unless head_dim [dim / heads] is given.
    kv_heads: heads of keys and values [heads], each shared by heads / kv_heads queries (Ainslie et al. 2023).
    context_dim: width of the context [dim]. bias: of all four projections.
    qk_norm: RMS norm over each head's query and key, before they are turned (Henry et al. 2020, in the form of Qwen3).
    causal: a position sees itself and what is before it. rotary_base: turns queries and keys by their positions, as
    `RotaryEmbedding` does with this base; None for no positions. Both are of self-attention alone.
    dropout: of the attention weights, in training.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        context_dim: int | None = None,
        bias: bool = True,
        qk_norm: bool = False,
        causal: bool = False,
        rotary_base: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if head_dim is None:
            if heads < 1 or dim % heads:
                raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
            head_dim = dim // heads
        if kv_heads is None:
            kv_heads = heads
        elif kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"heads {heads} is not a multiple of kv_heads {kv_heads}")
        if rotary_base is not None and head_dim % 2:
            raise ValueError(f"rotary positions turn pairs of entries; a head_dim of {head_dim} is odd")
        if context_dim is not None and (causal or rotary_base is not None):
            raise ValueError("causal and rotary_base are of self-attention; with a context_dim this attends to another")
        self.heads = heads
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.qk_norm = qk_norm
        self.causal = causal
        self.rotary_base = rotary_base
        self.dropout = dropout
        self.q = nn.Linear(dim, heads * head_dim, bias=bias)
        self.k = nn.Linear(context_dim or dim, kv_heads * head_dim, bias=bias)
        self.v = nn.Linear(context_dim or dim, kv_heads * head_dim, bias=bias)
        self.out = nn.Linear(heads * head_dim, dim, bias=bias)
        if qk_norm:
            self.q_norm = nn.RMSNorm(head_dim, eps=1e-6)
            self.k_norm = nn.RMSNorm(head_dim, eps=1e-6)

    def forward(
        self,
        query: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """query [B, T, dim], context [B, S, context_dim] -> [B, T, dim].

        mask: bool, True where a position may be attended to, or float, added to the scores: [B, S] for keys,
        [B, T, S] for pairs, [B, heads, T, S] for the pairs of each head. A query that may attend to nothing gets
        zeros from the heads, so its result is the bias of `out` (in torch; the ONNX runtime gives it a mean).
        positions: [T] or [B, T], for rotary attention; 0 to T - 1 if absent.
        """
        if context is not None and (self.causal or self.rotary_base is not None):
            raise ValueError("causal and rotary attention are of a sequence with itself; they take no context")
        if positions is not None and self.rotary_base is None:
            raise ValueError("positions are given, but this attention has no rotary_base that would use them")
        context = query if context is None else context
        q_BHTE, k_BHSE, v_BHSE = self._split(self.q(query)), self._split(self.k(context)), self._split(self.v(context))
        if self.qk_norm:
            q_BHTE, k_BHSE = self.q_norm(q_BHTE), self.k_norm(k_BHSE)
        if self.rotary_base is not None:
            cos, sin = rotation(q_BHTE, positions, self.rotary_base)
            q_BHTE, k_BHSE = rotate(q_BHTE, cos, sin), rotate(k_BHSE, cos, sin)
        heads_BHTE = F.scaled_dot_product_attention(
            q_BHTE,
            k_BHSE,
            v_BHSE,
            attn_mask=None if mask is None else self._over_heads(mask),
            is_causal=self.causal and mask is None,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.kv_heads != self.heads,
        )
        return self.out(heads_BHTE.transpose(1, 2).flatten(-2))

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, H * E] -> [B, H, T, E]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _over_heads(self, mask: Tensor) -> Tensor:
        """A mask as scaled_dot_product_attention takes it: [B, 1 or H, 1 or T, S], with the future closed if causal."""
        if mask.ndim == 2:
            mask = mask[:, None, None]
        elif mask.ndim == 3:
            mask = mask[:, None]
        if not self.causal:
            return mask
        steps = torch.arange(mask.shape[-1], device=mask.device)
        past = steps[:, None] >= steps
        return mask & past if mask.dtype == torch.bool else mask.masked_fill(~past, -torch.inf)
