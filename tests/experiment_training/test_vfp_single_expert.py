"""vfp_single_expert: its loss term by term, absent cameras, the latent, depth, and runs of its tiny configs."""

import copy
import functools
import math
import re
from pathlib import Path

import pytest
import torch
from families import action_in_a_fresh_process, assert_resumes_exactly, full_sizes, lines_of, observation_of, run_of
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence
from toy_compare import tensors_of

from model_constructor import ConfigError, build_model
from trainer import load_policy, train
from trainer.config import load_run_config
from trainer.registry import LOSS_BUILDER_REGISTRY, TRAINER_REGISTRY

ROOT = Path(__file__).resolve().parents[2]
MODELS, CONFIGS = (ROOT / folder / "vfp_single_expert" for folder in ("experiment_models", "experiment_training"))
HORIZON, LATENT_DIM, SIZE = 6, 4, 16
CAMERAS = ("head", "left", "right")
SMALL = {"dim": 16, "heads": 2, "depth": 1}
CHUNK = {"horizon": HORIZON, "action_dim": 2}
PARAMS = {
    "exp1/info_embedder": {**SMALL, "state_dim": 2, "semantic_tokens": 3},
    "exp1/posterior": {**SMALL, **CHUNK, "latent_dim": LATENT_DIM},
    "exp1/prior": {**SMALL, "latent_dim": LATENT_DIM},
    "exp1/action_decoder": {**SMALL, **CHUNK, "latent_dim": LATENT_DIM},
    "exp2/multimodal_bridge": {**SMALL, "depth_dim": 3 * 64},
}
PAIR, DEPTH = ("exp1/posterior", "exp1/prior"), ("exp2/multimodal_bridge",)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Patches(nn.Module):
    """In place of a backbone: [N, 3, 16, 16] -> 4 tokens [N, 4, 16]."""

    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 16, 8, 8)

    def forward(self, image):
        return self.net(image).flatten(2).mT


class Depth(nn.Module):
    """In place of a depth network: the patches themselves, [N, 3, 16, 16] -> [N, 4, 192]."""

    def forward(self, image):
        return nn.functional.unfold(image, 8, stride=8).mT


@functools.cache
def built(name, changes=()):
    return build_model(MODELS / f"{name}.yaml", params={**PARAMS[name], **dict(changes)})


def make_models(*extra, cameras=CAMERAS, latent_dim=LATENT_DIM, causal=True):
    """Weights that are nowhere zero, so that everything has an influence."""
    torch.manual_seed(0)
    models = nn.ModuleDict({f"{camera}_backbone": Patches() for camera in cameras})
    for name in ("exp1/info_embedder", *extra):
        models[Path(name).name] = copy.deepcopy(built(name))
    models["action_decoder"] = copy.deepcopy(
        built("exp1/action_decoder", (("latent_dim", latent_dim), ("causal", causal)))
    )
    if "exp2/multimodal_bridge" in extra:
        models["depth_encoder"] = Depth()
    for parameter in models.parameters():
        nn.init.normal_(parameter, std=0.3)
    return models


def make_trainer(*extra, cameras=CAMERAS, models=None, loss="sinkhorn_knopp", latent_dim=None, **params):
    latent_dim = (LATENT_DIM if PAIR[0] in extra else 0) if latent_dim is None else latent_dim
    models = make_models(*extra, cameras=cameras, latent_dim=latent_dim) if models is None else models
    exact = {"p": 1, "blur": 1e-3, "scaling": 0.9, "lam_state": 0.5} if loss == "sinkhorn_knopp" else {}
    module = LOSS_BUILDER_REGISTRY.get(loss)(**exact).build()
    return TRAINER_REGISTRY.get("vfp_single_expert_trainer")(models, {}, module, "cpu", **params)


