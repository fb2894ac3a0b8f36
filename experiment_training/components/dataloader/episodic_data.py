"""Episodic data: params -> training windows, held-out windows and the statistics of a folder of HDF5 episodes.

Items are like those of a LeRobot data set: `observation.state` and every `observation.images.<camera>` are windows of
the last `obs_proprio_history` and `obs_images_history` steps, `action` is one of the next `action_horizon` steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiment_training.components.dataloader.hdf5_episodes import episode_files, read_episodes
from experiment_training.components.dataloader.params import (
    COUNT,
    EPISODES,
    RATE,
    STEPS,
    TEXT,
    TEXTS,
    Rule,
    check_params,
    rooted,
)
from model_constructor.errors import ConfigError, Problem
from trainer.data.columns import ColumnDataset, Columns, frame_offsets
from trainer.data.episodes import held_out
from trainer.registry import DATASET_BUILDER_REGISTRY

ALOHA_FPS = 50
"""Its recorder takes a frame every 0.02 s; the files do not say."""

PARAMS: dict[str, Rule] = {
    "root": (TEXT[0], "a folder of .hdf5 files, or a pattern such as data/episode_*.hdf5"),
    "action_horizon": COUNT,
    "action_offset": STEPS,
    "obs_proprio_history": COUNT,
    "obs_images_history": COUNT,
    "fps": RATE,
    "HZ": RATE,
    "episodes": EPISODES,
    "cameras": TEXTS,
    "state_keys": TEXTS,
    "task_name": TEXT,
}


@DATASET_BUILDER_REGISTRY.register("episodic_dataset_factory")
class EpisodicDatasetFactory:
    """`episodes` chooses some of the files, numbered in their natural order from 0.

    `fps` [50] is the rate of the recordings, `HZ` [fps] that of the windows' steps. `state_keys` [qpos] and `cameras`
    [all] name data sets under /observations. ACT's own loader reads real-robot recordings with `action_offset: -1`.
    """

    def build(self, opt_params: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        check_params("episodic_dataset_factory", params, PARAMS, needed=("root", "action_horizon"))
        root = rooted(params["root"], opt_params, exists=episode_files)
        files = episode_files(root)
        if not files:
            raise ConfigError(Problem(f"there are no episodes at {root}", hint=f"`root` is {PARAMS['root'][1]}"))
        task = params.get("task_name", "")
        columns = read_episodes(
            files, params.get("state_keys", ["qpos"]), params.get("cameras"), params.get("fps", ALOHA_FPS), task
        )
        windows = _windows(columns, params)
        chosen = sorted(set(params.get("episodes", columns.episodes)))
        held = held_out(chosen, opt_params.get("validation"))
        dataset = ColumnDataset(columns, windows, [episode for episode in chosen if episode not in held])
        bundle = {
            "dataset": dataset,
            "norm_stats": dataset.statistics(),
            "task_name": task,
            "fingerprint": dataset.fingerprint,
        }
        if held:
            bundle["validation_dataset"] = ColumnDataset(columns, windows, held)
        return bundle


def _windows(columns: Columns, params: Mapping[str, Any]) -> dict[str, list[int]]:
    offset = params.get("action_offset", 0)
    steps = {"action": range(offset, offset + params["action_horizon"])}
    steps["observation.state"] = range(1 - params.get("obs_proprio_history", 1), 1)
    steps |= dict.fromkeys(columns.cameras, range(1 - params.get("obs_images_history", 1), 1))
    hz = params.get("HZ", columns.fps)
    read = {*columns.numbers, *columns.cameras}
    return {key: frame_offsets(window, hz, columns.fps) for key, window in steps.items() if key in read}
