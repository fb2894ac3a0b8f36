"""Cases: small experiments whose every sample has its place, so that two processes can be compared with one.

A config's plugin, and the table of what the processes of `quiet_job.py` train.
"""

import hashlib
import os
import signal
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import toy_plugin  # its data set, loss and optimizers
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from trainer.registry import DATASET_BUILDER_REGISTRY, EVALUATION_BUILDER_REGISTRY, TRAINER_REGISTRY
from trainer.templates import ComponentTrainer, StepOptions, StepOutput

ENCODER = """\
schema_version: 2
params: {dim: 8, drop: 0.0}
inputs: {state: [B, H, 3]}
modules: {net: "Linear(3, dim) >> GELU() >> Dropout(drop)"}
outputs: net(state)
"""
NORMED = """\
schema_version: 2
params: {dim: 8}
inputs: {state: [B, H, 3]}
modules: {net: "Linear(3, dim)", norm: BatchNorm1d(dim)}
outputs: norm(net(state)[:, -1])[:, None]
"""
EXTRA = """\
schema_version: 2
params: {dim: 8}
inputs: {h: [B, H, dim]}
modules: {net: "Linear(dim, dim) >> GELU()"}
outputs: h + net(h)
"""
HEAD = """\
schema_version: 2
params: {dim: 8}
inputs: {h: [B, H, dim]}
modules: {out: "Linear(dim, 8)"}
outputs: "out(h[:, -1]).unflatten(-1, (4, 2))"
"""
CONFIG = """\
plugins: [process_cases]
seed: 3
model:
  component_config_paths: {encoder: encoder.yaml, head: head.yaml}
  component_optims:
    encoder: {type: toy_adam, params: {lr: 0.01}}
    head: {type: toy_sgd, params: {lr: 0.05}}
data:
  datamodule: {type: toy_data, params: {episodes: 10}}
  batch_size: 4
train:
  trainer: {type: case_trainer}
  loss: {type: toy_loss}
  max_steps: 6
  log_every: 1
"""
FILES = {"encoder": ENCODER, "normed": NORMED, "extra": EXTRA, "head": HEAD, "config": CONFIG}

EXTRA_USED = {
    "model.component_config_paths.extra": "extra.yaml",
    "model.component_optims.extra": {"type": "toy_sgd", "params": {"lr": 0.05}},
}
UNUSED_ALLOWED = {**EXTRA_USED, "model.find_unused_parameters": True}
HELD_OUT = {"data.validation.episodes": [8, 9], "train.validate_every": 3}
METHOD = "train.trainer.params"
PLAIN = {"train.trainer.type": "plain_case_trainer"}

EQUAL: dict[str, dict[str, Any]] = {  # two processes end where one with the doubled batch does
    "plain": {},
    "masked": {f"{METHOD}.masked": True},
    "accumulated": {"train.accumulate": 2},
    "masked and accumulated": {f"{METHOD}.masked": True, "train.accumulate": 2},
    "frozen component": {"model.component_build_args.encoder.freeze": True},
    "frozen part": {"model.component_build_args.encoder.freeze": ["net.0.weight"]},
    "used twice": {f"{METHOD}.twice": True},
    "used twice and accumulated": {f"{METHOD}.twice": True, "train.accumulate": 2},
    "on one rank": {**UNUSED_ALLOWED, f"{METHOD}.extra": "second half"},
    "on one rank and accumulated": {
        **UNUSED_ALLOWED,
        **{f"{METHOD}.extra": "second half", f"{METHOD}.masked": True, "train.accumulate": 2},
    },
    "in some steps": {**UNUSED_ALLOWED, f"{METHOD}.extra": "even updates"},
    "in the first micro-batch": {**UNUSED_ALLOWED, f"{METHOD}.extra": "first micro-batch", "train.accumulate": 2},
    "averaged and clipped": {"train.ema.decay": 0.9, "train.clip_grad_norm": 0.05, f"{METHOD}.masked": True},
    "plain protocol": PLAIN,
    "plain protocol, frozen": {**PLAIN, "model.component_build_args.encoder.freeze": True},
}
HARD = {  # what makes a run hard to continue
    "model.component_params.encoder.drop": 0.1,
    "model.component_optims.head": {"type": "schedule_free_radam", "params": {"lr": 0.01}},
    "train.ema": {"decay": 0.9, "components": ["encoder"]},
    "train.accumulate": 2,
    "train.max_steps": 12,
    "train.save_every_steps": 4,
    "train.log_every": 5,
    "train.evaluation.type": "toy_evaluation",
    "train.evaluate_every": 3,
    **HELD_OUT,
    f"{METHOD}.noise": 0.1,
    f"{METHOD}.scaled": True,
}
UNEVEN = {"data.batch_size": 5, "data.validation.episodes": [6, 7, 8, 9], "train.validate_every": 3}  # 4 batches and 3
NAN = {f"{METHOD}.nan_rank": 1, f"{METHOD}.nan_at": 3}
REFUSED: dict[str, dict[str, Any]] = {  # what ends with the same error on both processes
    "nan": NAN,
    "unused": {**EXTRA_USED, f"{METHOD}.extra": "never"},
    "unused in the last micro-batch": {**EXTRA_USED, f"{METHOD}.extra": "first micro-batch", "train.accumulate": 2},
    "drift": {f"{METHOD}.drift": "head.out.weight"},
    "drift of a constant": {f"{METHOD}.constant": "head.out.bias"},
    "drift of a frozen weight": {
        "model.component_build_args.encoder.freeze": True,
        f"{METHOD}.drift": "encoder.net.0.weight",
    },
    "evaluation": {"train.evaluation.type": "failing_evaluation", "train.evaluate_every": 1},
    "too few frames": {"data.batch_size": 60},
    "unknown key": {"train.los": 1},
}


