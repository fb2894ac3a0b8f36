"""The variational flow-matching policy: what its loss is, what it predicts, that it learns, resumes, and is refused."""

import copy
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from families import (
    EXPERIMENTS,
    SHORT,
    action_in_a_fresh_process,
    assert_resumes_exactly,
    batch_of,
    full_sizes,
    lines_of,
    observation_of,
    run_of,
    without_gradient,
)
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.utils.data import default_collate

from model_constructor import ConfigError, build_model
from trainer import load_policy, train
from trainer.registry import LOSS_BUILDER_REGISTRY, TRAINER_REGISTRY

FAMILY = EXPERIMENTS / "variational_flow_matching_policy"
TINY = FAMILY / "exp1/tiny.yaml"
CAMERAS = ("head", "left", "right")
TERMS = ("kl", "sinkhorn", "router_z", "balance")
OF_LATENT = ("posterior", "prior")
LAM_STATE = 0.3
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run():
    return run_of(TINY, SHORT)


@pytest.fixture
def components(run):
    return copy.deepcopy(run.models).train()


@pytest.fixture
def batch(run):
    """The last frames of an episode, whose chunks end behind it, and the first ones of the next."""
    return batch_of(run, 6)


def make_trainer(models, loss="sinkhorn_knopp", **params):
    given = {"p": 1, "lam_state": LAM_STATE, "blur": 1e-3, "scaling": 0.9} if loss == "sinkhorn_knopp" else {}
    module = LOSS_BUILDER_REGISTRY.get(loss)(**given).build()
    return TRAINER_REGISTRY.get("variational_flow_matching_policy_trainer")(models, {}, module, "cpu", **params)


def watched(trainer):
    """Of each component, what it was last given and what it made of that."""
    seen = {}
    for name, model in trainer.models.items():
        model.register_forward_hook(lambda model, given, made, name=name: seen.update({name: (given, made)}))
    return seen


def loss_of(models, batch, seed=0, **params):
    trainer = make_trainer(models, **params)
    torch.manual_seed(seed)
    return trainer.compute_loss(batch)


def written_out(seen, batch):
    """Each term as its paper has it, sample by sample, from what the components made."""
    (x_t, time, _, _), velocities = seen["action_decoder"]
    (_, state), (weights, logits) = seen["gate"]
    posterior, prior = (Normal(mean, (log_variance / 2).exp()) for _, (mean, log_variance) in map(seen.get, OF_LATENT))
    samples, experts = weights.shape
    flow, ahead = 0.0, torch.zeros(samples, 8, 2)
    for b, e, t in itertools.product(range(samples), range(experts), range(8)):
        if batch["action_is_pad"][b, t]:
            continue
        velocity = (batch["action"][b, t] - x_t[b, t]) / (1 - time[b])  # what is left of a straight path, over its time
        error = (velocities[b, e, t] - velocity).square().mean() / (~batch["action_is_pad"][b]).sum()
        flow += float(weights[b, e] * error) / samples
        ahead[b, t] += weights[b, e] * (x_t[b, t] + (1 - time[b]) * velocities[b, e, t])
    shown = batch["action"].masked_fill(batch["action_is_pad"][..., None], 0.0)
    points, targets = (torch.cat([one.flatten(1), math.sqrt(LAM_STATE) * state[:, 0]], 1) for one in (ahead, shown))
    cost = torch.cdist(points, targets)
    pairings = [cost[range(samples), list(order)].mean() for order in itertools.permutations(range(samples))]
    firsts, chances = [int(one.argmax()) for one in logits], [one.exp() / one.exp().sum() for one in logits]
    balance = sum(firsts.count(e) / samples * sum(one[e] for one in chances) / samples for e in range(experts))
    return {
        "flow": flow,
        "kl": float(kl_divergence(posterior, prior).sum(-1).mean()),
        "sinkhorn": float(min(pairings)),
        "router_z": float(sum(one.exp().sum().log() ** 2 for one in logits) / samples),
        "balance": float(experts * balance),
        **{f"expert_share/{e}": float(sum(weights[:, e]) / samples) for e in range(experts)},
    }


