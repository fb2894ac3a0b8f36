"""Flow matching guided by a code: a codebook names the ways to act, the prior picks one, guidance insists on it.

`info_embedder(state, tokens) -> context`, `posterior(context, None, action, is_pad) -> vector` [B, Z],
`codebook(vector) -> code, its place` [B, Z] and [B], `prior(context) -> logits` [B, K],
`action_decoder(x_t, time, context, code, is_given) -> velocity`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from experiment_training.components.loss.flow_matching import FlowMatching, Solver
from experiment_training.components.trainer.flow_policy import DECODER, STATE, FlowPolicyTrainer
from experiment_training.components.trainer.imitation_learning.cfg_vqvae_flow_matching.slow_state import SlowState
from model_constructor.blocks import VectorQuantizer
from trainer.registry import TRAINER_REGISTRY
from trainer.templates import Batch, Seed, StepOutput

Code = Literal["sample", "best"]


@TRAINER_REGISTRY.register("cfg_vqvae_flow_matching_trainer")
class CfgVqvaeFlowMatchingTrainer(FlowPolicyTrainer):
    """flow + prior_weight * the cross-entropy of the prior with the code that an average of the posterior gives.

    Between codes there is nothing, so the prior is a distribution over them (van den Oord et al. 2017, section 3.3):
    a distance to the code would have it predict the mean of two ways. Its target is the posterior's exponential
    moving average, which does not change its mind from update to update (Grill et al. 2020, arXiv 2006.07733).
    """

    name = "cfg_vqvae_flow_matching_trainer"
    components = ("info_embedder", "posterior", "codebook", "prior", DECODER)
    needs_camera = True
    agreeing: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "code_dim": ("posterior", "codebook", DECODER),
        "codes": ("codebook", "prior"),
        "horizon": ("posterior", DECODER),
        "action_dim": ("posterior", DECODER),
    }

    def __init__(
        self,
        models: nn.ModuleDict,
        optimizers: Mapping[str, Optimizer],
        loss: FlowMatching,
        device: torch.device | str,
        prior_weight: float = 1.0,
        posterior_decay: float = 0.999,  # of the average that the prior learns from
        replace_every: int = 100,  # updates; codes with fewer than `least_uses` since the last time are moved
        least_uses: int = 1,
        code_dropout: float = 0.1,  # the share of samples whose velocity is learned without the code
        code_dropout_start: float | None = None,  # it goes from here to `code_dropout`, in a line,
        code_dropout_updates: int | None = None,  # over so many updates
        guidance_weight: float = 1.5,  # 0: as if there were no code; 1: the velocity learned with it; above: further
        code: Code = "sample",  # of the prior, in prediction
        integration_steps: int = 10,
        solver: Solver = "euler",
        execute_steps: int | None = None,
        ensemble_decay: float | None = None,
    ) -> None:
        self.prior_weight, self.posterior_decay = prior_weight, posterior_decay
        self.replace_every, self.least_uses = replace_every, least_uses
        self.code_dropout, self.code_dropout_updates = code_dropout, code_dropout_updates
        self.code_dropout_start = code_dropout if code_dropout_start is None else code_dropout_start
        self.is_scheduled = code_dropout_start is not None
        self.guidance_weight, self.code = guidance_weight, code
        codebook = models["codebook"].modules() if "codebook" in models else ()
        quantizer = next((one for one in codebook if isinstance(one, VectorQuantizer)), None)
        self.is_taught = quantizer is not None and quantizer.noise_substitution
        options = (integration_steps, solver, execute_steps, ensemble_decay)
        super().__init__(models, optimizers, loss, device, loss, *options)
        assert quantizer is not None
        learner = self.optimizers.get("codebook")
        self.slow = SlowState(models["posterior"], quantizer, learner, posterior_decay, replace_every, least_uses)

    def compute_loss(self, batch: dict[str, Any]) -> StepOutput:
        is_pad = batch["action_is_pad"]  # [B, T]
        valid = ~is_pad
        action = self.chunk(batch).masked_fill(is_pad[..., None], 0.0)  # a decoder's steps see each other
        context = self.context(batch)
        demonstration = (context, None, action, is_pad)
        code, chosen = self.models["codebook"](self.models["posterior"](*demonstration))
        dropout = self.dropout() if self.models.training else 0.0
        is_given = torch.rand(len(action), device=self.device) >= dropout  # [B]
        point = self.flow.sample(action)
        velocity = self.models[DECODER](point.x_t, point.time, context, code, is_given)  # [B, T, A]
        flow = self.flow(velocity, point.velocity, valid)
        logits = self.models["prior"](context)  # [B, K]
        surprise = F.cross_entropy(logits, self.slow.code_of(*demonstration), reduction="none")  # [B]
        # A mean over valid steps, as the flow's: parts of a batch then add up to the whole.
        prior = (surprise * valid.sum(1)).sum() / valid.sum().clamp(min=1)
        metrics = {"flow": flow.detach(), "prior": prior.detach(), "code_dropout": torch.full_like(prior, dropout)}
        shares = F.one_hot(chosen, logits.shape[-1]).float().mean(0)  # [K]
        metrics["perplexity"] = torch.special.entr(shares).sum().exp()  # of the codes of this batch: how many it uses
        return StepOutput(flow + self.prior_weight * prior, metrics, weight=valid.sum())

    def dropout(self) -> float:
        """How likely the code is dropped: of the number of updates alone."""
        done = min(self.slow.updates / self.code_dropout_updates, 1.0) if self.code_dropout_updates else 1.0
        return self.code_dropout_start + done * (self.code_dropout - self.code_dropout_start)

    def train_step(self, data: Batch, seed: Seed | None = None, **kwargs: Any) -> dict[str, Tensor]:
        metrics = super().train_step(data, seed, **kwargs)
        if not metrics.get("skipped"):
            self.slow.after_update(self.options.world)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return self.slow.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.slow.load_state_dict(state, self.options.world)

    def context(self, batch: dict[str, Any]) -> Tensor:
        """What all other components know of the observation, [B, S, D]."""
        return self.models["info_embedder"](batch[STATE], torch.cat(self.tokens(batch), 1))

    def condition(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """-> context [B, S, D], code [B, Z]."""
        context = self.context(batch)
        scores = self.models["prior"](context).float().log_softmax(-1)  # [B, K]
        if self.code == "sample":  # the largest of scores and Gumbel noise, which an exported program can be handed
            uniform = torch.rand(scores.shape, generator=generator, device=scores.device).clamp(1e-10, 1 - 1e-6)
            scores = scores - (-uniform.log()).log()
        chosen = scores.argmax(-1)
        return context, self.slow.quantizer.codebook[chosen]

    def velocity(self, x_t: Tensor, time: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        """v_without + guidance_weight (v_with - v_without), both in one call of the decoder.

        Ho & Salimans 2022 (arXiv 2207.12598), eq. 6, of velocities; their w is this weight less 1.
        """
        given, decoder = torch.ones(len(x_t), dtype=torch.bool, device=x_t.device), self.models[DECODER]
        if self.guidance_weight == 1:
            return decoder(x_t, time, *condition, given)
        twice = [torch.cat([one, one]) for one in (x_t, time, *condition)]
        with_code, without = decoder(*twice, torch.cat([given, ~given])).chunk(2)
        return without + self.guidance_weight * (with_code - without)

    def wrong(self) -> Iterator[tuple[str, str]]:
        yield from super().wrong()
        if not isinstance(self.flow, FlowMatching):
            yield f"it cannot train with {type(self.flow).__name__}", "loss: {type: flow_matching}"
        if "codebook" in self.models and not self.is_taught:
            yield "nothing teaches its codebook", "VectorQuantizer(codes, code_dim, noise_substitution=True)"
        if hasattr(self.optimizers.get("codebook"), "averaged_parameters"):
            yield "the optimizer of the codebook averages its codes, which are moved", "adamw_warmup_cosine_decay"
        if self.is_scheduled != (self.code_dropout_updates is not None):
            yield "of code_dropout_start and code_dropout_updates one is missing", "they come together, or not at all"
        at_least, below_1 = "a number from 0", "a number from 0, and below 1"
        for name, low, high, kind, right in (
            ("prior_weight", 1e-9, math.inf, float, "a number above 0: nothing else teaches the prior"),
            ("posterior_decay", 0, 1, float, below_1),
            ("code_dropout", 0, 1, float, below_1),
            ("code_dropout_start", 0, 1, float, below_1),
            ("guidance_weight", 0, math.inf, float, at_least),
            ("replace_every", 1, math.inf, int, "a whole number from 1"),
            ("least_uses", 1, math.inf, int, "a whole number from 1"),
            ("code_dropout_updates", 1, math.inf, int, "a whole number from 1"),
        ):
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, kind) and low <= value < high):
                yield f"{name} is {value!r}", right
        if self.code not in get_args(Code):
            yield f"code is {self.code!r}", "one of sample, best"
        if self.guidance_weight != 1 and not (self.code_dropout or self.code_dropout_start):
            yield (
                f"guidance_weight is {self.guidance_weight!r}, and a velocity without the code is never learned",
                "guidance_weight: 1, or a code_dropout above 0",
            )
