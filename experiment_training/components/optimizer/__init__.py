"""Optimizers: how parameters follow their gradients; each carries its own schedule."""

from experiment_training.components.optimizer import (
    adamw_cosine_schedule,
    adamw_warmup_cosine_decay,
    schedule_free_radam,
)

__all__ = ["adamw_cosine_schedule", "adamw_warmup_cosine_decay", "schedule_free_radam"]
