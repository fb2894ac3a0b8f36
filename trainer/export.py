"""Export: a run folder -> its policy's step as one program that runs without this library.

python -m trainer.export RUN_DIR [--output FOLDER] [--onnx]

`policy.pt2` is for `torch.export.load(...).module()`, `policy.onnx` for an ONNX runtime. Their inputs are the
observations that the policy reads, in the data set's units, and the random numbers that it draws; they give the whole
chunk of actions in the data set's units. `policy.json` has the shapes. Both are compared with `predict` first.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model_constructor import ConfigError
from model_constructor.errors import Problem
from trainer.checkpoint import CheckpointError
from trainer.data.preparation import Preparation
from trainer.modeling.lora import merge_lora
from trainer.policy import PAD, Policy, load_policy
from trainer.templates import ComponentTrainer
from trainer.timing import one_thread

DRAWN = {torch.randn: "normal", torch.randn_like: "normal", torch.rand: "uniform", torch.rand_like: "uniform"}
TOLERANCE = 1e-4  # between programs, relative to the largest action
REPEATS = 20


@dataclass(frozen=True)
class Exported:
    files: list[Path]
    latencies_ms: dict[str, float]  # of a step on one thread: `predict` itself, and each program
    difference: float  # the largest, of an action in the data set's units, relative to the largest action

    def __str__(self) -> str:
        times = ", ".join(f"{name} {time_ms:.1f} ms" for name, time_ms in self.latencies_ms.items())
        return f"a step: {times}; equal to {self.difference:.1e}"


class Draws(TorchFunctionMode):
    """Random numbers that `predict` draws: kept while it draws them itself, or handed to it."""

    def __init__(self, given: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.given = None if given is None else list(given)
        self.kept: list[tuple[str, Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in DRAWN:
            return func(*args, **(kwargs or {}))
        if self.given is not None:
            return self.given.pop(0)
        drawn = func(*args, **(kwargs or {}))
        self.kept.append((DRAWN[func], drawn))
        return drawn


class Reads(dict[str, Any]):
    """A batch that keeps which keys were read."""

    def __init__(self, batch: Mapping[str, Any]) -> None:
        super().__init__(batch)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


class Step(nn.Module):
    """Observations and draws -> a chunk of actions [1, T, A], both in the data set's units."""

    def __init__(self, trainer: ComponentTrainer, prepare: Preparation) -> None:
        super().__init__()
        self.models, self.loss, self.prepare = trainer.models, trainer.loss, prepare
        self._predict = trainer.predict

    def forward(self, observation: dict[str, Tensor], draws: tuple[Tensor, ...]) -> Tensor:
        with Draws(draws):
            actions = self._predict(self.prepare(observation))
        return self.prepare.normalizer.denormalize("action", actions)


