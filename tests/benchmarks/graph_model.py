"""Forward time of a compiled graph against the same graph written by hand, traced by torch.fx, and run by tensordict.

    python tests/benchmarks/graph_model.py

Fifty nodes of one kind of tiny operation, where every microsecond of overhead shows; one thread, no gradients, the
contenders in random turns, medians. What counts is the column `ratio`: time over that of the module written by hand.
Each is built several times, as classes of its own: two names that fall into one place of Python's cache of attributes
make a class slower by 3 %, and which class that is, is chance.
"""

from __future__ import annotations

import argparse
import copy
import operator
import random
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn

from model_constructor import build_model

NODES, DIM = 50, 8


class Kind(NamedTuple):
    """What node i computes of the node before it and of the input x0."""

    yaml: str
    python: str
    function: Callable[[nn.Module, int], Callable[[Tensor, Tensor], Tensor]]
    modules: bool = False  # whether each node has a Linear of its own


def first_argument(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, x0: function(x)


KINDS = {
    "additions": Kind("{before} + x0", "{before} + x0", lambda model, i: operator.add),
    "functions": Kind("sin({before})", "torch.sin({before})", lambda model, i: first_argument(torch.sin)),
    "Linear modules": Kind(
        "linear{i}({before})",
        "self.linear{i}({before})",
        lambda model, i: first_argument(list(model.children())[i]),
        modules=True,
    ),
}


def filled(text: str, build: int) -> list[str]:
    """The text of each node; its names, h0_0, h0_1, ... and linear0_0, ..., are those of the build."""
    return [text.format(i=f"{build}_{i}", before=f"h{build}_{i - 1}" if i else "x0") for i in range(NODES)]


def handwritten(kind: Kind, build: int) -> nn.Module:
    """The module that a person would write: one line per node."""
    lines = [f"    h{build}_{i} = {expression}" for i, expression in enumerate(filled(kind.python, build))]
    scope: dict = {"torch": torch}
    exec("\n".join(["def forward(self, x0):", *lines, f"    return h{build}_{NODES - 1}"]), scope)
    model = type("Handwritten", (nn.Module,), {"forward": scope["forward"]})()
    for i in range(NODES if kind.modules else 0):
        model.add_module(f"linear{build}_{i}", nn.Linear(DIM, DIM))
    return model


def document(kind: Kind, build: int) -> dict:
    return {
        "schema_version": 2,
        "inputs": {"x0": ["B", DIM]},
        "modules": {f"linear{build}_{i}": f"Linear({DIM}, {DIM})" for i in range(NODES if kind.modules else 0)},
        "graph": {f"h{build}_{i}": expression for i, expression in enumerate(filled(kind.yaml, build))},
        "outputs": f"h{build}_{NODES - 1}",
    }


class Sequential(nn.Module):
    """tensordict's graph: each node reads and writes its names in one dict."""

    def __init__(self, kind: Kind, model: nn.Module) -> None:
        super().__init__()
        before = ["x0", *(f"h{i}" for i in range(NODES))]
        nodes = [
            TensorDictModule(kind.function(model, i), in_keys=[before[i], "x0"], out_keys=[f"h{i}"])
            for i in range(NODES)
        ]
        self.nodes = TensorDictSequential(*nodes)

    def forward(self, x0: Tensor) -> Tensor:
        return self.nodes(TensorDict({"x0": x0}, batch_size=[]))[f"h{NODES - 1}"]


def contenders(kind: Kind, build: int) -> dict[str, nn.Module]:
    """The same function four times, with weights that are equal and not shared: who shares finds them cached."""
    by_hand = handwritten(kind, build)
    ours = build_model(document(kind, build))
    ours.load_state_dict(by_hand.state_dict())
    return {
        "handwritten": by_hand,
        "GraphModel": ours,
        "torch.fx": torch.fx.symbolic_trace(copy.deepcopy(by_hand)),
        "TensorDictSequential": Sequential(kind, copy.deepcopy(by_hand)),
    }


def microseconds(model: nn.Module, x: Tensor, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        model(x)
    return 1e6 * (time.perf_counter() - began) / calls


def measure(kind: Kind, builds: int, rounds: int, calls: int) -> dict[str, float]:
    """Microseconds per forward of each contender: the median of the rounds, those of all builds together."""
    times: dict[str, list[float]] = {}
    for build in range(builds):
        for name, values in measure_build(kind, build, rounds, calls).items():
            times.setdefault(name, []).extend(values)
    return {name: statistics.median(values) for name, values in times.items()}


def measure_build(kind: Kind, build: int, rounds: int, calls: int) -> dict[str, list[float]]:
    models = contenders(kind, build)
    x = torch.randn(2, DIM)
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        expected = models["handwritten"](x)
        for name, model in models.items():
            assert torch.equal(model(x), expected), name
        shuffled = random.Random(build)
        for _ in range(rounds):
            # In any order, for nobody to follow the same one each time: who runs twice in a row finds its weights cached.
            for name in shuffled.sample(list(models), len(models)):
                times[name].append(microseconds(models[name], x, calls))
    return times


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--builds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=60, help="per build")
    parser.add_argument("--calls", type=int, default=20, help="forwards per round")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"| {NODES} nodes, [2, {DIM}] | | us per forward | ratio |\n|---|---|---|---|")
    for title, kind in KINDS.items():
        times = measure(kind, given.builds, given.rounds, given.calls)
        for name, value in times.items():
            print(f"| {title} | {name} | {value:.1f} | {value / times['handwritten']:.3f} |")


if __name__ == "__main__":
    main()
