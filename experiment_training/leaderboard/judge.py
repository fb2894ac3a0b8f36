"""Judge: a trained policy -> what the table says of it. The same for every method."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from experiment_training.components.evaluation.episode import IMAGE, PROPRIO, STATE, Actor
from experiment_training.components.evaluation.metaworld import MetaWorldEvaluation
from experiment_training.leaderboard.contest import Cell
from trainer.timing import one_thread

LATENCY_REPEATS = 20


@dataclass(frozen=True)
class Verdict:
    successes: int
    episodes: int
    latency_ms: float  # least time of an action for which a chunk is predicted, on one thread
    parameters: int
    updates: int
    train_s: float  # of these updates; not of the start
    samples_per_s: float  # while training


def judged(actor: Actor, cell: Cell, **trained: Any) -> dict[str, Any]:
    """Closed loop over the cell's placements, and the time that an action takes."""
    task = cell.task
    evaluation = MetaWorldEvaluation(task.name, cell.episodes, cell.placements, task.max_steps, task.image_size, 1, 0)
    metrics = evaluation.evaluate(actor, None).metrics
    found = {"successes": int(metrics["successes"]), "episodes": int(metrics["episodes"])}
    return asdict(Verdict(**found, latency_ms=latency_ms(actor, task.image_size), **trained))


def latency_ms(actor: Actor, image_size: int | None) -> float:
    state = np.zeros(39, dtype=np.float32)
    observation = {STATE: state}
    if image_size is not None:
        observation = {STATE: state[PROPRIO], IMAGE: np.zeros((image_size, image_size, 3), dtype=np.uint8)}
    seconds = []
    with one_thread():
        for _ in range(LATENCY_REPEATS):
            actor.reset()
            began = time.perf_counter()
            actor.select_action(observation)
            seconds.append(time.perf_counter() - began)
    return 1e3 * min(seconds)
