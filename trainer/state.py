"""State: a run and its progress <-> its folder: run-level files, checkpoints, and where a run begins."""

import inspect
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from model_constructor import ConfigError, dump, load_config
from model_constructor.errors import Place, Problem
from trainer.build import Run
from trainer.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoint_folders,
    newest_checkpoint,
    open_checkpoint,
    random_state,
    remove_leftovers,
    remove_old,
    set_random_state,
    write_checkpoint,
    writing,
)
from trainer.config import RunConfig
from trainer.data.normalization import fingerprint, plain_stats, save_stats, write_stats_pickle
from trainer.metrics import MetricWindow, read_metrics
from trainer.registry import OPTIMIZER_BUILDER_REGISTRY

ENVIRONMENT = "environment.json"  # the first file of every run folder: what tells ours from any other
PACKAGES = ("policy-constructor", "torch", "numpy", "lerobot", "schedulefree")


@dataclass
class Progress:
    step: int = 0
    seconds: float = 0.0  # of training, summed over resumes
    window: MetricWindow = field(default_factory=MetricWindow)


def choose_start(config: RunConfig, resume: str) -> Checkpoint | None:
    """`none`: refuse a folder that holds a run. `auto`: its newest checkpoint, or a start. A path: that one."""
    run_dir = config.save_dir
    with at_save_dir(config):
        if run_dir.exists() and any(run_dir.iterdir()) and not (run_dir / ENVIRONMENT).is_file():
            raise CheckpointError(f"{run_dir} holds files that are not a run's (it has no {ENVIRONMENT})")
        return _choose_start(config, resume)


@contextmanager
def at_save_dir(config: RunConfig) -> Iterator[None]:
    """What is wrong with the run folder is told where the config speaks of it."""
    try:
        with writing(config.save_dir):
            yield
    except CheckpointError as error:
        hint = "choose another train.save_dir, or see what became of this one"
        raise ConfigError(Problem(str(error), config.place("train", "save_dir"), hint)) from error


def _choose_start(config: RunConfig, resume: str) -> Checkpoint | None:
    run_dir = config.save_dir
    holds_run = bool(read_metrics(run_dir / "metrics.jsonl")) or bool(checkpoint_folders(run_dir))
    if resume == "auto":
        return newest_checkpoint(run_dir)
    if resume == "none":
        if holds_run:
            hint = "continue it with --resume auto, choose another train.save_dir, or remove the folder"
            raise ConfigError(Problem(f"{run_dir} holds a run already", config.place("train", "save_dir"), hint))
        return None
    path = Path(resume).expanduser()
    try:
        start = open_checkpoint(path) if (path / "training_state.pt").exists() else newest_checkpoint(path)
    except CheckpointError as error:
        raise ConfigError(Problem(f"--resume: {error}")) from error
    if start is None:
        raise ConfigError(Problem(f"--resume: there is no checkpoint in {path}", hint="none, auto, or a path"))
    newest = newest_checkpoint(run_dir) if holds_run else None
    if newest is not None and newest.path.resolve() != start.path.resolve():
        hint = "choose another train.save_dir, or remove the later checkpoints"
        raise ConfigError(
            Problem(
                f"--resume {resume}: {run_dir} goes on to step {newest.step}", config.place("train", "save_dir"), hint
            )
        )
    return start


def restore(run: Run, checkpoint: Checkpoint) -> Progress:
    """Everything a run continues from; what does not fit is refused before anything is loaded."""
    state = checkpoint.tensors("training_state")
    problems = [*_fact_problems(run, state["facts"]), *_model_problems(run, checkpoint)]
    if problems:
        raise ConfigError(problems)
    for line in _config_differences(run.config, checkpoint.path.parent):
        print(line, flush=True)
    for name, component in run.models.items():
        component.load_state_dict(checkpoint.tensors(name))
    for name in run.optimizers:
        _load_optimizer(run, name, checkpoint.tensors(f"{name}_opt"))
    run.loss.load_state_dict(state["loss"])
    if hasattr(run.trainer, "load_state_dict"):
        run.trainer.load_state_dict(state["trainer"])
    progress = Progress(state["step"], state["seconds"])
    progress.window.load_state_dict(state["window"], run.device)
    set_random_state(state["random"])
    return progress


def save(run: Run, progress: Progress) -> Checkpoint:
    """One checkpoint of this moment; training's tensors and random streams are only read."""
    epoch, rest = divmod(progress.step, run.updates_per_epoch)
    name = f"step_{progress.step}" if rest else f"epoch_{epoch}"
    tensors = {component: module.state_dict() for component, module in run.models.items()}
    tensors |= {f"{component}_opt": optimizer.state_dict() for component, optimizer in run.optimizers.items()}
    tensors["training_state"] = {
        "step": progress.step,
        "epoch": epoch,
        "seconds": progress.seconds,
        "facts": _facts(run),
        "item_shapes": run.data.item_shapes,
        "statistics": plain_stats(run.data.norm_stats),
        "normalization": {key: asdict(how) for key, how in run.data.modes.items()},
        "window": progress.window.state_dict(),
        "random": random_state(),
        "loss": run.loss.state_dict(),
        "trainer": run.trainer.state_dict() if hasattr(run.trainer, "state_dict") else {},
    }
    texts = {f"{component}.yaml": _spec_text(module) for component, module in run.models.items()}
    checkpoint = write_checkpoint(run.config.save_dir, name, progress.step, tensors, texts)
    if run.config.experiment.train.keep_last is not None:
        remove_old(run.config.save_dir, run.config.experiment.train.keep_last)
    return checkpoint


