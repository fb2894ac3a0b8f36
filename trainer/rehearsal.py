"""Rehearsal: one loss before anything is written. What does not fit is a message, and leaves no run folder behind."""

import copy
import io
import linecache
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from model_constructor import ConfigError
from model_constructor.errors import Place, Problem
from trainer.build import Run
from trainer.checkpoint import CheckpointError, random_state, read_tensors, set_random_state
from trainer.data.prefetch import DeviceBatches, build_loader
from trainer.state import own_state, set_own_state
from trainer.templates import ComponentTrainer


def try_one_batch(run: Run) -> None:
    """Shapes, losses and plugins that fail with the data at hand fail here, in one message."""
    refuse_unreadable_state(run)
    if not isinstance(run.trainer, ComponentTrainer):
        return  # its only step is one that trains
    data = run.config.experiment.data.model_copy(update={"num_workers": 0})
    before = random_state(), copy.deepcopy(own_state(run))
    try:
        order = [list(range(min(data.batch_size, run.data.updates.size)))]
        batch = next(iter(DeviceBatches(build_loader(run.data.dataset, order, data, run.device, 0), run.device)))
        run.trainer.validation_step(batch)
    except ConfigError:
        raise
    except Exception as error:  # whatever a model, a loss or a plugin raises
        if is_out_of_memory(error):
            raise
        shapes = ", ".join(f"{key} {shape}" for key, shape in run.data.item_shapes.items() if shape)
        why = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        message = f"the first batch does not go through the models and the loss: {why}"
        told = f"one sample holds {shapes}; compare the models' inputs and outputs"
        hint = "\n".join([*getattr(error, "__notes__", ()), told])  # the notes name the node and what it read
        raise ConfigError(Problem(message, yaml_place(error) or run.config.place("train", "trainer"), hint)) from error
    finally:
        set_random_state(before[0])
        set_own_state(run.trainer, run.loss, before[1])


def refuse_unreadable_state(run: Run) -> None:
    """A checkpoint is read without running anything: what only a full unpickler takes would be lost at a resume."""
    for name, state in own_state(run).items():
        written = io.BytesIO()
        torch.save(state, written)
        written.seek(0)
        try:
            read_tensors(written)
        except CheckpointError as error:
            message = f"the {name}'s state_dict holds something else than tensors and plain values"
            hint = f"no checkpoint of it could be read again: {' '.join(str(error.__cause__).split())[:300]}"
            raise ConfigError(Problem(message, run.config.place("train", name), hint)) from error


@contextmanager
def out_of_memory_told(run: Run) -> Iterator[None]:
    """A batch that the memory does not hold is told with what makes it smaller; the exception stays its cause."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        data, train = run.config.experiment.data, run.config.experiment.train
        why = str(error).strip().partition("\n")[0][:200]
        message = f"a batch of {data.batch_size} does not fit into the memory of the {run.device.type}: {why}"
        hint = (
            f"batch_size: {max(1, data.batch_size // 2)} with accumulate: {2 * train.accumulate} is the same update in "
            "about half the memory; precision: bf16 and gradient_checkpointing save some, too"
        )
        raise ConfigError(Problem(message, run.config.place("data", "batch_size"), hint)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU torch has a type for it; on a CPU it is a RuntimeError like any other."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


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
