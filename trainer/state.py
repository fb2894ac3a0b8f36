"""State: a run and its progress <-> its folder: run-level files, checkpoints, and where a run begins."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from model_constructor import ConfigError
from model_constructor.errors import Problem
from trainer.build import Run, seed_everything
from trainer.checkpoint import (
    LINKS,
    MANIFEST,
    Checkpoint,
    CheckpointError,
    checkpoint_folders,
    holds_files,
    link_checkpoints,
    locked,
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
from trainer.data.normalization import plain_stats, save_stats, write_stats_pickle
from trainer.distributed import first_disagreement
from trainer.environment import write_environment
from trainer.facts import config_differences, fact_problems, facts, model_problems, spec_text
from trainer.files import replace_text
from trainer.metrics import MetricWindow, read_metrics
from trainer.modeling.warm_start import refuse_other_shapes

ENVIRONMENT = "environment.json"  # the first file of every run folder: what tells ours from any other


@dataclass
class Progress:
    step: int = 0
    seconds: float = 0.0  # of training, summed over resumes
    best_loss: float = math.inf  # of all validations so far
    best: str | None = None  # the checkpoint that was saved with it
    owed: tuple[str, ...] = ()  # "validation", "evaluation": what the run has left out because it was stopped
    window: MetricWindow = field(default_factory=MetricWindow)
    known: frozenset[str] = frozenset()  # the checkpoints that the run's folder held when its start was chosen


def known_checkpoints(config: RunConfig) -> frozenset[str]:
    return frozenset(path.name for path in checkpoint_folders(config.save_dir))


def choose_start(config: RunConfig, resume: str) -> Checkpoint | None:
    """`none`: refuse a folder that holds a run. `auto`: its newest checkpoint, or a start. A path: that one."""
    run_dir = config.save_dir
    with at_save_dir(config):
        if holds_files(run_dir) and not (run_dir / ENVIRONMENT).is_file():
            raise CheckpointError(f"{run_dir} holds files that are not a run's (it has no {ENVIRONMENT})")
        for name in LINKS:
            if (run_dir / name).exists() and not (run_dir / name).is_symlink():
                raise CheckpointError(f"{run_dir / name} is in the way: a link of that name is written with each save")
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
        is_one = any((path / name).exists() for name in (MANIFEST, "training_state.pt"))  # maybe a damaged one
        start = open_checkpoint(path) if is_one else newest_checkpoint(path)
    except CheckpointError as error:
        raise ConfigError(Problem(f"--resume: {error}")) from error
    if start is None:
        raise ConfigError(Problem(f"--resume: there is no checkpoint in {path}", hint="none, auto, or a path"))
    newest = newest_checkpoint(run_dir) if holds_run else None
    if holds_run and newest is None:
        hint = "choose another train.save_dir, or remove the folder"
        message = f"--resume {resume}: {run_dir} holds the metrics of a run that saved nothing"
        raise ConfigError(Problem(message, config.place("train", "save_dir"), hint))
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
    problems = [*fact_problems(run, state["facts"]), *model_problems(run, checkpoint)]
    if problems:
        raise ConfigError(problems)
    for line in config_differences(run.config, checkpoint.path.parent):
        run.world.say(line)
    for name, component in run.models.items():
        component.load_state_dict(checkpoint.tensors(name))
    for name in run.optimizers:
        _load_optimizer(run, name, checkpoint.tensors(f"{name}_opt"), state["optimizer_params"][name])
    run.averages.load_state_dict(state["averages"])
    try:
        set_own_state(run.trainer, run.loss, state)
    except Exception as error:  # whatever another loss or trainer raises about what it does not know
        why = " ".join(str(error).split())[:300]
        message = f"the loss and the trainer cannot go on from what those of {checkpoint.path} have kept: {why}"
        raise ConfigError(
            Problem(message, run.config.place("train", "loss"), "restore them in the config, or start another save_dir")
        ) from error
    is_here = checkpoint.path.resolve().parent == run.config.save_dir.resolve()
    best = state["best"] if is_here else None  # a checkpoint of another folder is none of this one's
    owed = tuple(one for one in state.get("owed", ()) if one == "validation" or run.evaluation is not None)
    progress = Progress(state["step"], state["seconds"], state["best_loss"], best, owed)
    if len(state["processes"]) == run.world.size:
        own = state["processes"][run.world.rank]
        progress.window.load_state_dict(own["window"], run.device)
        set_random_state(own["random"])
        if run.world.size > 1:
            set_own_state(run.trainer, run.loss, own["state"])
            for name, buffer in persistent_buffers(run.models).items():
                buffer.copy_(own["buffers"][name])
    else:  # the order of the samples goes on; the streams of other processes cannot
        seed_everything(run.config.experiment.run_seed, progress.step, run.world.rank)
    return progress


def own_state(run: Run) -> dict[str, Any]:
    """What the loss and the trainer keep from update to update."""
    trainer: Any = run.trainer
    return {"loss": run.loss.state_dict(), "trainer": trainer.state_dict() if hasattr(trainer, "state_dict") else {}}


def set_own_state(trainer: Any, loss: nn.Module, state: Mapping[str, Any]) -> None:
    loss.load_state_dict(state["loss"])
    if hasattr(trainer, "load_state_dict"):
        trainer.load_state_dict(state["trainer"])


def persistent_buffers(models: nn.Module) -> dict[str, Tensor]:
    buffers = dict(models.named_buffers(remove_duplicate=False))
    return {name: value for name, value in models.state_dict().items() if name in buffers}


def save(run: Run, progress: Progress, is_best: bool = False) -> Checkpoint:
    """One checkpoint of this moment, written by the first process; training's tensors and random streams are only read.

    CheckpointError, on every process, when it cannot be written or when the processes' parameters are not the same.
    """
    if (differing := first_disagreement(run.world, [*run.models.named_parameters()])) is not None:
        message = (
            f"the processes' parameters are not the same any more, first in {differing}; no checkpoint was written.\n"
            "  A trainer that changes weights outside of its gradients has to do so equally on every process."
        )
        raise CheckpointError(message)
    progress.best = checkpoint_name(run, progress) if is_best else progress.best
    own: dict[str, Any] = {"random": random_state(), "window": progress.window.state_dict()}
    if run.world.size > 1:  # what is beside the parameters may differ: each process has seen samples of its own
        own |= {"state": own_state(run), "buffers": persistent_buffers(run.models)}
    processes = run.world.gather(own)
    return run.world.first_decides(lambda: _write(run, progress, processes))


def checkpoint_name(run: Run, progress: Progress) -> str:
    epoch, rest = divmod(progress.step, run.updates_per_epoch)
    return f"step_{progress.step}" if rest else f"epoch_{epoch}"


def _write(run: Run, progress: Progress, processes: list[dict[str, Any]]) -> Checkpoint:
    name = checkpoint_name(run, progress)
    tensors = {component: module.state_dict() for component, module in run.models.items()}
    tensors |= {f"{component}_opt": optimizer.state_dict() for component, optimizer in run.optimizers.items()}
    with run.averages.applied():
        tensors |= {f"{component}_ema": run.models[component].state_dict() for component in run.averages.components}
    tensors["training_state"] = {
        "step": progress.step,
        "epoch": progress.step // run.updates_per_epoch,
        "seconds": progress.seconds,
        "best_loss": progress.best_loss,
        "best": progress.best,
        "owed": list(progress.owed),
        "facts": facts(run),
        "optimizer_params": {name: _optimizer_params(run, name) for name in run.optimizers},
        "item_shapes": run.data.item_shapes,
        "statistics": plain_stats(run.data.norm_stats),
        "normalization": {key: asdict(how) for key, how in run.data.prepare.normalizer.modes.items()},
        "images": run.data.prepare.images,
        "processes": processes,
        "averages": run.averages.state_dict(),
        **own_state(run),
    }
    texts = {f"{component}.yaml": spec_text(module) for component, module in run.models.items()}
    checkpoint = write_checkpoint(run.config.save_dir, name, progress.step, tensors, texts, progress.best)
    _remove_old(run, checkpoint)
    return checkpoint


def _remove_old(run: Run, newest: Checkpoint) -> None:
    train = run.config.experiment.train
    if train.keep_last is not None:
        remove_old(run.config.save_dir, train.keep_last, train.keep_every, newest.step)


def complete_last_save(run: Run, progress: Progress, last: Checkpoint) -> None:
    """What a kill left undone of the save that ends a run: links, older checkpoints, temporary files."""
    run_dir = run.config.save_dir
    if last.path.resolve().parent != run_dir.resolve():
        return
    with at_save_dir(run.config), locked(run_dir):
        remove_leftovers(run_dir)
        link_checkpoints(run_dir, last.path.name, progress.best)
        _remove_old(run, last)


@contextmanager
def run_folder(run: Run, progress: Progress) -> Iterator[Path]:
    """The run's folder with its run-level files, held by this run alone until it ends."""
    run_dir = run.config.save_dir
    with ExitStack() as held:
        run.world.first_decides(lambda: _open_run_folder(run, progress, held))
        yield run_dir


