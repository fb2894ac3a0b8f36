"""The benchmarks of model_constructor, and of training against lerobot, run; what they measure is for a quiet machine."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

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
        benchmark("graph_model").main(["--builds", "2", "--rounds", "1", "--calls", "1"])
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


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["act", "diffusion"])
def test_both_programs_train_the_same_policy_and_are_measured(policy: str, capsys: pytest.CaptureFixture[str]):
    options = "--steps 40 --rounds 1 --data low-dim --episodes 2 --frames 30 --batch-size 4"
    benchmark("against_lerobot").main([*options.split(), "--policies", policy])
    _, _, _, row = capsys.readouterr().out.strip().splitlines()[-4:]
    name, *cells = (cell.strip() for cell in row.split("|")[1:-1])
    assert name == f"{policy}, low-dim" and len(cells) == 10
    ours, theirs, ratio, of_bound, *_, our_loss, their_loss = (
        float(cell.strip("%").replace(",", "")) for cell in cells
    )
    assert ratio == pytest.approx(ours / theirs, rel=0.05)
    assert 20 < of_bound < 200  # a share of the same work, on a machine that may be busy
    assert our_loss == pytest.approx(their_loss, rel=0.5)  # another objective or scale would be far off


@pytest.mark.parametrize("kind", ["low-dim", "image"])
@pytest.mark.parametrize("policy", ["act", "diffusion"])
def test_the_policies_that_are_compared_have_as_many_parameters_as_lerobots(policy: str, kind: str):
    """What both programs are told leads to networks of the same size."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config

    against = benchmark("against_lerobot")
    given = argparse.Namespace(small=True, steps=40, batch_size=4, workers=0, precision="fp32", device="cpu")
    model = against.our_config(policy, kind, Path("data"), Path("run"), 0, given)["model"]
    ours = build_model(model["component_config_paths"]["policy"], params=model["component_params"]["policy"])
    arguments = against.their_arguments(policy, kind, Path("data"), Path("run"), 0, given)
    told = dict(one.removeprefix("--policy.").split("=") for one in arguments if one.startswith("--policy."))
    words = {name: yaml.safe_load(value) for name, value in told.items() if name not in ("type", "optimizer_lr")}
    seen = {against.ENV_STATE: PolicyFeature(FeatureType.ENV, (2,))}
    if kind == "image":
        seen = {against.CAMERA: PolicyFeature(FeatureType.VISUAL, (3, 96, 96))}
    config = make_policy_config(
        policy,
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (2,)), **seen},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        **words,
    )
    theirs = get_policy_class(policy)(config)
    assert sum(one.numel() for one in ours.parameters()) == sum(
        one.numel() for one in theirs.parameters() if one.requires_grad
    )
