"""Training: a train config -> a finished run. What the command line and `trainer.train` both call."""

import gc
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from model_constructor import ConfigError
from model_constructor.errors import Problem
from trainer.banner import banner, dry_run
from trainer.build import build_run
from trainer.checkpoint import CheckpointError
from trainer.config import load_run_config, written_overrides
from trainer.data.cameras import UnreadableFrame
from trainer.data.prefetch import WorkerDied
from trainer.distributed import World, processes
from trainer.loop import TrainResult, has_done_all, is_late, train_run
from trainer.memory import keep_freed_memory
from trainer.modeling.problems import collected, refuse
from trainer.rehearsal import out_of_memory_told, try_one_batch
from trainer.signals import leave_in_peace
from trainer.state import Progress, choose_start, complete_last_save, known_checkpoints, restore
from trainer.templates import NonFiniteGradient


def train(
    config: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None, resume: str = "none"
) -> TrainResult:
    """Train what a config file (or a mapping like one) describes; `overrides` are `{"train.max_steps": 20}`."""
    with torch_settings_kept(), processes() as world:
        return run_training(config, written_overrides(overrides or {}), resume, world)


def run_training(
    config: str | Path | Mapping[str, Any], overrides: Sequence[str], resume: str, world: World
) -> TrainResult:
    run_config = load_run_config(config, overrides)
    problems: list[Problem] = []
    start, known = None, frozenset()
    with collected(problems):
        start, known = world.first_decides(lambda: (choose_start(run_config, resume), known_checkpoints(run_config)))
    with collected(problems):
        is_resumed = start is not None or (bool(problems) and resume != "none")  # it was to be one
        run = build_run(run_config, world, is_resumed)
    refuse(problems)
    progress = Progress() if start is None else restore(run, start)
    progress.known = known
    if start is not None and not progress.owed and (has_done_all(run, progress) or is_late(run, progress)):
        world.first_decides(lambda: complete_last_save(run, progress, start))
        world.say(f"{run_config.save_dir} is trained already: {progress.step} updates, {start.path}")
        best = None if progress.best is None else run_config.save_dir / progress.best
        return TrainResult(run_config.save_dir, start.path, progress.step, {}, best=best)
    with out_of_memory_told(run):
        try_one_batch(run)
        world.say(banner(run, progress))
        with heap_frozen():
            return train_run(run, progress)


@contextmanager
def torch_settings_kept() -> Iterator[None]:
    """The switches of torch that `build_run` sets for the whole process are a run's own; a notebook keeps its own."""
    mode, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    fills = torch.utils.deterministic.fill_uninitialized_memory  # pyrefly: ignore[missing-attribute]
    try:
        yield
    finally:
        if mode != torch.get_deterministic_debug_mode():  # asking for it takes long: it imports the compiler's settings
            torch.use_deterministic_algorithms(mode > 0, warn_only=mode == 1)
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", fills)  # noqa: B010
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def heap_frozen() -> Iterator[None]:
    """What is there before the first update is no garbage of training. Looking through all of it for some stops a run
    for 0.2 s every few hundred updates."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run_dry(config: str | Path, overrides: Sequence[str], world: World) -> None:
    """Everything but the training: build, show, one step, nothing written."""
    run = build_run(load_run_config(config, overrides), world)
    with out_of_memory_told(run):
        try_one_batch(run)
        world.say(dry_run(run))


def run_command(config: str, overrides: Sequence[str], resume: str, is_dry: bool, world: World) -> int:
    """What the command line does in each process -> its exit status. One process tells what went wrong."""
    if not torch.cuda.is_available():  # where one works, little is allocated on this side of it
        keep_freed_memory()
    try:
        if is_dry:
            run_dry(config, overrides, world)
            return 0
        result = run_training(config, overrides, resume, world)
    except Exception as error:
        if not world.fails_first():
            return 1  # this followed from what failed first
        status, told = explained(error)
        print(told, file=sys.stderr, flush=True)
        return status
    world.say(str(result))
    if result.signal is None:
        return 0
    leave_in_peace()  # torchrun signals the processes that end last once more
    return 128 + result.signal


def explained(error: Exception) -> tuple[int, str]:
    """The exit status of a command that ended so, and what it says: one message for what a user can mend, else all."""
    match error:
        case ConfigError():
            return 2, str(error)
        case CheckpointError() | NonFiniteGradient() | UnreadableFrame() | WorkerDied():
            return 1, "\n  ".join([f"training stopped: {error}", *getattr(error, "__notes__", ())])
    if isinstance(error, RuntimeError) and re.search(r"[Cc]onnection (closed|reset) by peer", str(error)):
        return 1, "training stopped: another process of this run ended without a word; torchrun says below how"
    return 1, "".join(traceback.format_exception(error)).rstrip()
