"""Loader: a train config's file (or mapping) and overrides -> RunConfig, or one ConfigError with all that is wrong."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from model_constructor import ConfigError, dump, load_config
from model_constructor.errors import Place, Problem, nearest
from trainer.config.checks import check_components, check_registered, import_plugins
from trainer.config.folders import Folders
from trainer.config.schemas import ExperimentConfig


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
        return _validated(load_config(_plain(dict(config)), overrides), Folders.of_directory(Path.cwd()))
    path = Path(config).expanduser()
    return _validated(load_config(path, overrides), Folders.of_file(path))


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
    problems += check_registered(source) + check_components(source, folders)
    if problems or experiment is None:
        raise ConfigError(problems) from cause
    return RunConfig(experiment, source, folders)


def validated(source: Any) -> ExperimentConfig:
    """The schema alone: what the config of a finished run is held to."""
    try:
        return ExperimentConfig.model_validate(source.data)
    except ValidationError as error:
        raise ConfigError([_problem(detail, source) for detail in error.errors()]) from None


def _problem(detail: ErrorDetails, source: Any) -> Problem:
    """A pydantic error in this project's words, at the key or value that it speaks of."""
    key = tuple(part for part in detail["loc"] if part != "[key]")
    dotted = ".".join(str(part) for part in key) or "config"
    match detail["type"]:
        case "extra_forbidden":
            return Problem(f"unknown key '{dotted}'", source.key_place(key), nearest(key[-1], _known_keys(key[:-1])))
        case "missing":
            return Problem(f"'{dotted}' is missing", source.place(key), f"add `{key[-1]}:` here")
        case "value_error":
            return Problem(f"{dotted}: {detail['ctx']['error']}", source.place(key))
    given = json.dumps(detail["input"], default=str)
    says = detail["msg"].replace("Input should be", "should be")
    return Problem(f"{dotted}: {says}, not {given if len(given) < 60 else given[:57] + '...'}", source.place(key))


def _known_keys(key: tuple[str | int, ...]) -> list[str]:
    """The keys that the schema knows at this place."""
    kind: Any = ExperimentConfig
    for part in key:
        arguments = [argument for argument in get_args(kind) if argument is not type(None)]
        if get_origin(kind) is dict:
            kind = arguments[1]
            continue
        if arguments:  # `Section | None`
            kind = arguments[0]
        kind = kind.model_fields[part].annotation
    known = [argument for argument in (kind, *get_args(kind)) if isinstance(argument, type)]
    return [name for section in known if issubclass(section, BaseModel) for name in section.model_fields]
