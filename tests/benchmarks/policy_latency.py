"""Latency of a policy: `select_action` when it predicts and when a predicted action is left, and what of it is ours.

    python tests/benchmarks/policy_latency.py [CONFIG] [--calls 200]

The policy is the experiment's, untrained (a step's arithmetic does not depend on the weights), on point_reach pictures
unless CONFIG names another data set. `bare modules` is what a prediction cannot do without: each backbone and the
embedder once, the decoder once for each evaluation of the velocity, on tensors that lie on the device. Turns are
interleaved, one thread on a CPU. `a solver step` is the slope between one and ten Euler steps.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiment_training.components.trainer.flow_policy import FlowPolicyTrainer
from trainer import Policy
from trainer.build import Run, build_run
from trainer.config import load_run_config
from trainer.distributed import World

sys.path.append(str(Path(__file__).parents[1] / "experiment_training"))
from families import EXPERIMENTS, observation_of

TINY = EXPERIMENTS / "naive_flow_matching_policy/exp1/tiny.yaml"
FEW, MANY = 1, 10  # Euler steps


def bare(trainer: FlowPolicyTrainer, batch: dict[str, Any], steps: int) -> Callable[[], Any]:
    """The modules of a prediction, on what they get there."""
    asked: list[tuple[Any, tuple, dict]] = []
    hooks = [
        model.register_forward_pre_hook(
            lambda module, given, named: asked.append((module, given, named)), with_kwargs=True
        )
        for model in trainer.models.values()
    ]
    trainer.integration_steps = steps
    trainer.predict(batch)
    for hook in hooks:
        hook.remove()

    @torch.inference_mode()
    def call() -> None:
        for module, given, named in asked:
            made = module(*given, **named)
        made.cpu()

    return call


def milliseconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def measure(run: Run, calls: int) -> dict[str, list[float]]:
    trainer = run.trainer
    assert isinstance(trainer, FlowPolicyTrainer), "the rows of this table are those of a flow policy"
    trainer.models.eval().requires_grad_(False)
    policy, observation = Policy(trainer, run.data.prepare, run.data.item_shapes, seed=0), observation_of(run)
    batch = run.data.prepare({key: value.to(run.device) for key, value in one_item(run).items()})

    def predicts(steps: int) -> None:
        trainer.integration_steps = steps
        policy.reset()
        policy.select_action(observation)

    rows: dict[str, Callable[[], Any]] = {
        "select_action that predicts": lambda: predicts(MANY),
        "bare modules": bare(trainer, batch, MANY),
        f"select_action that predicts, {FEW} step": lambda: predicts(FEW),
        f"bare modules, {FEW} step": bare(trainer, batch, FEW),
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    pops: list[float] = []
    shuffled = random.Random(0)
    for turn in range(calls + 3):
        for name in shuffled.sample(list(rows), len(rows)):
            took = milliseconds(rows[name])
            if turn >= 3:  # the first ones warm up
                times[name].append(took)
            if name.startswith("select_action") and not policy._execution.needs_chunk:
                pops.append(milliseconds(lambda: policy.select_action(observation)))
    return {**times, "select_action that pops": pops}


def one_item(run: Run) -> dict[str, torch.Tensor]:
    item = run.data.dataset[0]
    return {key: value[None] for key, value in item.items() if isinstance(value, torch.Tensor)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=TINY)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", dest="overrides")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run = build_run(load_run_config(given.config, given.overrides), World())
    times = measure(run, given.calls)
    print(f"| {run.config.experiment.train.trainer.type}, {run.device}, ms | median | p99 |\n|---|---|---|")
    for name, values in times.items():
        if values:
            print(f"| {name} | {statistics.median(values):.3f} | {np.percentile(values, 99):.3f} |")
    median = {name: statistics.median(values) for name, values in times.items() if values}
    ours, modules = median["select_action that predicts"], median["bare modules"]
    step = (ours - median[f"select_action that predicts, {FEW} step"]) / (MANY - FEW)
    bare_step = (modules - median[f"bare modules, {FEW} step"]) / (MANY - FEW)
    print(f"| a solver step | {step:.3f} | |\n| a solver step of the bare decoder | {bare_step:.3f} | |")
    print(f"\nselect_action that predicts takes {ours / modules:.2f} times its modules")


if __name__ == "__main__":
    main()
