"""The ACT trainer: its loss is that of lerobot's policy on the same weights; what its policy predicts; what it refuses."""

import re
import sys
from pathlib import Path

import pytest
import torch
from lerobot.policies.act.modeling_act import ACTPolicy, ACTTemporalEnsembler
from torch import nn

from model_constructor import ConfigError, build_model
from trainer.execution import TemporalEnsemble
from trainer.registry import LOSS_BUILDER_REGISTRY, OPTIMIZER_BUILDER_REGISTRY, TRAINER_REGISTRY

sys.path.append(str(Path(__file__).parents[1] / "experiment_models"))
from key_map import load_foreign
from proof import ZOO, randomise
from test_zoo_policies import ACT_KEYS, SMALL, acts

LOW_DIM = {"cameras": 0, "env_dim": 4}
pytestmark = pytest.mark.usefixtures("one_thread")


def make_policy(**params):
    return build_model(ZOO / "act" / "act.yaml", params={**SMALL, **LOW_DIM, **params}).train()


def make_trainer(policy, loss="act_loss", loss_params=None, **params):
    models = nn.ModuleDict(policy if isinstance(policy, dict) else {"policy": policy})
    factory = OPTIMIZER_BUILDER_REGISTRY.get("adamw_warmup_cosine_decay")(peak_lr=3e-3, total_steps=300)
    optimizers = {name: factory.build(model.parameters()) for name, model in models.items()}
    module = LOSS_BUILDER_REGISTRY.get(loss)(**(loss_params or {})).build()
    return TRAINER_REGISTRY.get("act_trainer")(models, optimizers, module, "cpu", **params)


def make_batch(params, size=3, history=1):
    """As the data set gives it: observations are windows; the chunks end 0, 1, 2, ... actions before their end."""
    batch = {
        "observation.state": torch.randn(size, history, params["state_dim"]),
        "action": torch.randn(size, params["chunk"], params["action_dim"]),
        "action_is_pad": torch.arange(params["chunk"]) >= params["chunk"] - torch.arange(size)[:, None],
    }
    for camera in range(params["cameras"]):
        batch[f"observation.images.{camera}"] = torch.rand(size, history, 3, 64, 96)
        batch[f"observation.images.{camera}_is_pad"] = torch.zeros(size, history, dtype=torch.bool)
    if params["env_dim"]:
        batch["observation.environment_state"] = torch.randn(size, history, params["env_dim"])
    return batch


@pytest.mark.parametrize(
    ("params", "kl_weight"),
    [
        pytest.param(LOW_DIM, 10.0, id="environment state"),
        pytest.param(LOW_DIM, 2.0, id="another weight of the KL"),
        pytest.param({"cameras": 2, "env_dim": 0}, 10.0, id="two cameras"),
        pytest.param({**LOW_DIM, "use_vae": False}, 10.0, id="no VAE"),
    ],
)
def test_loss_and_gradients_are_those_of_lerobots_policy_on_the_same_weights(params, kl_weight):
    ours, network = acts(**{**SMALL, **params})
    randomise(network)
    load_foreign(ours, network.state_dict(), ACT_KEYS)
    network.config.kl_weight = kl_weight
    theirs = ACTPolicy(network.config)
    theirs.model = network
    trainer, batch = make_trainer(ours.train(), loss_params={"kl_weight": kl_weight}), make_batch(ours.params)
    present = {key: value[:, -1] if key.startswith("observation") else value for key, value in batch.items()}
    torch.manual_seed(1)  # of the latent
    output = trainer.compute_loss(batch)
    torch.manual_seed(1)
    expected, parts = theirs.train()(present)
    found = {name: float(value) for name, value in {"loss": output.loss, **output.metrics}.items()}
    terms = {"loss": float(expected), "l1": parts["l1_loss"], "kl": parts.get("kld_loss", 0.0)}
    assert found == pytest.approx(terms, rel=1e-4)
    output.loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.embed_state.weight.grad, network.encoder_robot_state_input_proj.weight.grad)


def test_of_a_history_only_the_present_is_read():
    policy = make_policy()
    batch = make_batch(policy.params, history=3)
    trainer = make_trainer(policy.eval())
    expected = trainer.compute_loss(batch).loss
    for key in ("observation.state", "observation.environment_state"):
        batch[key][:, :-1] = float("nan")
    assert torch.equal(trainer.compute_loss(batch).loss, expected)
    batch["observation.state"][:, -1] += 1
    assert not torch.equal(trainer.compute_loss(batch).loss, expected)


