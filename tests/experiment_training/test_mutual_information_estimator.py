"""The mutual information estimator: its bound against a plain reference and against what is known in closed form."""

import math
import re
from functools import partial

import pytest
import torch
from families import (
    EXPERIMENTS,
    SHORT,
    assert_resumes_exactly,
    batch_of,
    full_sizes,
    lines_of,
    run_of,
    without_gradient,
)
from torch import nn
from torch.distributions import MultivariateNormal

from experiment_training.components.loss.gaussian_nll import GaussianNll
from experiment_training.components.loss.l2 import L2Loss
from model_constructor import ConfigError, build_model
from trainer import load_policy, train
from trainer.registry import OPTIMIZER_BUILDER_REGISTRY, TRAINER_REGISTRY

FAMILY = EXPERIMENTS / "mutual_information_estimator"
MODELS = EXPERIMENTS.parent / "experiment_models/mutual_information_estimator/exp1"
TINY = FAMILY / "exp1/tiny.yaml"
UPDATES = 800
PAIRS = {"state_to_action": "action", "action_to_state": "state", "action_to_head": "head"}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run():
    return run_of(TINY, {**SHORT, "data.validation": None, "train.validate_every": None})


def make_trainer(models, loss=None, **params):
    optimizer = OPTIMIZER_BUILDER_REGISTRY.get("adamw_warmup_cosine_decay")
    factory = optimizer(peak_lr=2e-2, total_steps=UPDATES, warmup_steps=50, weight_decay=0.0)
    optimizers = {name: factory.build(model.parameters()) for name, model in models.items() if [*model.parameters()]}
    make = TRAINER_REGISTRY.get("mutual_information_estimator_trainer")
    return make(nn.ModuleDict(models), optimizers, loss or GaussianNll(), "cpu", **params)


def gaussian(mean, factor):
    """By its precision, as a library has it."""
    whitening = factor.tril(-1) + torch.diag(factor.diagonal().exp())
    return MultivariateNormal(mean, precision_matrix=whitening.T @ whitening)


def test_the_likelihood_is_that_of_a_gaussian_of_any_covariance_and_in_float32_under_autocast():
    target, mean, factor = torch.randn(7, 5), torch.randn(7, 5), 0.3 * torch.randn(5, 5)
    for said in (mean, mean[:1]):
        torch.testing.assert_close(GaussianNll()(target, said, factor), -gaussian(said, factor).log_prob(target))
    with torch.autocast("cpu", torch.bfloat16):
        low = GaussianNll()(target, mean.bfloat16().float(), factor)
    torch.testing.assert_close(low, -gaussian(mean.bfloat16().float(), factor).log_prob(target))


@pytest.mark.parametrize("shapes", [((4, 3), (4, 1), (3, 3)), ((4, 3), (1, 4), (3, 3)), ((4, 3), (4, 3), (3,))])
def test_shapes_that_broadcasting_would_hide_are_refused(shapes):
    with pytest.raises(ValueError, match=r"of numbers \[4, 3\] a Gaussian is told by a mean"):
        GaussianNll()(*map(torch.zeros, shapes))