@torch.no_grad()
def test_the_loss_is_the_weighted_sum_of_its_terms_each_written_out(components, batch):
    weights = dict(zip(TERMS, (0.3, 0.2, 0.05, 0.4), strict=True))
    trainer = make_trainer(components, **{f"{name}_weight": weight for name, weight in weights.items()})
    seen = watched(trainer)
    output = trainer.compute_loss(batch)
    expected = written_out(seen, batch)
    found = {name: float(value) for name, value in output.metrics.items()}
    assert found == pytest.approx(expected, rel=2e-3)
    total = expected["flow"] + sum(weights[name] * expected[name] for name in TERMS)
    assert float(output.loss) == pytest.approx(total, rel=2e-3)
    assert output.weight is None  # means over chunks: micro-batches and processes count by their size


@torch.no_grad()
def test_gate_and_decoder_are_given_one_draw_of_the_posterior_which_alone_sees_the_actions(components, batch):
    trainer = make_trainer(components)
    seen = watched(trainer)
    torch.manual_seed(3)
    trainer.compute_loss(batch)
    torch.manual_seed(3)
    mean, log_variance = seen["posterior"][1]
    latent = mean + (log_variance / 2).exp() * torch.randn(mean.shape)
    assert torch.equal(seen["gate"][0][0], latent) and torch.equal(seen["action_decoder"][0][3], latent)
    context = seen["action_decoder"][0][2]
    assert all(seen[name][0][0] is context for name in OF_LATENT) and len(seen["prior"][0]) == 1
    assert torch.equal(seen["posterior"][0][2][-1], batch["action"][-1])


@pytest.mark.parametrize("name", TERMS)
def test_a_weight_scales_its_own_term(components, batch, name):
    key = f"{name}_weight"
    once, thrice = (loss_of(components, batch, **{key: weight}) for weight in (0.5, 1.5))
    assert once.metrics[name] == thrice.metrics[name] > 0
    assert float((thrice.loss - once.loss).detach()) == pytest.approx(float(once.metrics[name]), rel=1e-3)


def test_a_sinkhorn_weight_of_zero_leaves_the_term_out(components, batch):
    assert "sinkhorn" not in loss_of(components, batch, sinkhorn_weight=0).metrics


def test_padding_has_no_influence(components, batch):
    before = loss_of(components, batch).loss
    assert batch["action_is_pad"].any()
    batch["action"][batch["action_is_pad"]] = float("nan")
    assert torch.equal(loss_of(components, batch).loss, before)
    batch["action"][-1] += 1
    assert not torch.equal(loss_of(components, batch).loss, before)


def test_every_parameter_gets_a_gradient_also_those_of_an_expert_that_no_chunk_is_sent_to(components, batch):
    loss_of(components, batch).loss.backward()
    assert without_gradient(components) == []
    components.zero_grad(set_to_none=True)
    components["gate"].gate.k = 1
    components["gate"].eval()  # no noise: which expert is chosen hardly depends on the chunk
    output = loss_of(components, batch)
    assert min(output.metrics["expert_share/0"], output.metrics["expert_share/1"]) == 0
    output.loss.backward()
    assert all(one.grad is not None for one in components["action_decoder"].parameters())


@torch.no_grad()
def field(components, mixture, weights, x_t, time, context, latent):
    velocities = components["action_decoder"](x_t, time, context, latent)
    if mixture == "top":
        return torch.stack([velocities[b, int(weights[b].argmax())] for b in range(len(weights))])
    return sum(weights[:, e, None, None] * velocities[:, e] for e in range(weights.shape[1]))


