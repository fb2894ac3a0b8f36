"""Data loaders: where training samples come from."""

from experiment_training.components.dataloader import lerobot_data

__all__ = ["lerobot_data"]
