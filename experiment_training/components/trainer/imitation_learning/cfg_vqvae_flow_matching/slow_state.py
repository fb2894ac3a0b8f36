"""Slow state: what updates change outside of gradients, equally on all processes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from model_constructor.blocks import VectorQuantizer
from trainer.averaging import decay_at
from trainer.config.schemas import Ema
from trainer.distributed import World


class SlowState:
    """The number of updates, an exponential moving average of the posterior, and the codes.

    Codes that were used less than `least_uses` times in `replace_every` updates are moved beside others, and the
    optimizer forgets what it knew of them. A codebook without an optimizer is frozen: it stays as it is.
    """

    def __init__(
        self,
        posterior: nn.Module,
        quantizer: VectorQuantizer,
        optimizer: Optimizer | None,
        decay: float,
        replace_every: int,
        least_uses: int,
    ) -> None:
        self.updates = 0
        self.posterior, self.decay = posterior, Ema(decay=decay)
        self.averaged = copy.deepcopy(posterior).requires_grad_(False).eval()
        self.quantizer, self.optimizer = quantizer, optimizer
        self.replace_every, self.least_uses = replace_every, least_uses

    @torch.no_grad()
    def code_of(self, *demonstration: Tensor | None) -> Tensor:
        """What the averaged posterior takes a demonstration for: [B], places in the codebook."""
        return self.quantizer.nearest(self.averaged(*demonstration))

    @torch.no_grad()
    def after_update(self, world: World) -> None:
        self.updates += 1
        self._follow(1 - decay_at(self.updates, self.decay))
        if self.optimizer is not None and self.updates % self.replace_every == 0:
            self._replace(self.optimizer)
        else:
            world.sum_(self.quantizer.uses)
            self._count_on_first(world)

    def _follow(self, share: float) -> None:
        torch._foreach_lerp_([*self.averaged.parameters()], [*self.posterior.parameters()], share)
        for averaged, own in zip(self.averaged.buffers(), self.posterior.buffers(), strict=True):
            averaged.copy_(own)

    def _replace(self, optimizer: Optimizer) -> None:
        dead = self.quantizer.replace_dead_codes(self.least_uses)  # [K]; the counts of all begin anew
        codebook = self.quantizer.codebook  # [K, Z]
        for known in optimizer.state[codebook].values():
            if isinstance(known, Tensor) and known.shape == codebook.shape:
                known.masked_fill_(dead[:, None], 0.0)

    def _count_on_first(self, world: World) -> None:
        """A checkpoint keeps the buffers of the first process, so that one holds the counts of all."""
        if not world.is_first:
            self.quantizer.uses.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The counts are a buffer of the codebook."""
        return {"updates": self.updates, "averaged": self.averaged.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], world: World) -> None:
        self.updates = state["updates"]
        self.averaged.load_state_dict(state["averaged"])
        self._count_on_first(world)
