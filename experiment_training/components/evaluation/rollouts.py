"""Rollouts: a task's placements and something that acts -> episodes, in order, several at once.

Each process has its own environment, its own copy of the actor, and one thread. What an episode holds does not depend
on the number of processes: whatever is drawn in it is seeded by its placement.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from experiment_training.components.evaluation.episode import (
    Actor,
    Camera,
    Episode,
    make_environment,
    placements,
    run_episode,
)
from trainer.timing import one_thread


@dataclass(frozen=True)
class Rollouts:
    """How episodes of a task are run; `seed` draws the placements, `noise` is added to what is executed."""

    task: str
    seed: int
    max_steps: int
    linger: int
    image_size: int | None = None  # pixels; None: no images
    tell_all: bool = False  # the actor gets the whole state beside images too
    noise: float = 0.0  # standard deviation
    attempts: int = 1  # at an episode, until one succeeds

    def run(self, actor: Actor, indices: Sequence[int], processes: int) -> Iterator[Episode]:
        """The episode of each placement. Images are drawn in other processes, also where there is only one of them:
        OpenGL is chosen once in a process, and may end it."""
        if processes == 1 and self.image_size is None:
            with one_thread():
                yield from Stage(self, actor).episodes(indices)
            return
        with ProcessPoolExecutor(
            min(processes, len(indices)), multiprocessing.get_context("spawn"), _begin, (self, pickle.dumps(actor))
        ) as pool:
            yield from pool.map(_episode, indices)


class Stage:
    """One process's environment, camera and actor."""

    def __init__(self, rollouts: Rollouts, actor: Actor) -> None:
        self.rollouts, self.actor = rollouts, actor
        self.environment = make_environment(rollouts.task)
        self.camera: Camera | None = None

    def episodes(self, indices: Sequence[int]) -> Iterator[Episode]:
        for index in indices:
            yield self.episode(index)
        self.environment.close()

    def episode(self, index: int) -> Episode:
        """The first attempt that succeeds, else the last one."""
        plan = self.rollouts
        tasks = placements(plan.task, plan.seed)
        placement = tasks[index % len(tasks)]
        if plan.image_size is not None and self.camera is None:
            self.environment.set_task(placement)
            self.environment.reset()  # the model that a camera looks at is there from now on
            self.camera = Camera(self.environment, plan.image_size)
        for attempt in range(plan.attempts):
            generator = np.random.default_rng([plan.seed, index, attempt])

            def disturb(action: np.ndarray, generator: np.random.Generator = generator) -> np.ndarray:
                return action + plan.noise * generator.normal(size=action.shape)

            episode = run_episode(
                self.environment,
                placement,
                self.actor,
                max_steps=plan.max_steps,
                linger=plan.linger,
                disturb=disturb,
                camera=self.camera,
                tell_all=plan.tell_all,
                seed=index,
            )
            if episode.success:
                break
        return episode


_stage: Stage | None = None  # of a process of the pool


def _begin(rollouts: Rollouts, actor: bytes) -> None:
    global _stage
    torch.set_num_threads(1)
    if rollouts.image_size is not None:
        if sys.platform == "linux":
            os.environ.setdefault("MUJOCO_GL", "egl")  # the one that needs no screen
        importlib.import_module("mujoco")  # which reads that when it is imported
    _stage = Stage(rollouts, pickle.loads(actor))


def _episode(index: int) -> Episode:
    assert _stage is not None
    return _stage.episode(index)