def test_what_stands_behind_an_episodes_end_has_no_effect_and_its_count_stays_in_the_mean():
    policy = make_policy(use_vae=False)
    batch = make_batch(policy.params)
    trainer = make_trainer(policy.eval())
    error = (trainer.predict(batch) - batch["action"]).abs()
    error[batch["action_is_pad"]] = 0.0
    batch["action"][batch["action_is_pad"]] = float("nan")
    output = trainer.compute_loss(batch)
    assert float(output.loss) == pytest.approx(float(error.mean()))
    assert output.weight is None  # a mean over samples: micro-batches and processes count by their size


def test_a_policy_that_was_trained_predicts_the_actions_of_an_observation_and_draws_nothing():
    policy = make_policy(dropout=0.0)
    trainer, batch = make_trainer(policy), make_batch(policy.params, size=16)
    batch["action"] = batch["observation.state"].repeat(1, policy.params["chunk"], 1)[
        ..., : policy.params["action_dim"]
    ]
    for _ in range(150):
        trainer.train_step(batch)
    observation = {key: value for key, value in batch.items() if key.startswith("observation")}
    policy.eval()
    state = torch.get_rng_state()
    chunk = trainer.predict(observation)
    assert chunk.shape == batch["action"].shape and not chunk.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    valid = ~batch["action_is_pad"]
    assert float((chunk - batch["action"])[valid].abs().mean()) < 0.2 < float(batch["action"][valid].abs().mean())


@pytest.mark.parametrize("decay", [0.01, 0.0, -0.2])
def test_temporal_ensembling_is_lerobots(decay):
    chunks = torch.randn(20, 1, 6, 3)  # steps, batch, horizon, action
    ours, theirs = TemporalEnsemble(decay), ACTTemporalEnsembler(decay, chunk_size=6)
    for chunk in chunks:
        ours.add(chunk[0].numpy())
        torch.testing.assert_close(torch.from_numpy(ours.action())[None], theirs.update(chunk))


def test_a_policys_way_to_execute_is_told_to_it():
    trainer = make_trainer(make_policy(), ensemble_decay=0.01)
    assert (trainer.ensemble_decay, trainer.execute_steps) == (0.01, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"loss": "l2_loss"}, "it cannot train with L2Loss", id="another loss"),
        pytest.param({"execute_steps": 7}, "execute_steps is 7", id="more steps than the chunk has"),
        pytest.param({"execute_steps": True}, "execute_steps is True", id="no number"),
        pytest.param({"execute_steps": 2, "ensemble_decay": 0.01}, "ensemble_decay is 0.01", id="both at once"),
        pytest.param({"policy": {"actor": nn.Linear(1, 1)}}, "the components are actor", id="another component"),
        pytest.param({"policy": nn.Linear(1, 1)}, "does not declare cameras, chunk, env_dim", id="another policy"),
    ],
)
def test_what_it_cannot_train_is_told_when_it_is_made(change, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_trainer(**{"policy": make_policy(), **change})


@pytest.mark.parametrize("kl_weight", [-1.0, float("nan"), "10", True])
def test_a_weight_of_the_kl_that_is_no_number_from_0_is_refused(kl_weight):
    with pytest.raises(ConfigError, match="kl_weight is"):
        LOSS_BUILDER_REGISTRY.get("act_loss")(kl_weight=kl_weight)


def test_a_prediction_of_another_shape_than_the_actions_is_refused():
    loss = LOSS_BUILDER_REGISTRY.get("act_loss")().build()
    with pytest.raises(ValueError, match=re.escape("the prediction is [2, 1, 3] and its target [2, 4, 3]")):
        loss(torch.zeros(2, 1, 3), torch.zeros(2, 4, 3), torch.zeros(2, 4, dtype=torch.bool))


def test_a_data_set_with_other_cameras_than_the_policy_is_told():
    policy = make_policy(cameras=2, env_dim=0)
    batch = make_batch({**policy.params, "cameras": 1})
    with pytest.raises(ConfigError, match="the policy has 2 cameras, the data set 1"):
        make_trainer(policy).compute_loss(batch)
