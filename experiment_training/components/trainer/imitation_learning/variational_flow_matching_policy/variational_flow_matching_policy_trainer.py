"""Variational flow-matching policy: a latent says which way to act, a gate which experts lead there.

VFP (Zhai et al. 2025, arXiv 2508.01622). `info_embedder(state, tokens) -> context`, `prior(context)` and
`posterior(context, None, action, is_pad) -> mean, log variance`, `gate(latent, state) -> weights, logits` [B, E],
`action_decoder(x_t, time, context, latent) -> velocities` [B, E, T, A].
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
from experiment_training.components.loss.mixture_of_experts import gated_velocity_loss
from experiment_training.components.loss.sinkhorn_knopp import SinkhornKnopp
from experiment_training.components.trainer.flow_policy import DECODER, STATE, FlowPolicyTrainer
from trainer.registry import LOSS_BUILDER_REGISTRY, TRAINER_REGISTRY
from trainer.templates import StepOutput

Latent = Literal["sample", "mean"]
Mixture = Literal["weighted", "top"]


@TRAINER_REGISTRY.register("variational_flow_matching_policy_trainer")
class VariationalFlowMatchingPolicyTrainer(FlowPolicyTrainer):
    """All terms are means over the chunks of a batch, so a step's weight is its batch size.

    Nothing is counted outside gradients: the experts' shares are metrics, which travel when a line is written.
    """

    name = "variational_flow_matching_policy_trainer"
    components = ("info_embedder", "posterior", "prior", "gate", DECODER)
    needs_camera = False  # a policy of states alone has an info_embedder of the state
    agreeing: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "latent_dim": ("posterior", "prior", "gate", DECODER),
        "experts": ("gate", DECODER),
        "horizon": ("posterior", DECODER),
        "action_dim": ("posterior", DECODER),
    }

    def __init__(
        self,
        models: nn.ModuleDict,
        optimizers: Mapping[str, Optimizer],
        loss: nn.Module,
        device: torch.device | str,
        kl_weight: float = 0.05,
        sinkhorn_weight: float = 0.01,
        router_z_weight: float = 0.001,
        balance_weight: float = 0.1,
        latent: Latent = "sample",  # of the prior, in prediction
        mixture: Mixture = "weighted",  # what prediction follows: the experts' velocities by weight, or the heaviest's
        path: str = "straight",
        time: str = "uniform",
        noise_at: Literal[0, 1] = 0,
        cutoff: float = 1.0,
        integration_steps: int = 10,
        solver: Solver = "euler",
        execute_steps: int | None = None,
        ensemble_decay: float | None = None,
    ) -> None:
        given = {"kl": kl_weight, "sinkhorn": sinkhorn_weight, "router_z": router_z_weight, "balance": balance_weight}
        self.term_weights, self.latent, self.mixture = given, latent, mixture
        flow = LOSS_BUILDER_REGISTRY.get("flow_matching")(path, time, noise_at, cutoff).build()
        self.router_z = LOSS_BUILDER_REGISTRY.get("router_z_loss")(coefficient=1.0).build()
        self.balance = LOSS_BUILDER_REGISTRY.get("switch_load_balancing_loss")(coefficient=1.0).build()
        options = (integration_steps, solver, execute_steps, ensemble_decay)
        super().__init__(models, optimizers, loss, device, flow, *options)

    def compute_loss(self, batch: dict[str, Any]) -> StepOutput:
        is_pad = batch["action_is_pad"]  # [B, T]
        action = self.chunk(batch).masked_fill(is_pad[..., None], 0.0)  # a decoder's steps see each other
        context = self.context(batch)
        posterior, prior = self.models["posterior"](context, None, action, is_pad), self.models["prior"](context)
        latent = sample(*posterior)  # [B, Z]
        weights, logits = self.models["gate"](latent, batch[STATE])  # [B, E]
        point = self.flow.sample(action)
        velocities = self.models[DECODER](point.x_t, point.time, context, latent)  # [B, E, T, A]
        flow = gated_velocity_loss(velocities, point.velocity, weights, ~is_pad)
        terms = {"kl": gaussian_kl(*posterior, *prior).mean()}
        terms |= {"router_z": self.router_z(logits), "balance": self.balance(logits)}
        if self.term_weights["sinkhorn"]:
            ahead = self.flow.action_ahead(point, self.mixed(velocities, weights))  # [B, T, A]
            terms["sinkhorn"] = self.loss(ahead, action, batch[STATE], ~is_pad)
        loss = flow + sum(self.term_weights[name] * term for name, term in terms.items())
        shares = {f"expert_share/{expert}": share for expert, share in enumerate(weights.mean(0))}
        return StepOutput(loss, {name: one.detach() for name, one in {"flow": flow, **terms, **shares}.items()})

    def context(self, batch: dict[str, Any]) -> Tensor:
        """What all other components know of the observation, [B, S, D]."""
        seen = self.tokens(batch)  # nothing, for a policy of states alone
        return self.models["info_embedder"](batch[STATE], *([torch.cat(seen, 1)] if seen else []))

    def condition(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """-> context [B, S, D], latent [B, Z], the experts' weights [B, E]."""
        context = self.context(batch)
        mean, log_variance = self.models["prior"](context)
        latent = sample(mean, log_variance, generator) if self.latent == "sample" else mean
        return context, latent, self.models["gate"](latent, batch[STATE])[0]

    def velocity(self, x_t: Tensor, time: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        context, latent, weights = condition
        return self.mixed(self.models[DECODER](x_t, time, context, latent), weights)

    def mixed(self, velocities: Tensor, weights: Tensor) -> Tensor:
        """[B, E, T, A], [B, E] -> [B, T, A]."""
        if self.mixture == "top":
            weights = nn.functional.one_hot(weights.argmax(-1), weights.shape[-1])
        return (weights[..., None, None] * velocities).sum(1)

    def wrong(self) -> Iterator[tuple[str, str]]:
        yield from super().wrong()
        if not isinstance(self.loss, SinkhornKnopp):
            yield f"it cannot train with {type(self.loss).__name__}", "loss: {type: sinkhorn_knopp}"
        for name, weight in self.term_weights.items():
            if type(weight) not in (int, float) or not 0 <= weight < math.inf:
                yield f"{name}_weight is {weight!r}", "a number from 0, which leaves the term out"
        if self.term_weights["kl"] == 0:
            yield "kl_weight is 0, and nothing else teaches the prior", "a number above 0"
        for name, choices in {"latent": Latent, "mixture": Mixture}.items():
            if getattr(self, name) not in get_args(choices):
                yield f"{name} is {getattr(self, name)!r}", f"one of {', '.join(get_args(choices))}"
