"""Contest: which tasks, which methods, and the settings that are tried for each of them.

A cell of the table is one method trained once on one task. Every method has the same number of settings for each kind
of task; which of them goes into the table is decided on placements that the table does not use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from experiment_training.components.evaluation.episode import HELD_OUT_SEED

DEMONSTRATED, TRIED, HELD_OUT = 0, 7, HELD_OUT_SEED
"""Seeds of the placements: of the demonstrations, of the choice among settings, of the table."""

Kind = Literal["state", "image"]
Setting = Mapping[str, Any]  # --set of ours, or arguments of lerobot-train; beside what every setting has


@dataclass(frozen=True)
class Task:
    name: str  # Meta-World's
    demonstrations: int
    image_size: int | None = None  # pixels; None: the simulator's whole state
    max_steps: int = 250

    @property
    def kind(self) -> Kind:
        return "state" if self.image_size is None else "image"


@dataclass(frozen=True)
class Method:
    name: str
    program: Literal["ours", "peer"]
    base: Mapping[Kind, Any]  # a config in this folder, or arguments
    settings: Mapping[Kind, tuple[Setting, ...]]  # the first is the default


@dataclass(frozen=True)
class Cell:
    task: Task
    method: Method
    seed: int
    minutes: float  # of training
    setting: int = 0  # its number
    placements: int = HELD_OUT
    episodes: int = 50

    @property
    def course(self) -> str:
        """What all seeds have in common."""
        words = [self.task.name, self.method.name, f"{self.minutes:g}min", f"setting{self.setting}"]
        words.append(f"{self.episodes}episodes")
        return "-".join(words).replace(" ", "_") + ("" if self.placements == HELD_OUT else "-tried")

    @property
    def name(self) -> str:
        return f"{self.course}-seed{self.seed}"


TASKS = (
    Task("pick-place-v3", 50),
    Task("peg-insert-side-v3", 100),
    Task("button-press-topdown-v3", 50, image_size=64),
)
SEEDS = (0, 1, 2)

BATCH: Mapping[Kind, int] = {"state": 128, "image": 64}


def settings(rates: Iterable[str], rate: float, batch_size: str, kind: Kind) -> tuple[Setting, ...]:
    """As a method is; with another learning rate; with batches of a quarter."""
    return {}, dict.fromkeys(rates, rate), {batch_size: BATCH[kind] // 4}


def of_ours(kind: Kind, *components: str) -> tuple[Setting, ...]:
    rates = (f"model.component_optims.{name}.params.peak_lr" for name in components)
    return settings(rates, 3e-4, "data.batch_size", kind)


FLOW = Method(
    "flow matching",
    "ours",
    {"state": "flow_state.yaml", "image": "flow_image.yaml"},
    {
        "state": of_ours("state", "observation_embedder", "action_decoder"),
        "image": of_ours("image", "corner_backbone", "info_embedder", "action_decoder"),
    },
)
LATENT = ("info_embedder", "posterior", "prior", "gate", "action_decoder")
VARIATIONAL = Method(
    "variational flow matching",
    "ours",
    {"state": "variational_state.yaml", "image": "variational_image.yaml"},
    {"state": of_ours("state", *LATENT), "image": of_ours("image", "corner_backbone", *LATENT)},
)

# lerobot's policies, as wide as ours, so that a CPU trains them in minutes. The rest is theirs, but for learning rates
# and warm-up, which are for few updates, and ten denoising steps (DDIM). Their ResNets begin without weights.
SMALL_ACT = {
    "policy.type": "act",
    "policy.chunk_size": 16,
    "policy.n_action_steps": 8,
    "policy.dim_model": 128,
    "policy.n_heads": 4,
    "policy.dim_feedforward": 512,
    "policy.optimizer_lr": 3e-4,
    "policy.optimizer_lr_backbone": 3e-4,
}
SMALL_DIFFUSION = {
    "policy.type": "diffusion",
    "policy.down_dims": [64, 128, 256],
    "policy.num_train_timesteps": 50,
    "policy.num_inference_steps": 10,
    "policy.noise_scheduler_type": "DDIM",
    "policy.scheduler_warmup_steps": 20,
    "policy.optimizer_lr": 3e-4,
}


def of_theirs(kind: Kind, *rates: str) -> tuple[Setting, ...]:
    return settings((f"policy.{name}" for name in rates), 1e-3, "batch_size", kind)


ACT = Method(
    "lerobot ACT",
    "peer",
    {
        "state": {**SMALL_ACT, "batch_size": BATCH["state"]},
        "image": {**SMALL_ACT, "batch_size": BATCH["image"], "policy.pretrained_backbone_weights": None},
    },
    {
        "state": of_theirs("state", "optimizer_lr"),
        "image": of_theirs("image", "optimizer_lr", "optimizer_lr_backbone"),
    },
)
DIFFUSION = Method(
    "lerobot Diffusion",
    "peer",
    {
        "state": {**SMALL_DIFFUSION, "batch_size": BATCH["state"]},
        "image": {**SMALL_DIFFUSION, "batch_size": BATCH["image"]},
    },
    {"state": of_theirs("state", "optimizer_lr"), "image": of_theirs("image", "optimizer_lr")},
)
METHODS = (FLOW, VARIATIONAL, ACT, DIFFUSION)
