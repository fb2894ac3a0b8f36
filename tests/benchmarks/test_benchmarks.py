"""The benchmarks of model_constructor run; what they measure is for a quiet machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from model_constructor import build_model


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_contender_of_every_kind_is_timed(capsys: pytest.CaptureFixture[str]):
    threads = torch.get_num_threads()
    try:
        benchmark("graph_model").main(["--rounds", "2", "--calls", "1"])
    finally:
        torch.set_num_threads(threads)
    rows = [line.split("|")[1:5] for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == 3 * 4
    assert all(float(microseconds) > 0 for _, _, microseconds, _ in rows)


@pytest.mark.parametrize(("file", "nodes"), [("flat", 50), ("with Linears", 50), ("nested", 50)])
def test_the_files_that_are_built_have_so_many_nodes(
    file: str, nodes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    build_time = benchmark("build_time")
    monkeypatch.setattr(build_time, "NODES", nodes)
    path = tmp_path / "model.yaml"
    path.write_text(build_time.FILES[file]())
    model = build_model(path)
    blocks = [inner for inner in model._block.levels() if inner is not model._block] or [model._block]
    assert sum(len(block.graph) for block in blocks) == nodes
    assert model(torch.randn(2, 8)).shape == (2, 8)


@pytest.mark.slow
def test_the_build_times_are_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    build_time = benchmark("build_time")
    monkeypatch.setattr(build_time, "NODES", 20)
    build_time.main(["--processes", "1"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 3 + 2 * 3
    assert all(float(row.split("|")[2]) > 0 for row in rows)