class Recording:
    """What a process has seen and done, for the test to look at: one per trainer, the last one is kept."""

    last: ClassVar[Any]

    def record(self) -> None:
        type(self).last = Recording.last = self
        self.seen: list[list[tuple[int, int]]] = []  # per call of the method: its samples' episodes and frames
        self.weights: list[float] = []  # per micro-batch: its valid count
        self.hashes: list[str] = []  # per update, before it
        self.draws: list[float] = []
        self.reduced: list[str] = []  # names of the parameters whose gradients travel
        self.judged = 0  # batches outside of training, the rehearsal's one included
        self.statistics: dict[str, list[float]] = {}  # of a batch norm, when it was last looked at


@TRAINER_REGISTRY.register("case_trainer")
class CaseTrainer(ComponentTrainer, Recording):
    """action = head(extra(encoder(state))); the global batch is two halves, one of each of two processes."""

    def __init__(
        self,
        models,
        optimizers,
        loss,
        device,
        masked: bool = False,
        twice: bool = False,
        extra: str = "",
        noise: float = 0.0,
        nan_rank: int = -1,
        nan_at: int = -1,
        drift: str = "",
        constant: str = "",
        signal_rank: int = -1,
        signal_at: int = -1,
        signal_judging: int = -1,
        raise_rank: int = -1,
        raise_at: int = -1,
        scaled: bool = False,
    ) -> None:
        super().__init__(models, optimizers, loss, device)
        self.masked, self.twice, self.extra, self.noise = masked, twice, extra, noise
        self.nan, self.signal = (nan_rank, nan_at), (signal_rank, signal_at)
        self.signal_judging = (signal_rank, signal_judging)
        self.drift, self.constant, self.raising = drift, constant, (raise_rank, raise_at)
        self.scaled, self.mean = scaled, 1.0  # of this process's own losses
        self.update = self.micro_batch = 0
        self.record()

    def state_dict(self) -> dict[str, float]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.mean = state["mean"]

    def configure_step(self, options: StepOptions) -> None:
        super().configure_step(options)
        if isinstance(self._objective, DistributedDataParallel):
            names = {parameter: name for name, parameter in self.models.named_parameters()}

            def note(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
                self.reduced += [names[parameter] for parameter in bucket.parameters()]
                return allreduce_hook(state, bucket)

            self._objective.register_comm_hook(None, note)

    def train_step(self, data, seed=None, **kwargs):
        self.update, self.micro_batch = self.update + 1, 0
        self.hashes.append(parameter_hash(self.models))
        rank = self.options.world.rank
        if self.signal == (rank, self.update):
            os.kill(os.getpid(), signal.SIGTERM)
        if self.constant:
            with torch.no_grad():
                self.models.get_parameter(self.constant).fill_(1.0)
        metrics = super().train_step(data, seed, **kwargs)
        with torch.no_grad():
            if self.drift and rank == 1:
                self.models.get_parameter(self.drift)[0] += 0.1
            if self.constant:
                self.models.get_parameter(self.constant).fill_(float(rank))
        return metrics

    def compute_loss(self, batch: dict) -> StepOutput:
        parts = 2 // self.options.world.size
        error, size_of_error, count = torch.zeros(3)
        halves = [self.options.world.rank] if parts == 1 else [0, 1]
        size = len(batch["action"]) // parts
        for position, half in enumerate(halves if size else ()):
            own = {key: value[position * size : (position + 1) * size] for key, value in batch.items()}
            valid = self._valid(own)  # [B, 4]
            difference = self._act(own["observation.state"], half) - own["action"]
            error = error + (difference.square().mean(-1) * valid).sum()
            size_of_error = size_of_error + (difference.abs().mean(-1) * valid).sum()
            count = count + valid.sum()
        rank, training = self.options.world.rank, self.models["head"].training
        if training:
            if self.raising == (rank, self.update):
                raise RuntimeError("the gripper is stuck")
            self.micro_batch += 1
            self.seen.append(samples(batch))
            self.weights.append(count.item())
        else:
            self.judged += 1
            if self.signal_judging == (rank, self.judged):
                os.kill(os.getpid(), signal.SIGTERM)
        if hasattr(self.models["encoder"], "norm"):
            self.statistics["train" if training else "validation"] = self.models["encoder"].norm.running_mean.tolist()
        loss = error / count.clamp(min=1)
        if training and self.nan == (rank, self.update):
            loss = loss * torch.nan
        if self.scaled:
            self.mean = 0.8 * self.mean + 0.2 * loss.item() if training else self.mean
            loss = loss / self.mean
        metrics = {"absolute_error": size_of_error / count.clamp(min=1)}
        return StepOutput(loss, metrics, weight=count if self.masked else None)

    def predict(self, batch: dict, generator: torch.Generator | None = None) -> Tensor:
        return self.models["head"](self.models["encoder"](batch["observation.state"]))

    def _act(self, state: Tensor, half: int) -> Tensor:
        if self.noise:
            noise = self.noise * torch.randn_like(state)
            self.draws.append(noise.sum().item())
            state = state + noise
        h = self.models["encoder"](state)
        if self.twice:
            h = h + self.models["encoder"](0.5 * state)
        uses = {
            "second half": half == 1,
            "even updates": self.update % 2 == 0,
            "first micro-batch": self.micro_batch == 0,
        }
        return self.models["head"](self.models["extra"](h) if uses.get(self.extra, False) else h)

    def _valid(self, batch: dict) -> Tensor:
        frames = batch["frame_index"].reshape(-1, 1)
        return (torch.arange(4) < frames % 5) if self.masked else torch.ones(len(frames), 4)


@TRAINER_REGISTRY.register("plain_case_trainer")
class PlainCaseTrainer(toy_plugin.ToyPlainTrainer, Recording):
    """The seed's protocol to the letter."""

    def __init__(self, models, optimizers, loss, device) -> None:
        super().__init__(models, optimizers, loss, device)
        self.record()

    def train_step(self, data: dict, **kwargs) -> dict:
        self.seen.append(samples(data))
        return super().train_step(data, **kwargs)


@EVALUATION_BUILDER_REGISTRY.register("failing_evaluation")
class FailingEvaluation:
    def evaluate(self, policy, output_dir: Path | None):
        raise Unsendable("no room", "to act")


class Unsendable(RuntimeError):
    """An exception that cannot be made again from its message, as many are."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} {why}")


@DATASET_BUILDER_REGISTRY.register("unreadable_data")
class UnreadableData(toy_plugin.ToyData):
    def build(self, opt_params: dict, params: dict) -> dict:
        raise OSError("the disk is gone")


def samples(batch: dict) -> list[tuple[int, int]]:
    return [*zip(batch["episode_index"].flatten().tolist(), batch["frame_index"].flatten().tolist(), strict=True)]


def parameter_hash(models: torch.nn.Module) -> str:
    """Of all parameters, by a way that shares nothing with the trainer's own; DDP's prefix left out."""
    named = {name.replace("module.", ""): parameter for name, parameter in models.named_parameters()}
    parts = [f"{name} {named[name].tolist()}" for name in sorted(named)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def write_project(folder: Path) -> Path:
    """The config of all cases in a project of its own."""
    (folder / "pyproject.toml").touch()
    for name, text in FILES.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / "config.yaml"
