"""Loader: a train config's file (or mapping) and overrides -> RunConfig, or one ConfigError with all that is wrong."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model_constructor import ConfigError, dump, load_config
from model_constructor.errors import Place
from trainer.config.checks import check_nones, check_registered, import_plugins
from trainer.config.component_checks import check_components
from trainer.config.folders import Folders
from trainer.config.logger_checks import check_loggers
from trainer.config.messages import problems_of
from trainer.config.schemas import ExperimentConfig
from trainer.config.unread_keys import check_unread
from trainer.data.augmentation import augmentation_problems

# Where null takes away an entry that a file below has set.
NAMES = [("model", f"component_{what}") for what in ("config_paths", "params", "build_args", "optims")]
NAMES += [("data", "normalization")]


@dataclass(frozen=True)
class RunConfig:
    """A valid config: `experiment` is typed, `data` is plain (overrides applied), `source` knows the places."""

    experiment: ExperimentConfig
    source: Any
    folders: Folders

    @property
    def data(self) -> dict[str, Any]:
        return self.source.data

    @property
    def name(self) -> str:
        return self.experiment.train.project_name or self.folders.stem

    @property
    def save_dir(self) -> Path:
        return self.folders.save_dir(self.experiment.train.save_dir or f"runs/{self.folders.stem}")

    def place(self, *key: str) -> Place | None:
        return self.source.place(key)


def load_run_config(config: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Load, import plugins, validate. Nothing is built to be kept, and nothing is written."""
    if isinstance(config, Mapping):
        return _validated(load_config(_plain(dict(config)), overrides, names=NAMES), Folders.of_directory(Path.cwd()))
    path = Path(config).expanduser()
    return _validated(load_config(path, overrides, names=NAMES), Folders.of_file(path))


def written_overrides(overrides: Mapping[str, Any]) -> list[str]:
    """`{"train.max_steps": 20}` -> `["train.max_steps=20"]`, as the command line has them."""
    return [f"{key}={dump([_plain(value)], flow=True).strip()[1:-1]}" for key, value in overrides.items()]


def _plain(value: Any) -> Any:
    """Paths become text, tuples become lists."""
    return json.loads(json.dumps(value, default=str))


def _validated(source: Any, folders: Folders) -> RunConfig:
    problems, cause = import_plugins(source, folders.config)
    experiment: ExperimentConfig | None = None
    try:
        experiment = validated(source)
    except ConfigError as error:
        problems += error.problems
    problems += check_registered(source) + check_components(source, folders) + check_unread(source)
    problems += check_loggers(source)
    data = source.data.get("data")
    problems += augmentation_problems(data.get("augmentation") if isinstance(data, dict) else None, source)
    if nones := check_nones(source):
        told = {problem.place for problem in nones}
        problems = [problem for problem in problems if problem.place not in told] + nones
    if problems or experiment is None:
        raise ConfigError(problems) from cause
    return RunConfig(experiment, source, folders)


def validated(source: Any) -> ExperimentConfig:
    """The schema alone: what the config of a finished run is held to."""
    try:
        return ExperimentConfig.model_validate(source.data)
    except ValidationError as error:
        raise ConfigError(problems_of(error, ExperimentConfig, source)) from None
