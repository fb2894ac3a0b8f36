"""What stands for a user's robot: a point that has to reach a target, and a camera that sees both."""

import numpy as np

STEPS = 20  # of an episode


class Reach:
    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self.point, self.target = np.random.default_rng(seed).uniform(-1, 1, (2, 2))
        return self._observation()

    def step(self, action: np.ndarray) -> dict[str, np.ndarray]:
        self.point = np.clip(self.point + action, -1, 1)
        return self._observation()

    @property
    def has_arrived(self) -> bool:
        return bool(np.linalg.norm(self.point - self.target) < 0.1)

    def expert(self) -> np.ndarray:
        return 0.2 * (self.target - self.point)

    def _observation(self) -> dict[str, np.ndarray]:
        image = np.zeros((48, 48, 3), np.uint8)
        for channel, place in enumerate((self.point, self.target)):
            row, column = np.rint((place + 1.1) * 20).astype(int)
            image[row - 2 : row + 3, column - 2 : column + 3, channel] = 255
        state = np.concatenate([self.point, self.target]).astype(np.float32)
        return {"observation.state": state, "observation.images.head": image}
