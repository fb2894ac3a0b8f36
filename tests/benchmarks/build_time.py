"""Time to import model_constructor and to build files of a thousand nodes.

    python tests/benchmarks/build_time.py

Each row is the median of fresh processes. The first build of a process pays for what torch imports when the meta device
is used for the first time; `torch's own` is that alone, without model_constructor.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NODES = 1000

IMPORT = """
import time
began = time.perf_counter()
import torch
first = time.perf_counter()
import model_constructor
print(first - began, time.perf_counter() - first)
"""

META = """
import time, torch
began = time.perf_counter()
with torch.device("meta"), torch.no_grad():
    torch.nn.Linear(2, 2)(torch.empty(3, 2)) + torch.nn.functional.relu(torch.empty(3, 2))
print(time.perf_counter() - began)
"""

BUILD = """
import time
from model_constructor import build_model
if {warm}:
    build_model({{"schema_version": 2, "inputs": {{"x": ["B", 2]}}, "modules": {{"f": "Linear(2, 2)"}}, "outputs": "f(x) + relu(x)"}})
began = time.perf_counter()
build_model({path!r})
print(time.perf_counter() - began)
"""


def flat() -> str:
    """One level: a thousand nodes, each of the node before it."""
    lines = [f"  h{i}: tanh(h{i - 1}) + x" if i else "  h0: tanh(x)" for i in range(NODES)]
    return _file("", lines, f"h{NODES - 1}")


def linears() -> str:
    """As `flat`, every third node a Linear of its own."""
    modules = [f"  f{i}: Linear(8, 8)" for i in range(0, NODES, 3)]
    lines = [f"  h{i}: {'tanh' if i % 3 else f'f{i}'}({f'h{i - 1}' if i else 'x'}) + x" for i in range(NODES)]
    return _file("\n".join(["modules:", *modules]), lines, f"h{NODES - 1}")


def nested() -> str:
    """A hundred distinct blocks of ten nodes, each used once."""
    blocks = ["blocks:"]
    for i in range(NODES // 10):
        blocks += [f"  part{i}:", "    inputs: {x: [B, 8]}", "    modules: {f: 'Linear(8, 8)'}", "    graph:"]
        blocks += [f"      h{j}: {'tanh' if j else 'f'}({f'h{j - 1}' if j else 'x'}) + x" for j in range(10)]
        blocks += ["    outputs: h9"]
    modules = ["modules:", *(f"  p{i}: part{i}()" for i in range(NODES // 10))]
    lines = [f"  h{i}: p{i}({f'h{i - 1}' if i else 'x'})" for i in range(NODES // 10)]
    return _file("\n".join([*blocks, *modules]), lines, f"h{NODES // 10 - 1}")


FILES = {"flat": flat, "with Linears": linears, "nested": nested}


def _file(middle: str, graph: list[str], outputs: str) -> str:
    parts = ["schema_version: 2", "inputs: {x: [B, 8]}", middle, "graph:", *graph, f"outputs: {outputs}", ""]
    return "\n".join(part for part in parts if part) + "\n"


def medians(code: str, processes: int) -> list[float]:
    """Of each number that the code prints, in fresh processes one after the other; in milliseconds."""
    runs = []
    for _ in range(processes):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        runs.append([1000 * float(number) for number in done.stdout.split()])
    return [statistics.median(numbers) for numbers in zip(*runs, strict=True)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=7)
    given = parser.parse_args(arguments)
    print("| | ms |\n|---|---|")
    torch_ms, ours_ms = medians(IMPORT, given.processes)
    print(f"| import torch | {torch_ms:.0f} |\n| then import model_constructor | {ours_ms:.0f} |")
    print(f"| first use of the meta device, torch's own | {medians(META, given.processes)[0]:.0f} |")
    with tempfile.TemporaryDirectory() as folder:
        for title, text in FILES.items():
            path = Path(folder) / "model.yaml"
            path.write_text(text(), encoding="utf-8")
            for warm, which in ((False, "first build of a process"), (True, "a later build")):
                time = medians(BUILD.format(warm=warm, path=str(path)), given.processes)[0]
                print(f"| {NODES} nodes, {title}: {which} | {time:.0f} |")


if __name__ == "__main__":
    main()
