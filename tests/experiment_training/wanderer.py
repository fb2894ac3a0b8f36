"""Actors that the processes of a test can import."""

import numpy as np

from experiment_training.components.evaluation.episode import IMAGE, STATE


class Wanderer:
    """Draws its actions, and keeps what it saw."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng()
        self.seen: list[dict[str, np.ndarray]] = []

    def reset(self, seed: int | None = None) -> None:
        self.generator = np.random.default_rng(seed)

    def select_action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        self.seen.append(observation)
        return self.generator.normal(size=4)


class Strict(Wanderer):
    """Knows what a policy of images may see."""

    def select_action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        assert observation.keys() == {STATE, IMAGE}
        assert observation[STATE].shape == (4,)
        return super().select_action(observation)
