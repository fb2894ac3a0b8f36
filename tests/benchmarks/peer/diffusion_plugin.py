"""The objective of lerobot's diffusion policy as a trainer: the noise of DDPM (Ho et al. 2020), by the same scheduler."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from trainer.registry import TRAINER_REGISTRY
from trainer.templates import ComponentTrainer, StepOutput


@TRAINER_REGISTRY.register("peer_diffusion_trainer")
class DiffusionTrainer(ComponentTrainer):
    def __init__(self, models: Any, optimizers: Any, loss: Any, device: Any, diffusion_steps: int) -> None:
        super().__init__(models, optimizers, loss, device)
        self.diffusion_steps = diffusion_steps
        self.scheduler = DDPMScheduler(diffusion_steps, beta_schedule="squaredcos_cap_v2")

    def compute_loss(self, batch: dict[str, Any]) -> StepOutput:
        action = batch["action"]  # [B, T, A]
        noise = torch.randn_like(action)
        step = torch.randint(self.diffusion_steps, (len(action),), device=action.device)
        seen = {"image": "observation.images.front", "env_state": "observation.environment_state"}
        observed = {name: batch[key] for name, key in seen.items() if key in batch}
        noisy = self.scheduler.add_noise(action, noise, step)
        predicted = self.models["policy"](noisy, step, batch["observation.state"], **observed)
        return StepOutput(self.loss(predicted, noise))
