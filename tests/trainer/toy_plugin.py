"""A plugin as a user would write one, small enough to check by hand: action = a linear map of the state, plus noise."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from model_constructor import ConfigError
from model_constructor.errors import Problem
from trainer.registry import (
    DATASET_BUILDER_REGISTRY,
    EVALUATION_BUILDER_REGISTRY,
    LOSS_BUILDER_REGISTRY,
    OPTIMIZER_BUILDER_REGISTRY,
    TRAINER_REGISTRY,
)
from trainer.templates import ComponentTrainer, EvaluationResult, StepOutput

EPISODE_LENGTH = 8
HORIZON, STATE, ACTION = 4, 3, 2


class ToyDataset(Dataset):
    def __init__(self, episodes: list[int]) -> None:
        generator = np.random.default_rng(7)
        world = generator.normal(size=(max(episodes, default=0) + 1, EPISODE_LENGTH, STATE)) * [1.0, 10.0, 0.1] + 5.0
        self.state = np.concatenate([world[episode] for episode in episodes]).astype(np.float32)  # [N, 3]
        mixing = np.array([[1.0, 0.0], [0.1, 0.1], [0.0, 10.0]])
        self.action = (self.state @ mixing).astype(np.float32)  # [N, 2]
        self.episode = np.repeat(episodes, EPISODE_LENGTH)
        self.frame = np.tile(np.arange(EPISODE_LENGTH), len(episodes))

    def __len__(self) -> int:
        return len(self.state)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | Tensor]:
        return {
            "observation.state": torch.from_numpy(self.state[index][None]),  # [1, 3]
            "observation.state_is_pad": torch.zeros(1, dtype=torch.bool),
            "action": torch.from_numpy(self.action[index]).expand(HORIZON, ACTION).clone(),  # [4, 2]
            "action_is_pad": torch.zeros(HORIZON, dtype=torch.bool),
            "episode_index": torch.tensor(self.episode[index]),
            "frame_index": torch.tensor(self.frame[index]),
        }


@DATASET_BUILDER_REGISTRY.register("toy_data")
class ToyData:
    def build(self, opt_params: dict, params: dict) -> dict:
        episodes = list(range(params.get("episodes", 10)))
        held_out = opt_params.get("validation", {}).get("episodes", [])
        dataset = ToyDataset([episode for episode in episodes if episode not in held_out])
        if params.get("nan"):
            dataset.action[:] = np.nan
        bundle = {"dataset": dataset, "norm_stats": {key: stats(values) for key, values in numeric(dataset).items()}}
        return {**bundle, "validation_dataset": ToyDataset(held_out)} if held_out else bundle


def numeric(dataset: ToyDataset) -> dict[str, np.ndarray]:
    return {"observation.state": dataset.state, "action": np.nan_to_num(dataset.action)}


def stats(values: np.ndarray) -> dict[str, np.ndarray]:
    values = values.astype(np.float64)
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    named = {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0)}
    return {**named, "q01": q01, "q99": q99, "count": np.array([len(values)])}


@LOSS_BUILDER_REGISTRY.register("toy_loss")
class ToyLoss:
    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def build(self) -> nn.Module:
        return ScaledError(self.scale)


class ScaledError(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.scale * (prediction - target).square().mean()


@OPTIMIZER_BUILDER_REGISTRY.register("toy_adam")
class ToyAdam:
    """A learning rate that falls to zero at `total_steps`, kept where an optimizer keeps its numbers."""

    def __init__(self, lr: float, total_steps: int) -> None:
        self.lr, self.total_steps = lr, total_steps

    def build(self, params) -> torch.optim.Optimizer:
        return FallingAdam([{"params": list(params), "updates": 0, "total_steps": self.total_steps}], lr=self.lr)


class FallingAdam(torch.optim.Adam):
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:  # the rate of the next update
            group.setdefault("peak_lr", group["lr"])
            group["updates"] += 1
            group["lr"] = group["peak_lr"] * max(0.0, 1 - group["updates"] / group["total_steps"])
        return loss


@OPTIMIZER_BUILDER_REGISTRY.register("toy_sgd")
class ToySGD:
    def __init__(self, lr: float = 0.1) -> None:
        self.lr = lr

    def build(self, params) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=self.lr)


@TRAINER_REGISTRY.register("toy_trainer")
class ToyTrainer(ComponentTrainer):
    """Adds noise of its own to the state, so that a resumed run needs the random stream where it was."""

    def __init__(self, models, optimizers, loss, device, noise: float = 0.01, execute_steps: int | None = None) -> None:
        super().__init__(models, optimizers, loss, device)
        self.noise, self.execute_steps = noise, execute_steps

    def compute_loss(self, batch: dict) -> StepOutput:
        state = batch["observation.state"]
        error = self.loss(self._act(state + self.noise * torch.randn_like(state)), batch["action"])
        return StepOutput(error, {"action_size": batch["action"].abs().mean()})

    def predict(self, batch: dict, generator: torch.Generator | None = None) -> Tensor:
        return self._act(batch["observation.state"])

    def _act(self, state: Tensor) -> Tensor:
        return self.models["head"](self.models["encoder"](state))


@TRAINER_REGISTRY.register("toy_plain_trainer")
class ToyPlainTrainer:
    """The seed's protocol to the letter: its own backward, its own step."""

    def __init__(self, models, optimizers, loss, device) -> None:
        self.models, self.optimizers, self.loss, self.device = models, optimizers, loss, device

    def train_step(self, data: dict, **kwargs) -> dict:
        loss = self.loss(self.models["head"](self.models["encoder"](data["observation.state"])), data["action"])
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        return {"loss": loss.item()}


@EVALUATION_BUILDER_REGISTRY.register("toy_evaluation")
class ToyEvaluation:
    def __init__(self, episodes: int = 3) -> None:
        if episodes < 1:
            raise ConfigError(Problem(f"episodes is {episodes}", hint="a whole number from 1"))
        self.episodes = episodes

    def evaluate(self, policy, output_dir: Path | None) -> EvaluationResult:
        dataset = ToyDataset(list(range(self.episodes)))
        errors = []
        for state, action in zip(dataset.state, dataset.action, strict=True):
            policy.reset()
            errors.append(np.abs(policy.select_action({"observation.state": state}) - action).max())
        picture = output_dir / "toy.txt"
        picture.write_text("a picture")
        return EvaluationResult({"error": float(np.mean(errors))}, f"error over {self.episodes} episodes", [picture])
