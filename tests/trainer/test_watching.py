"""A run as one watches it: what stands in its lines, its loggers, its trace and its last words."""

import json
from pathlib import Path

import pytest
import torch
from toy_compare import assert_equal_checkpoints

from model_constructor import ConfigError
from trainer import train
from trainer.metrics import read_metrics
from trainer.timing import is_measured

EVERY = {"train.log_every": 1}


def lines(run_dir: Path) -> list[dict]:
    return [line for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line]


def test_a_line_holds_norms_and_rates_of_each_component_and_the_parts_of_its_updates_time(config: Path) -> None:
    rates = {"model.component_optims.head": {"type": "toy_sgd", "params": {"lr": 0.05}}}
    result = train(config, {**EVERY, **rates})
    for line in lines(result.run_dir):
        norms = torch.tensor([line["grad_norm/encoder"], line["grad_norm/head"]])
        assert line["grad_norm"] == pytest.approx(norms.norm().item(), rel=1e-6)
        assert line["lr/head"] == 0.05
        phases = [name for name in line if name.startswith("time/")]
        assert set(phases) >= {
            f"time/{phase}_ms" for phase in ("data", "forward", "backward", "optimizer", "logging", "loop")
        }
        assert sum(line[name] for name in phases) == pytest.approx(1e3 * 16 / line["samples_per_s"], rel=0.02, abs=0.05)
        assert 0 <= line["data_wait"] <= 1
        told = {"step", "epoch", "loss", "action_size", "grad_norm", "grad_norm/encoder", "grad_norm/head"}
        assert {name for name in line if not is_measured(name)} == told | {"lr/encoder", "lr/head"}


def test_the_rate_of_a_line_is_the_one_that_its_update_used(config: Path) -> None:
    optim = {"type": "adamw_warmup_cosine_decay", "params": {"peak_lr": 0.1, "warmup_steps": 4, "total_steps": 12}}
    result = train(config, {**EVERY, "model.component_optims.head": optim, "train.max_steps": 4})
    from trainer.registry import OPTIMIZER_BUILDER_REGISTRY as OPTIMIZERS

    weight = torch.nn.Parameter(torch.zeros(1))
    oracle = OPTIMIZERS.get(optim["type"])(**optim["params"]).build([weight])
    expected = []
    for _ in range(4):
        expected.append(oracle.param_groups[0]["lr"])
        weight.grad = torch.ones(1)
        oracle.step()
    assert [line["lr/head"] for line in lines(result.run_dir)] == expected


def test_the_last_words_split_the_time_and_name_the_loops_own(config: Path, capsys: pytest.CaptureFixture) -> None:
    train(config)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("12 updates: ") and "the loop itself" in last and "ms an update" in last
    for phase in ("data", "forward", "backward", "optimizer"):
        assert f"{phase} " in last


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.slow
def test_tensorboard_shows_what_the_file_holds_also_of_a_resumed_run_and_changes_no_bit(config: Path) -> None:
    overrides = {**EVERY, "train.loggers": ["tensorboard"], "train.save_every_steps": 5}
    train(config, {**overrides, "train.max_steps": 8, "model.component_optims.encoder.params.total_steps": 12})
    result = train(config, overrides, resume="auto")
    held = read_metrics(result.run_dir / "metrics.jsonl")
    for tag, shown in scalars(result.run_dir).items():
        assert shown == [(line["step"], pytest.approx(line[tag])) for line in held if tag in line]
    without = train(config, {**EVERY, "train.save_dir": "runs/without"})
    assert_equal_checkpoints(result.checkpoint, without.checkpoint)


def test_a_logger_that_lacks_something_is_told_before_anything_is_built(
    config: Path, project: Path, monkeypatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("trainer.training.build_run", lambda *_: pytest.fail("built"))
    with pytest.raises(ConfigError, match=r"asks for wandb, which is not installed(.|\n)*policy-constructor\[wandb\]"):
        train(config, {"train.loggers": ["wandb"]})
    assert not (project / "runs").exists()


def test_a_profile_holds_the_phases_of_an_update(config: Path, capsys: pytest.CaptureFixture) -> None:
    result = train(config, {"train.profile": 3, "train.max_steps": 20})
    events = json.loads((result.run_dir / "profile/trace.json").read_text())["traceEvents"]
    ranges = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    for phase, each in {"forward": 1, "backward": 1, "optimizer": 2}.items():  # zero_grad, and the step
        assert ranges.count(phase) == 3 * each
    assert {"data", "logging"} <= set(ranges)
    assert "trace of 3 updates" in capsys.readouterr().out


@pytest.mark.slow
def test_a_profiled_run_is_the_same_run(config: Path) -> None:
    profiled = train(config, {"train.profile": 1, "train.save_dir": "runs/profiled"})
    assert_equal_checkpoints(profiled.checkpoint, train(config).checkpoint)


@pytest.mark.usefixtures("pictures")
def test_the_picture_of_a_long_run_does_not_wait_for_its_end(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer import metrics

    drawn: list[int] = []
    original = metrics.draw
    monkeypatch.setattr(metrics, "draw", lambda lines, *a: (drawn.append(lines[-1]["step"]), original(lines, *a))[1])
    train(config, {**EVERY, "train.save_every_steps": 2})
    assert drawn == [2, 12]  # at the first save, at most every ten minutes from then on, and at the end
