"""Forward time of a compiled graph against the same module written by hand, and against torch.fx.

    python tests/benchmarks/graph_model.py

Fifty nodes of tiny operations, where every microsecond of overhead shows; one thread, interleaved, medians.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn

from model_constructor import build_model

NODES, DIM, ROUNDS, CALLS = 50, 8, 200, 20


class Handwritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for i in range(0, NODES, 2):
            self.add_module(f"linear{i}", nn.Linear(DIM, DIM))


def handwritten() -> nn.Module:
    """The module a person would write: one line per node."""
    lines = [f"    x = {f'self.linear{i}(x)' if i % 2 == 0 else 'x + x0'}" for i in range(NODES)]
    scope: dict = {}
    exec("def forward(self, x0):\n    x = x0\n" + "\n".join(lines) + "\n    return x", scope)
    return type("Handwritten", (Handwritten,), {"forward": scope["forward"]})()


def document() -> dict:
    names = [f"h{i}" for i in range(NODES)]
    before = ["x0", *names]
    return {
        "schema_version": 2,
        "inputs": {"x0": ["B", DIM]},
        "modules": {f"linear{i}": f"Linear({DIM}, {DIM})" for i in range(0, NODES, 2)},
        "graph": {
            name: f"linear{i}({before[i]})" if i % 2 == 0 else f"{before[i]} + x0" for i, name in enumerate(names)
        },
        "outputs": names[-1],
    }


def median_us(model: nn.Module, x: Tensor) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        model(x)
    return 1e6 * (time.perf_counter() - began) / CALLS


def main() -> None:
    torch.set_num_threads(1)
    by_hand = handwritten()
    ours = build_model(document())
    ours.load_state_dict(by_hand.state_dict())
    peers = {"handwritten": by_hand, "GraphModel": ours, "torch.fx GraphModule": torch.fx.symbolic_trace(by_hand)}
    x = torch.randn(2, DIM)
    times: dict[str, list[float]] = {name: [] for name in peers}
    with torch.no_grad():
        assert torch.equal(ours(x), by_hand(x))
        for _ in range(ROUNDS):
            for name, model in peers.items():
                times[name].append(median_us(model, x))
    base = statistics.median(times["handwritten"])
    print(f"| {NODES} nodes, [2, {DIM}] | us per forward | ratio to handwritten |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.1f} | {statistics.median(values) / base:.3f} |")


if __name__ == "__main__":
    main()
