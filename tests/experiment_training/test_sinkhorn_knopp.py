"""Sinkhorn-Knopp: values against a Sinkhorn iteration and an assignment solver of our own, in float64."""

import importlib.util
import re

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode

from model_constructor import ConfigError
from trainer.registry import LOSS_BUILDER_REGISTRY

ACCURATE = {"scaling": 0.99}


def sinkhorn(**params):
    return LOSS_BUILDER_REGISTRY.get("sinkhorn_knopp")(**params).build()


def make_batch(size=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"prediction": (size, 4, 2), "target": (size, 4, 2), "state": (size, 1, 3)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def points(chunk, state, lam_state):
    """Sample by sample, number by number."""
    return np.array([
        [float(number) for number in one.flatten()] + [lam_state**0.5 * float(number) for number in its.flatten()]
        for one, its in zip(chunk, state, strict=True)
    ])  # fmt: skip


def costs(x, y, p):
    return cdist(x, y) if p == 1 else cdist(x, y, "sqeuclidean") / 2


def entropic_cost(x, y, p, blur):
    """The dual value of entropy-regularised transport, iterated until it stands still."""
    cost, eps, log_weight = costs(x, y, p), blur**p, -np.log(len(x))
    f, g = np.zeros(len(x)), np.zeros(len(y))
    for _ in range(20_000):
        before = f
        f = -eps * logsumexp(log_weight + (g[None, :] - cost) / eps, axis=1)
        g = -eps * logsumexp(log_weight + (f[:, None] - cost) / eps, axis=0)
        if np.abs(f - before).max() < 1e-6:
            return f.mean() + g.mean()
    raise AssertionError("the oracle did not converge")


def oracle(prediction, target, state, p, blur, debias, lam_state):
    x, y = points(prediction, state, lam_state), points(target, state, lam_state)
    value = entropic_cost(x, y, p, blur)
    return value - (entropic_cost(x, x, p, blur) + entropic_cost(y, y, p, blur)) / 2 if debias else value


@pytest.mark.parametrize("lam_state", [0.0, 0.2, 3.0])
@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize(("p", "blur"), [(1, 0.5), (2, 1.5), (2, 3.0)])
def test_the_value_is_that_of_the_regularised_transport_problem(p, blur, debias, lam_state):
    params = {"p": p, "blur": blur, "debias": debias, "lam_state": lam_state}
    batch = make_batch()
    assert float(sinkhorn(**params, **ACCURATE)(**batch)) == pytest.approx(oracle(**batch, **params), rel=1e-3)


@pytest.mark.parametrize("p", [1, 2])
def test_with_little_blur_it_is_the_mean_cost_of_the_best_assignment(p):
    batch = make_batch(size=12)
    cost = costs(points(batch["prediction"], batch["state"], 0.2), points(batch["target"], batch["state"], 0.2), p)
    best = cost[linear_sum_assignment(cost)].mean()
    assert best < 0.95 * np.diag(cost).mean()  # samples are exchanged
    assert float(sinkhorn(p=p, lam_state=0.2, blur=0.01, scaling=0.95)(**batch)) == pytest.approx(best, rel=1e-2)


def test_two_points_five_apart_cost_5_at_p_1_and_half_of_25_at_p_2():
    chunk, state = torch.tensor([[[3.0, 4.0]]]), torch.zeros(1, 1)
    assert float(sinkhorn(p=1)(chunk, torch.zeros(1, 1, 2), state)) == pytest.approx(5.0, abs=2e-4)
    assert float(sinkhorn(p=2)(chunk, torch.zeros(1, 1, 2), state)) == pytest.approx(12.5)


def test_an_exchange_of_two_demonstrations_costs_nothing_but_lam_state_for_the_distance_of_their_states():
    chunk, state = torch.tensor([[[0.0]], [[1.0]]]), torch.tensor([[0.0], [3.0]])
    exchanged = chunk.flip(0)
    assert float(sinkhorn(blur=0.01, lam_state=0)(exchanged, chunk, state)) == pytest.approx(0, abs=1e-3)
    # to exchange them costs 0.01 * 9 / 2 each, to leave each where it is 1 / 2
    assert float(sinkhorn(blur=0.01, lam_state=0.01)(exchanged, chunk, state)) == pytest.approx(0.045, rel=1e-3)
    assert float(sinkhorn(blur=0.01, lam_state=1)(exchanged, chunk, state)) == pytest.approx(0.5, rel=1e-3)


def test_debias_makes_equal_clouds_cost_nothing_and_more_blur_costs_more_without_it():
    batch = make_batch()
    batch["prediction"] = batch["target"]
    assert float(sinkhorn(blur=2.0)(**batch)) == pytest.approx(0, abs=1e-4)
    little, much = (float(sinkhorn(blur=blur, debias=False)(**batch)) for blur in (1.0, 3.0))
    assert 0.1 < little < much


def test_a_scaling_nearer_to_1_is_nearer_to_the_exact_value():
    params = {"p": 2, "blur": 1.0, "debias": False, "lam_state": 0.2}
    solver = {"diameter": 20.0}  # about that of the points
    batches = [make_batch(size=16, seed=seed) for seed in range(5)]
    exact = [oracle(**batch, **params) for batch in batches]
    errors = [
        np.mean(
            [
                abs(float(sinkhorn(**params, **solver, scaling=scaling)(**one)) - value)
                for one, value in zip(batches, exact, strict=True)
            ]
        )
        for scaling in (0.05, 0.5, 0.95)
    ]
    assert errors[0] > errors[1] > 4 * errors[2]


class NothingTravels(TorchDispatchMode):
    """Refuses every copy between host and device: it would be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        devices = {one.device.type for one in (*args, result) if isinstance(one, Tensor)}
        assert "copy" not in str(function) or len(devices) == 1, f"{function} waits for the device"
        return result


@pytest.mark.parametrize("diameter", [None, 20.0])
@pytest.mark.parametrize("p", [1, 2])
def test_nothing_waits_for_the_device(p, diameter):
    """The tensors of this one have a device and a shape, and no numbers: to read one is an error."""
    loss = sinkhorn(p=p, diameter=diameter)
    with FakeTensorMode():
        batch = {name: torch.empty(value.shape, device="cuda") for name, value in make_batch().items()}
        with NothingTravels():
            assert loss(**batch).shape == ()
            with pytest.raises(AssertionError, match="waits for the device"):
                batch["state"].cpu()
            with pytest.raises(DataDependentOutputException):
                batch["state"].sum().item()


def test_diameter_is_the_distance_that_the_solver_begins_at():
    batch = make_batch()
    near, far, usual = (sinkhorn(blur=0.3, diameter=diameter)(**batch) for diameter in (0.5, 20.0, None))
    assert not torch.equal(near, far)
    assert torch.equal(usual, sinkhorn(blur=0.3, diameter=10 * (4 * 2 + 1.0 * 3) ** 0.5)(**batch))


@pytest.mark.parametrize("scale", [0.01, 1, *(pytest.param(one, marks=pytest.mark.slow) for one in (10, 100))])
@pytest.mark.parametrize(("p", "blur"), [(1, 0.5), pytest.param(2, 1.0, marks=pytest.mark.slow)])
def test_without_a_diameter_it_is_about_as_accurate_as_with_that_of_the_points(p, blur, scale):
    """Normalised points (scale 1), smaller ones and larger ones. It is a matter of where the last steps fall."""
    params = {"p": p, "blur": blur * scale, "lam_state": 0.2}
    errors = []
    for seed in range(5):
        batch = {name: scale * value for name, value in make_batch(size=16, seed=seed).items()}
        exact = oracle(**batch, **params, debias=True)
        both = np.concatenate([points(batch[name], batch["state"], 0.2) for name in ("prediction", "target")])
        measured = float(np.linalg.norm(both.max(axis=0) - both.min(axis=0)))
        errors.append([abs(float(sinkhorn(**params, diameter=one)(**batch)) - exact) for one in (None, measured)])
        assert errors[-1][0] < 0.03 * exact
    usual, of_the_points = np.mean(errors, axis=0)
    assert usual < 3 * of_the_points


def test_the_gradient_is_that_of_the_exact_value():
    batch, params = make_batch(), {"p": 2, "blur": 1.5, "debias": True, "lam_state": 0.2}
    prediction = batch["prediction"].clone().requires_grad_()
    sinkhorn(**params, **ACCURATE)(**{**batch, "prediction": prediction}).backward()
    for sample, step, number in [(0, 0, 0), (3, 2, 1), (6, 3, 0)]:
        moved = [batch["prediction"].double() for _ in range(2)]
        for one, by in zip(moved, (-1e-4, 1e-4), strict=True):
            one[sample, step, number] += by
        below, above = (oracle(**{**batch, "prediction": one}, **params) for one in moved)
        assert float(prediction.grad[sample, step, number]) == pytest.approx((above - below) / 2e-4, rel=2e-2, abs=1e-4)


def test_what_is_not_valid_counts_as_zero_and_has_no_gradient():
    batch, valid = make_batch(), torch.ones(7, 4, dtype=torch.bool)
    valid[2:, 1:] = False
    zeroed = {name: batch[name] * valid[..., None] for name in ("prediction", "target")}
    expected = sinkhorn()(**zeroed, state=batch["state"])
    prediction = batch["prediction"].masked_fill(~valid[..., None], torch.nan).requires_grad_()
    loss = sinkhorn()(prediction, batch["target"], batch["state"], valid)
    loss.backward()
    assert torch.equal(loss.detach(), expected)
    assert bool((prediction.grad[~valid] == 0).all()) and bool((prediction.grad[valid] != 0).all())


def test_autocast_does_not_change_a_number_of_it():
    batch = make_batch()
    plain = sinkhorn()(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinkhorn()(**batch), plain)
    halved = {**batch, "prediction": batch["prediction"].bfloat16()}
    assert sinkhorn()(**halved).dtype == torch.float32


def test_shapes_that_do_not_fit_are_refused():
    batch = make_batch()
    with pytest.raises(ValueError, match=re.escape("[7, 4, 2], [7, 4, 2], [5, 1, 3]")):
        sinkhorn()(**{**batch, "state": batch["state"][:5]})


@pytest.mark.skipif(importlib.util.find_spec("pykeops") is not None, reason="KeOps is installed")
@pytest.mark.parametrize("backend", ["online", "multiscale"])
def test_a_backend_that_needs_keops_is_refused_at_start_where_there_is_none(backend):
    with pytest.raises(ConfigError, match=f"backend is '{backend}', and KeOps does not run here\n    pip install"):
        sinkhorn(backend=backend)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"p": 3}, "p is 3\n    1 (distance) or 2"),
        ({"lam_state": -1}, "lam_state is -1"),
        ({"blur": 0}, "blur is 0"),
        ({"blur": float("nan")}, "blur is nan"),
        ({"debias": "no"}, "debias is 'no'"),
        ({"backend": "auto"}, "backend is 'auto'\n    known here: multiscale, online, tensorized"),
        ({"scaling": 1}, "scaling is 1\n    between 0 and 1"),
        ({"diameter": 0}, "diameter is 0"),
    ],
)
def test_a_wrong_parameter_is_explained(params, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        sinkhorn(**params)


def test_all_wrong_parameters_are_reported_at_once():
    with pytest.raises(ConfigError) as error:
        sinkhorn(p=3, blur=-1, scaling="slow")
    assert len(error.value.problems) == 3
