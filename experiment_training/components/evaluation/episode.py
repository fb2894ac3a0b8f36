"""Episode: an environment of Meta-World and something that acts -> what happened, step by step.

Recording demonstrations and evaluating policies both go through `run_episode`. Whoever sees through a camera is told
of the hand alone; without one, of the whole state.
"""

import functools
import importlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from model_constructor import ConfigError
from model_constructor.errors import Problem, nearest

STATE, ENV_STATE, IMAGE = "observation.state", "observation.environment_state", "observation.images.corner"
CONTROL_RATE_HZ = 80
PLACEMENTS_PER_SEED = 50  # what the package draws for one seed
EPISODE_LIMIT = 500  # steps after which the package ends an episode
HELD_OUT_SEED = 123

# Where the simulator's state vector (39 numbers) holds a position in metres, for every task of the package.
HAND, OBJECT, GOAL = slice(0, 3), slice(4, 7), slice(36, 39)
PROPRIO = slice(0, 4)  # the hand's position, and how far the gripper is open
SURROUNDINGS = [*range(4, 11), *range(18, 29), *range(36, 39)]  # object, all of it one step earlier, goal
CAMERA = "corner2"  # the package's name of a view from opposite the arm
CAMERA_PLACE = (0.75, 0.075, 0.7)  # in metres; nearer than the package's, as in Seo et al. 2022 (arXiv 2206.14244)


class Actor(Protocol):
    """What `trainer.load_policy` gives, and what the scripted expert is."""

    def reset(self, seed: int | None = None) -> None:
        """A new episode; `seed`: of what is drawn in it."""

    def select_action(self, observation: dict[str, np.ndarray]) -> np.ndarray: ...


@dataclass(frozen=True)
class Scene:
    """All that a picture of one episode needs, so that it can be drawn later and in another process."""

    model_path: str
    joint_positions: np.ndarray  # [K, joints], one row per step
    body_positions: np.ndarray  # [bodies, 3]; the placement moves bodies and sites of the model itself
    site_positions: np.ndarray  # [sites, 3]


@dataclass(frozen=True)
class Episode:
    states: np.ndarray  # [K, 39] float32, before each action; who saw images was told of PROPRIO alone
    actions: np.ndarray  # [K, 4] float32, what the actor chose
    success: bool
    scene: Scene
    images: np.ndarray | None = None  # [K, S, S, 3] uint8, red first


class Camera:
    """The view of one environment, `size` pixels wide and high. Needs an OpenGL that draws without a screen."""

    def __init__(self, environment: Any, size: int) -> None:
        self.mujoco: Any = importlib.import_module("mujoco")  # its names come from an extension without types
        self.environment = environment
        try:
            self.renderer = self.mujoco.Renderer(environment.model, size, size)
        except Exception as error:  # whatever a driver raises
            hint = "install an OpenGL that draws without a screen (Debian: libegl1), or use the task's state"
            raise ConfigError(
                Problem("Meta-World's camera cannot draw: there is no OpenGL here.", hint=hint)
            ) from error
        environment.model.camera(CAMERA).pos[:] = CAMERA_PLACE

    def look(self) -> np.ndarray:
        """[S, S, 3] uint8, red first."""
        self.renderer.update_scene(self.environment.data, CAMERA)
        # Shadows and reflections take two thirds of the time where the processor draws.
        self.renderer.scene.flags[self.mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self.renderer.scene.flags[self.mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        return self.renderer.render()[::-1, ::-1].copy()  # the package hangs this camera upside down

    def close(self) -> None:
        self.renderer.close()


def simulator() -> ModuleType:
    """The package `metaworld`, imported without OpenGL: to simulate needs none, and a broken one must not stop it."""
    chosen = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disabled"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("metaworld")
    except ModuleNotFoundError as error:
        hint = "it is an extra of this project: pip install 'policy-constructor[sim]'"
        raise ConfigError(Problem(f"Meta-World cannot be imported: {error}.", hint=hint)) from error
    finally:
        if chosen is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = chosen


def check_task(task: str) -> None:
    known = simulator().MT1.ENV_NAMES
    if task not in known:
        raise ConfigError(Problem(f"Meta-World has no task '{task}'.", hint=nearest(task, known)))


@functools.cache
def placements(task: str, seed: int) -> tuple[Any, ...]:
    """The placements of object and goal that belong to `seed`: the same ones in the same order, always."""
    return tuple(simulator().MT1(task, seed=seed).train_tasks)


def make_environment(task: str) -> Any:
    return simulator().env_dict.ALL_V3_ENVIRONMENTS[task]()


def run_episode(
    environment: Any,
    placement: Any,
    actor: Actor,
    *,
    max_steps: int,
    linger: int,
    disturb: Callable[[np.ndarray], np.ndarray] = lambda action: action,
    camera: Camera | None = None,
    tell_all: bool = False,
    seed: int | None = None,
) -> Episode:
    """Act until `linger` steps after the first success, at most `max_steps`. What is executed is `disturb(action)`.

    Beside what the `camera` shows, the actor is told of the hand alone, unless `tell_all`.
    """
    environment.set_task(placement)
    observed, _ = environment.reset()
    actor.reset(seed)
    states, images, actions, joint_positions = [], [], [], []
    remaining: int | None = None  # steps left once the task has succeeded
    while len(actions) < max_steps and remaining != 0:
        state = np.asarray(observed, dtype=np.float32)
        observation = {STATE: state}
        if camera is not None:
            observation = {STATE: state if tell_all else state[PROPRIO], IMAGE: camera.look()}
            images.append(observation[IMAGE])
        action = np.clip(np.asarray(actor.select_action(observation), dtype=np.float32), -1, 1)
        states.append(state)
        actions.append(action)
        joint_positions.append(environment.data.qpos.copy())
        observed, _, _, _, info = environment.step(np.clip(disturb(action), -1, 1).astype(np.float32))
        if remaining is not None:
            remaining -= 1
        elif info["success"]:
            remaining = linger
    model = environment.model
    scene = Scene(environment.model_name, np.stack(joint_positions), model.body_pos.copy(), model.site_pos.copy())
    seen = np.stack(images) if images else None
    return Episode(np.stack(states), np.stack(actions), remaining is not None, scene, seen)
