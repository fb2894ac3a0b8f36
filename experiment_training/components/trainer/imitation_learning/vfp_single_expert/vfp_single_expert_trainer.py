"""Variational flow policy of a single expert: one velocity field, which a latent tells the mode of the demonstration.

After VFP (Zhai et al. 2025, arXiv 2508.01622), without its mixture of experts. `info_embedder(state, tokens, mask) ->
context, mask`; `posterior(context, mask, action, is_pad)` and `prior(context, mask) -> mean, log variance of the
latent`; `action_decoder(x_t, time, context, mask, latent) -> velocity`; `depth_encoder(image) -> depth tokens` and
`multimodal_bridge(tokens, depth tokens) -> tokens`. The two pairs are optional.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiment_training.components.loss.flow_matching import Solver
from experiment_training.components.loss.gaussian_kl import gaussian_kl, sample
from experiment_training.components.loss.sinkhorn_knopp import SinkhornKnopp
from experiment_training.components.trainer.flow_policy import DECODER, IMAGES, STATE, FlowPolicyTrainer
from trainer.registry import LOSS_BUILDER_REGISTRY, TRAINER_REGISTRY
from trainer.templates import StepOutput

LATENT, DEPTH = ("posterior", "prior"), ("depth_encoder", "multimodal_bridge")
Latent = Literal["sample", "mean"]


@TRAINER_REGISTRY.register("vfp_single_expert_trainer")
class VfpSingleExpertTrainer(FlowPolicyTrainer):
    """flow + kl_weight * KL(posterior || prior) + sinkhorn_weight * the loss between predicted and shown chunks.

    camera_dropout [0.15, with two cameras or more]: the probability that a sample of training is without a camera; it
    is never without all. kl_weight [0.01] and latent [sample], of the prior in prediction, belong to the pair.
    """

    name = "vfp_single_expert_trainer"
    components = ("info_embedder", DECODER)
    optional = (*LATENT, *DEPTH)
    needs_camera = True
    agreeing: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "latent_dim": (*LATENT, DECODER),
        "horizon": ("posterior", DECODER),
        "action_dim": ("posterior", DECODER),
    }

    def __init__(
        self,
        models: nn.ModuleDict,
        optimizers: Mapping[str, Optimizer],
        loss: SinkhornKnopp,
        device: torch.device | str,
        sinkhorn_weight: float = 0.01,
        kl_weight: float | None = None,
        latent: Latent | None = None,
        camera_dropout: float | None = None,
        path: str = "straight",
        time: str = "uniform",
        noise_at: Literal[0, 1] = 0,
        cutoff: float = 1.0,
        integration_steps: int = 10,
        solver: Solver = "euler",
        execute_steps: int | None = None,
        ensemble_decay: float | None = None,
    ) -> None:
        flow = LOSS_BUILDER_REGISTRY.get("flow_matching")(path, time, noise_at, cutoff).build()
        self.given = {"kl_weight": kl_weight, "latent": latent, "camera_dropout": camera_dropout}
        self.sinkhorn_weight = sinkhorn_weight
        self.kl_weight = 1e-2 if kl_weight is None else kl_weight
        self.latent = latent or "sample"
        self.camera_dropout = 0.15 if camera_dropout is None else camera_dropout
        execution = (integration_steps, solver, execute_steps, ensemble_decay)
        super().__init__(models, optimizers, loss, device, flow, *execution)

    def compute_loss(self, batch: dict[str, Any]) -> StepOutput:
        is_pad = batch["action_is_pad"]  # [B, T]
        valid = ~is_pad
        action = self.chunk(batch).masked_fill(is_pad[..., None], 0.0)  # a decoder that is not causal sees all steps
        condition = self.context(batch)
        terms, latent = {}, []
        if self.has(LATENT):
            posterior = self.models["posterior"](*condition, action, is_pad)
            divergence = gaussian_kl(*posterior, *self.models["prior"](*condition))  # [B]
            # A mean over valid steps, as the flow's: parts of a batch then add up to the whole.
            terms["kl"] = (divergence * valid.sum(1)).sum() / valid.sum().clamp(min=1)
            latent = [sample(*posterior)]
        point = self.flow.sample(action)
        velocity = self.velocity(point.x_t, point.time, (*condition, *latent))
        terms["flow"] = self.flow(velocity, point.velocity, valid)
        loss = terms["flow"] + self.kl_weight * terms.get("kl", 0.0)
        if self.sinkhorn_weight:
            terms["sinkhorn"] = self.loss(self.flow.action_ahead(point, velocity), action, batch[STATE], valid)
            loss = loss + self.sinkhorn_weight * terms["sinkhorn"]
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()}, weight=valid.sum())

    def condition(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        context, mask = self.context(batch)
        if not self.has(LATENT):
            return context, mask
        mean, log_variance = self.models["prior"](context, mask)
        return context, mask, mean if self.latent == "mean" else sample(mean, log_variance, generator)

    def context(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """What is known of the observation [B, S, D], and where it may be attended to [B, S]."""
        seen = self.tokens(batch)
        mask = None
        if self.models.training and self.camera_dropout and len(seen) > 1:
            draw = torch.rand(len(seen[0]), len(seen), device=self.device)
            kept = (draw >= self.camera_dropout) | (draw == draw.amax(1, keepdim=True))  # [B, cameras], one at least
            mask = torch.cat([kept[:, at, None].expand(-1, one.shape[1]) for at, one in enumerate(seen)], 1)
        return self.models["info_embedder"](batch[STATE], torch.cat(seen, 1), mask)

    def tokens(self, batch: dict[str, Any]) -> list[Tensor]:
        seen = super().tokens(batch)
        if not self.has(DEPTH):
            return seen
        return [
            self.models["multimodal_bridge"](tokens, self.of_images("depth_encoder", batch[IMAGES + camera]))
            for camera, tokens in zip(self.cameras, seen, strict=True)
        ]

    def has(self, pair: tuple[str, str]) -> bool:
        return pair[0] in self.models

    def wrong(self) -> Iterator[tuple[str, str]]:
        yield from super().wrong()
        for pair in (LATENT, DEPTH):
            if len(self.models.keys() & {*pair}) == 1:
                yield f"of {' and '.join(pair)} one is missing", "they come together, or not at all"
        latent_dim = getattr(dict(self.models.items()).get(DECODER), "params", {}).get("latent_dim")
        if latent_dim and not self.has(LATENT):
            yield f"latent_dim is {latent_dim} in the {DECODER}", "0 without posterior and prior, which give the latent"
        idle = {} if self.has(LATENT) else dict.fromkeys(("kl_weight", "latent"), "posterior and prior")
        idle |= {} if len(self.cameras) > 1 else {"camera_dropout": "a second camera"}
        for name, needed in idle.items():
            if self.given[name] is not None:
                yield f"{name} has no effect without {needed}", f"remove {name}"
        for name, fits, right in (
            ("kl_weight", 0 < self.kl_weight < math.inf, "a number above 0: nothing else teaches the prior"),
            ("sinkhorn_weight", 0 <= self.sinkhorn_weight < math.inf, "a number from 0, which leaves the term out"),
            ("camera_dropout", 0 <= self.camera_dropout < 1, "a number from 0, and below 1"),
            ("latent", self.latent in get_args(Latent), "sample or mean"),
        ):
            if not fits:
                yield f"{name} is {getattr(self, name)!r}", right
        if not isinstance(self.loss, SinkhornKnopp):
            yield f"it cannot train with {type(self.loss).__name__}", "loss: {type: sinkhorn_knopp}"
