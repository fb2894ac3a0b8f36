"""ACT trainer: (images, joint positions, actions) -> L1 + KL; (images, joint positions) -> a chunk of actions.

One component, `policy`, with the inputs and outputs of experiment_models/zoo/act/act.yaml.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiment_training.components.loss.act import ActLoss
from model_constructor.errors import ConfigError, Problem
from trainer.execution import wrong_execution
from trainer.registry import TRAINER_REGISTRY
from trainer.templates import ComponentTrainer, StepOutput

STATE, ENV_STATE, IMAGES = "observation.state", "observation.environment_state", "observation.image"


@TRAINER_REGISTRY.register("act_trainer")
class ActTrainer(ComponentTrainer):
    """The policy's YAML says what it reads: `cameras` of them, and the environment's state if `env_dim` is not 0.

    Of a history only the present is read. The order of the cameras is that of their names; to ACT they are a set.
    """

    def __init__(
        self,
        models: nn.ModuleDict,
        optimizers: Mapping[str, Optimizer],
        loss: ActLoss,
        device: torch.device | str,
        execute_steps: int | None = None,
        ensemble_decay: float | None = None,
    ) -> None:
        super().__init__(models, optimizers, loss, device)
        self.execute_steps, self.ensemble_decay = execute_steps, ensemble_decay
        self.params: Mapping[str, Any] = getattr(dict(models.items()).get("policy"), "params", {})
        if problems := [Problem(f"act_trainer: {what}", hint=right) for what, right in self._wrong()]:
            raise ConfigError(problems)

    def compute_loss(self, batch: dict[str, Any]) -> StepOutput:
        is_pad = batch["action_is_pad"]  # [B, T]
        actions = {"actions": batch["action"], "is_pad": is_pad} if self.models.training else {}
        prediction, mean, log_variance = self.models["policy"](**self._observation(batch), **actions)
        terms = self.loss(prediction, batch["action"], is_pad, mean, log_variance)
        return StepOutput(terms.loss, {"l1": terms.l1, "kl": terms.kl})

    @torch.no_grad()
    def predict(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> Tensor:
        """Nothing is drawn: the latent is the mean of its prior."""
        return self.models["policy"](**self._observation(batch))[0]

    def _observation(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The policy's inputs: state [B, D], images [B, cameras, 3, H, W], env_state [B, E]."""
        found = {"state": batch[STATE][:, -1]}
        if self.params["cameras"]:
            names = sorted(key for key in batch if key.startswith(IMAGES) and not key.endswith("_is_pad"))
            if len(names) != self.params["cameras"]:
                message = f"act_trainer: the policy has {self.params['cameras']} cameras, the data set {len(names)}"
                raise ConfigError(Problem(message, hint=f"set the policy's param cameras: {len(names)}"))
            found["images"] = torch.stack([batch[name][:, -1] for name in names], dim=1)
        if self.params["env_dim"]:
            found["env_state"] = batch[ENV_STATE][:, -1]
        return found

    def _wrong(self) -> Iterator[tuple[str, str]]:
        needed = {"cameras", "env_dim", "chunk"}
        if self.models.keys() != {"policy"}:
            yield f"the components are {', '.join(self.models)}", "it trains one: policy"
        elif missing := sorted(needed - self.params.keys()):
            yield f"the policy does not declare {', '.join(missing)}", "declare them under params:, as zoo/act/act.yaml"
        if not isinstance(self.loss, ActLoss):
            yield f"it cannot train with {type(self.loss).__name__}", "loss: {type: act_loss}"
        yield from wrong_execution(self.execute_steps, self.ensemble_decay, self.params.get("chunk", 1))
