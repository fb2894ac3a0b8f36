"""Trainer: one batch of normalised float32 tensors -> one update, and the numbers that describe it.

`ComponentTrainer` owns what a step is; a method of the field adds `compute_loss` (and `predict` for its policy).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

Batch = dict[str, Any]  # tensors [B, ...] by key; lists of length B for what is not a number


@dataclass(frozen=True)
class StepOutput:
    loss: Tensor  # []
    metrics: dict[str, Tensor] = field(default_factory=dict)  # each []; for people, never back-propagated
    weight: Tensor | float | None = None  # what this loss is a mean over; the batch size unless said


class Trainer(Protocol):
    """The least a trainer is: built from models, optimizers, loss and device; one call is one update."""

    def train_step(self, data: Batch, **kwargs: Any) -> dict[str, Tensor | float]: ...


class NonFiniteGradient(RuntimeError):
    """A gradient that is not a number, or infinite: the run stops, the update is not applied on a CPU."""


class ComponentTrainer(ABC):
    """The base of most trainers: modes, autocast, backward, accumulation, clipping, non-finite check, steps.

    A subclass passes `models`, `optimizers`, `loss` and `device` on and takes its own parameters as keywords.
    """

    execute_steps: int | None = None  # how many actions of a predicted chunk a policy executes; None: all

    def __init__(
        self, models: nn.ModuleDict, optimizers: Mapping[str, Optimizer], loss: nn.Module, device: torch.device | str
    ) -> None:
        self.models = models
        self.optimizers = dict(optimizers)
        self.loss = loss
        self.device = torch.device(device)
        self.configure_step()
        self._parameters = {
            name: [parameter for parameter in models[name].parameters() if parameter.requires_grad]
            for name in self.optimizers
        }
        self._unread: tuple[Tensor, torch.cuda.Event, Batch] | None = None

    def configure_step(self, precision: str = "fp32", accumulate: int = 1, clip_grad_norm: float | None = 1.0) -> None:
        """The config's `train.precision`, `train.accumulate` and `train.clip_grad_norm`."""
        self.precision = precision
        self.accumulate = accumulate
        self.clip_grad_norm = clip_grad_norm

    @abstractmethod
    def compute_loss(self, batch: Batch) -> StepOutput:
        """What a step minimises, of one batch on the device."""

    def predict(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Normalised observations -> a normalised action chunk [B, T, A]."""
        raise NotImplementedError(f"{type(self).__name__} has no `predict`, so no policy can be made of its runs")

    def train_step(self, data: Batch, **kwargs: Any) -> dict[str, Tensor]:
        self.models.train()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        metrics = self._backward(data)
        metrics["grad_norm"] = self._clip(data)
        for optimizer in self.optimizers.values():
            optimizer.step()
        return metrics

    @torch.no_grad()
    def validation_step(self, data: Batch) -> tuple[Tensor, Tensor]:
        """The loss of one batch in eval mode, and its weight."""
        self.models.eval()
        output, weight = self._forward(data)
        return output.loss, weight

    def raise_if_nonfinite(self) -> None:
        """Read the last update's flag, if it was not read yet; whoever saves weights asks first."""
        if self._unread is None:
            return
        norms, copied, data = self._unread
        self._unread = None
        copied.synchronize()
        self._refuse_nonfinite(norms, data)

    def _forward(self, data: Batch) -> tuple[StepOutput, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.compute_loss(data)
        weight = _batch_size(data) if output.weight is None else output.weight
        return output, torch.as_tensor(weight, dtype=torch.float32, device=output.loss.device)

    def _backward(self, data: Batch) -> dict[str, Tensor]:
        """Gradients of the whole update: micro-batches count in proportion to their weight."""
        if self.accumulate == 1:
            output, _ = self._forward(data)
            output.loss.backward()
            return {"loss": output.loss.detach(), **_detached(output.metrics)}
        sums: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.device)
        for micro_batch in _split(data, self.accumulate):
            output, weight = self._forward(micro_batch)
            (output.loss * weight).backward()
            total += weight
            for name, value in {"loss": output.loss.detach(), **_detached(output.metrics)}.items():
                sums[name] = sums.get(name, 0.0) + value * weight
        torch._foreach_div_(self._gradients(), total)
        return {name: value / total for name, value in sums.items()}

    def _clip(self, data: Batch) -> Tensor:
        """The norm over all components before clipping; stops the run where it is not finite."""
        own_norms = [get_total_norm(_gradients(own), foreach=True) for own in self._parameters.values()]
        norms = torch.stack(
            [norm.to(self.device) for norm in own_norms]
        )  # a component unused in this step: 0 on the CPU
        self._check_finite(norms, data)
        total_norm = torch.linalg.vector_norm(norms)
        if self.clip_grad_norm is not None:
            trainable = [parameter for own in self._parameters.values() for parameter in own]
            clip_grads_with_norm_(trainable, self.clip_grad_norm, total_norm, foreach=True)
        return total_norm

    def _check_finite(self, norms: Tensor, data: Batch) -> None:
        """At once on a CPU; one update late on CUDA, so that the step never waits for the device."""
        self.raise_if_nonfinite()
        if norms.device.type == "cpu":
            return self._refuse_nonfinite(norms, data)
        copied = torch.cuda.Event()
        norms = norms.detach().to("cpu", non_blocking=True)
        copied.record()
        self._unread = (norms, copied, data)

    def _refuse_nonfinite(self, norms: Tensor, data: Batch) -> None:
        names = [name for name, norm in zip(self._parameters, norms.tolist(), strict=True) if not _is_finite(norm)]
        if names:
            raise NonFiniteGradient(
                f"the gradient of {', '.join(names)} is not finite; no checkpoint was written after it.\n"
                f"  The batch holds {_samples(data)}.\n"
                "  A lower learning rate, a smaller clip_grad_norm or precision: fp32 are what usually helps."
            )

    def _gradients(self) -> list[Tensor]:
        return [gradient for own in self._parameters.values() for gradient in _gradients(own)]


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _detached(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in metrics.items()}


def _is_finite(value: float) -> bool:
    return value - value == 0.0


def _batch_size(data: Batch) -> int:
    return next(len(value) for value in data.values() if isinstance(value, Tensor) and value.ndim > 0)


def _split(data: Batch, parts: int) -> Iterator[Batch]:
    size = _batch_size(data) // parts  # the sampler gives batch_size * accumulate, so nothing is left over
    for start in range(0, size * parts, size):
        yield {key: value[start : start + size] for key, value in data.items()}


def _samples(data: Batch) -> str:
    """Episode and frame of each sample, as the data set counts them."""
    if "episode_index" not in data or "frame_index" not in data:
        return f"{_batch_size(data)} samples (the data set gives no episode_index and frame_index)"
    episodes, frames = data["episode_index"].flatten().tolist(), data["frame_index"].flatten().tolist()
    return "episode:frame " + " ".join(f"{episode}:{frame}" for episode, frame in zip(episodes, frames, strict=True))
