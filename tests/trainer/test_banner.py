"""What a person reads before a run trains: the banner's notes, and the dry run, which shows all and writes nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy_plugin
from test_offline_trainer import ENVIRONMENT, SCRIPT

from trainer.banner import banner, cores_at_hand, dry_run
from trainer.build import Run, build_run
from trainer.config import load_run_config
from trainer.distributed import World
from trainer.registry import LOSS_BUILDER_REGISTRY
from trainer.state import Progress


def built(config: Path, *overrides: str) -> Run:
    return build_run(load_run_config(config, overrides), World())


def notes(run: Run) -> list[str]:
    return [line for line in banner(run, Progress()).splitlines() if line.startswith(("note", "warning"))]


def test_a_plain_run_has_nothing_to_note(config: Path) -> None:
    assert notes(built(config)) == []


def test_more_readers_than_cores_are_noted(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = cores_at_hand()
    assert notes(built(config, f"data.num_workers={cores}")) == []
    (note,) = notes(built(config, f"data.num_workers={cores + 1}"))
    assert note.startswith(f"note: data.num_workers {cores + 1}, and {cores} cores")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores + 1))
    (note,) = notes(built(config, "data.num_workers=1"))
    assert note.startswith(f"note: data.num_workers 1 in each of {cores + 1} processes")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU that is seen needs no note")
def test_a_gpu_that_torch_does_not_see_is_noted(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("trainer.banner.NVIDIA_GPUS", str(tmp_path))
    (note,) = notes(built(config))
    assert note.endswith("sees no GPU, though this machine has one: this run trains on the CPU")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # by intent
    assert notes(built(config)) == []
    monkeypatch.setattr("trainer.banner.NVIDIA_GPUS", str(tmp_path / "none"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (note,) = notes(built(config))
    assert "though CUDA_VISIBLE_DEVICES is 0" in note


def test_a_schedule_of_another_length_is_noted(config: Path) -> None:
    (note,) = notes(built(config, "model.component_optims.encoder.params.total_steps=1000"))
    assert note == "note: the schedule of encoder takes 1,000 updates, the run 12"
    (note,) = notes(built(config, "model.component_optims.encoder.groups={net.0.bias: {total_steps: 10}}"))
    assert note == "note: the schedule of encoder, net.0.bias, takes 10 updates, the run 12"


def test_an_evaluation_that_the_run_ends_before_is_told_where_the_config_asks_for_it(config: Path) -> None:
    assert notes(built(config, "train.evaluate_every=12")) == []
    (note,) = notes(built(config, "train.evaluate_every=5000"))
    told = "warning: train.evaluate_every is 5,000, and the run has only 12 updates: nothing is evaluated (--set"
    assert note.startswith(told)
    overrides = ("train.max_steps=null", "train.max_minutes=1", "model.component_optims.encoder.params.total_steps=9")
    assert not any("evaluate_every" in note for note in notes(built(config, "train.evaluate_every=5000", *overrides)))


def test_params_whose_names_nobody_can_check_are_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Open(toy_plugin.ToyLoss):
        def __init__(self, scale: float = 1.0, **others: object) -> None:
            super().__init__(scale)

    monkeypatch.setattr(LOSS_BUILDER_REGISTRY, "get", lambda name: Open)
    assert notes(built(config, "train.loss.params={scale: 2.0}")) == []
    (note,) = notes(built(config, "train.loss.params={scale: 2.0, scael: 1, other: x}"))
    assert note.startswith("note: train.loss.params.scael, train.loss.params.other: taken by components that")


def test_a_dry_run_shows_texts_and_pictures_as_they_reach_the_trainer(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = toy_plugin.ToyDataset.__getitem__
    more = {"image": torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "task": "pick it up"}
    monkeypatch.setattr(toy_plugin.ToyDataset, "__getitem__", lambda self, index: {**item(self, index), **more})
    lines = dry_run(built(config)).splitlines()
    assert "  image: [16, 1, 3, 8, 8] float32" in lines
    assert "  task: 16 of str, such as 'pick it up'" in lines


@pytest.mark.slow
def test_a_dry_run_of_several_processes_is_printed_once_and_writes_nothing(config: Path, project: Path) -> None:
    before = sorted(path for path in project.rglob("*") if "__pycache__" not in path.parts)
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(SCRIPT)]
    command = [*torchrun, "--train_config", str(config), "--dry-run", "--set", "model.find_unused_parameters=true"]
    done = subprocess.run([sys.executable, *command], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in ("find_unused_parameters: true", "effective batch 32 (16 x 2 processes)", "one step: loss", "dry run"):
        assert done.stdout.count(part) == 1, done.stdout
    assert sorted(path for path in project.rglob("*") if "__pycache__" not in path.parts) == before
