"""Flow matching guided by a code: its loss, what updates change outside of gradients, guidance, and runs of its config."""

import copy
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time

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
from toy_compare import assert_equal_checkpoints, tensors_of

from model_constructor import ConfigError, build_model
from trainer import load_policy, train
from trainer.registry import LOSS_BUILDER_REGISTRY, OPTIMIZER_BUILDER_REGISTRY, TRAINER_REGISTRY
from trainer.templates import StepOptions

FAMILY = EXPERIMENTS / "cfg_vqvae_flow_matching"
TINY = FAMILY / "exp1/tiny.yaml"
CAMERAS = ("head", "left", "right")
CODES = 8
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run():
    run = run_of(TINY, SHORT)
    nn.init.normal_(run.models["codebook"].quantizer.codebook)  # no two codes are near each other
    return run


@pytest.fixture
def components(run):
    return copy.deepcopy(run.models).train()


@pytest.fixture
def batch(run):
    """The last frames of an episode, whose chunks end behind it, and the first ones of the next."""
    return batch_of(run, 6)


def make_trainer(models, loss="flow_matching", optimizers=None, **params):
    module = LOSS_BUILDER_REGISTRY.get(loss)().build()
    return TRAINER_REGISTRY.get("cfg_vqvae_flow_matching_trainer")(models, optimizers or {}, module, "cpu", **params)


def make_learner(models, without=(), **params):
    """A trainer that trains all components, but those of `without`."""
    named = [(name, one.parameters()) for name, one in models.items() if name not in without]
    optimizers = {name: torch.optim.AdamW(own, lr=0.02) for name, own in named}
    trainer = make_trainer(models, optimizers=optimizers, **params)
    trainer.configure_step(StepOptions(on_nonfinite="skip"))
    return trainer


def watched(trainer):
    """Of each component, what it was last given and what it made of that."""
    seen = {}
    for name, model in trainer.models.items():
        model.register_forward_hook(lambda _, given, made, name=name: seen.update({name: (given, made)}))
    return seen


def loss_of(models, batch, seed=0, **params):
    trainer = make_trainer(models, **params)
    torch.manual_seed(seed)
    return trainer.compute_loss(batch)


def nearest(vector, codebook):
    return min(range(len(codebook)), key=lambda k: float((vector - codebook[k]).square().sum()))


@torch.no_grad()
def test_the_loss_is_the_velocitys_error_and_the_priors_surprise_at_the_averaged_posteriors_code(components, batch):
    trainer = make_trainer(components, prior_weight=0.3, code_dropout=0.5)
    for parameter in trainer.slow.averaged.parameters():
        parameter += 0.2 * torch.randn(parameter.shape)  # as if the posterior had moved on
    seen = watched(trainer)
    output = trainer.compute_loss(batch)
    (x_t, now, *_), velocity = seen["action_decoder"]
    codebook, steps = components["codebook"].quantizer.codebook, (~batch["action_is_pad"]).nonzero().tolist()
    flow = prior = 0.0
    for b, t in steps:
        wanted = (batch["action"][b, t] - x_t[b, t]) / (1 - now[b])  # what is left of a straight path, over its time
        flow += float((velocity[b, t] - wanted).square().mean()) / len(steps)
        given = [None if one is None else one[b : b + 1] for one in seen["posterior"][0]]
        code = nearest(trainer.slow.averaged(*given)[0], codebook)
        chances = seen["prior"][1][b].double().exp()
        prior -= float((chances[code] / chances.sum()).log()) / len(steps)
    assert float(output.metrics["flow"]) == pytest.approx(flow, rel=1e-4)
    assert float(output.metrics["prior"]) == pytest.approx(prior, rel=1e-4)
    assert float(output.loss) == pytest.approx(flow + 0.3 * prior, rel=1e-4)
    assert int(output.weight) == len(steps) < 6 * 8
    chosen = seen["codebook"][1][1].tolist()
    shares = [chosen.count(k) / 6 for k in set(chosen)]
    perplexity = math.prod(share**-share for share in shares)
    assert float(output.metrics["perplexity"]) == pytest.approx(perplexity, rel=1e-4)


