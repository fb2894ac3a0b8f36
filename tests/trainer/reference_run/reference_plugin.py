"""The reference run's plugin: a data set that draws random numbers while it is read, and a trainer with images."""

import json
import os
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from experiment_training.components.trainer.flow_matching import FlowMatchingTrainer
from trainer.registry import DATASET_BUILDER_REGISTRY, EVALUATION_BUILDER_REGISTRY, TRAINER_REGISTRY
from trainer.templates import EvaluationResult, StepOutput

EPISODES, LENGTH, HORIZON = 12, 10, 4
SEEN = "REFERENCE_SEEN"  # a file to which each micro-batch's samples are written


class NoisyImages(Dataset):
    """Each item has noise from all three of the streams that a plugin may draw from."""

    def __init__(self, episodes: list[int]) -> None:
        world = np.random.default_rng(5)
        self.images = world.integers(0, 256, (EPISODES, LENGTH, 3, 8, 8), dtype=np.uint8)
        self.states = world.normal(size=(EPISODES, LENGTH, 2)).astype(np.float32)
        self.episodes = episodes

    def __len__(self) -> int:
        return len(self.episodes) * LENGTH

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        episode, frame = self.episodes[index // LENGTH], index % LENGTH
        noise = torch.tensor([random.gauss(0, 0.1), np.random.normal(0, 0.1)]) + 0.1 * torch.randn(2)
        steps = frame + np.arange(HORIZON)
        actions = self.states[episode, steps.clip(max=LENGTH - 1)] * [1.0, 5.0]
        return {
            "observation.images.top": torch.from_numpy(self.images[episode, frame]),  # uint8 [3, 8, 8]
            "observation.state": (torch.from_numpy(self.states[episode, frame]) + noise).float(),  # [2]
            "action": torch.from_numpy(actions.astype(np.float32)),  # [4, 2]
            "action_is_pad": torch.from_numpy(steps >= LENGTH),
            "episode_index": torch.tensor(episode),
            "frame_index": torch.tensor(frame),
        }


@DATASET_BUILDER_REGISTRY.register("reference_data")
class ReferenceData:
    def build(self, opt_params: dict, params: dict) -> dict:
        held_out = round(EPISODES * opt_params["validation"]["fraction"])
        dataset = NoisyImages(list(range(held_out, EPISODES)))
        values = {"observation.state": dataset.states, "action": dataset.states * [1.0, 5.0]}
        stats = {
            key: {"mean": value.mean((0, 1)), "std": value.std((0, 1)), "count": np.array([value[..., 0].size])}
            for key, value in values.items()
        }
        return {"dataset": dataset, "validation_dataset": NoisyImages(list(range(held_out))), "norm_stats": stats}


@TRAINER_REGISTRY.register("reference_trainer")
class ReferenceTrainer(FlowMatchingTrainer):
    def compute_loss(self, batch: dict) -> StepOutput:
        if SEEN in os.environ and torch.is_grad_enabled():
            samples = torch.stack([batch["episode_index"], batch["frame_index"]], dim=1).tolist()
            with Path(f"{os.environ[SEEN]}-{os.environ.get('RANK', '0')}").open("a") as file:
                file.write(f"{json.dumps(samples)}\n")
        scale = random.gauss(1, 0.1) * np.random.normal(1, 0.1)  # a trainer may draw from any stream, as a data set may
        return super().compute_loss({**batch, "observation.state": batch["observation.state"] * scale})

    def condition(self, batch: dict, generator: torch.Generator | None = None) -> tuple[Tensor]:
        state, image = batch["observation.state"], batch["observation.images.top"]  # with a window of 1, or without
        image = image.reshape(len(image), *image.shape[-3:])
        return (self.models["observation_embedder"](state.flatten(1), image),)


@EVALUATION_BUILDER_REGISTRY.register("reference_evaluation")
class ReferenceEvaluation:
    """Draws from every stream, as a simulator does."""

    def evaluate(self, policy, output_dir: Path | None) -> EvaluationResult:
        draws = random.random() + np.random.rand() + torch.rand(()).item()
        image = np.full((8, 8, 3), 128, np.uint8)
        action = policy.select_action({"observation.images.top": image, "observation.state": np.zeros(2)})
        return EvaluationResult({"action": float(action[0]), "draws": draws}, "one action")
