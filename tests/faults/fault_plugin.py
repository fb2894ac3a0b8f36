"""A plugin with hooks: a data set that draws random numbers, and a trainer that does, each with a place for a fault."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from trainer.registry import DATASET_BUILDER_REGISTRY, TRAINER_REGISTRY
from trainer.templates import ComponentTrainer, StepOutput

EPISODES, LENGTH = 6, 8
HOOKS: dict[str, Callable[..., Any]] = {}
"""`item`: called with the index and the item that is read.  `loss`: loss [] -> loss [], of each update.
`gradient`: that of the encoder's output [B, T, D] -> another, of each update."""


class Drifts(Dataset):
    """The state drifts, the action follows it; noise is drawn for every item that is read."""

    def __init__(self, episodes: list[int]) -> None:
        state = np.random.default_rng(5).normal(size=(EPISODES, LENGTH, 3)).cumsum(axis=1).astype(np.float32)
        self.state = state[episodes].reshape(-1, 3)
        self.action = (self.state[:, :2] * 0.5 + 1).astype(np.float32)
        self.episode, self.frame = np.repeat(episodes, LENGTH), np.tile(np.arange(LENGTH), len(episodes))

    def __len__(self) -> int:
        return len(self.state)

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise = np.random.normal(size=3).astype(np.float32) * 0.01
        item = {
            "observation.state": torch.from_numpy(self.state[index] + noise)[None],  # [1, 3]
            "action": torch.from_numpy(self.action[index])[None],  # [1, 2]
            "episode_index": torch.tensor(self.episode[index]),
            "frame_index": torch.tensor(self.frame[index]),
        }
        if "item" in HOOKS:
            HOOKS["item"](index, item)
        return item


@DATASET_BUILDER_REGISTRY.register("drifts")
class DriftsFactory:
    def build(self, opt_params: dict, params: dict) -> dict:
        held_out = opt_params.get("validation", {}).get("episodes", [])
        dataset = Drifts([one for one in range(EPISODES) if one not in held_out])
        if params.get("other_data"):
            dataset.action[0] += 100
        bundle = {"dataset": dataset, "norm_stats": {}, "validation_dataset": Drifts(held_out)}
        for key, values in {"observation.state": dataset.state, "action": dataset.action}.items():
            statistics = {name: getattr(values, name)(axis=0) for name in ("mean", "std", "min", "max")}
            bundle["norm_stats"][key] = statistics
        return bundle


@TRAINER_REGISTRY.register("follower")
class Follower(ComponentTrainer):
    def compute_loss(self, batch: dict) -> StepOutput:
        state = batch["observation.state"]
        hidden = self.models["encoder"](state + 0.01 * torch.randn_like(state))
        loss = self.loss(self.models["head"](hidden), batch["action"])
        if not loss.requires_grad:  # no update follows
            return StepOutput(loss)
        if "gradient" in HOOKS:
            hidden.register_hook(HOOKS["gradient"])
        return StepOutput(HOOKS["loss"](loss) if "loss" in HOOKS else loss)

    def predict(self, batch: dict, generator: torch.Generator | None = None) -> Tensor:
        return self.models["head"](self.models["encoder"](batch["observation.state"]))