@torch.no_grad()
def test_the_posterior_alone_sees_the_actions_and_the_decoder_knows_of_them_by_the_code(components, batch):
    trainer = make_trainer(components)
    seen = watched(trainer)
    trainer.compute_loss(batch)
    _, _, context, code, is_given = seen["action_decoder"][0]
    assert context is seen["info_embedder"][1] is seen["posterior"][0][0] is seen["prior"][0][0]
    assert len(seen["prior"][0]) == 1 and torch.equal(seen["posterior"][0][2][-1], batch["action"][-1])
    assert code is seen["codebook"][1][0] and seen["codebook"][0][0] is seen["posterior"][1]
    decoder, point = components["action_decoder"], seen["action_decoder"][0][:3]
    without = decoder(*point, code, ~is_given), decoder(*point, code + 1, ~is_given)
    same = (without[0] == without[1]).flatten(1).all(1)
    assert torch.equal(same, is_given)  # it is another velocity exactly where the other code was given


def test_padding_has_no_influence(components, batch):
    before = loss_of(components, batch).loss
    assert batch["action_is_pad"].any()
    batch["action"][batch["action_is_pad"]] = float("nan")
    assert torch.equal(loss_of(components, batch).loss, before)
    batch["action"][-1] += 1
    assert not torch.equal(loss_of(components, batch).loss, before)


def test_every_parameter_gets_a_gradient_but_those_of_the_average(components, batch):
    trainer = make_trainer(components, code_dropout=0.5)
    trainer.compute_loss(batch).loss.backward()
    assert without_gradient(components) == []
    assert all(one.grad is None and not one.requires_grad for one in trainer.slow.averaged.parameters())


@torch.no_grad()
def test_two_parts_of_a_batch_add_up_to_it_by_their_weights(components, batch):
    trainer = make_trainer(components)
    trainer.flow.sample = lambda action: trainer.flow.path(action, -action, torch.full((len(action),), 0.5))
    components.eval()
    parts = [{key: value[half] for key, value in batch.items()} for half in (slice(2), slice(2, None))]
    (one, other), whole = (trainer.compute_loss(part) for part in parts), trainer.compute_loss(batch)
    expected = (one.loss * one.weight + other.loss * other.weight) / (one.weight + other.weight)
    torch.testing.assert_close(whole.loss, expected)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0.0, 0.5, [0, 0.125, 0.375, 0.5, 0.5]), (0.8, 0.4, [0.8, 0.7, 0.5, 0.4, 0.4]), (None, 0.3, [0.3] * 5)],
)
@torch.no_grad()
def test_the_share_of_samples_without_the_code_follows_the_number_of_updates(components, batch, start, end, expected):
    schedule = {} if start is None else {"code_dropout_start": start, "code_dropout_updates": 40}
    trainer = make_trainer(components, code_dropout=end, **schedule)
    seen, size = watched(trainer), 3000
    for name in ("action_decoder", "posterior", "codebook", "prior", "info_embedder"):
        components[name].forward = stub_of(name, size)
    trainer.tokens = lambda batch: [torch.zeros(size, 1, 1)]
    many = {key: value[:1].expand(size, *value.shape[1:]) for key, value in batch.items() if "action" in key}
    many["observation.state"] = torch.zeros(size, 1, 2)
    trainer.slow.code_of = lambda *given: torch.zeros(size, dtype=torch.int64)
    for updates, share in zip((0, 10, 30, 40, 1000), expected, strict=True):
        trainer.slow.updates = updates
        told = float(trainer.compute_loss(many).metrics["code_dropout"])
        found = 1 - float(seen["action_decoder"][0][4].float().mean())
        assert told == pytest.approx(share) and found == pytest.approx(share, abs=0.04)
    components.eval()
    trainer.compute_loss(many)
    assert seen["action_decoder"][0][4].all()