def open_run_folder(run: Run) -> Path:
    """The run-level files, written when all is built and the first update is next."""
    run_dir = run.config.save_dir
    with at_save_dir(run.config):
        run_dir.mkdir(parents=True, exist_ok=True)
        remove_leftovers(run_dir)
        (run_dir / ENVIRONMENT).write_text(json.dumps(_environment(run), indent=1), encoding="utf-8")
        (run_dir / "config.yaml").write_text(run.config.source.text, encoding="utf-8")
        save_stats(run.data.norm_stats, run_dir / "dataset_stats.json")  # for people; a policy reads its checkpoint's
        write_stats_pickle(run.data.norm_stats, run_dir / "dataset_stats.pkl")
    return run_dir


def _load_optimizer(run: Run, name: str, state: dict[str, Any]) -> None:
    """The saved state under the config given now: a longer run has a longer schedule, from the same update on."""
    entry = run.config.experiment.model.component_optims[name]
    parameters = inspect.signature(OPTIMIZER_BUILDER_REGISTRY.get(entry.type)).parameters
    optimizer = run.optimizers[name]
    configured = [{key: group[key] for key in parameters if key in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, configured, strict=True):
        group.update(values)


def _facts(run: Run) -> dict[str, int | str]:
    """What may not change within a run: the data, the order and units of its samples, the kinds of optimizers."""
    updates, optims = run.data.updates, run.config.experiment.model.component_optims
    return {
        "frames": updates.size,
        "frames per update": updates.batch_size,
        "seed": updates.seed,
        "data of fingerprint": fingerprint(run.data.norm_stats),
        **{f"the normalization of {key}": str(how) for key, how in run.data.modes.items()},
        **{f"the optimizer of {name}": optims[name].type for name in run.optimizers},
    }


def _fact_place(config: RunConfig, fact: str) -> Place | None:
    """Where the config decides a fact."""
    keys = {"frames per update": ("data", "batch_size"), "seed": ("seed",)}
    if fact == "seed" and config.experiment.train.seed is not None:
        return config.place("train", "seed")
    of = fact.rpartition(" of ")[2]
    if fact.startswith("the optimizer"):
        return config.place("model", "component_optims", of)
    if fact.startswith("the normalization"):
        return config.place("data", "normalization", of)
    return config.place(*keys.get(fact, ("data", "datamodule")))


def _fact_problems(run: Run, saved: Mapping[str, int | str]) -> Iterator[Problem]:
    given = _facts(run)
    for name in sorted(saved.keys() | given.keys()):
        if saved.get(name) != given.get(name):
            message = f"the run was trained with {name} {saved.get(name)}, and is to continue with {given.get(name)}"
            hint = "restore it in the config, or start another train.save_dir"
            yield Problem(message, _fact_place(run.config, name), hint)


def _model_problems(run: Run, checkpoint: Checkpoint) -> Iterator[Problem]:
    if set(run.models) != set(checkpoint.components):
        message = (
            f"the run has the components {', '.join(checkpoint.components)}; the config has {', '.join(run.models)}"
        )
        yield Problem(message, run.config.place("model", "component_config_paths"), "start another save_dir")
    for name in checkpoint.components:
        if name in run.models and checkpoint.text(f"{name}.yaml") != _spec_text(run.models[name]):
            message = f"component '{name}' is not the model that {checkpoint.path} was saved from"
            place = run.config.place("model", "component_config_paths", name)
            yield Problem(message, place, f"compare {checkpoint.path / name}.yaml, or start another save_dir")


def _spec_text(component: Any) -> str:
    return dump(component.spec)


def _config_differences(config: RunConfig, run_dir: Path) -> Iterator[str]:
    path = run_dir / "config.yaml"
    saved = _flat(load_config(path).data) if path.exists() else {}
    given = _flat(config.data)
    for key in sorted(saved.keys() | given.keys() if saved else ()):
        if saved.get(key) != given.get(key):
            yield f"config: {key} was {saved.get(key)!r}, is now {given.get(key)!r}"


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix: data}
    return {
        name: value
        for key, inner in data.items()
        for name, value in _flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def _environment(run: Run) -> dict[str, Any]:
    return {
        "run": run.config.name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "config_folder": str(run.config.folders.config),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "cpu",
        "git_commit": _git_commit(run.config.folders.project),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit(folder: Path) -> str | None:
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
