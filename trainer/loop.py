"""Loop: a built run -> a trained one. The one loop, top to bottom: batch, normalise, step, log, save."""

import linecache
import re
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from model_constructor import ConfigError
from model_constructor.errors import Place, Problem
from trainer.build import Run
from trainer.checkpoint import Checkpoint, random_state, set_random_state
from trainer.data.prefetch import DeviceBatches, build_loader
from trainer.data.sampler import UpdateSampler
from trainer.metrics import MetricsFile, ProgressBar, Stopwatch, draw_loss
from trainer.state import Progress, open_run_folder, save
from trainer.templates import ComponentTrainer

DEFAULT_SAVE_EVERY_STEPS = 1000


@dataclass(frozen=True)
class TrainResult:
    run_dir: Path
    checkpoint: Path
    step: int
    metrics: dict[str, float]  # the last logged means
    signal: int | None = None  # SIGINT or SIGTERM, when one of them ended the run early


def train_run(run: Run, progress: Progress) -> TrainResult:
    config, train = run.config, run.config.experiment.train
    run_dir = open_run_folder(run)
    checkpoint: Checkpoint | None = None
    metrics: dict[str, float] = {}
    began = time.monotonic() - progress.seconds
    with (
        interruptions() as received,
        closing(MetricsFile(run_dir / "metrics.jsonl", progress.step)) as lines,
        closing(ProgressBar(config.name, progress.step, run.planned_updates)) as bar,
        closing(training_batches(run, progress.step)) as batches,
        closing(validation_batches(run)) as held_out,
    ):
        iter(batches)
        watch = Stopwatch()
        while not (received or is_over(run, progress)):
            batch = run.data.normalizer.normalize(next(batches))
            with autocast(run):
                progress.window.add(run.trainer.train_step(batch))
            progress.step += 1
            progress.seconds = time.monotonic() - began
            watch.count(batch)
            bar.advance()
            over = is_over(run, progress)

            if progress.step % train.log_every == 0 or over:
                metrics = {**progress.window.read(), **watch.lap(batches.waited)}
                line = {**position(run, progress), **metrics, "lr": learning_rates(run)}
                lines.write(line)
                bar.show(line)

            if validation_is_due(run, progress, over):
                metrics["validation_loss"] = validate(run, held_out)
                lines.write({**position(run, progress), "validation_loss": metrics["validation_loss"]})

            if save_is_due(run, progress) or over or received:
                if isinstance(run.trainer, ComponentTrainer):
                    run.trainer.raise_if_nonfinite()
                lines.flush_to_disk()
                checkpoint = save(run, progress)
        if checkpoint is None:  # stopped by a signal before the first update of this process
            checkpoint = save(run, progress)
    draw_loss(run_dir, config.name)
    return TrainResult(run_dir, checkpoint.path, progress.step, metrics, received[0] if received else None)


def try_one_batch(run: Run) -> None:
    """One loss before anything is written: shapes that do not fit are a message, and leave no run folder behind."""
    if not isinstance(run.trainer, ComponentTrainer):
        return  # its only step is one that trains
    data = run.config.experiment.data.model_copy(update={"num_workers": 0})
    before = random_state()
    try:
        order = [list(range(min(data.batch_size, run.data.updates.size)))]
        batch = next(iter(DeviceBatches(build_loader(run.data.dataset, order, data, run.device, 0), run.device)))
        run.trainer.validation_step(run.data.normalizer.normalize(batch))
    except Exception as error:  # whatever a model, a loss or a plugin raises
        shapes = ", ".join(f"{key} {shape}" for key, shape in run.data.item_shapes.items() if shape)
        why = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        message = f"the first batch does not go through the models and the loss: {why}"
        told = f"one sample holds {shapes}; compare the models' inputs and outputs"
        hint = "\n".join([*getattr(error, "__notes__", ()), told])  # the notes name the node and what it read
        raise ConfigError(Problem(message, yaml_place(error) or run.config.place("train", "trainer"), hint)) from error
    finally:
        set_random_state(before)


def yaml_place(error: BaseException) -> Place | None:
    """The innermost line of a model file that an exception came through."""
    stack = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in stack if re.search(r"\.ya?ml\b", frame.filename)]
    if not frames:
        return None
    frame = frames[-1]
    column, end = frame.colno or 0, frame.end_colno or 0
    text = linecache.getline(frame.filename, frame.lineno or 0).rstrip()
    return Place(frame.filename, frame.lineno or 0, column + 1, max(end - column, 1), text)


def is_over(run: Run, progress: Progress) -> bool:
    minutes = run.config.experiment.train.max_minutes
    updates_done = run.planned_updates is not None and progress.step >= run.planned_updates
    return updates_done or (minutes is not None and progress.seconds >= 60 * minutes)


def save_is_due(run: Run, progress: Progress) -> bool:
    train = run.config.experiment.train
    steps = train.save_every_steps
    if steps is None and train.save_every is None:
        steps = DEFAULT_SAVE_EVERY_STEPS
    epochs = None if train.save_every is None else train.save_every * run.updates_per_epoch
    return any(every is not None and progress.step % every == 0 for every in (steps, epochs))


def validation_is_due(run: Run, progress: Progress, over: bool) -> bool:
    if run.data.validation_dataset is None or not isinstance(run.trainer, ComponentTrainer):
        return False
    return over or progress.step % (run.config.experiment.train.validate_every or run.updates_per_epoch) == 0


def training_batches(run: Run, start: int) -> DeviceBatches:
    """Update after update, without end, behind the `start` updates that are done."""
    updates, data = run.data.updates, run.config.experiment.data
    order = UpdateSampler(updates.size, updates.batch_size, updates.seed, start)
    return DeviceBatches(build_loader(run.data.dataset, order, data, run.device, updates.seed), run.device)


def validation_batches(run: Run) -> DeviceBatches:
    """The held-out frames once, in their order; none where nothing is held out."""
    data, frames = run.config.experiment.data, range(run.data.held_out)
    dataset = run.data.dataset if run.data.validation_dataset is None else run.data.validation_dataset
    order = [list(frames[start : start + data.batch_size]) for start in frames[:: data.batch_size]]
    return DeviceBatches(build_loader(dataset, order, data, run.device, run.data.updates.seed), run.device)


def validate(run: Run, held_out: DeviceBatches) -> float:
    """Mean loss over the held-out episodes in eval mode, with the same noise every time; training's streams stay."""
    assert isinstance(run.trainer, ComponentTrainer)
    total = weights = torch.zeros((), device=run.device)
    with torch.random.fork_rng([run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(run.config.experiment.run_seed)
        for batch in held_out:
            loss, weight = run.trainer.validation_step(run.data.normalizer.normalize(batch))
            total, weights = total + loss * weight, weights + weight
    return (total / weights).item()


def autocast(run: Run) -> torch.autocast:
    """For a plain trainer; a ComponentTrainer puts only its forward pass under autocast."""
    plain = not isinstance(run.trainer, ComponentTrainer)
    return torch.autocast(run.device.type, torch.bfloat16, enabled=plain and run.precision == "bf16")


def position(run: Run, progress: Progress) -> dict[str, float]:
    return {"step": progress.step, "epoch": round(progress.step / run.updates_per_epoch, 4)}


def learning_rates(run: Run) -> dict[str, float]:
    return {name: float(optimizer.param_groups[0]["lr"]) for name, optimizer in run.optimizers.items()}


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """SIGINT and SIGTERM end the run behind the step at hand; a second SIGINT ends the process at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield received
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
