"""Evaluate: a run folder -> its policy in closed loop, judged by the run's `train.evaluation` component.

python -m trainer.evaluate RUN_DIR [--evaluation TYPE] [--episodes N] [--set name=value ...]
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_constructor import ConfigError
from model_constructor.errors import Problem, nearest
from model_constructor.source import read_text
from trainer.build import placed
from trainer.checkpoint import CheckpointError, writing
from trainer.config.parameters import Signature
from trainer.config.schemas import Registered
from trainer.metrics import plain_numbers
from trainer.policy import Policy, load_policy, open_run
from trainer.registry import EVALUATION_BUILDER_REGISTRY
from trainer.templates import EvaluationResult


def evaluate_run(
    run_or_checkpoint: str | Path, params: Mapping[str, Any] | None = None, evaluation: str | None = None
) -> EvaluationResult:
    """Evaluate a checkpoint alone; `params` go over those of the config.

    evaluation: a registered name; one that is not the config's begins without the config's params. The result is one
    more line of evaluations.jsonl in the run folder.
    """
    checkpoint, config = open_run(run_or_checkpoint)
    entry = config.experiment.train.evaluation
    if evaluation is not None and (entry is None or entry.type != evaluation):
        entry = Registered(type=evaluation)
    if entry is None:
        message = f"the run in {checkpoint.path.parent} names no evaluation"
        known = ", ".join(EVALUATION_BUILDER_REGISTRY.keys())
        hint = f"name one by --evaluation TYPE, its params by --set; known here: {known}"
        raise ConfigError(Problem(message, config.place("train"), hint))
    entry = Registered(type=entry.type, params={**entry.params, **(params or {})})
    _check_params(entry)
    is_the_configs = entry == config.experiment.train.evaluation
    with placed(config.place("train", "evaluation") if is_the_configs else None):
        judge = EVALUATION_BUILDER_REGISTRY.get(entry.type)(**entry.params)
    run_dir = checkpoint.path.parent
    policy = load_policy(checkpoint.path)
    result = judge.evaluate(policy, run_dir)
    latency = latency_of(policy)
    report = {
        "checkpoint": checkpoint.path.name,
        "step": checkpoint.step,
        "evaluation": {"type": entry.type, "params": entry.params},
        "summary": result.summary,
        "metrics": plain_numbers(result.numbers()),
        "latency": latency,
        "files": [path.name for path in result.files],
    }
    print(result.summary)
    if latency:
        print(
            "latency     {median_ms:.1f} ms a predicted chunk (median of {chunks}, at worst {worst_ms:.1f})".format(
                **latency
            )
        )
    print(f"checkpoint  {checkpoint.path}")
    if (run_dir / "loss.png").exists():
        print(f"loss curve  {run_dir / 'loss.png'}")
    for path in result.files:
        print(f"look at     {path}")
    keep(report, run_dir / "evaluations.jsonl")
    return result


def keep(report: Mapping[str, Any], path: Path) -> None:
    """As one more line, also behind one that was cut off."""
    with writing(path.parent):
        is_cut = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        with path.open("ab") as file:
            file.write(b"\n" * is_cut + json.dumps(report, allow_nan=False).encode() + b"\n")


def latency_of(policy: Policy) -> dict[str, float]:
    """Of a `select_action` that predicts, from the observation to the action, in this process; empty if none did."""
    seen = policy.latencies_ms
    return {"median_ms": statistics.median(seen), "worst_ms": max(seen), "chunks": len(seen)} if seen else {}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="trainer.evaluate", description="Evaluate a trained run in closed loop.")
    parser.add_argument("run", metavar="RUN_DIR", help="a run folder (its newest checkpoint) or one checkpoint")
    parser.add_argument("--evaluation", metavar="TYPE", help="a registered evaluation in place of the config's")
    parser.add_argument("--episodes", type=int, help="short for --set episodes=N")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="name=value", dest="overrides")
    given = parser.parse_args(arguments)
    try:
        params = dict(map(_override, given.overrides))
        if given.episodes is not None:
            params["episodes"] = given.episodes
        evaluate_run(given.run, params, given.evaluation)
    except (ConfigError, CheckpointError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _override(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(Problem(f"--set {text}: there is no '='", hint=f"such as --set {name}=10"))
    return name, read_text(value, "--set", shown=text).plain


def _check_params(entry: Registered) -> None:
    signature = Signature(EVALUATION_BUILDER_REGISTRY, entry.type)
    problems = [
        Problem(f"evaluation '{entry.type}' has no parameter '{name}'", hint=nearest(name, signature.parameters))
        for name in entry.params
        if name not in signature.parameters and not signature.takes_all
    ]
    problems += [
        Problem(f"evaluation '{entry.type}' needs the parameter '{name}'", hint=f"add --set {name}=...")
        for name in sorted(signature.required - entry.params.keys())
    ]
    if problems:
        raise ConfigError(problems)


if __name__ == "__main__":
    sys.exit(main())
