"""Optimizers: schedules equal torch's own, step by step; a state dict is all it takes to go on."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, SequentialLR

import experiment_training.components  # noqa: F401  registers them
from experiment_training.components.optimizer.schedule_free_radam import averaged_weights
from model_constructor import ConfigError
from trainer.registry import OPTIMIZER_BUILDER_REGISTRY

WARMUP_COSINE = {"peak_lr": 1e-2, "start_lr": 1e-3, "end_lr": 1e-4, "warmup_steps": 5, "total_steps": 20}
ONE_CYCLE = {"peak_lr": 1e-2, "total_steps": 20}
SHIPPED = [
    ("adamw_warmup_cosine_decay", WARMUP_COSINE),
    ("adamw_cosine_schedule", ONE_CYCLE),
    ("schedule_free_radam", {}),
]


@pytest.fixture(autouse=True)
def one_thread():
    """These models are too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(name, params, model):
    return OPTIMIZER_BUILDER_REGISTRY.get(name)(**params).build(model.parameters())


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def update(model, optimizer, number):
    inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad(set_to_none=True)
    (model(inputs) - inputs[:, :2]).square().mean().backward()
    optimizer.step()


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def torch_warmup_cosine(optimizer):
    warmup = LinearLR(optimizer, start_factor=0.1, total_iters=5)
    return SequentialLR(optimizer, [warmup, CosineAnnealingLR(optimizer, T_max=15, eta_min=1e-4)], milestones=[5])


@pytest.mark.parametrize(
    ("name", "params", "adamw", "scheduler"),
    [
        (*SHIPPED[0], {"lr": 1e-2}, torch_warmup_cosine),
        (*SHIPPED[1], {}, lambda optimizer: OneCycleLR(optimizer, max_lr=1e-2, total_steps=20)),
        (
            "adamw_cosine_schedule",
            {**ONE_CYCLE, "pct_start": 0.04, "div_factor": 5, "final_div_factor": 10, "beta1": [0.9, 0.9]},
            {"betas": (0.9, 0.999)},
            lambda optimizer: OneCycleLR(
                optimizer, 1e-2, 20, pct_start=0.04, div_factor=5, final_div_factor=10, cycle_momentum=False
            ),
        ),
    ],
)
def test_rates_betas_and_weights_follow_torchs_scheduler(name, params, adamw, scheduler):
    ours, theirs = make_model(), make_model()
    optimizer = build(name, {**params, "weight_decay": 0.1}, ours)
    reference = AdamW(theirs.parameters(), weight_decay=0.1, **adamw)
    schedule = scheduler(reference)
    for number in range(20):
        for key in ("lr", "betas"):
            assert optimizer.param_groups[0][key] == pytest.approx(reference.param_groups[0][key], rel=1e-9, abs=1e-12)
        update(ours, optimizer, number)
        update(theirs, reference, number)
        torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-5, atol=1e-6)
        if number < 19:
            schedule.step()


def test_without_warmup_the_first_update_has_the_peak_rate_and_after_the_last_the_rate_stays():
    model = make_model()
    optimizer = build("adamw_warmup_cosine_decay", {"peak_lr": 1e-2, "end_lr": 1e-3, "total_steps": 4}, model)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2)
    rates = []
    for number in range(7):
        update(model, optimizer, number)
        rates.append(optimizer.param_groups[0]["lr"])
    middle = 1e-3 + 9e-3 * (1 + math.cos(math.pi / 2)) / 2
    assert rates[1] == pytest.approx(middle)
    assert rates[3:] == pytest.approx([1e-3] * 4)


def test_the_warmup_climbs_in_equal_steps_from_start_to_peak():
    model = make_model()
    optimizer = build("adamw_warmup_cosine_decay", {"peak_lr": 1e-2, "warmup_steps": 4, "total_steps": 8}, model)
    rates = []
    for number in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        update(model, optimizer, number)
    assert rates == pytest.approx([0, 0.25e-2, 0.5e-2, 0.75e-2, 1e-2])


@pytest.mark.parametrize(("name", "params"), SHIPPED)
def test_a_state_dict_that_went_through_a_file_continues_to_the_bit(tmp_path, name, params):
    whole = make_model()
    optimizer = build(name, params, whole)
    for number in range(7):
        update(whole, optimizer, number)
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    for number in range(7, 15):
        update(whole, optimizer, number)

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = make_model()
    continued = build(name, params, resumed)
    resumed.load_state_dict(saved["model"])
    continued.load_state_dict(saved["optimizer"])
    for number in range(7, 15):
        update(resumed, continued, number)
    assert torch.equal(weights(whole), weights(resumed))
    assert continued.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize(("name", "params"), SHIPPED[:2])
