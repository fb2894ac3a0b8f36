"""The naive flow-matching policy: what its loss is, what its policy sees and predicts, that it learns, and is refused."""

import re

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

from experiment_training.components.loss.l2 import L2Loss
from model_constructor import ConfigError, build_model
from trainer import load_policy, train

FAMILY = EXPERIMENTS / "naive_flow_matching_policy"
MODELS = EXPERIMENTS.parent / "experiment_models/naive_flow_matching_policy"
TINY = FAMILY / "exp1/tiny.yaml"
CAMERAS = ("head", "left", "right")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run():
    """Two images and two states of history, so that their order counts."""
    params = {f"data.datamodule.params.obs_{kind}_history": 2 for kind in ("images", "proprio")}
    run = run_of(TINY, {**SHORT, **params})
    run.models.eval()  # batch statistics would mix the samples
    return run


def watched(models):
    """What the embedder and the decoder were last given and made."""
    seen = {}
    for name in ("info_embedder", "action_decoder"):
        models[name].register_forward_hook(lambda module, given, made, name=name: seen.update({name: (given, made)}))
    return seen


@torch.no_grad()
def test_the_loss_is_the_mean_squared_error_of_the_velocity_over_the_steps_within_the_episode(run):
    seen, batch = watched(run.models), batch_of(run, 8)
    output = run.trainer.compute_loss(batch)
    (x_t, time, _), predicted = seen["action_decoder"]
    errors = []
    for b in range(8):
        for t in range(8):
            if not batch["action_is_pad"][b, t]:
                velocity = (batch["action"][b, t] - x_t[b, t]) / (1 - time[b])  # what is left, over its time
                errors += ((predicted[b, t] - velocity) ** 2).tolist()
    assert float(output.loss) == pytest.approx(np.mean(errors), rel=1e-3)
    assert int(output.weight) == len(errors) / 2 < 8 * 8


@torch.no_grad()
def test_the_embedder_reads_the_tokens_of_every_camera_and_time_in_order_and_the_decoder_what_it_makes(run):
    seen, batch = watched(run.models), batch_of(run, 4)
    run.trainer.compute_loss(batch)
    (state, tokens), context = seen["info_embedder"]
    assert torch.equal(state, batch["observation.state"])
    expected = [
        run.models[f"{camera}_backbone"](batch[f"observation.images.{camera}"][:, time])
        for camera in CAMERAS
        for time in range(2)
    ]
    torch.testing.assert_close(tokens, torch.cat(expected, dim=1))
    assert context.shape == (4, 2 + tokens.shape[1], 32)
    assert seen["action_decoder"][0][2] is context


@torch.no_grad()
@pytest.mark.parametrize("key", ["observation.state", *(f"observation.images.{camera}" for camera in CAMERAS)])
def test_a_prediction_depends_on_what_every_sensor_sees_at_every_time(run, key):
    batch = batch_of(run, 2)
    predicted = run.trainer.predict(batch, torch.Generator().manual_seed(0))
    for time in range(2):
        changed = {**batch, key: batch[key].clone()}
        changed[key][:, time] += 1
        other = run.trainer.predict(changed, torch.Generator().manual_seed(0))
        assert (other - predicted).abs().amax((1, 2)).min() > 1e-5


@torch.no_grad()
def test_a_midpoint_policy_evaluates_the_velocity_halfway(run):
    trainer, batch = run.trainer, batch_of(run, 2)
    trainer.solver, trainer.integration_steps = "midpoint", 2
    predicted = trainer.predict(batch, torch.Generator().manual_seed(1))
    trainer.solver, trainer.integration_steps = "euler", 10
    x = torch.randn(2, 8, 2, generator=torch.Generator().manual_seed(1))
    context = trainer.condition(batch)
    for begin in (0.0, 0.5):
        halfway = x + 0.25 * run.models["action_decoder"](x, torch.full((2,), begin), *context)
        x = x + 0.5 * run.models["action_decoder"](halfway, torch.full((2,), begin + 0.25), *context)
    torch.testing.assert_close(predicted, x)


def test_every_parameter_gets_a_gradient(run):
    run.models.zero_grad(set_to_none=True)
    run.trainer.compute_loss(batch_of(run, 8)).loss.backward()
    assert without_gradient(run.models) == []


@pytest.mark.parametrize(
    ("components", "params", "message"),
    [
        ({}, {"loss": L2Loss()}, "it cannot train with L2Loss\n    loss: {type: flow_matching}"),
        ({}, {"execute_steps": 4, "ensemble_decay": 0.01}, "leave out one of the two"),
        ({}, {"execute_steps": 9}, "execute_steps is 9\n    a whole number from 1 to 8"),
        ({"info_embedder": None}, {}, "there is no component 'info_embedder'"),
        ({"head_backbone": None, "left_backbone": None, "right_backbone": None}, {}, "there is no camera\n    a component head_"),
        ({"head_bakbone": nn.Identity()}, {}, "no use for the component 'head_bakbone'\n    known here: action_decoder, head_backbone, info_embedder   did you mean 'head_backbone'?"),
    ],
)  # fmt: skip
def test_a_wrong_set_up_is_explained(run, components, params, message):
    models = {name: one for name, one in {**dict(run.models.items()), **components}.items() if one is not None}
    with pytest.raises(ConfigError, match=re.escape(message)):
        type(run.trainer)(nn.ModuleDict(models), {}, **{"loss": run.loss, "device": "cpu", **params})


