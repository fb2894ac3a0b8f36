"""Averaged weights: an exponential moving average against a slow loop, schedule-free ones against their optimizer's own
switch; who uses them, and that training never notices."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from schedulefree import RAdamScheduleFree
from torch import nn
from toy_plugin import ToyDataset

from experiment_training.components.optimizer.schedule_free_radam import ScheduleFreeRAdam
from model_constructor import ConfigError
from trainer import load_policy, train
from trainer.averaging import Averages, decay_at
from trainer.config.schemas import Ema
from trainer.metrics import read_metrics

HELD_OUT = {"data.validation": {"episodes": [9]}}
FREE = {"model.component_optims.encoder": {"type": "schedule_free_radam", "params": {"lr": 0.01}}}
OBSERVATION = {"observation.state": np.array([4.0, 12.0, 5.1])}


def test_the_decay_rises_with_the_updates_until_it_is_the_configs() -> None:
    given = Ema(decay=0.5)
    assert [decay_at(update, given) for update in (1, 2, 7, 8, 9)] == [2 / 11, 3 / 12, 8 / 17, 0.5, 0.5]
    assert decay_at(1, Ema(decay=0.5, warmup=False)) == 0.5


@pytest.mark.parametrize("warmup", [True, False])
def test_a_moving_average_is_the_slow_loops_for_what_trains_and_the_live_value_for_all_else(warmup: bool) -> None:
    torch.manual_seed(0)
    models = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "head": nn.Linear(4, 1)})
    models["body"][0].bias.requires_grad_(False)
    averages = Averages(models, {}, {"body": Ema(decay=0.9, warmup=warmup)})
    slow = models["body"][0].weight.detach().double()
    for update in range(1, 30):
        with torch.no_grad():
            for tensor in (*models.parameters(), models["body"][1].running_mean):
                tensor.add_(torch.randn_like(tensor))
        averages.update()
        decay = min(0.9, (1 + update) / (10 + update)) if warmup else 0.9
        slow = decay * slow + (1 - decay) * models["body"][0].weight.detach().double()
    live = copy.deepcopy(models.state_dict())
    with averages.applied():
        inside = copy.deepcopy(models.state_dict())
    torch.testing.assert_close(inside["body.0.weight"].double(), slow, rtol=1e-5, atol=1e-6)
    assert {name for name in live if not torch.equal(live[name], inside[name])} == {
        *("body.0.weight", "body.1.weight", "body.1.bias"),
    }
    assert all(torch.equal(value, live[name]) for name, value in models.state_dict().items())
    assert averages.components == ["body"]


def test_a_component_in_bfloat16_is_averaged_in_float32() -> None:
    """Steps of a thousandth are lost in bfloat16 near 1; their average is not."""
    models = nn.ModuleDict({"body": nn.Linear(1, 1, bias=False).bfloat16()})
    averages = Averages(models, {}, {"body": Ema(decay=0.999, warmup=False)})
    with torch.no_grad():
        models["body"].weight.fill_(1.0)
    before = averages.state_dict()["averages"]["body"]["weight"].clone()
    for _ in range(10):
        averages.update()
    moved = averages.state_dict()["averages"]["body"]["weight"]
    torch.testing.assert_close(moved, 1 - (1 - before) * 0.999**10)
    with averages.applied():
        assert models["body"].weight.dtype == torch.bfloat16


def test_live_weights_are_back_also_behind_an_error() -> None:
    models = nn.ModuleDict({"body": nn.Linear(2, 2)})
    averages = Averages(models, {}, {"body": Ema()})
    with torch.no_grad():
        models["body"].weight.add_(1.0)
    live = models["body"].weight.detach().clone()
    with pytest.raises(RuntimeError), averages.applied():
        raise RuntimeError
    assert torch.equal(models["body"].weight, live)


def test_a_schedule_free_average_is_what_the_optimizers_own_switch_gives() -> None:
    torch.manual_seed(0)
    models = nn.ModuleDict({"body": nn.Linear(3, 2)})
    twin = copy.deepcopy(models["body"])
    ours = ScheduleFreeRAdam(lr=0.05).build(list(models["body"].parameters()))
    theirs = RAdamScheduleFree(twin.parameters(), lr=0.05)
    theirs.train()
    averages = Averages(models, {"body": ours})
    for _ in range(20):
        x = torch.randn(8, 3)
        for module, optimizer in ((models["body"], ours), (twin, theirs)):
            optimizer.zero_grad()
            (module(x) - x[:, :2]).square().mean().backward()
            optimizer.step()
    theirs.eval()
    with averages.applied():
        torch.testing.assert_close(models["body"].weight, twin.weight)
    theirs.train()
    torch.testing.assert_close(models["body"].weight, twin.weight)


@pytest.mark.parametrize(
    ("overrides", "averaged"),
    [
        pytest.param({**FREE}, {"encoder"}, id="schedule-free", marks=pytest.mark.slow),
        pytest.param({"train.ema": {"decay": 0.8}}, {"encoder", "head"}, id="ema of all", marks=pytest.mark.slow),
        pytest.param({**FREE, "train.ema": {}}, {"encoder", "head"}, id="both"),
    ],
)
def test_averages_are_saved_validated_and_loaded_by_a_policy(config: Path, overrides: dict, averaged: set[str]) -> None:
    result = train(config, {**HELD_OUT, **overrides, "train.trainer.params": {"noise": 0.0}})
    files = {name: torch.load(result.checkpoint / f"{name}.pt", weights_only=True) for name in ("encoder", "head")}
    assert {path.stem.removesuffix("_ema") for path in result.checkpoint.glob("*_ema.pt")} == averaged
    for name in averaged:
        average = torch.load(result.checkpoint / f"{name}_ema.pt", weights_only=True)
        assert average.keys() == files[name].keys()
        assert any(not torch.equal(value, files[name][key]) for key, value in average.items())
        files[name] = average

    policy = load_policy(result.run_dir)
    for name, state in files.items():
        for key, value in policy.trainer.models[name].state_dict().items():
            assert torch.equal(value, state[key]), (name, key)
    dataset, errors = ToyDataset([9]), []
    std = policy.prepare.normalizer.get_buffer("action_scale").numpy()
    for state, action in zip(dataset.state, dataset.action, strict=True):
        policy.reset()
        chunk = np.stack([policy.select_action({"observation.state": state}) for _ in range(4)])
        errors.append(((chunk - action) / std) ** 2)
    validated = [line for line in read_metrics(result.run_dir / "metrics.jsonl") if "validation_loss" in line][-1]
    assert validated["validation_loss"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_the_average_follows_training_and_changes_nothing_of_it(config: Path) -> None:
    plain = train(config, {"train.save_dir": "runs/plain"})
    averaged = train(config, {"train.save_dir": "runs/averaged", "train.ema": {"decay": 0.9}})
    for name in ("encoder.pt", "head.pt", "encoder_opt.pt"):
        one, other = ((run.checkpoint / name).read_bytes() for run in (plain, averaged))
        assert one == other
    assert [line["loss"] for line in read_metrics(plain.run_dir / "metrics.jsonl")] == [
        line["loss"] for line in read_metrics(averaged.run_dir / "metrics.jsonl")
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {**FREE, "train.ema": {"components": ["encoder"]}},
            "'encoder' is trained schedule-free, which averages by itself",
        ),
        ({"train.ema": {"components": ["hed"]}}, "there is no component 'hed'"),
        (
            {"train.ema": {"components": ["head"]}, "model.component_build_args": {"head": {"freeze": True}}},
            "'head' is frozen",
        ),
    ],
    ids=["schedule-free", "no component", "frozen"],
)
def test_what_cannot_be_averaged_is_refused_where_it_is_asked_for(config: Path, overrides: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        train(config, overrides)
    assert raised.value.problems[0].place is not None
