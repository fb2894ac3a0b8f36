"""Meta-World: a policy -> its closed-loop success rate over held-out placements, and one rollout to look at."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from experiment_training.components.evaluation.episode import (
    EPISODE_LIMIT,
    HELD_OUT_SEED,
    PLACEMENTS_PER_SEED,
    Actor,
    check_task,
    make_environment,
    placements,
    run_episode,
)
from experiment_training.components.evaluation.film import film_episode
from model_constructor import ConfigError
from model_constructor.errors import Problem
from trainer.registry import EVALUATION_BUILDER_REGISTRY
from trainer.templates.evaluation import EvaluationResult

if TYPE_CHECKING:
    from trainer.policy import Policy

DEMONSTRATED_SEED = 0  # of the quickstart's demonstrations
LINGER = 24  # steps that a rollout goes on after its first success, so that one sees the object at rest


@EVALUATION_BUILDER_REGISTRY.register("metaworld")
class MetaWorldEvaluation:
    """`seed` draws the placements; another one than the demonstrations' makes them held out."""

    def __init__(
        self,
        task: str = "pick-place-v3",
        episodes: int = 30,
        seed: int = HELD_OUT_SEED,
        max_steps: int = 250,
        render: bool = True,
    ) -> None:
        limits = {"episodes": (episodes, 1, PLACEMENTS_PER_SEED), "max_steps": (max_steps, 1, EPISODE_LIMIT)}
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
        self.render = render

    def evaluate(self, policy: "Policy | Actor", output_dir: Path | None) -> EvaluationResult:
        from tqdm import tqdm

        environment = make_environment(self.task)
        held_out = placements(self.task, self.seed)[: self.episodes]
        started = time.perf_counter()
        with one_thread():
            episodes = [
                run_episode(environment, placement, policy, max_steps=self.max_steps, linger=LINGER)
                for placement in tqdm(held_out, desc="evaluating", unit="episode", leave=False, disable=None)
            ]
        seconds = time.perf_counter() - started
        environment.close()

        files = []
        if output_dir is not None and self.render:
            shown = next((episode for episode in episodes if episode.success), episodes[0])
            files.append(film_episode(shown, Path(output_dir)))
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
        which = f"placements of seed {self.seed}" if self.seed == DEMONSTRATED_SEED else "held-out placements"
        summary = f"success {100 * rate:.1f} % ({successes} of {self.episodes} {which})"
        return EvaluationResult(metrics, summary, files)


@contextmanager
def one_thread() -> Iterator[None]:
    """A policy asked for one action computes too little to share; threads that wait for each other cost tenfold
    where another program keeps a core busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a rate; unlike the normal one it is honest at 0 and at `trials` successes."""
    rate = successes / trials
    scale = 1 + z**2 / trials
    center = rate + z**2 / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)
