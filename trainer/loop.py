"""Loop: a built run -> a trained one. The one loop, top to bottom: batch, step, log, validate, evaluate, save."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

from trainer.build import Run
from trainer.checkpoint import Checkpoint
from trainer.data.prefetch import DeviceBatches, build_loader
from trainer.distributed import Agreement
from trainer.signals import interruptions
from trainer.state import Progress, run_folder, save
from trainer.templates import ComponentTrainer
from trainer.validation import evaluate, validate, validation_batches
from trainer.watch import Watch

DEFAULT_SAVE_EVERY_STEPS = 1000


@dataclass(frozen=True)
class TrainResult:
    run_dir: Path
    checkpoint: Path
    step: int
    metrics: dict[str, float]  # the last logged means
    signal: int | None = None  # SIGINT or SIGTERM, when one of them ended the run early
    best: Path | None = None  # the checkpoint of the lowest validation loss, with `train.keep_best`
    owed: tuple[str, ...] = ()  # "validation", "evaluation": what was due and is left to a resume

    def __str__(self) -> str:
        if self.signal is None:
            best = "" if self.best is None else f"; best {self.best}"
            return f"trained {self.step} updates; checkpoint {self.checkpoint}{best}"
        first = f", first with its {' and '.join(self.owed)}" if self.owed else ""
        name = Signals(self.signal).name
        return f"{name}: stopped after update {self.step}; --resume auto continues from {self.checkpoint}{first}"


def train_run(run: Run, progress: Progress) -> TrainResult:
    train = run.config.experiment.train
    checkpoint: Checkpoint | None = None
    signal, over = 0, False
    began = time.monotonic() - progress.seconds
    with ExitStack() as open_:
        open_.enter_context(updates_noted(progress))
        received = open_.enter_context(interruptions())
        run_dir = open_.enter_context(run_folder(run, progress))
        watch = open_.enter_context(closing(Watch(run, progress)))
        agreement = open_.enter_context(closing(Agreement(run.world)))
        batches = iter(open_.enter_context(training_batches(run, progress.step)))
        held_out = open_.enter_context(validation_batches(run))

        while not over:
            if progress.owed:  # by a run that was stopped
                due, progress.owed = progress.owed, ()
                over = has_done_all(run, progress) or is_late(run, progress)
            else:
                with run.timer("data"):
                    batch = next(batches)
                watch.before_update(run.optimizers)
                metrics = run.step(batch, progress.step)
                progress.step += 1
                progress.seconds = time.monotonic() - began
                watch.after_update(progress, metrics, samples=run.data.updates.update_size // run.world.size)
                signal, timed_out = agreement.ask(max(received, default=0), is_late(run, progress))
                is_complete = bool(timed_out) or has_done_all(run, progress)
                over = is_complete or bool(signal)
                if is_complete or progress.step % train.log_every == 0:
                    watch.log(progress)
                due = what_is_due(run, progress, is_complete)
                if signal:  # whoever stops a run waits for a save, and for nothing else
                    due, progress.owed = (), due
            is_best = False

            if "validation" in due:
                with run.timer("validation"):
                    loss, stopped_by = validate(run, held_out, received)
                if stopped_by:
                    signal, over, due, progress.owed = stopped_by, True, (), due
                else:
                    watch.note(progress, {"validation_loss": loss})
                    is_best = train.keep_best and loss < progress.best_loss
                    progress.best_loss = min(progress.best_loss, loss)  # in this order: never a loss that is no number

            if "evaluation" in due:
                with run.timer("evaluation"), saved_where_it_fails(run, progress, watch, is_best):
                    found, stopped_by = evaluate(run, received)
                if stopped_by:
                    signal, over, progress.owed = stopped_by, True, ("evaluation",)
                else:
                    watch.note(progress, {f"evaluation/{name}": value for name, value in found.items()})

            if over or is_best or save_is_due(run, progress):
                with run.timer("save"):
                    checkpoint = saved(run, progress, watch, is_best)
                    watch.after_save(is_last=over)
    assert checkpoint is not None, "the last update is always saved"
    best = None if progress.best is None else run_dir / progress.best
    return TrainResult(run_dir, checkpoint.path, progress.step, watch.last, signal or None, best, progress.owed)


@contextmanager
def updates_noted(progress: Progress) -> Iterator[None]:
    """An error says how far the run had come."""
    try:
        yield
    except Exception as error:
        error.add_note(f"after {progress.step} updates")
        raise


def training_batches(run: Run, start: int) -> DeviceBatches:
    """Update after update, without end, behind the `start` updates that are done."""
    order, data = run.data.updates.behind(start), run.config.experiment.data
    return DeviceBatches(build_loader(run.data.dataset, order, data, run.device, order.seed), run.device)


def has_done_all(run: Run, progress: Progress) -> bool:
    return run.planned_updates is not None and progress.step >= run.planned_updates


def is_late(run: Run, progress: Progress) -> bool:
    minutes = run.config.experiment.train.max_minutes
    return minutes is not None and progress.seconds >= 60 * minutes


def what_is_due(run: Run, progress: Progress, is_complete: bool) -> tuple[str, ...]:
    is_due = {
        "validation": validation_is_due(run, progress, is_complete),
        "evaluation": evaluation_is_due(run, progress),
    }
    return tuple(name for name, due in is_due.items() if due)


def validation_is_due(run: Run, progress: Progress, is_complete: bool) -> bool:
    if run.data.validation_dataset is None or not isinstance(run.trainer, ComponentTrainer):
        return False
    return is_complete or progress.step % (run.config.experiment.train.validate_every or run.updates_per_epoch) == 0


def evaluation_is_due(run: Run, progress: Progress) -> bool:
    every = run.config.experiment.train.evaluate_every
    return every is not None and progress.step % every == 0


def saved(run: Run, progress: Progress, watch: Watch, is_best: bool) -> Checkpoint:
    """Behind the last update's flag, and behind the lines of metrics up to it."""
    if isinstance(run.trainer, ComponentTrainer):
        run.trainer.raise_if_nonfinite()
    watch.before_save()
    return save(run, progress, is_best)


@contextmanager
def saved_where_it_fails(run: Run, progress: Progress, watch: Watch, is_best: bool) -> Iterator[None]:
    """An evaluation that raises, as it does on all processes, ends the run and costs no update."""
    try:
        yield
    except Exception as error:
        progress.owed = ("evaluation",)
        error.add_note(f"saved before it ended: {saved(run, progress, watch, is_best).path}")
        raise


def save_is_due(run: Run, progress: Progress) -> bool:
    train = run.config.experiment.train
    steps = train.save_every_steps
    if steps is None and train.save_every is None:
        steps = DEFAULT_SAVE_EVERY_STEPS
    epochs = None if train.save_every is None else train.save_every * run.updates_per_epoch
    return any(every is not None and progress.step % every == 0 for every in (steps, epochs))
