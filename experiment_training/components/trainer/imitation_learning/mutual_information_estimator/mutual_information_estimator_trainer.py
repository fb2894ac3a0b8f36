"""Mutual information estimator: what an action chunk tells of state and images, and the state of the chunk, in nats.

x is encoded, its code goes through a channel, z = code + code_noise * N(0, 1), and a decoder says a Gaussian q(y | z)
of y, which is blurred by target_noise * N(0, 1). Whatever encoder and decoder are (Barber & Agakov 2003, "The IM
algorithm: a variational approach to information maximization"),

    I(x; y) >= I(z; y) >= H(y) + E[log q(y | z)],

the first step because z is made of x and independent noise; to blur y only lowers I(x; y), and keeps it finite. Hearing
noise alone, a decoder can do no better than always say the same, q(y): it is learned beside the other, and -E[log q(y)]
stands for H(y). What is reported is the likelihood of y from the noised code over that from noise alone,

    nats = E[log q(y | z)] - E[log q(y)].

It is a lower bound where y is Gaussian, of any covariance. Elsewhere it can be too high by KL(p(y) || q(y)), and on
data that the networks have learned by heart. At most code_dim / 2 * log(1 + 1 / code_noise^2) nats pass the channel.

Components: `action_encoder` and `state_encoder`, a window -> a code in [-1, 1]; `action_decoder`, which hears the
state's code, `state_decoder` and a `<camera>_decoder` for each camera, which hear the action's. An image is `side`
pixels wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.optim import Optimizer

from experiment_training.components.loss.gaussian_nll import GaussianNll
from experiment_training.components.trainer.flow_policy import STATE, images_of
from model_constructor.errors import ConfigError, Problem, nearest
from trainer.registry import TRAINER_REGISTRY
from trainer.templates import ComponentTrainer, StepOutput

ACTION, SOURCES, DECODER = "action", {"action": "state", "state": "action"}, "_decoder"  # what each of the two hears
COMPONENTS = ("action_encoder", "action_decoder", "state_encoder", "state_decoder")


@TRAINER_REGISTRY.register("mutual_information_estimator_trainer")
class MutualInformationEstimatorTrainer(ComponentTrainer):
    """Predicts no actions. Samples whose chunk or history reaches past its episode are left out."""

    def __init__(
        self,
        models: nn.ModuleDict,
        optimizers: Mapping[str, Optimizer],
        loss: GaussianNll,
        device: torch.device | str,
        code_noise: float = 0.1,
        target_noise: float = 0.1,
    ) -> None:
        super().__init__(models, optimizers, loss, device)
        self.code_noise, self.target_noise = code_noise, target_noise  # standard deviations
        self.sides: dict[str, int] = {  # of each camera, the pixels of its decoder's image
            name.removesuffix(DECODER): getattr(model, "params", {}).get("side", 0)
            for name, model in models.items()
            if name.endswith(DECODER) and name not in COMPONENTS
        }
        if problems := [
            Problem(f"mutual_information_estimator_trainer: {what}", hint=hint) for what, hint in self._wrong()
        ]:
            raise ConfigError(problems)

    def compute_loss(self, batch: dict[str, Any]) -> StepOutput:
        pads = [batch[key] for key in (f"{ACTION}_is_pad", f"{STATE}_is_pad") if key in batch]
        whole = ~torch.cat(pads, dim=1).any(dim=1)  # [B]
        terms, nats = [], {}
        for name, (known, unknown, size) in self.surprises(batch).items():
            known, unknown = (torch.where(whole, one, 0.0).sum() / whole.sum().clamp(min=1) for one in (known, unknown))
            nats[f"nats/{name}"] = unknown - known
            terms.append((known + unknown) / size)  # an image has many numbers, and counts like the others
        return StepOutput(torch.stack(terms).sum(), nats, weight=whole.sum())

    def surprises(self, batch: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor, int]]:
        """Name of a pair -> -log q(y | z) [B], -log q(y) [B], and how many numbers y has."""
        values = {"action": batch[ACTION], "state": batch[STATE]}  # [B, T, A], [B, H, D]
        codes = {name: self.models[f"{name}_encoder"](value) for name, value in values.items()}
        heard = {name: code + self.code_noise * torch.randn_like(code) for name, code in codes.items()}
        targets = {name: value.flatten(1) for name, value in values.items()}
        targets |= {camera: self._image(camera, side, batch) for camera, side in self.sides.items()}
        found = {}
        for name, target in targets.items():
            target = target + self.target_noise * torch.randn_like(target)  # [B, N]
            source, decoder = SOURCES.get(name, "action"), self.models[name + DECODER]
            known, unknown = self.loss(target, *decoder(heard[source])), self.loss(target, *decoder())
            found[f"{source}_to_{name}"] = (known, unknown, target.shape[1])
        return found

    def _image(self, camera: str, side: int, batch: dict[str, Any]) -> Tensor:
        """The present image as side x side pixels, [B, 3 * side * side]."""
        return adaptive_avg_pool2d(images_of(batch, camera, camera + DECODER)[:, -1], side).flatten(1)

    def _wrong(self) -> Iterator[tuple[str, str]]:
        for name in COMPONENTS:
            if name not in self.models:
                yield f"there is no component '{name}'", f"it trains {', '.join(COMPONENTS)}"
        for name in self.models:
            if name not in COMPONENTS and not name.endswith(DECODER):
                yield f"it has no use for the component '{name}'", nearest(name, (*COMPONENTS, "head_decoder"))
        for camera, side in self.sides.items():
            if not side:
                yield f"the {camera}{DECODER} does not say its image's size", "declare `side`, in pixels, under params:"
        if not isinstance(self.loss, GaussianNll):
            yield f"it cannot train with {type(self.loss).__name__}", "loss: {type: gaussian_nll}"
        for name, least in {"code_noise": "above", "target_noise": "from"}.items():
            value = getattr(self, name)
            is_number = type(value) in (int, float) and math.isfinite(value) and value >= 0
            if not is_number or (value == 0 and least == "above"):
                yield f"{name} is {value!r}", f"a standard deviation {least} 0"
