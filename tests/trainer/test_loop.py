"""A run as a whole: it learns, ends where it is told, saves when it is told, and leaves the files it promises."""

import gc
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from toy_compare import assert_equal_checkpoints

from model_constructor import ConfigError
from trainer import train
from trainer.build import build_run
from trainer.checkpoint import checkpoint_folders, newest_checkpoint, open_checkpoint
from trainer.config import load_run_config
from trainer.distributed import World
from trainer.evaluate import evaluate_run
from trainer.loop import TrainResult, training_batches
from trainer.metrics import MetricsFile, read_metrics
from trainer.templates import ComponentTrainer, NonFiniteGradient
from trainer.timing import is_measured

PLAIN = {"train.trainer": {"type": "toy_plain_trainer"}, "train.evaluation": None}


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line]


def test_a_run_learns(config: Path) -> None:
    overrides = {"train.max_steps": 400, "train.log_every": 20, "model.component_optims.encoder.params.lr": 0.02}
    result = train(config, overrides)
    first, *_, last = losses(result.run_dir)
    assert last < 0.4 * first
    assert result.metrics["loss"] == last


@pytest.mark.usefixtures("pictures")
def test_a_run_leaves_the_files_it_promises(config: Path) -> None:
    result = train(config, {"train.project_name": "my run"})
    assert {path.name for path in result.run_dir.iterdir()} == {
        *("config.yaml", "environment.json", "metrics.jsonl", "dataset_stats.json", "dataset_stats.pkl"),
        *("loss.png", "latest", "step_12", ".lock"),
    }
    assert {path.name for path in result.checkpoint.iterdir()} == {
        *("encoder.pt", "encoder_opt.pt", "encoder.yaml", "head.pt", "head_opt.pt", "head.yaml"),
        *("training_state.pt", "manifest.json"),
    }
    environment = json.loads((result.run_dir / "environment.json").read_text())
    assert environment["run"] == "my run"
    assert environment["packages"]["torch"] == version("torch")
    stats = pickle.loads((result.run_dir / "dataset_stats.pkl").read_bytes())
    assert np.allclose(
        stats["action"]["mean"], json.loads((result.run_dir / "dataset_stats.json").read_text())["action"]["mean"]
    )


