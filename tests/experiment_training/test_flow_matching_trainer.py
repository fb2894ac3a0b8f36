"""The flow-matching trainer: what its loss is, what its policy predicts, and what it refuses."""

import re

import pytest
import torch
from torch import nn

from model_constructor import ConfigError
from trainer.registry import LOSS_BUILDER_REGISTRY, OPTIMIZER_BUILDER_REGISTRY, TRAINER_REGISTRY

HORIZON, ACTION_DIM, STATE_DIM = 4, 2, 3


@pytest.fixture(autouse=True)
def one_thread():
    """These models are too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Embedder(nn.Module):
    """[B, 1, D] -> [B, W]"""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(STATE_DIM, 16)

    def forward(self, state):
        return self.linear(state[:, -1])


class Decoder(nn.Module):
    """Step by step: [B, T, A], [B], [B, W] -> [B, T, A]; keeps what it was asked."""

    def __init__(self, **params):
        super().__init__()
        self.params = params or {"horizon": HORIZON, "action_dim": ACTION_DIM}
        self.net = nn.Sequential(nn.Linear(ACTION_DIM + 1 + 16, 64), nn.SiLU(), nn.Linear(64, ACTION_DIM))
        self.asked = None

    def forward(self, x_t, time, context):
        self.asked = (x_t, time, context)
        rest = torch.cat([time[:, None], context], dim=-1)[:, None].expand(-1, x_t.shape[1], -1)
        return self.net(torch.cat([x_t, rest], dim=-1))


def make_trainer(models=None, loss="flow_matching", loss_params=None, **params):
    torch.manual_seed(0)
    models = nn.ModuleDict(
        models if models is not None else {"observation_embedder": Embedder(), "action_decoder": Decoder()}
    )
    factory = OPTIMIZER_BUILDER_REGISTRY.get("adamw_warmup_cosine_decay")(peak_lr=1e-2, total_steps=300)
    optimizers = {name: factory.build(model.parameters()) for name, model in models.items()}
    module = LOSS_BUILDER_REGISTRY.get(loss)(**(loss_params or {})).build()
    return TRAINER_REGISTRY.get("flow_matching_trainer")(models, optimizers, module, "cpu", **params)


def make_batch(size=32, seed=0):
    """Actions that follow from the state: the chunk climbs from one state number to another."""
    state = torch.randn(size, 1, STATE_DIM, generator=torch.Generator().manual_seed(seed))
    chunk = state[:, :, :1].expand(-1, HORIZON, ACTION_DIM) * torch.tensor([1.0, -0.5])
    return {
        "observation.state": state,
        "action": chunk.contiguous(),
        "action_is_pad": torch.zeros(size, HORIZON, dtype=torch.bool),
    }


def loss_of(trainer, batch, seed=0):
    torch.manual_seed(seed)
    return trainer.compute_loss(batch)


def test_the_loss_compares_the_predicted_velocity_with_that_of_the_path_the_decoder_saw():
    trainer, batch = make_trainer(), make_batch()
    loss = loss_of(trainer, batch).loss
    decoder, embedder = trainer.models["action_decoder"], trainer.models["observation_embedder"]
    x_t, time, context = decoder.asked
    assert torch.equal(context, embedder(batch["observation.state"]))
    velocity = (batch["action"] - x_t) / (1 - time.view(-1, 1, 1))  # what is left of a straight path, over its time
    expected = (decoder(x_t, time, context) - velocity).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-4)


def test_with_cameras_the_embedder_gets_the_tokens_of_each_by_its_name_after_the_state():
    class Seeing(Embedder):
        def forward(self, state, *tokens):
            self.seen = tokens
            return super().forward(state)

    class Doubled(nn.Module):
        def forward(self, image):
            return 2 * image.flatten(2)  # [B, 3, places]: three tokens

    embedder, cameras = Seeing(), {"left_backbone": Doubled(), "head_backbone": Doubled()}
    models = nn.ModuleDict({"observation_embedder": embedder, "action_decoder": Decoder(), **cameras})
    module = LOSS_BUILDER_REGISTRY.get("flow_matching")().build()
    trainer = TRAINER_REGISTRY.get("flow_matching_trainer")(models, {}, module, "cpu")
    images = {f"observation.images.{name}": torch.rand(2, 2, 3, 4, 4) for name in ("head", "left")}  # two of each
    trainer.compute_loss({**make_batch(size=2), **images})
    for name, tokens in zip(("head", "left"), embedder.seen, strict=True):
        older, newer = (2 * images[f"observation.images.{name}"][:, time].flatten(2) for time in range(2))
        assert torch.equal(tokens, torch.cat([older, newer], dim=1))


def test_padded_steps_have_no_influence_and_the_weight_is_the_number_of_the_others():
    trainer, batch = make_trainer(), make_batch()
    batch["action_is_pad"][:, 2:] = True
    before = loss_of(trainer, batch)
    batch["action"] = torch.cat([batch["action"][:, :2], torch.full((32, 2, ACTION_DIM), 1e6)], dim=1)
    after = loss_of(trainer, batch)
    assert torch.equal(before.loss, after.loss)
    assert int(before.weight) == 32 * 2
    batch["action_is_pad"][:] = False
    assert float(loss_of(trainer, batch).loss.detach()) > 1e3


@pytest.mark.parametrize(("noise_at", "solver"), [(0, "euler"), (1, "midpoint")])
def test_it_learns_a_policy_that_predicts_the_action_of_an_unseen_state(noise_at, solver):
    trainer = make_trainer(loss_params={"noise_at": noise_at}, solver=solver, integration_steps=5)
    unseen = make_batch(size=256, seed=10_000)
    generator = torch.Generator().manual_seed(0)
    untrained = (trainer.predict(unseen, generator) - unseen["action"]).square().mean()
    for step in range(300):
        trainer.train_step(make_batch(seed=step))
    trained = (trainer.predict(unseen, generator) - unseen["action"]).square().mean()
    assert float(trained) < 0.1 < 0.5 < float(untrained)


def test_a_prediction_is_a_chunk_that_repeats_with_its_generator_and_leaves_no_gradient():
    trainer, batch = make_trainer(), make_batch(size=5)
    observation = {"observation.state": batch["observation.state"]}  # no action: that is what is asked for
    first, again, other = (trainer.predict(observation, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (5, HORIZON, ACTION_DIM) and not first.requires_grad
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_prediction_integrates_the_decoder_from_noise_in_the_steps_that_were_set():
    trainer, batch = make_trainer(integration_steps=3), make_batch(size=5)
    decoder, embedder = trainer.models["action_decoder"], trainer.models["observation_embedder"]
    predicted = trainer.predict(batch, torch.Generator().manual_seed(1))
    x_t = torch.randn(5, HORIZON, ACTION_DIM, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for step in range(3):
            x_t = x_t + decoder(x_t, torch.full((5,), step / 3), embedder(batch["observation.state"])) / 3
    torch.testing.assert_close(predicted, x_t)


def test_how_many_actions_a_policy_executes_is_kept_for_it():
    assert make_trainer().execute_steps is None
    assert make_trainer(execute_steps=HORIZON).execute_steps == HORIZON
    assert make_trainer(ensemble_decay=0.01).ensemble_decay == 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": {"action_decoder": Decoder()}}, "there is no component 'observation_embedder'"),
        ({"models": {"observation_embedder": Embedder()}}, "there is no component 'action_decoder'"),
        (
            {"models": {"observation_embedder": Embedder(), "action_decoder": Decoder(horizon=4)}},
            "declare `horizon` and `action_dim` under params:",
        ),
        ({"loss": "l2_loss"}, "cannot train with L2Loss\n    loss: {type: flow_matching}"),
        ({"solver": "heun"}, "solver is 'heun'\n    one of euler, midpoint"),
        ({"integration_steps": 0}, "integration_steps is 0\n    a whole number from 1"),
        ({"execute_steps": HORIZON + 1}, "execute_steps is 5\n    a whole number from 1 to 4"),
        ({"execute_steps": 0}, "execute_steps is 0"),
        ({"ensemble_decay": True}, "ensemble_decay is True"),
        ({"execute_steps": 1, "ensemble_decay": 0.01}, "an ensemble predicts at every step: leave out one of the two"),
    ],
)
def test_a_wrong_set_up_is_explained(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_trainer(**arguments)
