"""Meta-World: a policy -> its closed-loop success rate over held-out placements, and rollouts to look at."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from experiment_training.components.evaluation.episode import (
    EPISODE_LIMIT,
    HELD_OUT_SEED,
    PLACEMENTS_PER_SEED,
    Actor,
    check_task,
)
from experiment_training.components.evaluation.film import film_episode
from experiment_training.components.evaluation.rollouts import Rollouts
from model_constructor import ConfigError
from model_constructor.errors import Problem
from trainer.registry import EVALUATION_BUILDER_REGISTRY
from trainer.templates.evaluation import EvaluationResult

if TYPE_CHECKING:
    from trainer.policy import Policy

LINGER = 24  # steps that a rollout goes on after its first success, so that one sees the object at rest
LARGEST_IMAGE = 1024  # pixels


@EVALUATION_BUILDER_REGISTRY.register("metaworld")
class MetaWorldEvaluation:
    """`seed` draws the placements; those of the default are held out: none can be demonstrated.

    image_size: pixels; the policy then sees the hand (4 numbers) and `observation.images.corner`, else the whole state.
    processes: episodes at once. films: rollouts to show, successful ones first.
    """

    def __init__(
        self,
        task: str = "pick-place-v3",
        episodes: int = 30,
        seed: int = HELD_OUT_SEED,
        max_steps: int = 250,
        image_size: int | None = None,
        processes: int = 1,
        films: int = 1,
    ) -> None:
        limits = {
            "episodes": (episodes, 1, PLACEMENTS_PER_SEED),
            "max_steps": (max_steps, 1, EPISODE_LIMIT),
            "image_size": (1 if image_size is None else image_size, 1, LARGEST_IMAGE),
            "processes": (processes, 1, PLACEMENTS_PER_SEED),
            "films": (films, 0, PLACEMENTS_PER_SEED),
        }
        problems = [
            Problem(f"evaluation 'metaworld': {name} is {given!r}", hint=f"a whole number from {least} to {most}")
            for name, (given, least, most) in limits.items()
            if not (type(given) is int and least <= given <= most)
        ]
        if type(seed) is not int or seed < 0:
            problems.append(Problem(f"evaluation 'metaworld': seed is {seed!r}", hint="a whole number from 0"))
        if problems:
            raise ConfigError(problems)
        check_task(task)
        self.task = task
        self.episodes = episodes
        self.seed = seed
        self.max_steps = max_steps
        self.image_size = image_size
        self.processes = processes
        self.films = films

    def evaluate(self, policy: "Policy | Actor", output_dir: Path | None) -> EvaluationResult:
        from tqdm import tqdm

        rollouts = Rollouts(self.task, self.seed, self.max_steps, LINGER, self.image_size)
        started = time.perf_counter()
        running = rollouts.run(policy, range(self.episodes), self.processes)
        bar = tqdm(running, "evaluating", self.episodes, unit="episode", leave=False, disable=None)
        episodes = list(bar)
        seconds = time.perf_counter() - started

        files = []
        if output_dir is not None:
            shown = sorted(episodes, key=lambda episode: not episode.success)[: self.films]
            for number, episode in enumerate(shown):
                name = "rollout" if number == 0 else f"rollout_{number}"
                files.append(film_episode(episode, Path(output_dir), name))
        successes = sum(episode.success for episode in episodes)
        rate = successes / self.episodes
        low, high = wilson_interval(successes, self.episodes)
        metrics = {
            "success": rate,
            "successes": float(successes),
            "episodes": float(self.episodes),
            "success_low": low,
            "success_high": high,
            "seconds_per_episode": seconds / self.episodes,
        }
        which = "held-out placements" if self.seed == HELD_OUT_SEED else f"placements of seed {self.seed}"
        summary = f"success {100 * rate:.1f} % ({successes} of {self.episodes} {which})"
        return EvaluationResult(metrics, summary, files)


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a rate; unlike the normal one it is honest at 0 and at `trials` successes."""
    rate = successes / trials
    scale = 1 + z**2 / trials
    center = rate + z**2 / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)