@pytest.mark.parametrize(
    ("overrides", "steps", "name"),
    [
        pytest.param({"train.max_steps": 7}, 7, "step_7", marks=pytest.mark.slow),
        ({"train.epoch": 2}, 10, "epoch_2"),
        pytest.param({"train.epoch": 5}, 12, "step_12", marks=pytest.mark.slow),
        ({"train.max_steps": None, "train.epoch": 1, "train.accumulate": 2}, 2, "epoch_1"),
        pytest.param(
            {"train.max_steps": None, "train.epoch": 3, "train.overfit_batches": 2},
            6,
            "epoch_3",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_ends_with_what_comes_first(config: Path, overrides: dict, steps: int, name: str) -> None:
    result = train(config, overrides)
    assert (result.step, result.checkpoint.name) == (steps, name)


def test_the_clock_ends_a_run_and_counts_over_resumes(config: Path) -> None:
    overrides = {"train.max_steps": 10**6, "train.max_minutes": 0.005}
    first = train(config, overrides)
    assert 0 < first.step < 10**6
    assert train(config, overrides, resume="auto").step == first.step
    longer = train(config, {**overrides, "train.max_minutes": 0.008}, resume="auto")
    assert longer.step > first.step


@pytest.mark.parametrize(
    ("overrides", "saved"),
    [
        pytest.param({}, {"step_12"}, marks=pytest.mark.slow),
        pytest.param({"train.save_every_steps": 5}, {"epoch_1", "epoch_2", "step_12"}, marks=pytest.mark.slow),
        pytest.param({"train.save_every_steps": 4}, {"step_4", "step_8", "step_12"}, marks=pytest.mark.slow),
        pytest.param({"train.save_every": 1}, {"epoch_1", "epoch_2", "step_12"}, marks=pytest.mark.slow),
        ({"train.save_every": 2, "train.save_every_steps": 7}, {"epoch_2", "step_7", "step_12"}),
        pytest.param(
            {"train.save_every_steps": 1, "train.keep_last": 2}, {"step_11", "step_12"}, marks=pytest.mark.slow
        ),
        ({"train.save_every_steps": 1, "train.keep_last": 1, "train.keep_every": 4}, {"step_4", "step_8", "step_12"}),
    ],
)
def test_checkpoints_are_written_when_told(config: Path, overrides: dict, saved: set[str]) -> None:
    result = train(config, overrides)
    assert {path.name for path in result.run_dir.iterdir() if path.is_dir() and not path.is_symlink()} == saved


def test_metrics_are_means_since_the_last_line(config: Path) -> None:
    every = train(config, {"train.log_every": 1, "train.save_dir": "runs/every"})
    fourth = train(config, {"train.log_every": 4, "train.save_dir": "runs/fourth"})
    means = np.array(losses(every.run_dir)).reshape(3, 4).mean(axis=1)
    assert np.allclose(losses(fourth.run_dir), means, rtol=1e-6)
    line = read_metrics(every.run_dir / "metrics.jsonl")[4]
    assert (line["step"], line["epoch"]) == (5, 1.0)
    assert line["lr/encoder"] == pytest.approx(0.01 * (1 - 4 / 12))  # total_steps was filled in with the run's 12
    assert line["lr/head"] == 0.05
    assert {"loss", "grad_norm", "samples_per_s", "data_wait", "action_size"} <= line.keys()


def test_overfitting_sees_the_same_few_samples_again_and_again(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_plugin

    seen: list[tuple[int, int]] = []
    original = toy_plugin.ToyTrainer.compute_loss

    def noted(self, batch: dict):
        if torch.is_grad_enabled():  # without: the trial before the first update
            seen.extend(zip(batch["episode_index"].tolist(), batch["frame_index"].tolist(), strict=True))
        return original(self, batch)

    monkeypatch.setattr(toy_plugin.ToyTrainer, "compute_loss", noted)
    train(config, {"train.overfit_batches": 2, "train.max_steps": 6})
    assert len(seen) == 6 * 16
    assert len(set(seen)) == 2 * 16


def test_batches_are_normalised_float32_and_every_sample_is_seen_once_an_epoch(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toy_plugin

    batches: list[dict] = []
    original = toy_plugin.ToyTrainer.compute_loss

    def noted(self, batch: dict):
        if torch.is_grad_enabled():  # without: the trial before the first update
            batches.append(batch)
        return original(self, batch)

    monkeypatch.setattr(toy_plugin.ToyTrainer, "compute_loss", noted)
    train(config, {"train.max_steps": 5, "data.normalization": {"action": "min_max"}})
    state = torch.cat([batch["observation.state"] for batch in batches])
    action = torch.cat([batch["action"] for batch in batches])
    assert state.dtype == action.dtype == torch.float32
    assert torch.allclose(state.mean(dim=(0, 1)), torch.zeros(3), atol=1e-5)  # mean_std, unless said
    assert torch.allclose(state.std(dim=(0, 1), correction=0), torch.ones(3), atol=1e-5)
    assert torch.allclose(action.amax(dim=(0, 1)), torch.ones(2), atol=1e-5)


def test_validation_is_over_the_held_out_episodes_in_eval_mode(config: Path) -> None:
    held_out = {"data.validation": {"episodes": [8, 9]}, "train.trainer.params": {"noise": 0.0}}
    result = train(config, {**held_out, "train.validate_every": 6})
    lines = [line for line in read_metrics(result.run_dir / "metrics.jsonl") if "validation_loss" in line]
    assert [line["step"] for line in lines] == [6, 12]

    from toy_plugin import ToyDataset

    from trainer import load_policy

    policy, dataset = load_policy(result.checkpoint), ToyDataset([8, 9])
    stats = json.loads((result.run_dir / "dataset_stats.json").read_text())["action"]
    errors = []
    for state, action in zip(dataset.state, dataset.action, strict=True):
        policy.reset()
        predicted = np.stack([policy.select_action({"observation.state": state}) for _ in range(4)])
        errors.append(((predicted - action) / np.array(stats["std"])) ** 2)
    assert lines[-1]["validation_loss"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_best_links_to_the_checkpoint_of_the_lowest_validation_loss_and_outlives_retention(config: Path) -> None:
    """Rates that soon are too high: the loss falls, and rises."""
    optims = {"type": "toy_sgd", "params": {"lr": 0.9}}
    overrides = {"train.keep_best": True, "train.keep_last": 1, "train.validate_every": 1, "train.clip_grad_norm": None}
    held_out = {"data.validation": {"episodes": [9]}, "model.component_optims.head": optims}
    result = train(config, {**overrides, **held_out})
    found = {
        line["step"]: line["validation_loss"]
        for line in read_metrics(result.run_dir / "metrics.jsonl")
        if "validation_loss" in line
    }
    best = min(found, key=found.__getitem__)
    assert 1 < best < 12
    assert open_checkpoint((result.run_dir / "best").resolve()).step == best
    assert {path.name for path in checkpoint_folders(result.run_dir)} == {
        (result.run_dir / "best").readlink().name,
        result.checkpoint.name,
    }
    state = torch.load(result.checkpoint / "training_state.pt", weights_only=True)
    assert state["best_loss"] == found[best]
    again = train(config, {**overrides, **held_out}, resume="auto")
    assert again.best == result.best == result.run_dir / (result.run_dir / "best").readlink()
    elsewhere = {**overrides, **held_out, "train.save_dir": "runs/elsewhere"}
    assert train(config, elsewhere, resume=str(result.checkpoint)).best is None  # it lies in the other folder


def test_a_validation_loss_that_is_no_number_is_never_the_best_and_hides_none(config: Path, monkeypatch) -> None:
    losses = iter([3.0, np.nan, 2.0, 2.5])
    monkeypatch.setattr("trainer.loop.validate", lambda run, held_out, received: (next(losses), 0))
    held_out = {"data.validation": {"episodes": [9]}, "train.validate_every": 3, "train.keep_best": True}
    result = train(config, held_out)
    assert open_checkpoint((result.run_dir / "best").resolve()).step == 9


def test_evaluations_are_noted_and_leave_training_untouched(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This one draws from every stream, and asks the policy for a chunk."""
    import toy_plugin

    original = toy_plugin.ToyEvaluation.evaluate

    def noisy(self, policy, output_dir):
        random.random(), np.random.rand(), torch.rand(())
        return original(self, policy, output_dir)

    monkeypatch.setattr(toy_plugin.ToyEvaluation, "evaluate", noisy)
    quiet = train(config, {"train.save_dir": "runs/quiet"})
    asked = train(config, {"train.save_dir": "runs/asked", "train.evaluate_every": 5})
    found = [line for line in read_metrics(asked.run_dir / "metrics.jsonl") if "evaluation/error" in line]
    assert [line["step"] for line in found] == [5, 10]
    assert found[0]["evaluation/error"] != found[1]["evaluation/error"]
    assert_equal_checkpoints(quiet.checkpoint, asked.checkpoint)


JUDGED = {
    "train.evaluate_every": 5, "data.validation": {"episodes": [9]}, "train.validate_every": 5, "train.keep_best": True,
}  # fmt: skip


def lines_of(run_dir: Path) -> list[dict]:
    return [
        {name: value for name, value in one.items() if not is_measured(name)}
        for one in read_metrics(run_dir / "metrics.jsonl")
    ]


def stop_the_run() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def fail() -> None:
    raise RuntimeError("no display")


@pytest.mark.parametrize("disturbance", [stop_the_run, fail])
def test_a_run_that_ends_within_an_evaluation_is_saved_and_makes_up_for_it(
    config: Path, monkeypatch: pytest.MonkeyPatch, disturbance: Callable[[], None]
) -> None:
    import toy_plugin

    undisturbed = train(config, JUDGED)
    original, overrides = toy_plugin.ToyEvaluation.evaluate, {**JUDGED, "train.save_dir": "runs/disturbed"}
    monkeypatch.setattr(toy_plugin.ToyEvaluation, "evaluate", lambda *given: disturbance())
    try:
        assert train(config, overrides).signal == signal.SIGTERM
    except RuntimeError as error:
        assert [note.partition(": ")[0] for note in error.__notes__] == ["saved before it ended", "after 5 updates"]
    run_dir = undisturbed.run_dir.parent / "disturbed"
    assert newest_checkpoint(run_dir).step == 5
    assert [one["step"] for one in lines_of(run_dir) if "validation_loss" in one] == [5]
    monkeypatch.setattr(toy_plugin.ToyEvaluation, "evaluate", original)
    resumed = train(config, overrides, resume="auto")
    assert lines_of(run_dir) == lines_of(undisturbed.run_dir)
    assert_equal_checkpoints(undisturbed.checkpoint, resumed.checkpoint)
    assert (run_dir / "best").resolve().name == (undisturbed.run_dir / "best").resolve().name


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_saved_before_the_last_updates_flag_was_read(config: Path, monkeypatch, fails: bool) -> None:
    """On CUDA it travels to the host while the next update works; here it is put where it would be."""
    step = ComponentTrainer.train_step

    def flagged(self, data: dict, seed: tuple):
        metrics = step(self, data, seed)
        event = type("Event", (), {"synchronize": lambda self: None})()
        if seed[1] == 4:
            self._unread = (torch.tensor([0.0, torch.nan]), event, data, seed)
        return metrics

    monkeypatch.setattr(ComponentTrainer, "train_step", flagged)
    if fails:
        monkeypatch.setattr("toy_plugin.ToyEvaluation.evaluate", lambda *given: fail())
    with pytest.raises(NonFiniteGradient):
        train(config, {"train.save_every_steps": 5, "train.evaluate_every": 5})
    assert newest_checkpoint(config.parents[1] / "runs/toy") is None


def test_a_signal_before_an_evaluation_lets_it_not_begin(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("toy_plugin.ToyEvaluation.evaluate", lambda *given: asked.append(1))
    monkeypatch.setattr("trainer.loop.validate", lambda *given: os.kill(os.getpid(), signal.SIGTERM) or (1.0, 0))
    stopped = train(config, JUDGED)
    assert (stopped.step, stopped.signal, asked) == (5, signal.SIGTERM, [])


def signal_in_call(number: int, method: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """SIGTERM before that call of a trainer's method does its work -> the calls so far."""
    original, calls = getattr(ComponentTrainer, method), []

    def signalled(*given, **named):
        calls.append(len(calls) + 1)
        if calls[-1] == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*given, **named)

    monkeypatch.setattr(ComponentTrainer, method, signalled)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 12])
def test_a_run_that_is_stopped_saves_before_it_validates(
    config: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    undisturbed, overrides = train(config, JUDGED), {**JUDGED, "train.save_dir": "runs/stopped"}
    signal_in_call(step, "train_step", monkeypatch)
    first = train(config, overrides)
    assert (first.step, first.signal) == (step, signal.SIGTERM)
    assert_makes_up_for_it(config, overrides, first, undisturbed)


@pytest.mark.parametrize(("step", "batch"), [pytest.param(5, 2, marks=pytest.mark.slow), (12, 9)])
def test_a_run_that_is_stopped_within_a_validation_leaves_the_rest_of_it_to_the_resume(
    config: Path, monkeypatch: pytest.MonkeyPatch, step: int, batch: int
) -> None:
    """Three batches each, behind updates 5, 10 and 12; the first one was the rehearsal's."""
    judged = {**JUDGED, "data.batch_size": 3}
    undisturbed, overrides = train(config, judged), {**judged, "train.save_dir": "runs/stopped"}
    validated = signal_in_call(batch, "validation_step", monkeypatch)
    first = train(config, overrides)
    assert (first.step, first.signal, len(validated)) == (step, signal.SIGTERM, batch)
    assert str(first).endswith(", first with its validation" + " and evaluation" * (step == 5))
    assert_makes_up_for_it(config, overrides, first, undisturbed)


def assert_makes_up_for_it(config: Path, overrides: dict, stopped: TrainResult, undisturbed: TrainResult) -> None:
    judged = [one for one in lines_of(stopped.run_dir) if "validation_loss" in one or "evaluation/error" in one]
    assert stopped.step not in [one["step"] for one in judged]
    resumed = train(config, overrides, resume="auto")
    assert resumed.signal is None
    assert lines_of(stopped.run_dir) == lines_of(undisturbed.run_dir)
    assert_equal_checkpoints(undisturbed.checkpoint, resumed.checkpoint)
    assert (stopped.run_dir / "best").resolve().name == (undisturbed.run_dir / "best").resolve().name


def test_what_a_run_owes_is_written_once_however_often_it_is_killed_over_it(tmp_path: Path) -> None:
    written = [{"step": 4, "loss": 1.0}, {"step": 4, "validation_loss": 2.0}, {"step": 4, "evaluation/error": 3.0}]
    path = tmp_path / "metrics.jsonl"
    for owed, kept in ((), 3), (("evaluation",), 2), (("validation", "evaluation"), 1):
        path.write_text("".join(f"{json.dumps(line)}\n" for line in written))
        MetricsFile(path, 4, owed).close()
        assert read_metrics(path) == written[:kept]


def test_metrics_of_an_evaluation_may_be_numbers_of_any_library(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_plugin

    found: dict = {"rate": np.float32(0.5), "count": np.int64(3), "all": torch.tensor(True)}
    monkeypatch.setattr(toy_plugin.ToyEvaluation, "evaluate", lambda *_: toy_plugin.EvaluationResult(found, "found"))
    result = train(config, {"train.evaluate_every": 12})
    (line,) = [one for one in read_metrics(result.run_dir / "metrics.jsonl") if "evaluation/rate" in one]
    assert (line["evaluation/rate"], line["evaluation/count"], line["evaluation/all"]) == (0.5, 3, True)
    evaluate_run(result.run_dir)
    assert json.loads((result.run_dir / "evaluations.jsonl").read_text())["metrics"]["count"] == 3
    found["rate"] = "high"
    with pytest.raises(TypeError, match="'rate' as 'high', and a metric is one number"):
        evaluate_run(result.run_dir)


@pytest.mark.slow
def test_a_folder_that_another_run_is_at_work_in_is_left_alone(config: Path, project: Path) -> None:
    (project / "runs/toy").mkdir(parents=True)
    (project / "runs/toy/environment.json").write_text("{}")
    hold = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print(); input()"
    command, pipes = [sys.executable, "-c", hold, str(project / "runs/toy/.lock")], {"text": True, "bufsize": 1}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **pipes) as holder:
        holder.stdout.readline()
        with pytest.raises(ConfigError, match=r"another run is at work in .*runs/toy"):
            train(config)
        assert (project / "runs/toy/environment.json").read_text() == "{}"
        holder.communicate("\n")
    assert train(config).step == 12


def test_skip_leaves_a_run_alive_and_shows_how_often(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_plugin

    original, calls = toy_plugin.ToyTrainer.compute_loss, []

    def bad_at_times(self, batch: dict):
        output = original(self, batch)
        calls.append(torch.is_grad_enabled())
        return replace(output, loss=output.loss * torch.nan) if sum(calls) in (2, 7) else output

    monkeypatch.setattr(toy_plugin.ToyTrainer, "compute_loss", bad_at_times)
    result = train(config, {"train.on_nonfinite": "skip"})
    lines = read_metrics(result.run_dir / "metrics.jsonl")
    assert [line["skipped"] for line in lines] == [0.25, 0.25, 0.0]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert result.step == 12


def test_a_run_that_blows_up_names_its_batch_and_saves_nothing_after_it(config: Path, project: Path) -> None:
    with pytest.raises(NonFiniteGradient, match=r"encoder, head(.|\n)*episode:frame \d+:\d+"):
        train(config, {"data.datamodule.params.nan": True, "train.save_every_steps": 1})
    assert not list((project / "runs/toy").glob("step_*"))


def test_a_component_that_the_loss_does_not_use_is_told(config: Path, capsys: pytest.CaptureFixture) -> None:
    extra = {
        "model.component_config_paths.extra": "models/head.yaml",
        "model.component_optims.extra": {"type": "toy_sgd", "params": {"lr": 0.1}},
    }
    train(config, extra)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert told == ["warning: the first update's loss has not reached component 'extra': no gradient"]


def test_each_update_and_process_augments_by_a_seed_of_its_own(config: Path) -> None:
    run, seeds = build_run(load_run_config(config, ["train.accumulate=2"]), World()), []
    prepare = run.trainer.options.prepare
    noting = lambda batch, seed: seeds.append(seed) or prepare(batch, seed)  # noqa: E731
    run.trainer.configure_step(replace(run.trainer.options, prepare=noting))
    with training_batches(run, 0) as batches:
        batch = next(iter(batches))
    for rank in (0, 3):
        replace(run, world=replace(run.world, rank=rank)).step(batch, 7)
    seed = run.config.experiment.run_seed
    assert seeds == [(seed, 7, 0, 0), (seed, 7, 0, 1), (seed, 7, 3, 0), (seed, 7, 3, 1)]


def test_an_evaluation_sees_models_in_eval_mode(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_plugin

    original, modes = toy_plugin.ToyEvaluation.evaluate, []

    def noting(self, policy, output_dir):
        modes.extend(one.training for one in policy.trainer.models.modules())
        return original(self, policy, output_dir)

    monkeypatch.setattr(toy_plugin.ToyEvaluation, "evaluate", noting)
    train(config, {"train.evaluate_every": 5})
    assert modes and not any(modes)


def test_a_validation_draws_the_same_noise_every_time(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_plugin

    original, drawn = toy_plugin.ToyTrainer.compute_loss, []

    def noting(self, batch: dict):
        if not self.models.training:
            drawn.append((torch.rand(()).item(), random.random(), np.random.rand()))
        return original(self, batch)

    monkeypatch.setattr(toy_plugin.ToyTrainer, "compute_loss", noting)
    train(config, {"data.validation": {"episodes": [9]}, "train.validate_every": 4})
    assert len(drawn) == 4  # the rehearsal's, then those of three validations
    assert drawn[1] == drawn[2] == drawn[3]


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        (lambda whole: whole["dataset"], "gives no 'dataset' but ToyDataset"),
        (lambda whole: {"data": whole["dataset"]}, "gives no 'dataset' but keys data"),
        (
            lambda whole: {**whole, "dataset": iter([])},
            "the 'dataset' of the data set 'toy_data' is of type list_iterator",
        ),
        (lambda whole: {**whole, "dataset": [(1, 2)] * 80}, "an item of the data set 'toy_data' is of type tuple"),
    ],
)
def test_a_factory_that_gives_something_else_is_told(config: Path, monkeypatch, bundle: Callable, message: str) -> None:
    import toy_plugin

    build = toy_plugin.ToyData.build
    monkeypatch.setattr(toy_plugin.ToyData, "build", lambda *given: bundle(build(*given)))
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        train(config)
    assert caught.value.problems[0].place is not None


def test_a_loss_that_is_no_module_is_told(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toy_plugin.ToyLoss.build", lambda self: torch.nn.functional.mse_loss)
    with pytest.raises(ConfigError, match="the loss 'toy_loss' builds a function"):
        train(config)


def test_a_plain_trainer_runs(config: Path) -> None:
    result = train(config, {**PLAIN, "train.max_steps": 40, "train.log_every": 10})
    first, *_, last = losses(result.run_dir)
    assert last < first


def test_a_plain_trainer_is_under_autocast_when_bf16_is_asked_for(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toy_plugin

    seen: list[bool] = []
    original = toy_plugin.ToyPlainTrainer.train_step

    def noted(self, data: dict):
        seen.append(torch.is_autocast_enabled("cpu"))
        return original(self, data)

    monkeypatch.setattr(toy_plugin.ToyPlainTrainer, "train_step", noted)
    for number, precision in enumerate(("fp32", "bf16")):
        overrides = {"train.precision": precision, "train.max_steps": 1, "train.save_dir": f"runs/{number}"}
        train(config, {**PLAIN, **overrides})
    assert seen == [False, True]


def torch_settings() -> tuple[int, bool, bool]:
    fills = torch.utils.deterministic.fill_uninitialized_memory
    return torch.get_deterministic_debug_mode(), fills, torch.backends.cudnn.benchmark


@pytest.mark.parametrize("fails", [False, True])
def test_deterministic_is_torchs_deterministic_mode_and_ends_with_the_run(
    config: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    import toy_plugin

    seen: list[tuple[int, bool, bool]] = []
    compute_loss = toy_plugin.ToyTrainer.compute_loss

    def noted(self, batch: dict):
        seen.append(torch_settings())
        if fails:
            raise OSError("the arm is gone")
        return compute_loss(self, batch)

    monkeypatch.setattr(toy_plugin.ToyTrainer, "compute_loss", noted)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with pytest.raises(ConfigError, match="the arm is gone") if fails else nullcontext():
        train(config, {"train.deterministic": True, "train.max_steps": 1})
    assert set(seen) == {(2, False, False)}
    assert torch_settings() == (0, True, True)


def test_the_collector_leaves_out_what_was_there_before_the_first_update(config: Path, monkeypatch) -> None:
    frozen: list[int] = []
    step = ComponentTrainer.train_step
    monkeypatch.setattr(
        ComponentTrainer,
        "train_step",
        lambda *given, **named: frozen.append(gc.get_freeze_count()) or step(*given, **named),
    )
    before = len(gc.get_objects())
    train(config)
    assert min(frozen) > 0.5 * before
    assert gc.get_freeze_count() == 0


def test_two_runs_of_one_config_are_equal_and_two_seeds_are_not(config: Path) -> None:
    def weights(**overrides: object) -> torch.Tensor:
        name = f"runs/{len(list(config.parents[1].glob('runs/*')))}"
        result = train(config, {**overrides, "train.save_dir": name})
        return torch.load(result.checkpoint / "head.pt", weights_only=True)["out.weight"]

    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(), weights(seed=8))


def test_a_schedule_for_another_length_is_told(config: Path, capsys: pytest.CaptureFixture) -> None:
    train(config, {"model.component_optims.encoder.params.total_steps": 99})
    assert "the schedule of encoder takes 99 updates, the run 12" in capsys.readouterr().out


def test_the_banner_says_what_trains(config: Path, capsys: pytest.CaptureFixture) -> None:
    train(config, {"model.component_build_args": {"encoder": {"freeze": True}}, "train.accumulate": 2})
    words = " ".join(capsys.readouterr().out.split())
    assert "encoder 32 0 frozen fp32 none: skipped" in words
    assert "head 72 72 train fp32 toy_sgd 0.05" in words
    assert "80 frames, 2 updates an epoch effective batch 32" in words


def test_save_dir_defaults_to_the_configs_name(config: Path, project: Path) -> None:
    text = yaml.safe_load(config.read_text())
    del text["train"]["save_dir"]
    config.write_text(yaml.safe_dump(text))
    assert load_run_config(config).save_dir == project / "runs/config"
