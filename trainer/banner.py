"""Banner: a built run -> what a person should see before it trains."""

import os
import resource
import sys

import torch

from trainer.build import Run
from trainer.config.checks import unchecked_params
from trainer.loop import training_batches
from trainer.modeling import describe_components
from trainer.state import Progress

NVIDIA_GPUS = "/proc/driver/nvidia/gpus"
HEADERS = ("component", "parameters", "trainable", "mode", "dtype", "optimizer", "peak lr")


def banner(run: Run, progress: Progress) -> str:
    train, updates = run.config.experiment.train, run.data.updates
    until = "until the clock ends it" if run.planned_updates is None else f"{run.planned_updates:,} updates"
    clock = f", at most {train.max_minutes:g} min" if train.max_minutes is not None else ""
    lines = [
        f"{run.config.name}: {until}{clock}" + (f", continued at {progress.step:,}" if progress.step else ""),
        component_table(run),
        f"device {run.device}, {run.precision}   data {updates.size:,} frames"
        + (f" of {run.data.task}" if run.data.task else "")
        + (f" (+ {run.data.held_out:,} held out)" if run.data.held_out else "")
        + f", {updates.updates_per_epoch:,} updates an epoch   effective batch {effective_batch(run)}",
        f"run folder {run.config.save_dir}",
        *schedule_notes(run),
        *evaluation_notes(run),
        *gpu_notes(run),
        *worker_notes(run),
        *unchecked_notes(run),
    ]
    return "\n".join(lines)


def effective_batch(run: Run) -> str:
    """What one update sees, and its factors where there is more than one: schedules and epochs count updates."""
    data, train, updates = run.config.experiment.data, run.config.experiment.train, run.data.updates
    factors = [str(data.batch_size)]
    factors += [f"{run.world.size} processes"] if run.world.size > 1 else []
    factors += [f"accumulate {train.accumulate}"] if train.accumulate > 1 else []
    return str(updates.update_size) + (f" ({' x '.join(factors)})" if len(factors) > 1 else "")


def component_table(run: Run) -> str:
    rows = [HEADERS] + [
        (one.name, f"{one.parameters:,}", f"{one.trainable:,}", one.mode, one.dtype, one.optimizer, one.peak_lr)
        for one in describe_components(run.config, run.models, run.optimizers)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADERS))]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def schedule_notes(run: Run) -> list[str]:
    """A schedule that is written for another number of updates than the run has ends elsewhere: say so."""
    notes = []
    for name, entry in run.config.experiment.model.component_optims.items():
        for group, params in {"": entry.params, **entry.groups}.items():
            total = params.get("total_steps")
            if name in run.optimizers and total is not None and total != run.planned_updates:
                of = f"{name}, {group}," if group else name
                planned = run.planned_updates or "any number"
                notes.append(f"note: the schedule of {of} takes {total:,} updates, the run {planned}")
    return notes


def evaluation_notes(run: Run) -> list[str]:
    """Validation and saving are due at the end in any case; an evaluation that comes later than that never is."""
    every, planned = run.config.experiment.train.evaluate_every, run.planned_updates
    if every is None or planned is None or every <= planned:
        return []
    told = f"train.evaluate_every is {every:,}, and the run has only {planned:,} updates: nothing is evaluated"
    return [f"warning: {told} ({run.config.place('train', 'evaluate_every')})"]


def gpu_notes(run: Run) -> list[str]:
    """Training on the CPU where a GPU is there, or is asked for: a broken driver, a torch without CUDA."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    is_there = os.path.isdir(NVIDIA_GPUS) if asked is None else asked not in ("", "-1")
    if run.device.type != "cpu" or not is_there:
        return []
    why = f"CUDA_VISIBLE_DEVICES is {asked}" if asked is not None else "this machine has one"
    return [f"note: torch {torch.__version__} sees no GPU, though {why}: this run trains on the CPU"]


def worker_notes(run: Run) -> list[str]:
    """More processes that read data than cores to run them, on a machine whose processes all have the same task."""
    workers, cores = run.config.experiment.data.num_workers, cores_at_hand()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", run.world.size))  # processes of this machine, as torchrun counts them
    if workers * here <= cores:
        return []
    told = f"data.num_workers {workers}" + (f" in each of {here} processes" if here > 1 else "")
    return [f"note: {told}, and {cores} cores to run them: they take turns, and training waits for its own"]


def unchecked_notes(run: Run) -> list[str]:
    """A misspelt name among these would be read by nobody, and no one could tell."""
    names = unchecked_params(run.config.source)
    return (
        [f"note: {', '.join(names)}: taken by components that take any name, so nobody can check it"] if names else []
    )


def cores_at_hand() -> int:
    """Those that this process may use: a container or a job often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def dry_run(run: Run) -> str:
    """The resolved config, the components, one batch's shapes, and one step's loss and peak memory."""
    with training_batches(run, start=0) as batches:
        batch = next(iter(batches))
    shapes = [f"  {key}: {_describe(value)}" for key, value in run.data.prepare(batch).items()]
    metrics = run.step(batch, update=0)
    numbers = ", ".join(f"{name} {float(value):.4g}" for name, value in metrics.items())
    return "\n".join(
        [
            run.config.source.text.rstrip(),
            "",
            banner(run, Progress()),
            "one batch",
            *shapes,
            f"one step: {numbers}, peak memory {_peak_mib(run):,.0f} MiB",
            "dry run: nothing was written",
        ]
    )


def _describe(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, list) and value:
        return f"{len(value)} of {type(value[0]).__name__}, such as {value[0]!r:.60}"
    return type(value).__name__


def _peak_mib(run: Run) -> float:
    if run.device.type == "cuda":
        return torch.cuda.max_memory_allocated(run.device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