@torch.no_grad()
def test_nats_are_what_a_noised_code_saves_of_the_surprise_at_whole_samples_and_the_loss_is_both_surprises(run):
    trainer, batch = make_trainer(dict(run.models.items()), code_noise=0.3, target_noise=0.0), batch_of(run, 8)
    heard, hooks = {}, []

    def hear(name, module, given):
        if given:  # nothing is, where the decoder guesses
            heard[name] = given[0]

    for name in PAIRS.values():
        hooks.append(run.models[f"{name}_decoder"].register_forward_pre_hook(partial(hear, name)))
    torch.manual_seed(1)
    output = trainer.compute_loss(batch)
    for hook in hooks:
        hook.remove()
    torch.manual_seed(1)
    values = {"action": batch["action"], "state": batch["observation.state"]}
    codes = {name: run.models[f"{name}_encoder"](value) for name, value in values.items()}
    noised = {name: code + 0.3 * torch.randn(code.shape) for name, code in codes.items()}
    targets = {name: value.flatten(1) for name, value in values.items()} | {"head": shrunk(batch)}
    whole = [b for b in range(8) if not batch["action_is_pad"][b].any()]
    assert 0 < len(whole) < 8
    loss = 0.0
    for pair, name in PAIRS.items():
        assert torch.equal(heard[name], noised[pair.partition("_")[0]])
        decoder, known, unknown = run.models[f"{name}_decoder"], [], []
        for b in whole:
            known.append(-gaussian(*decoder(heard[name][b : b + 1])).log_prob(targets[name][b]))
            unknown.append(-gaussian(*decoder()).log_prob(targets[name][b]))
        known, unknown = (float(sum(values)) / len(whole) for values in (known, unknown))
        assert float(output.metrics[f"nats/{pair}"]) == pytest.approx(unknown - known, rel=1e-3, abs=1e-3)
        loss += (known + unknown) / targets[name].shape[1]
    assert float(output.loss) == pytest.approx(loss, rel=1e-4)
    assert int(output.weight) == len(whole)


def shrunk(batch, side=8):
    """Each of side x side pixels is the mean of what it covers."""
    images = batch["observation.images.head"][:, -1]
    step = images.shape[-1] // side
    squares = [
        images[:, :, row : row + step, column : column + step]
        for row in range(0, side * step, step)
        for column in range(0, side * step, step)
    ]
    return torch.stack([square.mean((2, 3)) for square in squares], dim=-1).flatten(1)


@torch.no_grad()
def test_what_is_reconstructed_is_blurred_by_the_target_noise(run):
    likelihood, seen = GaussianNll(), []
    likelihood.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    batch = {
        key: value.repeat(500, *[1] * (value.ndim - 1)) for key, value in batch_of(run, 2).items() if key != "task"
    }
    make_trainer(dict(run.models.items()), likelihood, target_noise=0.25).compute_loss(batch)
    blurred, same = seen[:2]
    assert blurred is same  # the surprise with and without a code is at the same numbers
    noise = blurred - batch["action"].flatten(1)
    assert float(noise.std()) == pytest.approx(0.25, rel=0.03)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.02)


def test_every_parameter_gets_a_gradient(run):
    run.models.zero_grad(set_to_none=True)
    run.trainer.compute_loss(batch_of(run, 8)).loss.backward()
    assert without_gradient(run.models) == []


def test_a_batch_without_a_whole_sample_teaches_nothing(run):
    batch = batch_of(run, 8)
    batch["action_is_pad"][:, -1] = True
    output = run.trainer.compute_loss(batch)
    run.models.zero_grad(set_to_none=True)
    output.loss.backward()
    assert float(output.loss) == float(output.weight) == 0.0
    assert not any(one.grad.any() for one in run.models.parameters())


@pytest.mark.parametrize(
    ("components", "params", "message"),
    [
        ({"state_encoder": None}, {}, "there is no component 'state_encoder'"),
        ({"head_encoder": nn.Identity()}, {}, "it has no use for the component 'head_encoder'"),
        ({"head_decoder": nn.Identity()}, {}, "the head_decoder does not say its image's size\n    declare `side`"),
        ({}, {"loss": L2Loss()}, "it cannot train with L2Loss\n    loss: {type: gaussian_nll}"),
        ({}, {"code_noise": 0}, "code_noise is 0\n    a standard deviation above 0"),
        ({}, {"target_noise": -0.1}, "target_noise is -0.1\n    a standard deviation from 0"),
        ({}, {"target_noise": math.nan}, "target_noise is nan"),
        ({}, {"code_noise": True}, "code_noise is True"),
    ],
)
def test_a_wrong_set_up_is_explained(run, components, params, message):
    models = {name: one for name, one in {**dict(run.models.items()), **components}.items() if one is not None}
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_trainer(models, **params)