def _open_run_folder(run: Run, progress: Progress, held: ExitStack) -> None:
    run_dir = run.config.save_dir
    with at_save_dir(run.config):
        run_dir.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(run_dir))
        if known_checkpoints(run.config) != progress.known:
            raise CheckpointError(f"another run was at work in {run_dir} while this one was built; start again")
        remove_leftovers(run_dir)
        write_environment(run, run_dir / ENVIRONMENT)
        replace_text(run_dir / "config.yaml", run.config.source.text)
        save_stats(run.data.norm_stats, run_dir / "dataset_stats.json")  # for people; a policy reads its checkpoint's
        write_stats_pickle(run.data.norm_stats, run_dir / "dataset_stats.pkl")


def _load_optimizer(run: Run, name: str, state: dict[str, Any], params: Mapping[str, str]) -> None:
    """The saved state under the config given now: a longer run has a longer schedule, from the same update on.

    Only what the config says otherwise than before is taken from it: a schedule may have moved all other values.
    """
    given, optimizer = _optimizer_params(run, name), run.optimizers[name]
    changed = [key for key in params.keys() | given.keys() if params.get(key) != given.get(key)]
    configured = [{key: group[key] for key in changed if key in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    refuse_other_shapes(optimizer)
    for group, values in zip(optimizer.param_groups, configured, strict=True):
        group.update(values)


def _optimizer_params(run: Run, name: str) -> dict[str, str]:
    """What the config and the run's length say of each param of an optimizer, in all its groups; to be compared."""
    entry = run.config.experiment.model.component_optims[name]
    said: dict[str, list[Any]] = {"total_steps": [run.planned_updates]}
    for where, params in {"": entry.params, **entry.groups}.items():
        for key, value in params.items():
            said.setdefault(key, []).append((where, value))
    return {key: repr(values) for key, values in said.items()}
