"""Losses: masked means against a slow loop, the path against the flow_matching package, times against scipy."""

import math
import pickle
import re
import sys
from typing import get_args

import numpy as np
import pytest
import scipy.stats
import torch

from experiment_training.components.loss.flow_matching import FlowMatchingFactory, Solver
from model_constructor import ConfigError
from trainer.registry import LOSS_BUILDER_REGISTRY


def flow(**params):
    return LOSS_BUILDER_REGISTRY.get("flow_matching")(**params).build()


LOSSES = {"l2_loss": LOSS_BUILDER_REGISTRY.get("l2_loss")().build(), "flow_matching": flow()}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mask", ["none", "steps", "dimensions"])
def test_the_loss_is_the_mean_over_what_is_valid(name, mask):
    prediction, target = random(3, 5, 2), random(3, 5, 2, seed=1)
    valid = {
        "none": None,
        "steps": random(3, 5, seed=2) > 0,
        "dimensions": random(3, 5, 2, seed=2) > 0,
    }[mask]
    errors = [
        float(prediction[b, t, d] - target[b, t, d]) ** 2
        for b in range(3)
        for t in range(5)
        for d in range(2)
        if valid is None or valid[(b, t, d)[: valid.ndim]]
    ]
    assert float(LOSSES[name](prediction, target, valid)) == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_what_is_not_valid_has_no_part_in_loss_and_gradient():
    prediction, target = random(2, 4, 3).requires_grad_(), random(2, 4, 3, seed=1)
    valid = torch.tensor([[True, True, False, False], [True, False, False, False]])
    target[~valid] = float("nan")
    loss = LOSSES["l2_loss"](prediction, target, valid)
    loss.backward()
    assert torch.isfinite(loss) and bool((prediction.grad[~valid] == 0).all())
    assert bool((prediction.grad[valid] != 0).all())


def test_nothing_valid_is_a_loss_of_zero():
    assert float(LOSSES["l2_loss"](random(2, 4, 3), random(2, 4, 3, seed=1), torch.zeros(2, 4, dtype=torch.bool))) == 0


def test_the_valid_count_as_weight_joins_parts_to_the_loss_of_the_whole():
    prediction, target, valid = random(6, 5, 2), random(6, 5, 2, seed=1), random(6, 5, 2, seed=2) > 0
    module, parts = LOSSES["l2_loss"], [slice(0, 1), slice(1, 6)]
    weights = [valid[part].sum() for part in parts]
    losses = [module(prediction[part], target[part], valid[part]) for part in parts]
    joined = sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)
    torch.testing.assert_close(joined, module(prediction, target, valid))


