"""One of the processes that torchrun starts: cases one after another, what each ends with as a file.

Started as `quiet_job.py PROJECT [CASE ...]`: without names, every case is run.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import process_cases as cases
import torch
from process_cases import EQUAL, HARD, HELD_OUT, METHOD, REFUSED, Recording, parameter_hash

import trainer.watch
from trainer.checkpoint import random_state
from trainer.config import load_run_config, written_overrides
from trainer.distributed import World, first_disagreement, processes
from trainer.modeling import build_components
from trainer.training import run_training


class Job:
    def __init__(self, folder: Path, world: World, names: Sequence[str]) -> None:
        self.folder, self.world, self.names = folder, world, names

    def run(
        self, name: str, overrides: dict[str, Any], resume: str = "none", run_dir: str = "", fails: bool = False
    ) -> None:
        """Train a case to its end, or to its error if it `fails`, in `runs2/NAME`; none that was not asked for."""
        if self.names and name not in self.names:
            return
        given = {**overrides, "train.save_dir": f"runs2/{run_dir or name}"}
        told: dict[str, Any] = {"error": "", "kind": ""}
        Recording.last = None
        try:
            result = run_training(self.folder / "config.yaml", written_overrides(given), resume, self.world)
            told |= {"step": result.step, "signal": result.signal, "checkpoint": str(result.checkpoint)}
        except Exception as error:
            if not fails:
                raise
            told |= {"error": str(error), "kind": type(error).__name__, "step": 0}
        if (own := Recording.last) is not None:
            kept = ("seen", "weights", "hashes", "draws", "reduced", "judged", "statistics")
            told |= {key: getattr(own, key) for key in kept}
            told["hash"] = parameter_hash(own.models)
            told["random"] = random_state()["torch"].sum().item()
        self.tell(name, told)

    def tell(self, name: str, told: dict[str, Any]) -> None:
        path = self.folder / "told" / f"{name}.{self.world.rank}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(told))


def main(folder: Path, world: World, names: Sequence[str]) -> None:
    job = Job(folder, world, names)
    trainer.watch.draw_curves = lambda *given, **named: None  # a third of a second each, and nothing of it is looked at

    torch.manual_seed(world.rank)
    config = load_run_config(folder / "config.yaml", ["train.save_dir=runs2/none"])
    job.tell("built", {"hash": parameter_hash(build_components(config))})

    job.tell("decided", decided(world))
    job.tell("disagreement", disagreements(world))

    for name, overrides in EQUAL.items():
        job.run(name, overrides if overrides.get("train.trainer.type") else {**HELD_OUT, **overrides})
    for name, overrides in REFUSED.items():
        job.run(name, overrides, fails=True)

    job.run("skipped", {**cases.NAN, "train.on_nonfinite": "skip"})
    job.run("clock", {"train.max_steps": 1000, "train.max_minutes": 1e-5})
    job.run("batch norm", {**HELD_OUT, "model.component_config_paths.encoder": "normed.yaml"})

    job.run("whole", HARD)
    job.run("parts", {**HARD, f"{METHOD}.signal_rank": 1, f"{METHOD}.signal_at": 5})
    job.run("parts, resumed", HARD, "auto", "parts")

    job.run("judged", cases.UNEVEN)
    job.run("judged in parts", {**cases.UNEVEN, f"{METHOD}.signal_rank": 1, f"{METHOD}.signal_judging": 2})
    job.run("judged in parts, resumed", cases.UNEVEN, "auto", "judged in parts")

    job.run("2 then 1", {"train.max_steps": 3})
    job.run("1 then 2", {}, str(folder / "runs1/1 then 2"))
    job.run("another product", {"data.batch_size": 8}, str(folder / "runs1/1 then 2"), fails=True)


def decided(world: World) -> dict[str, str]:
    """What each process gets of a decision that fails on the first one."""

    def fail() -> None:
        raise cases.Unsendable("no room", "to act")

    try:
        world.first_decides(fail)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": ""}


def disagreements(world: World) -> dict[str, str | None]:
    """The first tensor that differs, for pairs that differ in ways a weak hash would miss."""
    zeros, numbers = torch.zeros(8), torch.arange(8.0)
    one_bit = numbers.clone().view(torch.int32)
    one_bit[3] += 1
    pairs = {
        "nothing": (numbers, numbers),
        "a constant": (zeros, zeros + 1),
        "two equal changes": (zeros, zeros.index_fill(0, torch.tensor([1, 2]), 0.5)),
        "an exchange": (numbers, numbers.flip(0)),
        "a sign": (zeros, -zeros),
        "one bit": (numbers, one_bit.view(torch.float32)),
        "bfloat16": (numbers.bfloat16(), (numbers + 1).bfloat16()),
        "a single number": (torch.tensor(1.0), torch.tensor(2.0)),
        "a transposed layout": (numbers.reshape(2, 4).T, numbers.reshape(2, 4).T + 1),
    }
    same = ("same", numbers)
    return {how: first_disagreement(world, [same, ("other", pair[world.rank])]) for how, pair in pairs.items()}


if __name__ == "__main__":
    with processes() as joined:
        main(Path(sys.argv[1]), joined, sys.argv[2:])
