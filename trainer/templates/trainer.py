"""Trainer: one batch on the device -> one update, and the numbers that describe it.

`ComponentTrainer` owns what a step is; a method of the field adds `compute_loss` (and `predict` for its policy).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from model_constructor import ConfigError
from model_constructor.errors import Problem
from trainer.distributed import World

Batch = dict[str, Any]  # tensors [B, ...] by key; lists of length B for what is not a number
SMALLEST_WEIGHT = 1e-30  # where nothing of an update is valid, its gradient is 0 * processes / this
MOST_SKIPPED = 100  # updates in a row: a run that learns nothing any more is no run
TAKEN = frozenset("loss grad_norm skipped step epoch samples_per_s data_wait gpu_memory_gb validation_loss".split())
TAKEN_GROUPS = ("grad_norm", "lr", "time", "evaluation")
Seed = tuple[int, ...]  # names a random stream: (train.seed, update, rank, micro-batch)


@dataclass(frozen=True)
class StepOutput:
    loss: Tensor  # []
    metrics: dict[str, Tensor] = field(default_factory=dict)  # each [], a mean over `weight`; never back-propagated
    weight: Tensor | float | None = None  # what this loss is a mean over; the batch size unless said

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name in TAKEN or name.partition("/")[0] in TAKEN_GROUPS:
                raise ValueError(f"a metric cannot be called '{name}': the trainer logs a number of that name itself")
        for name, value in {"loss": self.loss, **self.metrics}.items():
            if not isinstance(value, Tensor) or value.numel() != 1:
                found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
                raise ValueError(f"'{name}' of a StepOutput is a tensor of one number; this one is of {found}")


class Trainer(Protocol):
    """The least a trainer is: built from models, optimizers, loss and device; one call is one update."""

    def train_step(self, data: Batch, **kwargs: Any) -> dict[str, Tensor | float]: ...


class NonFiniteGradient(RuntimeError):
    """A gradient that is not a number, or infinite."""


def _unchanged(batch: Batch, seed: Seed | None) -> Batch:
    return batch


def _nothing() -> None: ...


@dataclass(frozen=True)
class StepOptions:
    """How the config and the machine want a step to go; `averages` follow each update, `phase` times its parts."""

    precision: str = "fp32"
    accumulate: int = 1
    clip_grad_norm: float | None = 1.0
    on_nonfinite: Literal["stop", "skip"] = "stop"
    find_unused_parameters: bool = False
    world: World = field(default_factory=World)
    prepare: Callable[[Batch, Seed | None], Batch] = _unchanged
    after_update: Callable[[], None] = _nothing
    phase: Callable[[str], AbstractContextManager[Any]] = nullcontext


class ComponentTrainer(ABC):
    """The base of most trainers: modes, autocast, backward, accumulation, clipping, non-finite check, steps.

    A subclass passes `models`, `optimizers`, `loss` and `device` on and takes its own parameters as keywords.
    """

    execute_steps: int | None = None  # how many actions of a predicted chunk a policy executes; None: all
    ensemble_decay: float | None = None  # not None: it predicts at every step, and averages; see trainer.execution

    def __init__(
        self, models: nn.ModuleDict, optimizers: Mapping[str, Optimizer], loss: nn.Module, device: torch.device | str
    ) -> None:
        self.models = models
        self.optimizers = dict(optimizers)
        self.loss = loss
        self.device = torch.device(device)
        self.options = StepOptions()
        self.step_weight: Tensor | float = 1.0  # of the last update's metrics, on this process
        self._parameters = {
            name: [one for group in optimizer.param_groups for one in group["params"]]
            for name, optimizer in self.optimizers.items()
        }
        self._mixed = {name for name, own in self._parameters.items() if len({(p.device, p.dtype) for p in own}) > 1}
        self._skipped = 0  # updates in a row
        self._objective: nn.Module = _Objective(models, self.compute_loss)
        self._unread: tuple[Tensor, torch.cuda.Event, Batch, Seed | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy that travels to another process predicts there; what only training needs stays."""
        left = {"optimizers": {}, "options": StepOptions(), "_parameters": {}, "_unread": None, "_objective": None}
        return {**self.__dict__, **left}

    def configure_step(self, options: StepOptions) -> None:
        """Once, before the first step. Several processes: from here on their gradients are averaged."""
        self.options = options
        if options.world.size > 1:
            self._objective = DistributedDataParallel(
                self._objective,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=options.find_unused_parameters or self._keeps_buckets(options.world),
            )

    def _keeps_buckets(self, world: World) -> bool:
        """DDP sorts its buckets anew behind its first update, unless it looks for unused parameters. Three or more
        processes add up in an order that depends on the place in a bucket: a resumed run would round differently."""
        return world.size > 2 and (self.device.type == "cpu" or torch.are_deterministic_algorithms_enabled())

    @abstractmethod
    def compute_loss(self, batch: Batch) -> StepOutput:
        """What a step minimises, of one batch on the device."""

    def predict(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Normalised observations -> a normalised action chunk [B, T, A]."""
        raise NotImplementedError(f"{type(self).__name__} has no `predict`, so no policy can be made of its runs")

    def train_step(self, data: Batch, seed: Seed | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """`data` is this process's part of an update, as the data set gives it; `seed` names its random stream."""
        self._to_train_mode()
        kept = self._buffers() if self.options.on_nonfinite == "skip" else []
        with self.options.phase("optimizer"):
            for own in self._parameters.values():
                for parameter in own:
                    parameter.grad = None  # what each optimizer's `zero_grad` does, in a tenth of its time
        metrics = self._backward(data, seed)
        with self.options.phase("optimizer"):
            own_norms = self._norms()
            norms = torch.stack(list(own_norms.values()))  # [C]
            total_norm = torch.linalg.vector_norm(norms)
            if not self._is_sound(norms, data, seed):
                for buffer, before in kept:  # batch statistics among them
                    buffer.copy_(before)
                return {"skipped": torch.ones(())}  # its numbers would spoil the means of the others
            self._update(total_norm)
            self.options.after_update()
        if self.options.on_nonfinite == "skip":
            metrics["skipped"] = torch.zeros(())
        return {**metrics, "grad_norm": total_norm, **{f"grad_norm/{name}": norm for name, norm in own_norms.items()}}

    @torch.no_grad()
    def validation_step(self, data: Batch) -> tuple[Tensor, Tensor]:
        """The loss of one batch in eval mode, and its weight."""
        self.models.eval()
        self.loss.eval()
        with self._autocast():
            output = self.compute_loss(self.options.prepare(data, None))
        return output.loss, _weight(output, data)

    def raise_if_nonfinite(self) -> None:
        """Read the last update's flag, if it was not read yet; whoever saves weights asks first."""
        if self._unread is None:
            return
        norms, copied, data, seed = self._unread
        self._unread = None
        copied.synchronize()
        if self._nonfinite(norms):
            raise NonFiniteGradient(self._told(norms, data, seed))

    def _backward(self, data: Batch, seed: Seed | None) -> dict[str, Tensor]:
        """Gradients of the whole update: micro-batches and processes count in proportion to their weight."""
        world, parts = self.options.world, self.options.accumulate
        alone = parts == 1 and world.size == 1  # then the weight would be multiplied in and divided out again
        metrics: dict[str, Tensor] = {}
        sums: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}  # of the parts that gave a metric
        part_weights: list[Tensor] = []
        for part, micro_batch in enumerate(_split(data, parts)):
            with self.options.phase("prepare"):
                batch = self.options.prepare(micro_batch, None if seed is None else (*seed, part))
            with self._unreduced(part < parts - 1):
                with self.options.phase("forward"), self._autocast():
                    loss, metrics, weight = self._objective(batch)
                with self.options.phase("backward"):
                    (loss if alone else loss * weight).backward()
                    loss = loss.detach()  # here the graph is taken apart, which is part of the backward pass's time
            part_weights.append(weight)
            metrics = {"loss": loss, **metrics}
            for name, value in metrics.items() if parts > 1 else ():
                sums[name] = sums.get(name, 0.0) + value * weight
                weights[name] = weights.get(name, 0.0) + weight
        self.step_weight = own_weight = sum(part_weights[1:], start=part_weights[0])
        if isinstance(self._objective, DistributedDataParallel):
            _refuse_unused(self._objective, {name: self.models[name] for name in self._parameters})
        if not alone:
            total = world.sum_(own_weight.clone()).clamp_(min=SMALLEST_WEIGHT)
            torch._foreach_mul_(self._gradients(), world.size / total)  # DDP has divided their sum by the processes
        if parts == 1:
            return metrics
        return {name: value / weights[name].clamp(min=SMALLEST_WEIGHT) for name, value in sums.items()}

    def _norms(self) -> dict[str, Tensor]:
        """Of each component's gradient, before it is clipped; that of an unused component is a 0."""
        own_norms = {name: _norm(_gradients(own), name in self._mixed) for name, own in self._parameters.items()}
        return {name: norm.to(self.device) for name, norm in own_norms.items()}

    def _update(self, total_norm: Tensor) -> None:
        most = self.options.clip_grad_norm
        is_short = most is not None and self.device.type == "cpu" and bool(total_norm <= most)  # there reading is free
        for name, optimizer in self.optimizers.items():
            if most is None or is_short:
                optimizer.step()
            else:
                _step_clipped(optimizer, self._parameters.get(name, []), most, total_norm)

    def _is_sound(self, norms: Tensor, data: Batch, seed: Seed | None) -> bool:
        """`stop` reads the norms at once on a CPU and one update late on CUDA; `skip` reads those of every update."""
        self.raise_if_nonfinite()
        if self.options.on_nonfinite == "stop" and norms.device.type == "cuda":
            copied = torch.cuda.Event()
            on_host = norms.to("cpu", non_blocking=True)
            copied.record()
            self._unread = (on_host, copied, data, seed)
            return True
        if not self._nonfinite(norms):
            self._skipped = 0
            return True
        message = self._told(norms, data, seed)
        self._skipped += 1
        if self.options.on_nonfinite == "stop" or self._skipped == MOST_SKIPPED:
            in_a_row = f"; {self._skipped} updates in a row were left out" if self._skipped > 1 else ""
            raise NonFiniteGradient(message + in_a_row)
        self.options.world.say(f"left out: {message}")
        return False

    def _nonfinite(self, norms: Tensor) -> list[str]:
        return [name for name, norm in zip(self._parameters, norms.tolist(), strict=True) if norm - norm != 0.0]

    def _told(self, norms: Tensor, data: Batch, seed: Seed | None) -> str:
        names, samples = ", ".join(self._nonfinite(norms)), self.options.world.gather(samples_of(data))
        when = "" if seed is None else f" in update {seed[1] + 1}"
        return (
            f"the gradient of {names} is not finite{when}; the batch holds {'; '.join(samples)}.\n"
            "  A lower learning rate, a smaller clip_grad_norm or precision: fp32 are what usually helps."
        )

    def _to_train_mode(self) -> None:
        """Only where it is needed: walking through all modules takes a fiftieth of a small model's step."""
        trained = (one for one in self.models.values() if "train" not in vars(one))  # a frozen one stays in eval
        if not all(one.training for one in (self.models, self.loss, *trained)):
            self.models.train()
            self.loss.train()

    def _buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Every buffer of models and loss, and a copy of what it holds."""
        return [(one, one.clone()) for module in (self.models, self.loss) for one in module.buffers()]

    def _unreduced(self, is_partial: bool) -> AbstractContextManager[None]:
        """Gradients travel between the processes once an update, with its last micro-batch."""
        objective = self._objective
        if is_partial and isinstance(objective, DistributedDataParallel):
            return objective.no_sync()
        return nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.options.precision == "bf16" else nullcontext()

    def _gradients(self) -> list[Tensor]:
        return [gradient for own in self._parameters.values() for gradient in _gradients(own)]


class _Objective(nn.Module):
    """`compute_loss` as the one module that DistributedDataParallel wraps: a component may be used twice, or not."""

    def __init__(self, models: nn.ModuleDict, compute_loss: Callable[[Batch], StepOutput]) -> None:
        super().__init__()
        self.models = models
        self._compute_loss = compute_loss

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        output = self._compute_loss(batch)
        return output.loss, {name: value.detach() for name, value in output.metrics.items()}, _weight(output, batch)


def _refuse_unused(objective: DistributedDataParallel, trained: Mapping[str, nn.Module]) -> None:
    """DistributedDataParallel has reduced only some gradients then, and would say so one update too late."""
    try:
        objective._check_reducer_finalized()
    except RuntimeError as error:
        unused = [
            f"{name}.{key}"
            for name, component in trained.items()
            for key, parameter in component.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
        message = f"{len(unused)} parameters took no part in this update: {', '.join(unused[:8])}"
        if not unused:
            message = "some parameters took part in this update's first micro-batches and not in its last one"
        hint = (
            "several processes wait for every gradient: set model.find_unused_parameters: true, "
            "or freeze what the loss does not reach"
        )
        raise ConfigError(Problem(message, hint=hint)) from error


def _weight(output: StepOutput, batch: Batch) -> Tensor:
    weight, device = _batch_size(batch) if output.weight is None else output.weight, output.loss.device
    if isinstance(weight, Tensor):
        return weight.detach().to(device, torch.float32, non_blocking=True)
    return torch.full((), weight, dtype=torch.float32, device=device)  # written there: a copy would wait for the device


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [gradient for parameter in parameters if (gradient := parameter.grad) is not None]


def _norm(gradients: list[Tensor], is_mixed: bool) -> Tensor:
    """Of all of them together. torch's own function sorts them by device and type first, a sixth of its time."""
    if is_mixed or not gradients:
        return get_total_norm(gradients, foreach=True)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def _step_clipped(optimizer: Optimizer, parameters: list[nn.Parameter], most: float, total_norm: Tensor) -> None:
    """To clip is a pass over all gradients, which an optimizer with `divided_step` saves; see OptimizerFactory."""
    divided_step = getattr(type(optimizer), "divided_step", None)
    if divided_step is not None:
        divided_step(optimizer, ((total_norm.float() + 1e-6) / most).clamp(min=1.0))  # the 1e-6 is torch's
    else:
        clip_grads_with_norm_(parameters, most, total_norm, foreach=True)
        optimizer.step()


def _batch_size(data: Batch) -> int:
    return next(len(value) for value in data.values() if isinstance(value, Tensor) and value.ndim > 0)


def _split(data: Batch, parts: int) -> Iterator[Batch]:
    size = _batch_size(data) // parts  # the sampler gives batch_size * accumulate, so nothing is left over
    for start in range(0, size * parts, size):
        yield data if parts == 1 else {key: value[start : start + size] for key, value in data.items()}


def samples_of(data: Batch) -> str:
    """Episode and frame of each sample, as the data set counts them."""
    given = (data.get(key) for key in ("episode_index", "frame_index"))
    numbers = [one.flatten().tolist() for one in given if isinstance(one, Tensor)]
    if len(numbers) < 2:
        size = next((len(value) for value in data.values() if isinstance(value, Tensor) and value.ndim > 0), 0)
        return f"{size or 'unnumbered'} samples (the data set gives no episode_index and frame_index)"
    episodes, frames = numbers
    return "episode:frame " + " ".join(f"{episode}:{frame}" for episode, frame in zip(episodes, frames, strict=True))