def stub_of(name, size):
    """In place of a component that costs time, something of the right shape."""
    made = {"action_decoder": (size, 8, 2), "prior": (size, CODES), "info_embedder": (size, 1, 1)}.get(name, (size, 4))
    zeros = torch.zeros(made)
    return lambda *given: (zeros, torch.zeros(size, dtype=torch.int64)) if name == "codebook" else zeros


def test_the_average_follows_the_posterior_and_quickly_at_first(components, batch):
    trainer = make_learner(components, posterior_decay=0.3)
    name, live = next(iter(components["posterior"].named_parameters()))
    expected = live.detach().clone()
    for update in (1, 2, 3, 4):
        trainer.train_step(batch)
        share = 1 - min(0.3, (1 + update) / (10 + update))
        expected = expected + share * (live.detach() - expected)
    torch.testing.assert_close(dict(trainer.slow.averaged.named_parameters())[name], expected)
    assert not torch.equal(expected, live)
    assert trainer.slow.updates == 4


def test_codes_that_nothing_used_are_moved_and_the_optimizer_forgets_them_alone(components, batch):
    trainer = make_learner(components, replace_every=3)
    quantizer = components["codebook"].quantizer
    quantizer.codebook.data[:2] += 100  # so far off that nothing is near
    kept, seen = [], watched(trainer)
    for update in (1, 2, 3):
        if update == 3:
            dead = [k for k in range(CODES) if k not in kept]
            for known in trainer.optimizers["codebook"].state[quantizer.codebook].values():
                known += 1
        trainer.train_step(batch)
        kept += seen["codebook"][1][1].tolist()
        if update < 3:
            assert quantizer.uses.tolist() == [kept.count(k) for k in range(CODES)]
    dead = [k for k in range(CODES) if k not in kept]
    alive = sorted(set(kept))
    assert {0, 1} <= set(dead) and not quantizer.uses.any()
    distances = torch.cdist(quantizer.codebook[dead], quantizer.codebook[alive]).detach()
    assert distances.amin(1).max() < 0.02 * 10
    state = trainer.optimizers["codebook"].state[quantizer.codebook]
    for moment in (state["exp_avg"], state["exp_avg_sq"]):
        assert not moment[dead].any() and moment[alive].all()
    assert int(state["step"]) == 4  # three updates, and the one that was added above


def test_codes_used_less_than_least_uses_are_moved_too(components, batch):
    """Eighteen samples in three updates cannot use all of eight codes seven times."""
    trainer = make_learner(components, replace_every=3, least_uses=7)
    seen, used = watched(trainer), []
    for _ in range(3):
        trainer.train_step(batch)
        used += seen["codebook"][1][1].tolist()
    rare = {k for k in range(CODES) if used.count(k) < 7}
    state = trainer.optimizers["codebook"].state[components["codebook"].quantizer.codebook]
    forgotten = {k for k in range(CODES) if not state["exp_avg_sq"][k].any()}
    assert 0 < len(rare) < CODES and forgotten == rare


def test_an_update_that_is_left_out_changes_nothing(components, batch):
    trainer = make_learner(components)
    trainer.train_step(batch)
    before = copy.deepcopy([trainer.state_dict(), components.state_dict()])
    batch["action"][-1] = float("inf")
    assert trainer.train_step(batch)["skipped"]
    torch.testing.assert_close([trainer.state_dict(), components.state_dict()], before, rtol=0, atol=0, equal_nan=True)


def test_a_frozen_codebook_stays_as_it_is(components, batch):
    trainer = make_learner(components, replace_every=1, without=("codebook",))
    before = components["codebook"].quantizer.codebook.detach().clone()
    trainer.train_step(batch)
    assert torch.equal(components["codebook"].quantizer.codebook, before)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("code", ["sample", "best"])