@torch.no_grad()
def test_a_camera_that_the_data_set_does_not_have_is_told(run):
    batch = batch_of(run, 2)
    batch["observation.images.wright"] = batch.pop("observation.images.right")
    with pytest.raises(
        ConfigError, match=r"component right_backbone looks at .*images.right, .*\n.* did you mean 'wright'\?"
    ):
        run.trainer.compute_loss(batch)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    assert_resumes_exactly(TINY, tmp_path)


@pytest.mark.slow
def test_the_full_size_is_as_large_as_it_says():
    backbones = {f"{camera}_backbone": 11_439_168 for camera in CAMERAS}
    rest = {"info_embedder": 6_318_592, "action_decoder": 35_218_968}
    assert full_sizes(FAMILY / "exp1/train.yaml") == {**backbones, **rest}


@pytest.mark.slow
@torch.no_grad()
def test_the_components_are_one_graph_that_takes_the_weights_of_each_under_its_name():
    width, chunk, state_dim = {"dim": 16, "heads": 2}, {"horizon": 4, "action_dim": 2}, {"state_dim": 3}
    built = {f"{camera}_backbone": ("camera_backbone", {"dim": 16}) for camera in CAMERAS}
    built |= {
        "info_embedder": ("info_embedder", width | state_dim),
        "action_decoder": ("action_decoder", width | chunk),
    }
    models = {
        name: build_model(MODELS / f"exp1/{file}.yaml", params=params).eval() for name, (file, params) in built.items()
    }
    together = {**width, **chunk, **state_dim, "image_size": 64}
    policy = build_model(MODELS / "exp1/policy.yaml", params=together).eval()
    policy.load_state_dict(
        {f"{name}.{key}": one for name, model in models.items() for key, one in model.state_dict().items()}
    )
    state, noisy, time = torch.randn(2, 1, 3), torch.randn(2, 4, 2), torch.rand(2)
    images = torch.rand(3, 2, 3, 64, 64)
    tokens = torch.cat(
        [models[f"{camera}_backbone"](image) for camera, image in zip(CAMERAS, images, strict=True)], dim=1
    )
    expected = models["action_decoder"](noisy, time, models["info_embedder"](state, tokens))
    torch.testing.assert_close(policy(*images, state, noisy, time), expected)


@pytest.mark.slow
def test_the_transformers_of_hugging_face_are_frozen_and_as_large_as_they_say():
    with torch.device("meta"):
        backbone = build_model(MODELS / "exp2/camera_backbone.yaml")
    assert sum(one.numel() for one in backbone.parameters()) == 21_826_304
    one_layer = {"source": None, "layers": 1}  # instead of weights that have to be fetched
    params = {f"model.component_params.{camera}_backbone": one_layer for camera in CAMERAS}
    assert full_sizes(FAMILY / "exp2/train.yaml", params)["action_decoder"] == 35_218_968
    run = run_of(FAMILY / "exp2/tiny.yaml", SHORT)
    before = {name: value.clone() for name, value in run.models["head_backbone"].state_dict().items()}
    for update in range(2):  # the first one's rate is 0
        run.step(run.data.dataset.__getitems__(range(8)), update)
    assert without_gradient(run.models) == []
    after = run.models["head_backbone"].state_dict()
    assert {name for name in after if not torch.equal(before[name], after[name])} == {"project.weight", "project.bias"}
    assert run.trainer.predict(batch_of(run, 2)).shape == (2, 8, 2)


@pytest.mark.slow
def test_it_overfits_one_batch_and_its_policy_repeats_the_demonstrated_chunks_in_a_fresh_process_too(tmp_path):
    overrides = {"train.overfit_batches": 1, "train.max_steps": 300, "train.save_dir": str(tmp_path), "train.ema": None}
    run = run_of(TINY, overrides)
    batch = batch_of(run, 16)  # of `overfit_batches`, the one that there is
    train(TINY, overrides)
    lines = [line["loss"] for line in lines_of(tmp_path) if "loss" in line]
    policy = load_policy(tmp_path)
    valid = ~batch["action_is_pad"]
    predicted = policy.trainer.predict(batch, torch.Generator().manual_seed(0))
    error = float((predicted - batch["action"])[valid].square().mean().sqrt())
    print(f"one batch: loss {lines[0]:.3f} -> {lines[-1]:.3f}; predicted chunks off by {error:.3f} standard deviations")
    assert lines[-1] < 0.2 * lines[0]
    assert error < 0.2
    observation = observation_of(run)
    action = policy.select_action(observation)
    assert np.abs(action - run.data.dataset[0]["action"][0].numpy()).max() < 0.3
    assert action_in_a_fresh_process(tmp_path, observation) == pytest.approx(action.tolist(), rel=1e-5)
