"""LeRobot data: params -> training windows, held-out windows and the statistics of a LeRobot v3 data set.

Every `observation.*` number becomes a window of the last `obs_proprio_history` steps, every `action*` number one of
the next `action_horizon` steps, at `HZ` steps per second. The files are read directly; lerobot is imported to download.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from model_constructor.errors import ConfigError, Problem, nearest
from trainer.data.columns import ColumnDataset, Columns, frame_offsets, read_columns
from trainer.registry import DATASET_BUILDER_REGISTRY

Rule = tuple[Callable[[Any], Any], str]  # (what a value has to satisfy, what would be right)

TEXT: Rule = (lambda value: isinstance(value, str) and bool(value), "a text")
COUNT: Rule = (lambda value: type(value) is int and value > 0, "a whole number from 1")
PARAMS: dict[str, Rule] = {
    "repo_id": TEXT,
    "root": TEXT,
    "local_files_only": (lambda value: isinstance(value, bool), "true or false"),
    "action_horizon": COUNT,
    "action_offset": (lambda value: type(value) is int, "a whole number of steps; negative: into the past"),
    "obs_proprio_history": COUNT,
    "HZ": (lambda value: type(value) in (int, float) and value > 0, "steps per second, above 0"),
    "episodes": (
        lambda value: isinstance(value, list) and value and all(type(one) is int for one in value),
        "a list of episode indices; leave it out to use all",
    ),
    "task_name": TEXT,
}


@DATASET_BUILDER_REGISTRY.register("lerobot_dataset_factory")
class LeRobotDatasetFactory:
    """`episodes` chooses some of the set; `opt_params["validation"]` holds whole ones of them out."""

    def build(self, opt_params: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        _check(params)
        root = _root(opt_params, params)
        if not root.exists() and not params.get("local_files_only", False):
            _download(params, root)
        columns = read_columns(root)
        windows = _windows(columns, params)
        chosen = sorted(set(params.get("episodes", columns.episodes)))
        held_out = _held_out(chosen, opt_params.get("validation"))
        dataset = ColumnDataset(columns, windows, [episode for episode in chosen if episode not in held_out])
        bundle = {
            "dataset": dataset,
            "norm_stats": dataset.statistics(),
            "task_name": params.get("task_name") or ", ".join(sorted(set(columns.texts.get("task", ())))),
        }
        if held_out:
            bundle["validation_dataset"] = ColumnDataset(columns, windows, held_out)
        return bundle


def _check(params: Mapping[str, Any]) -> None:
    problems = [
        Problem(f"lerobot_dataset_factory has no parameter '{name}'", hint=nearest(name, PARAMS))
        for name in params
        if name not in PARAMS
    ]
    problems += [
        Problem(f"{name} is {params[name]!r}", hint=right)
        for name, (holds, right) in PARAMS.items()
        if name in params and not holds(params[name])
    ]
    if "action_horizon" not in params:
        problems.append(Problem("lerobot_dataset_factory needs the parameter 'action_horizon'", hint=COUNT[1]))
    if not {"repo_id", "root"} & params.keys():
        problems.append(Problem("lerobot_dataset_factory needs 'repo_id' or 'root'", hint="say which data set it is"))
    if problems:
        raise ConfigError(problems)


def _root(opt_params: Mapping[str, Any], params: Mapping[str, Any]) -> Path:
    """`root`, seen from the config's folder if it is there, else from the project; without it, lerobot's own place."""
    if "root" not in params:
        from huggingface_hub.constants import HF_HOME

        home = os.environ.get("HF_LEROBOT_HOME") or Path(HF_HOME) / "lerobot"
        return Path(home).expanduser() / params["repo_id"]
    root = Path(params["root"]).expanduser()
    beside_config = Path(opt_params["config_dir"]) / root  # joining an absolute path gives that path
    return beside_config if beside_config.exists() else Path(opt_params["project_root"]) / root


def _download(params: Mapping[str, Any], root: Path) -> None:
    if "repo_id" not in params:
        return  # nothing to ask for: reading will say that the folder is missing
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    try:
        LeRobotDataset(params["repo_id"], root=root, download_videos=False)
    except Exception as error:
        if root.is_dir() and not any(root.iterdir()):
            root.rmdir()  # lerobot makes the folder before it knows that there is something to put into it
        raise ConfigError(
            Problem(
                f"there is no data set at {root}, and '{params['repo_id']}' could not be downloaded "
                f"({type(error).__name__})",
                hint="check `root` and `repo_id`, or record the data first; local_files_only: true never asks the Hub",
            )
        ) from error


def _windows(columns: Columns, params: Mapping[str, Any]) -> dict[str, list[int]]:
    hz = params.get("HZ", columns.fps)
    history, offset = params.get("obs_proprio_history", 1), params.get("action_offset", 0)
    observed = frame_offsets(range(1 - history, 1), hz, columns.fps)
    acted = frame_offsets(range(offset, offset + params["action_horizon"]), hz, columns.fps)
    windows = {key: observed for key in columns.numbers if key.startswith("observation.")}
    return windows | {key: acted for key in columns.numbers if key.startswith("action.")} | {"action": acted}


def _held_out(chosen: list[int], validation: Mapping[str, Any] | None) -> list[int]:
    """The validation episodes: those named, or a share of the chosen ones that `seed` fixes."""
    if validation is None:
        return []
    if (named := validation.get("episodes")) is not None:
        if missing := sorted(set(named) - set(chosen)):
            raise ConfigError(
                Problem(
                    f"validation episodes {', '.join(map(str, missing))} are not in the data set",
                    hint=f"choose among the {len(chosen)} episodes from {min(chosen)} to {max(chosen)}",
                )
            )
        held_out = sorted(set(named))
    else:
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(validation["seed"])).tolist()
        held_out = sorted(chosen[one] for one in order[: max(1, round(validation["fraction"] * len(chosen)))])
    if len(held_out) == len(chosen):
        raise ConfigError(
            Problem(f"validation holds out all {len(held_out)} episodes", hint="leave at least one for training")
        )
    return held_out