@pytest.mark.parametrize("latent", ["sample", "mean"])
@pytest.mark.parametrize("mixture", ["weighted", "top"])
def test_a_prediction_follows_the_experts_from_noise_with_one_latent_of_the_prior(components, batch, latent, mixture):
    trainer = make_trainer(components.eval(), latent=latent, mixture=mixture, integration_steps=3)
    batch = {key: value for key, value in batch.items() if key.startswith("observation")}
    predicted = trainer.predict(batch, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        context = trainer.context(batch)
        z, log_variance = components["prior"](context)
        if latent == "sample":
            z = z + (log_variance / 2).exp() * torch.randn(z.shape, generator=generator)
        weights, _ = components["gate"](z, batch["observation.state"])
        x_t = torch.randn(6, 8, 2, generator=generator)
        for step in range(3):
            x_t = x_t + field(components, mixture, weights, x_t, torch.full((6,), step / 3), context, z) / 3
    torch.testing.assert_close(predicted, x_t)
    again, other = (trainer.predict(batch, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert torch.equal(again, predicted) and not torch.equal(other, predicted)


WRONG = [
    ({"loss": "l2_loss"}, {}, "cannot train with L2Loss\n    loss: {type: sinkhorn_knopp}"),
    ({"kl_weight": 0}, {}, "kl_weight is 0, and nothing else teaches the prior\n    a number above 0"),
    ({"balance_weight": -1.0}, {}, "balance_weight is -1.0\n    a number from 0, which leaves the term out"),
    ({"sinkhorn_weight": True}, {}, "sinkhorn_weight is True"),
    ({"router_z_weight": math.nan}, {}, "router_z_weight is nan"),
    ({"latent": "mode"}, {}, "latent is 'mode'\n    one of sample, mean"),
    ({"mixture": "best"}, {}, "mixture is 'best'\n    one of weighted, top"),
    ({"time": "tea"}, {}, "time is 'tea'"),
    ({"solver": "heun"}, {}, "solver is 'heun'"),
    ({"execute_steps": 9}, {}, "execute_steps is 9"),
    ({"execute_steps": 4, "ensemble_decay": 0.1}, {}, "leave out one of the two"),
    ({}, {"gate": None}, "there is no component 'gate'"),
    ({}, {"prior": {"latent_dim": 6}}, "latent_dim is 4 in the posterior, 6 in the prior, 4 in the gate, 4 in the action_decoder"),
    ({}, {"gate": {"experts": 3}}, "experts is 3 in the gate, 2 in the action_decoder"),
    ({}, {"posterior": {"horizon": 9}}, "horizon is 9 in the posterior, 8 in the action_decoder"),
]  # fmt: skip


@pytest.mark.parametrize(("params", "changes", "message"), WRONG)
def test_a_wrong_set_up_is_explained(run, params, changes, message):
    models, own = nn.ModuleDict(dict(run.models.items())), run.config.experiment.model
    for name, change in changes.items():
        if change is None:
            del models[name]
        else:
            path = run.config.folders.find(own.component_config_paths[name])
            models[name] = build_model(path, params={**own.component_params[name], **change})
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_trainer(models, **params)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    assert_resumes_exactly(TINY, tmp_path)


def test_the_full_size_is_as_large_as_it_says():
    backbones = {f"{camera}_backbone": 11_307_840 for camera in CAMERAS}
    latent = {"posterior": 1_613_376, "prior": 1_596_736, "gate": 82_432}
    rest = {"info_embedder": 1_586_432, "action_decoder": 23_741_792}
    assert full_sizes(FAMILY / "exp1/train.yaml") == {**backbones, **latent, **rest}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_overfits_one_batch_and_its_policy_repeats_the_demonstrated_chunks_in_a_fresh_process_too(tmp_path):
    overrides = {
        "train.overfit_batches": 1,
        "train.max_steps": 300,
        "data.batch_size": 8,
        "train.save_dir": str(tmp_path),
    }
    run = run_of(TINY, overrides)
    batch = run.data.prepare(default_collate([run.data.dataset[frame] for frame in range(8)]))
    valid = ~batch["action_is_pad"]
    before = chunk_error(run.trainer, batch, valid)
    train(TINY, overrides)
    policy = load_policy(tmp_path)
    after = chunk_error(policy.trainer, batch, valid)
    lines = [line["loss"] for line in lines_of(tmp_path) if "loss" in line]
    print(f"one batch: loss {lines[0]:.3f} -> {lines[-1]:.3f}; predicted chunks off by {before:.3f} -> {after:.3f}")
    assert lines[-1] < 0.2 * lines[0]
    assert after < 0.3 < 1 < before
    observation = observation_of(run)
    expected = policy.select_action(observation).tolist()
    assert action_in_a_fresh_process(tmp_path, observation) == pytest.approx(expected, rel=1e-5)


def chunk_error(trainer, batch, valid):
    """Root mean square over the valid steps, in standard deviations of the data."""
    trainer.models.eval()
    predicted = trainer.predict(batch, torch.Generator().manual_seed(0))
    return float((predicted - batch["action"])[valid].square().mean().sqrt())


TWO_PROCESSES = """
import json, sys
from pathlib import Path
from experiment_training.components.trainer.imitation_learning.variational_flow_matching_policy import (
    variational_flow_matching_policy_trainer as family,
)
from trainer.distributed import processes
from trainer.training import run_training

folder, shares = Path(sys.argv[1]), []
compute_loss = family.VariationalFlowMatchingPolicyTrainer.compute_loss

def watched(self, batch):
    output = compute_loss(self, batch)
    shares.append([float(value) for name, value in output.metrics.items() if name.startswith("expert_share/")])
    return output

family.VariationalFlowMatchingPolicyTrainer.compute_loss = watched
with processes() as world:
    run_training(sys.argv[2], [*sys.argv[3:], f"train.save_dir={folder}/run"], "none", world)
    (folder / f"shares.{world.rank}.json").write_text(json.dumps(shares))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_tell_the_share_of_each_expert_over_both_and_end_with_equal_weights(tmp_path):
    """That the weights are equal is checked by the save itself; without a gradient for all of them it would not begin."""
    (tmp_path / "job.py").write_text(TWO_PROCESSES)
    settings = [f"{key}={value}" for key, value in {**SHORT, "train.max_steps": 3}.items()]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "job.py"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(EXPERIMENTS.parent),
        "CUDA_VISIBLE_DEVICES": "",
    }
    arguments = [str(tmp_path), str(TINY), *settings]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"shares.{rank}.json").read_text())[-3:] for rank in (0, 1)]  # the first is a trial
    assert ranks[0] != ranks[1]
    for line, *both in zip(lines_of(tmp_path / "run"), *ranks, strict=True):
        told = [line["expert_share/0"], line["expert_share/1"]]
        assert told == pytest.approx(np.mean(both, axis=0), rel=1e-5)
        assert sum(told) == pytest.approx(1, rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_where_demonstrations_go_two_ways_its_samples_go_both_also_in_one_step_which_a_naive_policy_averages(tmp_path):
    """From eight starts, 100 chunks each: the way point that the first action leads to is 0.6 left, or 0.6 right."""
    naive, table = "naive_flow_matching_policy", {}
    for family in (FAMILY.name, naive):
        for steps, way in ways_of(family, tmp_path / family).items():  # [starts, chunks]
            left = (way > 0).float().mean(1)
            near = float(((way.abs() - 0.6).abs() < 0.2).float().mean())
            table[family, steps] = float(torch.minimum(left, 1 - left).mean()), near
            shares = " ".join(f"{one:.2f}" for one in left.tolist())
            print(f"{family}, {steps} steps: left {shares}; within 0.2 of a way point {near:.2f}")
    for steps in (1, 10):
        rarer, _ = table[FAMILY.name, steps]
        assert rarer > 0.2  # the share of the less frequent way, the mean over starts
    assert table[FAMILY.name, 1][1] > 2 * table[naive, 1][1]


def ways_of(family, folder):
    """Integration steps -> where each chunk goes [starts, chunks], after a short training."""
    heads = ("info_embedder", "action_decoder", *((*OF_LATENT, "gate") if family == FAMILY.name else ()))
    config = EXPERIMENTS / family / "exp1/tiny.yaml"
    overrides = {
        "train.save_dir": str(folder),
        "train.max_steps": 400,
        "train.save_every_steps": 400,
        "data.batch_size": 64,
        "data.datamodule.params": {"cameras": list(CAMERAS), "image_size": 8, "action_horizon": 8, "episodes": 400},
        **{f"model.component_params.{name}.dim": 64 for name in ("info_embedder", "action_decoder")},
        **{f"model.component_optims.{name}.params": {"peak_lr": 2e-3, "warmup_steps": 0} for name in heads},
    }
    for camera in CAMERAS:  # which way to go is not to be seen
        overrides[f"model.component_build_args.{camera}_backbone.freeze"] = True
        overrides[f"model.component_params.{camera}_backbone"] = {"name": "test_efficientnet_gn", "dim": 64}
    began = time.process_time()
    train(config, overrides)
    print(f"{family}: trained in {time.process_time() - began:.0f} s of one core")
    policy, run = load_policy(folder), run_of(config, overrides)
    starts = run.data.prepare(run.data.dataset.__getitems__([24 * episode for episode in range(8)]))
    batch = {key: value.repeat_interleave(100, 0) for key, value in starts.items() if isinstance(value, torch.Tensor)}
    ways, normalizer = {}, run.data.prepare.normalizer
    for steps in (1, 10):
        policy.trainer.integration_steps = steps
        action = normalizer.denormalize("action", policy.trainer.predict(batch, torch.Generator().manual_seed(0)))
        state = normalizer.denormalize("observation.state", batch["observation.state"])
        ways[steps] = (state[:, 0, 1] + action[:, 0, 1]).unflatten(0, (8, 100))
    return ways