@torch.no_grad()
def test_a_camera_that_the_data_set_does_not_have_is_told(run):
    batch = batch_of(run, 2)
    batch["observation.images.heat"] = batch.pop("observation.images.head")
    with pytest.raises(
        ConfigError, match=r"component head_decoder looks at .*images.head, .*\n.* did you mean 'heat'\?"
    ):
        run.trainer.compute_loss(batch)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_and_makes_no_policy(tmp_path):
    run_dir = assert_resumes_exactly(TINY, tmp_path, {"train.validate_every": 5, "data.validation.fraction": 0.3})
    with pytest.raises(ConfigError, match="trainer 'mutual_information_estimator_trainer' has no `predict`"):
        load_policy(run_dir)


def test_the_full_size_is_as_large_as_it_says():
    actions = {"action_encoder": 771_104, "action_decoder": 2_616_192}
    observations = {"state_encoder": 291_872, "state_decoder": 293_040, "head_decoder": 1_382_211}
    assert full_sizes(FAMILY / "exp1/train.yaml") == {**actions, **observations}


@pytest.mark.slow
def test_it_overfits_one_batch(tmp_path):
    overrides = {"train.overfit_batches": 1, "train.max_steps": 300, "data.batch_size": 32, "train.log_every": 10}
    train(TINY, {**overrides, "train.save_dir": str(tmp_path), "train.trainer.params.target_noise": 0.02})
    lines = [line for line in lines_of(tmp_path) if "loss" in line]
    for name in ("loss", *(f"nats/{pair}" for pair in PAIRS)):
        print(f"one batch: {name} {lines[0][name]:.2f} -> {lines[-1][name]:.2f}")
    assert lines[-1]["loss"] < lines[0]["loss"] - 3
    assert lines[-1]["nats/action_to_state"] > lines[0]["nats/action_to_state"] + 2


SIZE = 3


def jointly_gaussian(samples, correlation, generator):
    """Action x, state A (correlation x + the rest): I = -SIZE / 2 log(1 - correlation^2), whatever the matrix A."""
    x, rest = torch.randn(2, samples, 1, SIZE, generator=generator)
    mixing = torch.tensor([[1.0, 0.8, 0.0], [0.0, 1.0, -0.9], [0.5, 0.0, 1.0]])
    state = (correlation * x + math.sqrt(1 - correlation**2) * rest) @ mixing
    return {"action": x, "observation.state": state, "action_is_pad": torch.zeros(samples, 1, dtype=torch.bool)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("correlation", "code_noise", "tightness"),
    [
        pytest.param(0.9, 0.1, 0.9, id="nearly all of it"),
        pytest.param(0.9, 1.5, 0.15, id="what a noisier channel lets through"),
        pytest.param(0.0, 0.1, 0.0, id="nothing where there is nothing"),
    ],
)
def test_on_jointly_gaussian_data_the_bound_lies_below_the_mutual_information_and_near_it(
    correlation, code_noise, tightness
):
    code = {"hidden": 64, "code_dim": 8}
    shapes = {"encoder": {"length": 1, "width": SIZE, **code}, "decoder": {"size": SIZE, **code}}
    models = {
        f"{name}_{kind}": build_model(MODELS / f"{kind}.yaml", params=shapes[kind])
        for name in ("action", "state")
        for kind in ("encoder", "decoder")
    }
    trainer = make_trainer(models, code_noise=code_noise, target_noise=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(UPDATES):
        trainer.train_step(jointly_gaussian(256, correlation, generator))
    trainer.models.eval()
    with torch.no_grad():
        found = trainer.compute_loss(jointly_gaussian(100_000, correlation, generator)).metrics
    truth = -SIZE / 2 * math.log(1 - correlation**2)
    capacity = code["code_dim"] / 2 * math.log(1 + 1 / code_noise**2)
    told = ", ".join(f"{name} {float(nats):.3f}" for name, nats in found.items())
    print(f"truth {truth:.3f} nats, capacity {capacity:.3f}: {told}")
    for nats in found.values():
        assert tightness * truth - 0.02 < float(nats) < min(truth, capacity) + 0.02