def test_a_prediction_follows_the_guided_velocity_from_noise_with_one_code_of_the_prior(
    components, batch, weight, code
):
    trainer = make_trainer(components.eval(), guidance_weight=weight, code=code, integration_steps=3)
    batch = {key: value for key, value in batch.items() if key.startswith("observation")}
    predicted, again = (trainer.predict(batch, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(predicted, again)
    generator, decoder = torch.Generator().manual_seed(1), components["action_decoder"]
    with torch.no_grad():
        context = trainer.context(batch)
        logits = components["prior"](context)
        gumbel = -(-torch.rand(logits.shape, generator=generator).log()).log() if code == "sample" else 0.0
        chosen = (logits.log_softmax(-1) + gumbel).argmax(-1)
        codes = torch.stack([components["codebook"].quantizer.codebook[k] for k in chosen])
        x_t = torch.randn(6, 8, 2, generator=generator)
        for step in range(3):
            point = x_t, torch.full((6,), step / 3), context, codes
            known, unknown = (decoder(*point, torch.full((6,), given)) for given in (True, False))
            x_t = x_t + (unknown + weight * (known - unknown)) / 3
    torch.testing.assert_close(predicted, x_t)


@torch.no_grad()
def test_codes_are_drawn_as_often_as_the_prior_says(components, batch):
    trainer = make_trainer(components.eval())
    chances = torch.tensor([0.5, 0.3, 0.2, *[0.0] * 5])
    components["prior"].forward = lambda context: chances.log().expand(6, CODES)
    generator = torch.Generator().manual_seed(0)
    codebook = components["codebook"].quantizer.codebook
    drawn = torch.cat([trainer.condition(batch, generator)[1] for _ in range(100)])
    found = torch.cdist(drawn, codebook).argmin(1).bincount(minlength=CODES) / len(drawn)
    torch.testing.assert_close(found, chances, atol=0.05, rtol=0)


WRONG = [
    ({"loss": "l2_loss"}, {}, "cannot train with L2Loss\n    loss: {type: flow_matching}"),
    ({"prior_weight": 0}, {}, "prior_weight is 0\n    a number above 0: nothing else teaches the prior"),
    ({"posterior_decay": 1}, {}, "posterior_decay is 1\n    a number from 0, and below 1"),
    ({"code_dropout": True}, {}, "code_dropout is True"),
    ({"code_dropout_start": 0.5}, {}, "of code_dropout_start and code_dropout_updates one is missing"),
    ({"code_dropout_updates": 10}, {}, "of code_dropout_start and code_dropout_updates one is missing"),
    ({"code_dropout_start": -0.1, "code_dropout_updates": 0}, {}, "code_dropout_updates is 0\n    a whole number from 1"),
    ({"guidance_weight": math.inf}, {}, "guidance_weight is inf\n    a number from 0"),
    ({"code_dropout": 0}, {}, "guidance_weight is 1.5, and a velocity without the code is never learned"),
    ({"replace_every": 0}, {}, "replace_every is 0\n    a whole number from 1"),
    ({"least_uses": 1.5}, {}, "least_uses is 1.5\n    a whole number from 1"),
    ({"code": "mode"}, {}, "code is 'mode'\n    one of sample, best"),
    ({"execute_steps": 9}, {}, "execute_steps is 9"),
    ({}, {"prior": None}, "there is no component 'prior'"),
    ({}, {"codebook": None}, "there is no component 'codebook'"),
    ({}, {"head_backbone": None, "left_backbone": None, "right_backbone": None}, "there is no camera"),
    ({}, {"prior": {"codes": 9}}, "codes is 8 in the codebook, 9 in the prior"),
    ({}, {"posterior": {"code_dim": 3}}, "code_dim is 3 in the posterior, 4 in the codebook, 4 in the action_decoder"),
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


def test_a_codebook_that_nothing_teaches_or_whose_codes_are_averaged_is_refused(components):
    free = OPTIMIZER_BUILDER_REGISTRY.get("schedule_free_radam")(lr=0.1).build(components["codebook"].parameters())
    with pytest.raises(ConfigError, match="the optimizer of the codebook averages its codes"):
        make_trainer(components, optimizers={"codebook": free})
    components["codebook"].quantizer.noise_substitution = False
    with pytest.raises(ConfigError, match=r"nothing teaches its codebook\n.*noise_substitution=True"):
        make_trainer(components)


def test_the_full_size_is_as_large_as_it_says():
    backbones = {f"{camera}_backbone": 11_439_168 for camera in CAMERAS}
    coding = {"posterior": 6_356_000, "codebook": 2048, "prior": 6_339_136}
    rest = {"info_embedder": 6_318_592, "action_decoder": 35_236_376}
    assert full_sizes(FAMILY / "exp1/train.yaml") == {**backbones, **coding, **rest}


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_in_counts_average_and_schedule_too(tmp_path):
    """Codes are moved before and behind the cut, and neither the fifth nor the sixth update's counts are lost."""
    run_dir = assert_resumes_exactly(TINY, tmp_path, {"train.trainer.params.replace_every": 4})
    state = tensors_of(run_dir / "step_6")
    assert state["training_state/trainer/updates"] == 6
    assert int(state["codebook/quantizer.uses"].sum()) == 2 * SHORT["data.batch_size"]
    told = [line["code_dropout"] for line in lines_of(run_dir) if "code_dropout" in line]
    assert told == pytest.approx([0.2 * update / 50 for update in range(12)])


@pytest.mark.slow
def test_it_overfits_one_batch_and_its_policy_repeats_the_demonstrated_chunks_in_a_fresh_process_too(tmp_path):
    overrides = {
        "train.overfit_batches": 1,
        "train.max_steps": 300,
        "data.batch_size": 8,
        "train.save_dir": str(tmp_path),
    }
    run = run_of(TINY, overrides)
    batch = batch_of(run, 8)  # of `overfit_batches`, the one that there is
    before = chunk_error(run.trainer, batch)
    train(TINY, overrides)
    policy = load_policy(tmp_path)
    after = chunk_error(policy.trainer, batch)
    lines = [line["flow"] for line in lines_of(tmp_path) if "flow" in line]
    print(f"one batch: flow {lines[0]:.3f} -> {lines[-1]:.3f}; predicted chunks off by {before:.3f} -> {after:.3f}")
    assert lines[-1] < 0.2 * lines[0]
    assert after < 0.3 < 1 < before
    observation = observation_of(run)
    expected = policy.select_action(observation).tolist()
    assert action_in_a_fresh_process(tmp_path, observation) == pytest.approx(expected, rel=1e-5)


def chunk_error(trainer, batch):
    """Root mean square over the valid steps, in standard deviations of the data."""
    trainer.models.eval()
    predicted = trainer.predict(batch, torch.Generator().manual_seed(0))
    return float((predicted - batch["action"])[~batch["action_is_pad"]].square().mean().sqrt())


TWO_PROCESSES = """
import json, sys
from pathlib import Path
from experiment_training.components.trainer.imitation_learning.cfg_vqvae_flow_matching.slow_state import SlowState
from trainer.distributed import processes
from trainer.training import run_training

folder, after_update, seen = Path(sys.argv[1]), SlowState.after_update, []

def watched(self, world):
    after_update(self, world)
    seen.append([self.quantizer.codebook.tolist(), self.quantizer.uses.tolist()])

SlowState.after_update = watched
with processes() as world:
    settings = [*sys.argv[3:], f"train.save_dir={folder}/run"]
    run_training(sys.argv[2], settings, "none", world)
    world.first_decides(lambda: (folder / "run/step_11").rename(folder / "whole"))
    run_training(sys.argv[2], settings, "auto", world)
    (folder / f"{world.rank}.json").write_text(json.dumps(seen))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_have_one_codebook_count_together_and_resume_exactly(tmp_path):
    """Codes are moved behind updates 4 and 8; the run is cut behind 6 and ends behind 11."""
    (tmp_path / "job.py").write_text(TWO_PROCESSES)
    given = {**SHORT, "train.max_steps": 11, "train.save_every_steps": 6, "train.trainer.params.replace_every": 4}
    arguments = [str(tmp_path), str(TINY), *(f"{key}={value}" for key, value in given.items())]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "job.py"]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXPERIMENTS.parent), "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **environment}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert [codes for codes, _ in first] == [codes for codes, _ in other]
    assert first[11:] == first[6:11] and len(first) == 16
    samples = 2 * SHORT["data.batch_size"]  # of an update; the first process counts
    assert [sum(counts) for _, counts in first[:11]] == [samples * since for since in (1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3)]
    assert not any(sum(counts) for _, counts in other)
    assert tensors_of(tmp_path / "run/step_6")["codebook/quantizer.uses"].tolist() == first[5][1]
    assert_equal_checkpoints(tmp_path / "run/step_11", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_where_demonstrations_go_two_ways_a_code_names_one_of_them_and_guidance_takes_it(tmp_path):
    """The way point that the first action leads to is 0.6 left, or 0.6 right, and the images are too coarse to tell."""
    away = itertools.product(("config_paths", "params", "optims"), CAMERAS[1:])
    data = {"cameras": ["head"], "image_size": 8, "action_horizon": 8, "episodes": 400}
    overrides = {
        "train.save_dir": str(tmp_path),
        "train.max_steps": 250,
        "train.save_every_steps": 250,
        "train.trainer.params.replace_every": 100,
        "data.batch_size": 64,
        "data.datamodule.params": data,
        "data.normalization": {"_merge_": "replace", "_value_": {"observation.images.head": "imagenet"}},
        "model.component_build_args.head_backbone.freeze": True,
        **{f"model.component_{what}.{camera}_backbone": None for what, camera in away},
    }
    began = time.process_time()
    train(TINY, overrides)
    print(f"trained in {time.process_time() - began:.0f} s of one core")
    policy, run = load_policy(tmp_path), run_of(TINY, overrides)
    models, slow = policy.trainer.models, policy.trainer.slow
    begins = run.data.prepare(run.data.dataset.__getitems__([24 * episode for episode in range(200)]))
    with torch.no_grad():
        chunk = policy.trainer.context(begins), None, begins["action"], begins["action_is_pad"]
        codes = slow.quantizer.nearest(models["posterior"](*chunk))
    is_left = way_of(begins["action"], begins, run) > 0
    agreed = sum(int(torch.stack([is_left[codes == k], ~is_left[codes == k]]).sum(1).max()) for k in codes.unique())
    print(f"{len(codes.unique())} codes in use; of a code's episodes {agreed / 200:.2f} go one way")
    assert agreed > 0.95 * 200

    batch = {key: one[:8].repeat_interleave(100, 0) for key, one in begins.items() if torch.is_tensor(one)}
    distance = {}
    for weight, steps in itertools.product((0.0, 1.0, 1.5), (1, 10)):
        policy.trainer.guidance_weight, policy.trainer.integration_steps = weight, steps
        predicted = policy.trainer.predict(batch, torch.Generator().manual_seed(0))
        way = way_of(predicted, batch, run).unflatten(0, (8, 100))
        left = (way > 0).float().mean(1)
        rarer = float(torch.minimum(left, 1 - left).mean())
        near = float(((way.abs() - 0.6).abs() < 0.2).float().mean())
        distance[weight, steps] = rarer, float(way.abs().mean())
        print(
            f"weight {weight}, {steps} steps: rarer way {rarer:.2f}, near a way point {near:.2f}, {way.abs().mean():.2f} off"
        )
    assert distance[1.5, 1][0] > 0.15 > distance[0.0, 1][0]  # one step without a code takes the mean of both ways
    assert distance[0.0, 1][1] < distance[1.0, 1][1] < distance[1.5, 1][1]


def way_of(action, batch, run):
    """Where a chunk's first action leads to, across [B]."""
    normalizer = run.data.prepare.normalizer
    state = normalizer.denormalize("observation.state", batch["observation.state"])
    return state[:, 0, 1] + normalizer.denormalize("action", action)[:, 0, 1]
