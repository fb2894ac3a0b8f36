"""A run that was stopped and continued ends equal, bit for bit, to one that was not; what cannot go on is refused."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_compare import assert_equal_checkpoints, lines_of
from toy_plugin import ToyLoss, ToyTrainer

from model_constructor import ConfigError
from trainer import train
from trainer.checkpoint import checkpoint_folders, newest_checkpoint, random_state, set_random_state
from trainer.registry import LOSS_BUILDER_REGISTRY


@LOSS_BUILDER_REGISTRY.register("counting_toy_loss")
class CountingLoss(ToyLoss):
    """Keeps how often it was asked."""

    def build(self) -> torch.nn.Module:
        loss = super().build()
        loss.register_buffer("seen", torch.zeros(()))
        return loss


@pytest.mark.parametrize(
    ("stop", "workers"),
    [(4, 1), (5, 0), *(pytest.param(one, 0, marks=pytest.mark.slow) for one in (1, 4, 10, 11))],
)
@pytest.mark.fault("F1", "stopped after any update, of an epoch or within one")
def test_a_resumed_run_equals_an_uninterrupted_one(config: Path, project: Path, stop: int, workers: int) -> None:
    """Twelve updates of five an epoch, with dropout and noise; the metrics' window is cut at any place."""
    common = {
        "data.num_workers": workers,
        "data.validation": {"episodes": [9]},
        "train.save_every_steps": stop,
        "train.keep_last": 20,
    }
    whole = train(config, {**common, "train.save_dir": "runs/whole"})
    train(config, {**common, "train.save_dir": "runs/parts"})
    for path in sorted((project / "runs/parts").glob("*_*/manifest.json")):
        if json.loads(path.read_text())["step"] > stop:
            path.unlink()  # as if the run had been killed between two checkpoints
    parts = train(config, {**common, "train.save_dir": "runs/parts"}, resume="auto")
    assert parts.step == whole.step == 12
    assert_equal_checkpoints(parts.checkpoint, whole.checkpoint)
    assert lines_of(parts.run_dir) == lines_of(whole.run_dir)


@pytest.mark.slow
def test_an_additional_save_and_validation_change_nothing(config: Path) -> None:
    often = {"train.save_every_steps": 1, "train.validate_every": 1}
    held_out = {"data.validation": {"episodes": [9]}}
    one = train(config, {**held_out, "train.save_dir": "runs/one"})
    other = train(config, {**held_out, **often, "train.save_dir": "runs/other"})
    assert_equal_checkpoints(one.checkpoint, other.checkpoint)


KILLED = """
import os, signal, sys
from trainer import state, train
from trainer.loop import train_run
import toy_plugin
steps = 0
original = toy_plugin.ToyTrainer.train_step
def step(self, *given):
    global steps
    steps += 1
    if steps == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *given)
toy_plugin.ToyTrainer.train_step = step
train(sys.argv[1], {"train.save_every_steps": 3, "train.save_dir": "runs/killed"})
"""


