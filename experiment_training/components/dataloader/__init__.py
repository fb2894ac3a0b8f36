"""Data loaders: where training samples come from."""

from experiment_training.components.dataloader import episodic_data, lerobot_data, point_reach

__all__ = ["episodic_data", "lerobot_data", "point_reach"]