def make_batch(size=4, cameras=CAMERAS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = {
        f"observation.images.{camera}": torch.randn(size, 1, 3, SIZE, SIZE, generator=generator) for camera in cameras
    }
    is_pad = torch.arange(HORIZON) >= torch.tensor([HORIZON, 4, 1, 5] * size)[:size, None]  # [B, T]
    return {
        "observation.state": torch.randn(size, 1, 2, generator=generator),
        **images,
        "action": torch.randn(size, HORIZON, 2, generator=generator),
        "action_is_pad": is_pad,
    }


def watched(trainer):
    """What each component was given and what it gave, filled by the next call."""
    seen = {}
    for name, model in trainer.models.items():
        model.register_forward_hook(lambda _, given, gave, name=name: seen.update({name: (given, gave)}))
    return seen


def loss_of(trainer, batch, seed=0):
    torch.manual_seed(seed)
    return trainer.compute_loss(batch)


def test_the_loss_is_the_sum_of_its_weighted_terms_each_by_a_slow_reference():
    trainer, batch = make_trainer(*PAIR, kl_weight=0.3, sinkhorn_weight=0.7, camera_dropout=0.5), make_batch()
    seen = watched(trainer)
    with torch.no_grad():
        output = loss_of(trainer, batch)
    (x_t, time, *_, latent), velocity = seen["action_decoder"]
    steps = [(b, t) for b in range(4) for t in range(HORIZON) if not batch["action_is_pad"][b, t]]

    flow = 0.0
    for b, t in steps:
        for a in range(2):  # what is left of a straight path, over the time that is left
            wanted = (batch["action"][b, t, a] - x_t[b, t, a]) / (1 - time[b])
            flow += float(velocity[b, t, a] - wanted) ** 2 / (2 * len(steps))

    posterior, prior = (
        Independent(Normal(mean, (log_variance / 2).exp()), 1)
        for mean, log_variance in (seen[name][1] for name in ("posterior", "prior"))
    )
    divergence = kl_divergence(posterior, prior)
    kl = sum(float(divergence[b]) for b, _ in steps) / len(steps)
    assert (latent - posterior.mean).abs().max() < 6 * posterior.stddev.max() and not latent.equal(posterior.mean)

    cost = torch.zeros(4, 4)
    for i in range(4):
        for j in range(4):
            chunks = [
                torch.where(batch["action_is_pad"][b, :, None], 0.0, one[b])
                for b, one in ((i, x_t + (1 - time.view(-1, 1, 1)) * velocity), (j, batch["action"]))
            ]
            states = batch["observation.state"][i] - batch["observation.state"][j]
            cost[i, j] = ((chunks[0] - chunks[1]).square().sum() + 0.5 * states.square().sum()).sqrt()
    rows, columns = linear_sum_assignment(cost)
    sinkhorn = float(cost[rows, columns].mean())

    told = {name: float(value) for name, value in output.metrics.items()}
    assert told == pytest.approx({"flow": flow, "kl": kl, "sinkhorn": sinkhorn}, rel=2e-3)
    assert float(output.loss) == pytest.approx(flow + 0.3 * kl + 0.7 * sinkhorn, rel=2e-3)
    assert int(output.weight) == len(steps)


def test_a_transport_term_of_weight_zero_is_left_out():
    batch = make_batch()
    plain = loss_of(make_trainer(sinkhorn_weight=0.0, camera_dropout=0.0), batch)
    assert plain.metrics.keys() == {"flow"} and torch.equal(plain.loss, plain.metrics["flow"])


def test_the_flows_params_say_on_which_path_and_where_training_looks():
    def looked(**params):
        trainer = make_trainer(sinkhorn_weight=0.0, **params)
        seen = watched(trainer)
        loss_of(trainer, make_batch(50))
        return seen["action_decoder"][0][:2]  # x_t and time

    x_t, time = looked()
    assert float(time.min()) < 0.1 and float(time.max()) > 0.9
    assert not torch.equal(looked(path="cosine")[0], x_t)
    assert float(looked(cutoff=0.1)[1].max()) <= 0.1
    assert float(looked(time="beta(1, 400)")[1].mean()) < 0.01
    from_the_other_end = looked(time="beta(400, 1)", noise_at=1)[0]
    assert (from_the_other_end - make_batch(50)["action"]).std() > 1  # next to the noise


@pytest.mark.parametrize(("extra", "causal"), [((), True), (PAIR, True), ((*PAIR, *DEPTH), False)])
def test_every_parameter_gets_a_gradient_and_padding_has_no_part_in_the_loss(extra, causal):
    models = make_models(*extra, latent_dim=LATENT_DIM * bool(extra), causal=causal)
    trainer, batch = make_trainer(models=models), make_batch()
    output = loss_of(trainer, batch)
    output.loss.backward()
    without = [name for name, one in trainer.models.named_parameters() if one.grad is None or not one.grad.any()]
    assert without == []
    batch["action"][batch["action_is_pad"]] = 1e6
    assert torch.equal(loss_of(trainer, batch).loss, output.loss)
    batch["action_is_pad"][:] = False
    assert float(loss_of(trainer, batch).loss.detach()) > 1e6


def test_two_halves_of_a_batch_add_up_to_it_by_their_weights():
    trainer, batch = make_trainer(*PAIR, sinkhorn_weight=0.0, camera_dropout=0.0), make_batch()
    trainer.flow.sample = lambda action: trainer.flow.path(action, -action, torch.full((len(action),), 0.5))
    parts = [{key: value[half] for key, value in batch.items()} for half in (slice(2), slice(2, None))]
    trainer.models["posterior"].register_forward_hook(lambda *given: (given[-1][0], given[-1][1] - 100))  # no noise
    (one, other), whole = (trainer.compute_loss(part) for part in parts), trainer.compute_loss(batch)
    expected = (one.loss * one.weight + other.loss * other.weight) / (one.weight + other.weight)
    torch.testing.assert_close(whole.loss, expected)


@pytest.mark.parametrize("probability", [0.15, 0.6])
def test_each_camera_is_absent_with_its_probability_but_never_all_of_them(probability):
    trainer, batch = make_trainer(camera_dropout=probability), make_batch(4000)
    seen = watched(trainer)
    trainer.context(batch)
    absent = ~seen["info_embedder"][0][2].unflatten(1, (3, 4))  # [B, camera, token]
    assert torch.equal(absent.all(2), absent.any(2))
    absent = absent.all(2)
    assert not absent.all(1).any()
    expected = probability - probability**3 / 3  # of all three absent, the one that is kept
    assert absent.float().mean(0).tolist() == pytest.approx([expected] * 3, abs=0.025)
    both = (absent[:, 0] & absent[:, 1]).float().mean()  # drawn one by one
    assert float(both) == pytest.approx(probability**2 - 2 / 3 * probability**3, abs=0.03)


def test_outside_of_training_all_cameras_are_there():
    trainer = make_trainer(camera_dropout=0.99)
    trainer.models.eval()
    context, mask = trainer.context(make_batch())
    assert mask.all() and mask.shape == context.shape[:2] == (4, 3 * 4 + 3)


@pytest.mark.parametrize("extra", [PAIR, (*PAIR, *DEPTH)], ids=len)
def test_of_an_absent_camera_nothing_is_known_anywhere(extra):
    """The others' samples may change: only those that are without the left camera have to stay."""
    trainer, batch = make_trainer(*extra, camera_dropout=0.5), make_batch(16)
    seen = watched(trainer)
    before = loss_of(trainer, batch), seen["prior"][1][0], seen["action_decoder"][1]
    absent = ~seen["info_embedder"][0][2][:, 4]
    batch["observation.images.left"] = batch["observation.images.left"] + 1
    after = loss_of(trainer, batch), seen["prior"][1][0], seen["action_decoder"][1]
    assert 0 < int(absent.sum()) < 16
    for one, other in zip(before[1:], after[1:], strict=True):
        same = (one == other).flatten(1).all(1)
        assert torch.equal(same, absent)


def test_the_order_in_which_a_config_names_its_cameras_does_not_matter():
    """A policy's components come back from a checkpoint in another one."""
    models, batch = make_models(*PAIR), make_batch()
    batch["observation.images.head"] = batch["observation.images.head"] + 1
    one, other = (make_trainer(models=nn.ModuleDict(dict(order(list(models.items()))))) for order in (list, reversed))
    assert list(one.models) == list(other.models)[::-1]
    for trainer in (one, other):
        trainer.models.eval()
    assert torch.equal(*(trainer.predict(batch, torch.Generator().manual_seed(0)) for trainer in (one, other)))


def test_a_step_of_the_chunk_knows_of_those_before_it_alone():
    decoder = make_models(*PAIR)["action_decoder"]
    x_t, rest = torch.randn(2, HORIZON, 2), (torch.rand(2), torch.randn(2, 5, 16), None, torch.randn(2, LATENT_DIM))
    other = torch.cat([x_t[:, :3], torch.randn(2, HORIZON - 3, 2)], 1)
    same = (decoder(x_t, *rest) == decoder(other, *rest)).all(-1).all(0)
    assert same.tolist() == [True] * 3 + [False] * 3


def test_depth_reaches_the_tokens_of_its_own_camera():
    trainer, batch = make_trainer(*DEPTH), make_batch()
    before = trainer.tokens(batch)
    seen = watched(trainer)
    trainer.models["depth_encoder"].register_forward_hook(lambda *given: 2 * given[-1])
    after = trainer.tokens(batch)
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert torch.equal(
        seen["multimodal_bridge"][0][0], trainer.models["right_backbone"](batch["observation.images.right"][:, 0])
    )
    trainer.models["depth_encoder"]._forward_hooks.clear()
    batch["observation.images.left"] += 1
    same = [torch.equal(*pair) for pair in zip(before, trainer.tokens(batch), strict=True)]
    assert same == [True, False, True]


@pytest.mark.parametrize("latent", ["mean", "sample"])
def test_a_prediction_follows_the_velocity_from_noise_with_the_latent_of_the_prior(latent):
    trainer, batch = make_trainer(*PAIR, latent=latent, integration_steps=3), make_batch()
    trainer.models.eval()
    del batch["action"], batch["action_is_pad"]  # that is what is asked for
    predicted, again = (trainer.predict(batch, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(predicted, again) and not predicted.requires_grad
    with torch.no_grad():
        context, mask = trainer.context(batch)
        z, log_variance = trainer.models["prior"](context, mask)
        generator = torch.Generator().manual_seed(1)
        if latent == "sample":
            z = z + (log_variance / 2).exp() * torch.randn(4, LATENT_DIM, generator=generator)
        x_t = torch.randn(4, HORIZON, 2, generator=generator)
        for step in range(3):
            x_t = x_t + trainer.models["action_decoder"](x_t, torch.full((4,), step / 3), context, mask, z) / 3
    torch.testing.assert_close(predicted, x_t)


WRONG = [
    ({"cameras": ()}, "there is no camera"),
    ({"extra": PAIR[:1]}, "of posterior and prior one is missing"),
    ({"extra": DEPTH, "without": "depth_encoder"}, "of depth_encoder and multimodal_bridge one is missing"),
    ({"extra": PAIR, "latent_dim": 0}, "latent_dim is 4 in the posterior, 4 in the prior, 0 in the action_decoder"),
    ({"latent_dim": 4}, "latent_dim is 4 in the action_decoder\n    0 without posterior and prior"),
    ({"kl_weight": 0.1}, "kl_weight has no effect without posterior and prior\n    remove kl_weight"),
    ({"latent": "mean"}, "latent has no effect"),
    ({"cameras": ("head",), "camera_dropout": 0.1}, "camera_dropout has no effect without a second camera"),
    ({"camera_dropout": 1.0}, "camera_dropout is 1.0\n    a number from 0, and below 1"),
    ({"extra": PAIR, "kl_weight": 0.0}, "kl_weight is 0.0\n    a number above 0"),
    ({"sinkhorn_weight": math.nan}, "sinkhorn_weight is nan"),
    ({"extra": PAIR, "latent": "mode"}, "latent is 'mode'\n    sample or mean"),
    ({"time": "beta"}, "time is 'beta'"),
    ({"loss": "l2_loss"}, "cannot train with L2Loss\n    loss: {type: sinkhorn_knopp}"),
    ({"execute_steps": HORIZON + 1}, "execute_steps is 7"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_a_wrong_set_up_is_explained(given, message):
    given = dict(given)
    extra, without = given.pop("extra", ()), given.pop("without", None)
    models = make_models(
        *extra, cameras=given.pop("cameras", CAMERAS), latent_dim=given.pop("latent_dim", 4 * bool(extra))
    )
    if without:
        del models[without]
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_trainer(models=models, **given)


ONE_CAMERA = """\
plugins:
  - "experiment_training.components.dataloader.lerobot_data"
  - "experiment_training.components.trainer.imitation_learning.vfp_single_expert.vfp_single_expert_trainer"
seed: 123
model:
  find_unused_parameters: false
  component_config_paths:
    head_backbone: "experiment_models/vfp_single_expert/exp1/head_backbone.yaml"
    info_embedder: "experiment_models/vfp_single_expert/exp1/info_embedder.yaml"
    action_decoder: "experiment_models/vfp_single_expert/exp1/action_decoder.yaml"
  component_build_args:
    head_backbone: { init: false, freeze: false }
    info_embedder: { init: true, freeze: false }
  component_optims:
    head_backbone: &optimizer
      type: "adamw_warmup_cosine_decay"
      params: { peak_lr: 1.0e-4, total_steps: 200000, warmup_steps: 2000 }
    info_embedder: *optimizer
    action_decoder: *optimizer
data:
  datamodule:
    type: "lerobot_dataset_factory"
    params: { repo_id: "somebody/something", action_horizon: 40 }
  batch_size: 60
  num_workers: 12
  pin_memory: true
  persistent_workers: true
  prefetch_factor: 2
train:
  trainer: { type: "vfp_single_expert_trainer" }
  loss: { type: "sinkhorn_knopp", params: { p: 1, lam_state: 0.2, blur: 0.004 } }
  project_name: "my_experiment"
  save_dir: "~/checkpoints"
  save_every: 3
  epoch: 1000
  seed: 0
"""


@pytest.fixture
def one_camera(tmp_path):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "experiment_models").symlink_to(ROOT / "experiment_models")
    (tmp_path / "config.yaml").write_text(ONE_CAMERA)
    return tmp_path / "config.yaml"


@pytest.mark.slow
def test_a_config_of_one_camera_without_a_latent_loads_as_it_is_written(one_camera):
    assert load_run_config(one_camera, []).experiment.train.trainer.type == "vfp_single_expert_trainer"


def test_a_config_of_one_camera_without_a_latent_trains_small_components_on_a_small_task(
    one_camera, tmp_path, monkeypatch
):
    monkeypatch.setattr("trainer.watch.draw_curves", lambda *given, **named: None)  # nothing of it is looked at
    small = {
        "head_backbone": {"name": "test_resnet", "levels": [1], "dim": 16},
        "info_embedder": PARAMS["exp1/info_embedder"],
        "action_decoder": {**SMALL, "action_dim": 2},
    }
    overrides = {
        "model.component_params": small,
        "data.datamodule": {"type": "point_reach", "params": {"action_horizon": 40}},
        "data.num_workers": 0,
        "data.batch_size": 8,
        "train.max_steps": 2,
        "train.save_dir": str(tmp_path / "run"),
    }
    result = train(one_camera, overrides)
    assert result.step == 2 and {"flow", "sinkhorn"} <= lines_of(tmp_path / "run")[-1].keys()


FULL = {  # parameters of each component, at the size that train.yaml gives it
    "head_backbone": 15_279_472,
    "left_backbone": 15_279_472,
    "right_backbone": 15_279_472,
    "info_embedder": 6_853_120,
    "posterior": 6_372_416,
    "prior": 6_339_136,
    "action_decoder": 41_013_784,
    "depth_encoder": 24_785_089,
    "multimodal_bridge": 3_254_272,
}


@pytest.mark.slow
def test_the_full_experiments_pass_every_check_that_needs_no_data():
    """exp2 is exp1 and depth. Here the depth network is built from its sizes; as written, from its weights on the hub."""
    assert full_sizes(CONFIGS / "exp2/train.yaml", {"model.component_params.depth_encoder.source": None}) == FULL


@pytest.mark.slow
def test_overfitting_one_batch_repeats_its_demonstrations_and_a_fresh_process_acts_as_this_one(tmp_path):
    overrides = {"train.overfit_batches": 1, "train.max_steps": 300, "data.batch_size": 4}
    overrides["train.save_dir"] = str(tmp_path / "run")
    tiny = CONFIGS / "exp1/tiny.yaml"
    train(tiny, overrides)
    run, policy = run_of(tiny, overrides), load_policy(tmp_path / "run")
    batch = run.data.prepare(run.data.dataset.__getitems__(list(range(4))))
    valid = ~batch["action_is_pad"]
    predicted = policy.trainer.predict(batch, torch.Generator().manual_seed(0))
    error = float((predicted - batch["action"])[valid].square().mean().sqrt())
    flow = [line["flow"] for line in lines_of(tmp_path / "run") if "flow" in line]
    print(f"one batch: flow {flow[0]:.3f} -> {flow[-1]:.3f}; predicted chunks off by {error:.3f} standard deviations")
    assert flow[-1] < 0.1 * flow[0]
    assert error < 0.3
    observation = observation_of(run)
    action = policy.select_action(observation)
    assert action_in_a_fresh_process(tmp_path / "run", observation) == pytest.approx(action.tolist(), rel=1e-5)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_and_leaves_the_depth_network_as_it_was(tmp_path):
    run_dir = assert_resumes_exactly(CONFIGS / "exp2/tiny.yaml", tmp_path)
    first, last = (tensors_of(run_dir / f"step_{step}") for step in (6, 12))
    changed = {
        name.partition("/")[0]
        for name, value in first.items()
        if torch.is_tensor(value) and value.is_floating_point() and not value.equal(last[name])
    }
    assert not {"depth_encoder", "depth_encoder_opt"} & changed
    trained = {name for name in FULL if name != "depth_encoder"}
    assert trained | {f"{name}_opt" for name in trained} <= changed