@pytest.mark.parametrize(
    ("prediction", "valid", "message"),
    [
        ((3, 1, 2), None, "the prediction is [3, 1, 2] and its target [3, 5, 2]"),
        ((3, 5, 2), torch.ones(5, 2, dtype=torch.bool), "`valid` is torch.bool [5, 2]"),
        ((3, 5, 2), torch.ones(1, 5, 2, dtype=torch.bool), "`valid` is torch.bool [1, 5, 2]"),
        ((3, 5, 2), torch.ones(3, 5), "`valid` is torch.float32 [3, 5]"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(prediction, valid, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LOSSES["l2_loss"](random(*prediction), random(3, 5, 2), valid)


def test_the_loss_is_float32_also_of_bfloat16_predictions():
    prediction, target = random(3, 5, 2).bfloat16(), random(3, 5, 2, seed=1)
    loss = LOSSES["flow_matching"](prediction, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, (prediction.float() - target).square().mean())


def test_the_straight_path_equals_the_flow_matching_packages_condot_path():
    from flow_matching.path import CondOTProbPath

    action, noise, time = random(6, 4, 3), random(6, 4, 3, seed=1), torch.linspace(0, 1, 6)
    theirs = CondOTProbPath().sample(x_0=noise, x_1=action, t=time)
    ours = flow(noise_at=0).path(action, noise, time)
    torch.testing.assert_close(ours.x_t, theirs.x_t)
    torch.testing.assert_close(ours.velocity, theirs.dx_t)
    torch.testing.assert_close(ours.time, theirs.t)


@pytest.mark.parametrize("noise_at", [0, 1])
@pytest.mark.parametrize(
    ("name", "scheduler", "arguments"),
    [
        ("cosine", "CosineScheduler", ()),
        ("linear_vp", "LinearVPScheduler", ()),
        ("polynomial(2)", "PolynomialConvexScheduler", (2,)),
        ("vp", "VPScheduler", ()),
        ("vp(0.2, 10)", "VPScheduler", (0.2, 10)),
    ],
)
def test_a_named_path_equals_the_packages_affine_path(name, scheduler, arguments, noise_at):
    from flow_matching.path import AffineProbPath
    from flow_matching.path import scheduler as package

    action, noise, time = random(6, 4, 3), random(6, 4, 3, seed=1), torch.linspace(0.1, 0.9, 6)
    theirs = AffineProbPath(getattr(package, scheduler)(*arguments)).sample(x_0=noise, x_1=action, t=time)
    ours = flow(path=name, noise_at=noise_at).path(action, noise, 1 - time if noise_at else time)
    torch.testing.assert_close(ours.x_t, theirs.x_t)
    torch.testing.assert_close(ours.velocity, -theirs.dx_t if noise_at else theirs.dx_t)


@pytest.mark.parametrize("noise_at", [0, 1])
@pytest.mark.parametrize("name", ["straight", "cosine", "linear_vp", "polynomial(0.5)", "vp"])
def test_the_action_ahead_of_a_point_is_that_of_its_path(name, noise_at):
    module, action, noise, time = (
        flow(path=name, noise_at=noise_at),
        random(6, 4, 3),
        random(6, 4, 3, seed=1),
        torch.linspace(0.1, 0.9, 6),
    )
    point = module.path(action, noise, time)
    torch.testing.assert_close(module.action_ahead(point, point.velocity), action, rtol=1e-3, atol=1e-3)
    if name == "straight":
        left, velocity = ((-time if noise_at else 1 - time).view(-1, 1, 1), random(6, 4, 3, seed=2))
        torch.testing.assert_close(module.action_ahead(point, velocity), point.x_t + left * velocity)


@pytest.mark.parametrize("name", ["straight", "cosine", "linear_vp", "polynomial(0.5)", "vp"])
def test_the_velocity_is_the_derivative_of_the_path_and_finite_at_its_ends(name):
    module = flow(path=name)
    action, noise = random(5, 4, 3).double(), random(5, 4, 3, seed=1).double()
    time = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    before, after = (module.path(action, noise, time + by).x_t for by in (-1e-5, 1e-5))
    torch.testing.assert_close(module.path(action, noise, time).velocity, (after - before) / 2e-5, rtol=1e-5, atol=1e-6)
    ends = module.path(action[:2], noise[:2], torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.isfinite(ends.velocity).all()


def test_the_default_path_and_solvers_need_no_package_and_the_others_say_that_they_do(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "flow_matching"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flow_matching", None)  # as if it were not installed
    module = flow()
    assert module.sample(random(3, 4, 2)).x_t.shape == (3, 4, 2)
    assert module.integrate(lambda x_t, time: x_t, random(3, 4, 2), 2, "midpoint").shape == (3, 4, 2)
    with pytest.raises(ConfigError, match="path is 'cosine', which needs the flow_matching package\n    pip install"):
        flow(path="cosine")
    with pytest.raises(ImportError):
        module.integrate(lambda x_t, time: x_t, random(3, 4, 2), 2, "rk4")


def test_noise_at_one_is_the_same_path_with_time_turned_round():
    action, noise, time = random(6, 4, 3), random(6, 4, 3, seed=1), torch.linspace(0, 1, 6)
    forward, backward = flow(noise_at=0).path(action, noise, time), flow(noise_at=1).path(action, noise, 1 - time)
    torch.testing.assert_close(forward.x_t, backward.x_t)
    torch.testing.assert_close(forward.velocity, -backward.velocity)


def test_a_sample_lies_on_a_path_from_unit_noise_to_its_action_and_repeats_with_its_generator():
    action = random(4000, 2, 3)
    path = flow().sample(action, torch.Generator().manual_seed(3))
    noise = path.x_t - path.time.view(-1, 1, 1) * path.velocity
    torch.testing.assert_close(noise + path.velocity, action)
    assert abs(float(noise.mean())) < 0.03 and abs(float(noise.std()) - 1) < 0.03
    assert abs(float((noise * action).mean())) < 0.03
    again, other = (flow().sample(action, torch.Generator().manual_seed(seed)) for seed in (3, 4))
    assert torch.equal(path.x_t, again.x_t) and torch.equal(path.time, again.time)
    assert not torch.equal(path.x_t, other.x_t)


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("uniform", scipy.stats.uniform()),
        ("beta(1.5, 1)", scipy.stats.beta(1.5, 1)),
        ("beta(2,0.5)", scipy.stats.beta(2, 0.5)),
        ("logit_normal", None),
    ],
)
def test_times_follow_the_distribution_that_was_named(name, distribution):
    time = flow(time=name).sample(torch.zeros(20_000, 1, 1), torch.Generator().manual_seed(0)).time.double().numpy()
    if distribution is None:
        time, distribution = np.log(time / (1 - time)), scipy.stats.norm()
    assert scipy.stats.kstest(time, distribution.cdf).pvalue > 1e-3


@pytest.mark.parametrize("noise_at", [0, 1])
@pytest.mark.parametrize("cutoff", [0.999, 0.5])
def test_beta_of_1_5_and_1_with_its_cutoff_looks_where_pi0_looks(noise_at, cutoff):
    """pi0 has its noise at 1, and u from Beta(1.5, 1) gives t = 0.999 u + 0.001; with the noise at 0 it is 1 - t."""
    module = flow(time="beta(1.5, 1)" if noise_at else "beta(1, 1.5)", noise_at=noise_at, cutoff=cutoff)
    path = module.sample(torch.zeros(20_000, 1, 1), torch.Generator().manual_seed(0))
    noise_share = path.x_t.flatten() / (path.velocity.flatten() * (1 if noise_at else -1))  # the action is 0
    time = path.time if noise_at else 1 - path.time
    torch.testing.assert_close(noise_share, time, rtol=1e-4, atol=1e-5)
    assert 1 - cutoff - 1e-6 <= float(time.min()) and 0.95 < float(time.max()) <= 1
    pi0 = scipy.stats.beta(1.5, 1, loc=1 - cutoff, scale=cutoff)
    assert scipy.stats.kstest(time.double().numpy(), pi0.cdf).pvalue > 1e-3


def test_no_time_is_missing_where_a_beta_variable_rounds_to_its_ends():
    time = flow(time="beta(0.01, 0.01)").sample(torch.zeros(20_000, 1, 1), torch.Generator().manual_seed(0)).time
    assert bool(((time >= 0) & (time <= 1)).all())


@pytest.mark.parametrize("solver", get_args(Solver))
@pytest.mark.parametrize("noise_at", [0, 1])
def test_a_constant_field_leads_from_noise_to_action(noise_at, solver):
    module, action, noise = flow(noise_at=noise_at), random(3, 4, 2), random(3, 4, 2, seed=1)
    velocity = module.path(action, noise, torch.zeros(3)).velocity
    reached = module.integrate(lambda x_t, time: velocity, noise, 7, solver)
    torch.testing.assert_close(reached, action)


@pytest.mark.parametrize(("noise_at", "times"), [(0, [0.0, 0.25, 0.5, 0.75]), (1, [1.0, 0.75, 0.5, 0.25])])
def test_euler_asks_for_the_field_at_the_beginning_of_each_step(noise_at, times):
    asked = []

    def field(x_t, time):
        asked.append(time)
        return torch.zeros_like(x_t)

    flow(noise_at=noise_at).integrate(field, random(5, 4, 2), 4, "euler")
    assert all(time.shape == (5,) for time in asked)
    assert [float(time[0]) for time in asked] == pytest.approx(times)


@pytest.mark.parametrize("noise_at", [0, 1])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun2", 2), ("heun3", 3), ("rk4", 4)])
def test_a_solver_has_the_order_of_its_name(noise_at, solver, order):
    """dx/dt = x cos(t) has the solution x0 exp(sin(t)); half the step divides the error by 2 ** order."""
    start = torch.ones(1, 1, 1, dtype=torch.float64)
    sign = 1 if noise_at == 0 else -1
    exact = math.exp(sign * math.sin(1))
    errors = [
        abs(float(flow(noise_at=noise_at).integrate(lambda x, t: x * t.cos(), start, steps, solver)) - exact)
        for steps in (40, 80)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"time": 3}, "time is 3\n    uniform, logit_normal or beta(a, b)"),
        ({"time": "uniforme"}, "time is 'uniforme'"),
        ({"time": "uniform(1)"}, "time is 'uniform(1)'"),
        ({"time": "beta(1)"}, "time is 'beta(1)'"),
        ({"time": "beta(0, 1)"}, "time is 'beta(0, 1)'"),
        ({"path": "ot"}, "path is 'ot'\n    straight, cosine, linear_vp, polynomial(n), vp"),
        ({"path": "polynomial"}, "path is 'polynomial'"),
        ({"path": "vp(0, 1)"}, "path is 'vp(0, 1)'"),
        ({"noise_at": 2}, "noise_at is 2"),
        ({"noise_at": True}, "noise_at is True"),
        ({"cutoff": 0}, "cutoff is 0"),
        ({"cutoff": 1.1}, "cutoff is 1.1"),
    ],
)
def test_a_wrong_parameter_is_explained(params, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        flow(**params)


def test_all_wrong_parameters_are_reported_at_once():
    with pytest.raises(ConfigError) as error:
        flow(path="ot", time="tea", noise_at=2, cutoff=7)
    assert [problem.message.split()[0] for problem in error.value.problems] == ["noise_at", "cutoff", "path", "time"]


@pytest.mark.parametrize("time", ["uniform", "logit_normal", "beta(1.5, 1)"])
@pytest.mark.parametrize("path", ["straight", "cosine", "polynomial(2)"])
def test_a_flow_travels_to_another_process(path: str, time: str) -> None:
    flow = FlowMatchingFactory(path, time).build()
    copy = pickle.loads(pickle.dumps(flow))
    first, second = (one.sample(torch.ones(2, 3, 1), torch.Generator().manual_seed(0)) for one in (flow, copy))
    assert torch.equal(first.x_t, second.x_t)