def export_policy(run_or_checkpoint: str | Path, folder: str | Path, onnx: bool = False) -> Exported:
    """Write the programs into a new `folder`. On the CPU: a program is moved where it is loaded."""
    folder = Path(folder).expanduser()
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise ConfigError(Problem(f"{folder} is not empty, and nothing is overwritten", hint="choose another --output"))
    policy = load_policy(run_or_checkpoint, device="cpu")
    for component in policy.trainer.models.values():
        merge_lora(component)
    observation, draws = _inputs(policy)
    step = Step(policy.trainer, policy.prepare).eval()
    given = (observation, tuple(tensor for _, tensor in draws))
    with torch.no_grad(), one_thread():
        expected = step(*given)
        program = torch.export.export(step, given, strict=False)
    _refuse_hidden_draws(program)
    with written_whole(folder) as unfinished:
        torch.export.save(program, unfinished / "policy.pt2")
        runs: dict[str, Callable[[], Tensor]] = {"predict": lambda: step(*given)}
        with warnings.catch_warnings(action="ignore"):  # of torch's own reader, about a buffer that it only reads
            module = torch.export.load(unfinished / "policy.pt2").module()
        runs["torch.export"] = lambda: module(*given)
        inputs: list[str] = []
        if onnx:
            runs["onnx"], inputs = _onnx(program, given, unfinished / "policy.onnx")
        with torch.no_grad(), one_thread():
            size = expected.abs().max().clamp(min=1e-6)
            differences = [float((run() - expected).abs().max() / size) for run in runs.values()]
            latencies = {name: _median_ms(run) for name, run in runs.items()}
        if not max(differences) <= TOLERANCE:
            difference = f"{max(differences):.1e} of the largest action"
            raise ConfigError(Problem(f"the programs differ from `predict` by {difference}: nothing was written"))
        names = ["policy.pt2", *(["policy.onnx"] if onnx else []), "policy.json"]
        exported = Exported([folder / name for name in names], latencies, max(differences))
        described = _description(policy, given, draws, expected, exported)
        if onnx:
            described["onnx_inputs"] = inputs  # the observations and the draws, in the order that they have above
        (unfinished / "policy.json").write_text(json.dumps(described, indent=2))
    return exported


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder beside it that takes its place at the end; where anything fails nothing is left."""
    folder = folder.absolute()  # "." has no name
    unfinished = folder.with_name(f".{folder.name}.unfinished-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.replace(folder)  # in place of an empty one too
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _inputs(policy: Policy) -> tuple[dict[str, Tensor], list[tuple[str, Tensor]]]:
    """An observation of what `predict` reads, and what it draws for it; made up, within what training saw."""
    generator = torch.Generator().manual_seed(0)
    whole: dict[str, Tensor] = {}
    for key, shape in policy.item_shapes.items():
        if key in policy.prepare.images:
            whole[key] = torch.randint(0, 256, (1, *shape), dtype=torch.uint8, generator=generator)
        elif key.endswith(PAD):
            whole[key] = torch.zeros(1, *shape, dtype=torch.bool)
        else:
            normal = 2 * torch.rand(1, *shape, generator=generator) - 1
            whole[key] = policy.prepare.normalizer.denormalize(key, normal)
    batch = Reads(policy.prepare(whole))
    with torch.no_grad(), Draws() as drawing:
        policy.trainer.predict(batch, torch.Generator().manual_seed(0))
    if missing := sorted(batch.read - whole.keys()):
        message = f"the policy reads {', '.join(missing)}, and the run's data set has no such numbers"
        raise ConfigError(Problem(message, hint="texts cannot be exported"))
    return {key: value for key, value in whole.items() if key in batch.read}, drawing.kept


def _refuse_hidden_draws(program: torch.export.ExportedProgram) -> None:
    """What is drawn inside the program could neither be seeded nor compared."""
    if hidden := sorted({str(node.target) for node in program.graph.nodes if _draws(node)}):
        known = ", ".join(f"torch.{function.__name__}" for function in DRAWN)
        raise ConfigError(
            Problem(f"`predict` draws random numbers by {', '.join(hidden)}", hint=f"draw them by {known}")
        )


def _draws(node: torch.fx.Node) -> bool:
    """Dropout that is off, alone or in attention, draws nothing."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in op.tags:
        return False
    arguments = {one.name: one.default_value for one in op._schema.arguments}
    arguments |= dict(zip(arguments, node.args, strict=False)) | node.kwargs
    return not (arguments.get("dropout_p") == 0 or arguments.get("train") is False)


def _onnx(
    program: torch.export.ExportedProgram, given: tuple[Any, ...], file: Path
) -> tuple[Callable[[], Tensor], list[str]]:
    """Write the program for an ONNX runtime; -> a run of it, and what its inputs are called."""
    try:
        import onnxruntime

        with warnings.catch_warnings(action="ignore"), quiet_logs():
            converted = torch.onnx.export(program, dynamo=True, verbose=False)
    except ImportError as error:
        hint = "pip install onnx onnxscript onnxruntime"
        raise ConfigError(Problem(f"--onnx: {error.name} cannot be imported", hint=hint)) from error
    assert converted is not None
    converted.save(str(file))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    flat = [*given[0].values(), *given[1]]
    fed = {one.name: tensor.numpy() for one, tensor in zip(session.get_inputs(), flat, strict=True)}
    return lambda: torch.from_numpy(session.run(None, fed)[0]), list(fed)


def _description(
    policy: Policy, given: tuple[Any, ...], draws: list[tuple[str, Tensor]], actions: Tensor, exported: Exported
) -> dict[str, Any]:
    """All that a program which drives the robot has to know."""
    inputs = {key: {"shape": list(value.shape), "dtype": str(value.dtype)[6:]} for key, value in given[0].items()}
    return {
        "observation": inputs,
        "draws": [{"shape": list(tensor.shape), "distribution": kind} for kind, tensor in draws],
        "actions": {"shape": list(actions.shape), "dtype": str(actions.dtype)[6:]},
        "execute_steps": policy.trainer.execute_steps,
        "ensemble_decay": policy.trainer.ensemble_decay,
        "difference": exported.difference,
        "latencies_ms": exported.latencies_ms,
        "torch": torch.__version__,
    }


def _median_ms(run: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)


@contextmanager
def quiet_logs() -> Iterator[None]:
    """The converter tells of each step that it leaves out."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="trainer.export", description="Export a policy's step as one program.")
    parser.add_argument("run", metavar="RUN_DIR", help="a run folder (its newest checkpoint) or one checkpoint")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="new or empty [export, in the run folder]")
    parser.add_argument("--onnx", action="store_true", help="write policy.onnx too")
    given = parser.parse_args(arguments)
    try:
        run = Path(given.run)
        run = run if (run / "config.yaml").is_file() else run.parent  # of a checkpoint, which may be deleted
        exported = export_policy(given.run, given.output or run / "export", given.onnx)
    except (ConfigError, CheckpointError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for file in exported.files:
        print(file)
    print(exported)
    return 0


if __name__ == "__main__":
    sys.exit(main())
