"""Vectors replaced by the nearest of a learned set of codes (van den Oord et al. 2017, section 3.1)."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor, nn


class VectorQuantizer(nn.Module):
    """A codebook, and how a gradient passes the choice of a code.

    Straight through (van den Oord et al. 2017, section 3.2), the gradient of the code goes to x unchanged and the
    codebook gets none; it is trained by the second term of their equation 3, the distance of x and
    `embedding(chosen, quantizer.codebook)`. With noise_substitution (NSVQ, Vali & Backstrom 2022), the error of the
    code is replaced, in training, by noise of the same length, through which x and the codebook both learn from the
    task alone.
    """

    uses: Tensor  # [codes], how often each was the nearest in training since the last replacement

    def __init__(self, codes: int, dim: int, *, noise_substitution: bool = False) -> None:
        super().__init__()
        self.noise_substitution = noise_substitution
        self.codebook = nn.Parameter(torch.empty(codes, dim))
        self.register_buffer("uses", torch.zeros(codes, dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / self.codebook.shape[0]
        nn.init.uniform_(self.codebook, -bound, bound)
        nn.init.zeros_(self.uses)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., dim] -> quantized [..., dim], chosen [...], the index of the nearest code (Euclidean, in float32).

        Except in training with noise substitution, `quantized` is exactly the code.
        """
        chosen = self.nearest(x)
        code = F.embedding(chosen, self.codebook)
        if self.training:
            self.uses.scatter_add_(0, chosen.flatten(), torch.ones_like(chosen.flatten()))
        if self.training and self.noise_substitution:
            direction = F.normalize(torch.randn_like(x), dim=-1)
            return x + (x - code).norm(dim=-1, keepdim=True) * direction, chosen
        return code.detach() + (x - x.detach()), chosen

    @torch.no_grad()
    def nearest(self, x: Tensor) -> Tensor:
        """x [..., dim] -> chosen [...], as `forward` gives it; no use is counted."""
        return _nearest(x.float(), self.codebook.float())

    @torch.no_grad()
    def replace_dead_codes(self, least_uses: int = 1, spread: float = 0.02) -> Tensor:
        """Move codes used less than `least_uses` times since the last call beside others, drawn by use. -> bool [codes]

        spread: standard deviation of the noise that parts a moved code from the one it was moved to.
        The result is True where a code was replaced; an optimizer's state of these rows of `codebook` is of a code
        that is gone. If no code was used enough, none is replaced. Every process of a distributed run has to call
        it: their counts are added up (DDP's `broadcast_buffers` leaves of them those of the first process alone), and
        all get the same codebook. Nothing here waits for the device.
        """
        together = distributed.is_available() and distributed.is_initialized()
        if together:
            distributed.all_reduce(self.uses)
        alive = self.uses >= least_uses
        dead = ~alive & alive.any()
        share = torch.where(alive.any(), self.uses * alive, 1).float()
        donors = self.codebook[torch.multinomial(share, share.numel(), replacement=True)]
        fresh = donors + spread * torch.randn_like(donors)
        self.codebook.copy_(torch.where(dead[:, None], fresh, self.codebook))
        if together:
            distributed.broadcast(self.codebook, src=0)
        self.uses.zero_()
        return dead


def _nearest(x: Tensor, codes: Tensor) -> Tensor:
    """[..., dim] -> [...]: the argmin of |x - code|^2, without |x|^2, which is the same for all codes."""
    # In half precision, as autocast would have it, near codes are mixed up. The meta device knows no autocast.
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        return (codes.square().sum(-1) - 2 * x @ codes.mT).argmin(-1)