@pytest.mark.slow
def test_a_killed_run_continues_as_if_nothing_had_been(config: Path, project: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(config)], env=environment, capture_output=True, cwd=project
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert newest_checkpoint(project / "runs/killed").step == 6
    with (project / "runs/killed/metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # the line that a kill cut in half
    (project / "runs/killed/.tmp-step_9").mkdir()
    resumed = train(config, {"train.save_every_steps": 3, "train.save_dir": "runs/killed"}, resume="auto")
    whole = train(config, {"train.save_every_steps": 3, "train.save_dir": "runs/whole"})
    assert_equal_checkpoints(resumed.checkpoint, whole.checkpoint)
    assert lines_of(resumed.run_dir) == lines_of(whole.run_dir)
    assert not list((project / "runs/killed").glob(".tmp-*"))


def test_without_being_asked_nothing_is_continued_or_overwritten(config: Path, project: Path) -> None:
    train(config, {"train.max_steps": 2})
    before = {path: path.stat().st_mtime_ns for path in (project / "runs").rglob("*")}
    with pytest.raises(ConfigError, match=r"holds a run already(.|\n)*--resume auto"):
        train(config)
    assert {path: path.stat().st_mtime_ns for path in (project / "runs").rglob("*")} == before


def test_auto_starts_where_there_is_nothing_to_continue(config: Path, project: Path) -> None:
    assert train(config, resume="auto").step == 12
    assert len(lines_of(project / "runs/toy")) == 3


def test_auto_starts_anew_where_a_run_was_killed_before_its_first_checkpoint(config: Path, project: Path) -> None:
    (project / "runs/toy").mkdir(parents=True)
    (project / "runs/toy/environment.json").write_text("{}")
    (project / "runs/toy/config.yaml").write_text("seed: 0\n")
    (project / "runs/toy/metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
    train(config, resume="auto")
    assert [line["step"] for line in lines_of(project / "runs/toy")] == [4, 8, 12]


def no_checkpoint_is_valid(run_dir: Path) -> None:
    for path in run_dir.glob("*/manifest.json"):
        path.unlink()


def files_of_another(run_dir: Path) -> None:
    (run_dir / "environment.json").unlink()


def a_line_that_is_none(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").write_text("[1]\n")


@pytest.mark.parametrize("resume", ["auto", pytest.param("none", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_checkpoint_is_valid, "no valid checkpoint:(.|\n)*step_12 .*no manifest"),
        (files_of_another, "holds files that are not a run's"),
        (a_line_that_is_none, "metrics.jsonl:1 is not a line of metrics"),
    ],
)
def test_a_damaged_run_folder_is_left_as_it_is(config: Path, project: Path, resume: str, damage, message: str) -> None:
    damage(train(config).run_dir)
    before = {path: path.stat().st_mtime_ns for path in (project / "runs").rglob("*")}
    if resume == "none" and damage is no_checkpoint_is_valid:
        message = "holds a run already"
    with pytest.raises(ConfigError, match=message):
        train(config, resume=resume)
    assert {path: path.stat().st_mtime_ns for path in (project / "runs").rglob("*")} == before


@pytest.mark.slow
def test_a_run_that_ended_before_its_first_update_is_none_yet(config: Path, project: Path) -> None:
    (project / "runs/toy").mkdir(parents=True)
    for name in ("environment.json", "config.yaml"):
        (project / "runs/toy" / name).write_text("{}")
    assert train(config).step == 12


def test_a_file_in_the_run_folders_place_is_one_message(config: Path, project: Path) -> None:
    (project / "runs").write_text("mine")
    with pytest.raises(ConfigError, match=r"run folder .* cannot be read and written"):
        train(config)


def test_a_finished_run_says_so(config: Path, capsys: pytest.CaptureFixture) -> None:
    first = train(config)
    capsys.readouterr()
    again = train(config, resume="auto")
    assert (again.step, again.checkpoint) == (first.step, first.checkpoint)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_longer_run_goes_on_and_names_what_differs(config: Path, capsys: pytest.CaptureFixture) -> None:
    train(config, {"train.max_steps": 5})
    assert train(config, {"train.max_steps": 8}, resume="auto").step == 8
    assert "config: train.max_steps was 5, is now 8" in capsys.readouterr().out
    rate = lines_of(config.parents[1] / "runs/toy")[-1]["lr/encoder"]
    assert rate == pytest.approx(0.01 * (1 - 7 / 8))  # the schedule is the longer run's, at the update it stands at


@pytest.mark.slow
def test_a_difference_to_nothing_is_told(config: Path, capsys: pytest.CaptureFixture) -> None:
    """A default that is switched off, or one that is switched on again."""
    train(config, {"train.max_steps": 5})
    train(config, {"train.max_steps": 8, "train.keep_last": None}, resume="auto")
    assert "config: train.keep_last was not set, is now None" in capsys.readouterr().out
    train(config, {"train.max_steps": 10}, resume="auto")
    assert "config: train.keep_last was None, is now not set" in capsys.readouterr().out


def test_a_path_is_not_continued_among_the_lines_of_another_run(config: Path, project: Path) -> None:
    first = train(config, {"train.save_every_steps": 5})
    train(config, {"train.save_dir": "runs/other"})
    for folder in checkpoint_folders(project / "runs/other"):
        shutil.rmtree(folder)
    with pytest.raises(ConfigError, match="holds the metrics of a run that saved nothing"):
        train(config, {"train.save_dir": "runs/other"}, resume=str(first.run_dir / "epoch_1"))


def test_a_path_is_continued_elsewhere(config: Path, project: Path) -> None:
    first = train(config, {"train.save_every_steps": 5})
    other = train(config, {"train.save_dir": "runs/other"}, resume=str(first.run_dir / "epoch_1"))
    whole = train(config, {"train.save_dir": "runs/whole"})
    assert other.step == 12
    assert lines_of(other.run_dir) == [line for line in lines_of(whole.run_dir) if line["step"] > 5]


def test_a_path_behind_the_runs_newest_checkpoint_is_refused(config: Path, project: Path) -> None:
    train(config, {"train.save_every_steps": 4})
    with pytest.raises(ConfigError, match=r"goes on to step 12"):
        train(config, resume=str(project / "runs/toy/step_4"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.batch_size": 8}, "frames per update 16, and is to continue with 8"),
        ({"train.accumulate": 2}, "frames per update 16, and is to continue with 32"),
        ({"data.datamodule.params.episodes": 9}, "frames 80, and is to continue with 72"),
        ({"model.component_optims.encoder": {"type": "toy_sgd"}}, "optimizer of encoder toy_adam, and is"),
        ({"data.normalization": {"action": "min_max"}}, "normalization of action .*mean_std.* continue .*min_max"),
        ({"train.seed": 9}, "seed 3, and is to continue with 9"),
        ({"train.overfit_batches": 5}, "train.overfit_batches None, and is to continue with 5"),
        ({"model.component_params": {"encoder": {"dim": 4}, "head": {"dim": 4}}}, "'encoder' is not the model"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_be_another_run_is_refused(config: Path, project: Path, overrides: dict, message: str) -> None:
    train(config, {"train.max_steps": 5})
    before = {path: path.stat().st_mtime_ns for path in (project / "runs").rglob("*")}
    with pytest.raises(ConfigError, match=message) as raised:
        train(config, overrides, resume="auto")
    assert all(problem.place is not None for problem in raised.value.problems)
    assert {path: path.stat().st_mtime_ns for path in (project / "runs").rglob("*")} == before


def test_lora_of_another_rank_is_refused(config: Path) -> None:
    lora = {"model.component_build_args": {"encoder": {"lora": {"rank": 2, "targets": ["net.0"]}}}}
    train(config, {"train.max_steps": 5, **lora})
    lora["model.component_build_args"]["encoder"]["lora"]["rank"] = 1
    with pytest.raises(ConfigError, match="trained tensors in the component encoder"):
        train(config, lora, resume="auto")


def test_a_loss_that_cannot_take_up_what_another_kept_is_told_by_place(config: Path) -> None:
    train(config, {"train.max_steps": 5, "train.loss": {"type": "counting_toy_loss"}})
    with pytest.raises(ConfigError, match=r'cannot go on .*Unexpected key\(s\) in state_dict: "seen"') as raised:
        train(config, resume="auto")
    assert raised.value.problems[0].place is not None


@pytest.mark.parametrize("kept", [np.float64(0.1), [np.zeros(2)]], ids=["number", "array"])
def test_what_no_checkpoint_could_be_read_with_is_told_before_the_training(
    config: Path, project: Path, kept: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyTrainer, "state_dict", lambda self: {"best": kept}, raising=False)
    monkeypatch.setattr(ToyTrainer, "load_state_dict", lambda self, state: None, raising=False)
    with pytest.raises(ConfigError, match="the trainer's state_dict holds something else than tensors"):
        train(config)
    assert not (project / "runs").exists()


def test_random_streams_are_kept_whole() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.randn(()).item()]

    draw()
    state = random_state()
    expected = draw()
    set_random_state(state)
    assert draw() == expected
