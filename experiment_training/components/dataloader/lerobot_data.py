"""LeRobot data: params -> training windows, held-out windows and statistics of one LeRobot v3 data set, or of several.

Every `observation.*` number is a window of the last `obs_proprio_history` steps, every camera one of the last
`obs_images_history` steps, every `action*` number one of the next `action_horizon` steps, at `HZ` steps per second.
The files are read directly; lerobot is imported to download.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment_training.components.dataloader.params import (
    COUNT,
    EPISODES,
    RATE,
    STEPS,
    TEXT,
    Rule,
    check_params,
    rooted,
)
from model_constructor.errors import ConfigError, Problem
from trainer.data.columns import ColumnDataset, Columns, frame_offsets, mixed_statistics
from trainer.data.episodes import held_out
from trainer.data.lerobot_files import read_columns
from trainer.data.mixture import Mixture
from trainer.data.video import VideoFrames
from trainer.registry import DATASET_BUILDER_REGISTRY

FACTORY = "lerobot_dataset_factory"
PARAMS: dict[str, Rule] = {
    "repo_id": TEXT,
    "root": TEXT,
    "local_files_only": (lambda value: isinstance(value, bool), "true or false"),
    "action_horizon": COUNT,
    "action_offset": STEPS,
    "obs_proprio_history": COUNT,
    "obs_images_history": COUNT,
    "HZ": RATE,
    "episodes": EPISODES,
    "task_name": TEXT,
    "video_backend": (lambda value: value in ("pyav", "torchcodec"), "pyav or torchcodec"),
}
WEIGHT: Rule = (lambda value: type(value) in (int, float) and 0 < value < float("inf"), "a number above 0")
SETS: Rule = (
    lambda value: isinstance(value, list) and value and all(isinstance(one, dict) for one in value),
    "a list of data sets, each with its `weight`, its `repo_id` or `root`, and what else differs",
)


@DATASET_BUILDER_REGISTRY.register(FACTORY)
class LeRobotDatasetFactory:
    """`episodes` chooses some of the set; `opt_params["validation"]` holds whole ones of them out.

    `datasets` lists several sets: each entry has a `weight` [1] and params of its own, beside it stand the params that
    all share. They are mixed in proportion to their weights. Statistics then describe what training sees: a set counts
    by its weight, not by its number of frames. Validation runs over all held-out frames, once each.
    """

    def build(self, opt_params: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        if "datasets" not in params:
            _check(params, PARAMS)
            part = _read(opt_params, params)
            bundle: dict[str, Any] = {"dataset": part.training, "norm_stats": part.training.statistics()}
            if part.held_out is not None:
                bundle["validation_dataset"] = part.held_out
            return bundle | {"task_name": part.task, "fingerprint": part.training.fingerprint}
        parts, weights = _read_all(opt_params, params)
        names, training = [part.name for part in parts], [part.training for part in parts]
        bundle = {"dataset": Mixture(training, weights, names), "norm_stats": mixed_statistics(training, weights)}
        held = [part.held_out for part in parts if part.held_out is not None]
        if held:
            bundle["validation_dataset"] = Mixture(held, weights, names)
        content = repr([(dataset.fingerprint, weight) for dataset, weight in zip(training, weights, strict=True)])
        return bundle | {
            "task_name": ", ".join(dict.fromkeys(part.task for part in parts)),
            "fingerprint": hashlib.sha256(content.encode()).hexdigest()[:32],
        }


@dataclass(frozen=True)
class _Part:
    """One data set of a run."""

    name: str
    steps_per_s: float
    training: ColumnDataset
    held_out: ColumnDataset | None
    task: str


def _read(opt_params: Mapping[str, Any], params: Mapping[str, Any]) -> _Part:
    root = _root(opt_params, params)
    if not root.exists() and not params.get("local_files_only", False):
        _download(params, root)
    columns = read_columns(root, params.get("video_backend"))
    windows = _windows(columns, params)
    chosen = sorted(set(params.get("episodes", columns.episodes)))
    held = held_out(chosen, opt_params.get("validation"))
    return _Part(
        params.get("repo_id") or params["root"],
        params.get("HZ", columns.fps),
        ColumnDataset(columns, windows, [episode for episode in chosen if episode not in held]),
        ColumnDataset(columns, windows, held) if held else None,
        params.get("task_name") or ", ".join(sorted(set(columns.texts.get("task", ())))),
    )


def _twice(entries: Sequence[Mapping[str, Any]]) -> str:
    """A data set that two entries read; empty if there is none."""
    names = [str(entry.get("root") or entry.get("repo_id")) for entry in entries]
    return next((name for name in names if names.count(name) > 1), "")


def _read_all(opt_params: Mapping[str, Any], params: Mapping[str, Any]) -> tuple[list[_Part], list[float]]:
    """Each set of `datasets` with its weight; problems of all of them together."""
    check_params(FACTORY, params, {**PARAMS, "datasets": SETS}, needed=())
    problems = []
    if (opt_params.get("validation") or {}).get("episodes") is not None:
        hint = "hold out a fraction of each: data.validation.fraction"
        problems.append(Problem("data.validation names episodes, and several data sets have them", hint=hint))
    common = {name: value for name, value in params.items() if name != "datasets"}
    if opt_params.get("validation") and (twice := _twice([{**common, **entry} for entry in params["datasets"]])):
        hint = "hold nothing out, or list it once: what one entry holds out, the other would train on"
        problems.append(Problem(f"datasets names {twice} twice, and data.validation is given", hint=hint))
    parts: list[_Part] = []
    for number, entry in enumerate(params["datasets"]):
        given = {**common, **entry}
        try:
            _check(given, {**PARAMS, "weight": WEIGHT})
            parts.append(_read(opt_params, given))
        except ConfigError as error:
            problems += [Problem(f"datasets[{number}]: {one.message}", one.place, one.hint) for one in error.problems]
    if len(rates := sorted({part.steps_per_s for part in parts})) > 1:
        message = f"the data sets have {', '.join(f'{rate:g}' for rate in rates)} steps per second"
        problems.append(Problem(message, hint="give one HZ for all, so that a step lasts as long in each"))
    if problems:
        raise ConfigError(problems)
    return parts, [entry.get("weight", 1) for entry in params["datasets"]]


def _check(params: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    problems = []
    if not {"repo_id", "root"} & params.keys():
        problems.append(Problem(f"{FACTORY} needs 'repo_id' or 'root'", hint="say which data set it is"))
    try:
        check_params(FACTORY, params, rules, needed=("action_horizon",))
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)


def _root(opt_params: Mapping[str, Any], params: Mapping[str, Any]) -> Path:
    """`root`, seen from the config's folder if it is there, else from the project; without it, lerobot's own place."""
    if "root" in params:
        return rooted(params["root"], opt_params)
    from huggingface_hub.constants import HF_HOME

    home = os.environ.get("HF_LEROBOT_HOME") or Path(HF_HOME) / "lerobot"
    return Path(home).expanduser() / params["repo_id"]


def _download(params: Mapping[str, Any], root: Path) -> None:
    """One process at a time; a data set stands at `root` when it is whole, and an interrupted download goes on."""
    if "repo_id" not in params:
        return  # nothing to ask for: reading will say that the folder is missing
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    unfinished, lock = (root.with_name(f".{root.name}.{end}") for end in ("unfinished", "lock"))
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as waited_for:
            fcntl.flock(waited_for, fcntl.LOCK_EX)
            if not root.exists():
                LeRobotDataset(params["repo_id"], root=unfinished)
                unfinished.rename(root)
    except Exception as error:
        if unfinished.is_dir() and not any(unfinished.iterdir()):
            unfinished.rmdir()  # lerobot makes the folder before it knows that there is something to put into it
        raise ConfigError(
            Problem(
                f"there is no data set at {root}, and '{params['repo_id']}' could not be downloaded "
                f"({type(error).__name__})",
                hint="check `root` and `repo_id`, or record the data first; local_files_only: true never asks the Hub",
            )
        ) from error


def _windows(columns: Columns, params: Mapping[str, Any]) -> dict[str, list[int]]:
    of_video = any(isinstance(camera, VideoFrames) for camera in columns.cameras.values())
    problems = [
        Problem(f"{name} is given, and the data set at {columns.root} has no {what}", hint="leave it out")
        for name, what, is_there in (
            ("obs_images_history", "images or videos", columns.cameras),
            ("video_backend", "videos", of_video),
        )
        if name in params and not is_there
    ]
    if problems:
        raise ConfigError(problems)
    offset = params.get("action_offset", 0)
    proprio = range(1 - params.get("obs_proprio_history", 1), 1)
    images = range(1 - params.get("obs_images_history", 1), 1)
    action = range(offset, offset + params["action_horizon"])
    steps: dict[str, Sequence[int]] = {key: proprio for key in columns.numbers if key.startswith("observation.")}
    steps |= {key: action for key in columns.numbers if key.startswith("action.")} | {"action": action}
    steps |= dict.fromkeys(columns.cameras, images)
    hz = params.get("HZ", columns.fps)
    return {key: frame_offsets(window, hz, columns.fps) for key, window in steps.items()}
