"""Multi-head attention (Vaswani et al. 2017, section 3.2.2) through torch's scaled_dot_product_attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention, or cross-attention when a context is given.

    dim: width of the query and of the result. heads: has to divide dim. context_dim: width of the context [dim].
    """

    def __init__(self, dim: int, heads: int = 8, *, context_dim: int | None = None, bias: bool = True) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=bias)
        self.k = nn.Linear(context_dim or dim, dim, bias=bias)
        self.v = nn.Linear(context_dim or dim, dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, query: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """query [B, T, dim], context [B, S, context_dim] -> [B, T, dim].

        mask: bool, True where a position may be attended to: [B, S] for keys, [B, T, S] for pairs.
        """
        context = query if context is None else context
        q_BHTE, k_BHSE, v_BHSE = (
            projection.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q(query), self.k(context), self.v(context))
        )
        if mask is not None:
            mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]  # over heads (and queries)
        heads_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BHSE, v_BHSE, attn_mask=mask)
        return self.out(heads_BHTE.transpose(1, 2).flatten(-2))
