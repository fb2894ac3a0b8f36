"""Validation: held-out frames -> their mean loss, and closed-loop evaluations between updates.

Both use averaged weights where there are any, and leave training's parameters and random streams as they were.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import closing, contextmanager

import torch
from torch import nn

from trainer.build import Run, seed_everything
from trainer.checkpoint import random_state, set_random_state
from trainer.data.prefetch import DeviceBatches, build_loader
from trainer.distributed import Agreement
from trainer.policy import Policy
from trainer.signals import Received
from trainer.state import own_state, set_own_state
from trainer.templates import ComponentTrainer


def validation_order(run: Run) -> list[list[int]]:
    """The batches of held-out frames; none where nothing is held out."""
    size, frames = run.config.experiment.data.batch_size, range(run.data.held_out)
    return [list(frames[start : start + size]) for start in frames[::size]]


def validation_batches(run: Run) -> DeviceBatches:
    """This process's share of them, in their order."""
    data = run.config.experiment.data
    dataset = run.data.dataset if run.data.validation_dataset is None else run.data.validation_dataset
    own = validation_order(run)[run.world.rank :: run.world.size]
    return DeviceBatches(build_loader(dataset, own, data, run.device, run.data.updates.seed), run.device)


def validate(run: Run, held_out: DeviceBatches, received: Received) -> tuple[float, int]:
    """Mean loss over the held-out episodes in eval mode, weighted as in training, with the same noise every time.

    A signal to any process ends it on all of them, between two batches. -> loss, that signal or 0.
    """
    assert isinstance(run.trainer, ComponentTrainer), "the config's checks refuse it for any other"
    totals = torch.zeros(2, device=run.device)  # sum of weighted losses, sum of weights
    common = len(validation_order(run)) // run.world.size  # batches that every process has; some have one more
    stopped_by = 0
    run.world.broadcast_(batch_statistics(run.models))
    with undisturbed(run), closing(Agreement(run.world)) as agreement:
        for number, batch in enumerate(held_out):
            if number < common:
                (stopped_by,) = agreement.ask(max(received, default=0))
            if stopped_by:
                return math.nan, stopped_by
            seed_everything(run.config.experiment.run_seed, number * run.world.size + run.world.rank)
            loss, weight = run.trainer.validation_step(batch)
            totals += torch.stack([loss * weight, weight])
    loss, weight = run.world.sum_(totals).tolist()
    return loss / weight if weight else math.nan, 0


def evaluate(run: Run, received: Received) -> tuple[dict[str, float], int]:
    """The metrics of `train.evaluation`, from the weights at hand; the first process's work, while the others wait.

    It may take minutes, and whoever stops a run does not wait for them: a signal ends it. -> metrics, that signal or 0.
    """
    assert run.evaluation is not None and isinstance(run.trainer, ComponentTrainer)
    trainer, evaluation = run.trainer, run.evaluation

    def metrics() -> tuple[dict[str, float], int]:
        if received:  # while the update or a validation was at work
            return {}, received[-1]
        policy = Policy(trainer, run.data.prepare, run.data.item_shapes, seed=run.config.experiment.run_seed)
        try:
            with received.interrupting():
                return evaluation.evaluate(policy, run.config.save_dir).numbers(), 0
        except BaseException:  # the signal's own, or what it did to processes of the evaluation
            if not received:
                raise
            return {}, received[-1]

    with undisturbed(run):
        run.models.eval()
        return run.world.first_decides(metrics)


@contextmanager
def undisturbed(run: Run) -> Iterator[None]:
    """Inside, averaged weights; behind it, training's own, every random stream, and what loss and trainer keep."""
    before = random_state(), copy.deepcopy(own_state(run))
    try:
        with run.averages.applied():
            yield
    finally:
        set_random_state(before[0])
        set_own_state(run.trainer, run.loss, before[1])


def batch_statistics(models: nn.ModuleDict) -> list[torch.Tensor]:
    """Running means and variances that training changes: on a CPU each process has its own; the first one's count."""
    norms = [one for one in models.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.training]
    return [buffer for one in norms for buffer in one.buffers()]