def test_torchs_state_dict_tools_keep_the_schedule_and_touch_no_weight(name, params):
    model = make_model()
    optimizer = build(name, {**params, "weight_decay": 0.5}, model)
    for number in range(7):
        update(model, optimizer, number)
    state = get_optimizer_state_dict(model, optimizer)
    expected = copy.deepcopy(optimizer.state_dict()["param_groups"])

    fresh = build(name, {**params, "weight_decay": 0.5}, model)
    before = weights(model).clone()
    set_optimizer_state_dict(model, fresh, state)  # fills the state by a step at rate 0
    assert torch.equal(weights(model), before)
    assert fresh.state_dict()["param_groups"] == expected
    assert fresh.param_groups[0]["updates"] == 7


def test_a_group_keeps_its_own_rate():
    model = make_model()
    factory = OPTIMIZER_BUILDER_REGISTRY.get("adamw_warmup_cosine_decay")(peak_lr=1e-2, total_steps=10)
    optimizer = factory.build([{"params": model[0].parameters()}, {"params": model[2].parameters(), "peak_lr": 1e-3}])
    update(model, optimizer, 0)
    first, second = (group["lr"] for group in optimizer.param_groups)
    assert first == pytest.approx(10 * second)


def test_schedule_free_averages_come_without_a_change_to_what_trains():
    model = make_model()
    optimizer = build("schedule_free_radam", {"lr": 0.05}, model)
    for number in range(12):
        update(model, optimizer, number)
    live = weights(model).clone()
    averages = averaged_weights(optimizer)
    ours = torch.cat([averages[parameter].flatten() for parameter in model.parameters()])
    assert torch.equal(weights(model), live)
    assert all(group["train_mode"] for group in optimizer.param_groups)

    twin, other = copy.deepcopy((model, optimizer))
    other.eval()  # the package's own way: in place
    torch.testing.assert_close(ours, weights(twin))
    assert not torch.allclose(ours, live, atol=1e-4)


def test_schedule_free_averages_before_any_update_are_the_weights():
    model = make_model()
    averages = averaged_weights(build("schedule_free_radam", {}, model))
    assert all(torch.equal(averages[parameter], parameter) for parameter in model.parameters())


@pytest.mark.parametrize(("name", "params"), SHIPPED)
def test_it_learns(name, params):
    model = make_model()
    optimizer = build(name, {**params, "total_steps": 200} if "total_steps" in params else {"lr": 0.05}, model)
    inputs = torch.randn(64, 3, generator=torch.Generator().manual_seed(1000))

    @torch.no_grad()
    def loss():
        return float((model(inputs) - inputs[:, :2]).square().mean())

    before = loss()
    for number in range(200):
        update(model, optimizer, number)
    assert loss() < 0.2 * before


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("adamw_warmup_cosine_decay", {"peak_lr": -1}, "peak_lr is -1"),
        ("adamw_warmup_cosine_decay", {"peak_lr": "1e-4"}, "peak_lr is '1e-4'\n    a number, such as 1.0e-4"),
        ("adamw_warmup_cosine_decay", {"start_lr": -1e-3}, "start_lr is -0.001"),
        ("adamw_warmup_cosine_decay", {"warmup_steps": 21}, "warmup_steps is 21, total_steps is 20"),
        ("adamw_warmup_cosine_decay", {"total_steps": 0, "warmup_steps": 0}, "total_steps is 0"),
        ("adamw_warmup_cosine_decay", {"betas": [0.9, 1.0]}, "betas are [0.9, 1.0]"),
        ("adamw_warmup_cosine_decay", {"betas": 0.9}, "betas are 0.9"),
        ("adamw_warmup_cosine_decay", {"eps": 0}, "eps is 0"),
        ("adamw_warmup_cosine_decay", {"weight_decay": -0.1}, "weight_decay is -0.1"),
        ("adamw_cosine_schedule", {"pct_start": 1.5}, "pct_start is 1.5"),
        ("adamw_cosine_schedule", {"beta1": [0.95, 0.85]}, "beta1 is [0.95, 0.85]"),
        ("adamw_cosine_schedule", {"div_factor": 0}, "div_factor is 0"),
        ("schedule_free_radam", {"lr": 0}, "lr is 0"),
        ("schedule_free_radam", {"betas": [0.0, 0.9]}, "betas are [0.0, 0.9]"),
    ],
)
def test_a_wrong_value_is_explained(name, params, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        OPTIMIZER_BUILDER_REGISTRY.get(name)(**{**dict(SHIPPED)[name], **params})


def test_all_wrong_values_are_reported_at_once():
    with pytest.raises(ConfigError) as error:
        OPTIMIZER_BUILDER_REGISTRY.get("adamw_warmup_cosine_decay")(peak_lr=0, end_lr=-1, total_steps=-5)
    assert len(error.value.problems) == 4
