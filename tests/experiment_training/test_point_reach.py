"""The data set that experiments are tried out on: two ways round an obstacle, seen by cameras."""

import pickle

import numpy as np
import pytest
import torch

from experiment_training.components.dataloader.point_reach import FRAMES, SPEED, PointReachFactory
from model_constructor import ConfigError


def built(validation=None, **params):
    opt_params = {} if validation is None else {"validation": validation}
    return PointReachFactory().build(opt_params, {"action_horizon": 8, **params})


def test_a_batch_has_the_keys_and_shapes_of_a_lerobot_set():
    dataset = built(cameras=["head", "left"], image_size=16, obs_proprio_history=2, obs_images_history=3)["dataset"]
    batch = dataset.__getitems__([0, 30])
    assert batch["observation.state"].shape == (2, 2, 2)
    assert batch["observation.images.head"].shape == batch["observation.images.left"].shape == (2, 3, 3, 16, 16)
    assert batch["observation.images.head"].dtype == torch.uint8
    assert batch["action"].shape == (2, 8, 2)
    assert batch["observation.state_is_pad"].tolist() == [[True, False], [False, False]]


def test_walking_a_share_of_each_action_leads_past_the_obstacle_on_both_sides_and_to_the_target():
    columns = built(episodes=12)["dataset"].columns
    state = columns.numbers["observation.state"].view(12, FRAMES, 2)
    action = columns.numbers["action"].view(12, FRAMES, 2)
    drift = state[:, 1:] - state[:, :-1] - SPEED * action[:, :-1]
    assert drift.abs().max() < 0.12  # six standard deviations of the noise
    assert np.sign(state[:, FRAMES // 2, 1].numpy()).tolist() == [-1, 1] * 6
    target = columns.cameras["observation.images.head"].target.view(12, FRAMES, 2)[:, 0]
    assert (state[:, -1] - target).norm(dim=-1).max() < 0.2


def test_the_target_is_in_the_picture_and_each_camera_is_turned_by_a_quarter():
    columns = built(cameras=["head", "left"])["dataset"].columns
    head, left = (columns.cameras[f"observation.images.{name}"].read([0]) for name in ("head", "left"))
    assert torch.equal(left[0], torch.rot90(head[0], 1, (1, 2)))
    row, column = ((columns.cameras["observation.images.head"].target[0] + 1) / 2 * 31).round().int().tolist()
    assert head[0, :, row, column].tolist() == [230, 60, 60]


def test_equal_params_give_equal_data_and_another_seed_other_data():
    first, same, other = (built(seed=seed)["dataset"] for seed in (1, 1, 2))
    assert torch.equal(first.columns.numbers["action"], same.columns.numbers["action"])
    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert built(seed=1, image_size=16)["fingerprint"] != first.fingerprint


def test_held_out_episodes_are_not_trained_on_and_workers_get_the_same():
    bundle = built(validation={"episodes": [1, 4]}, episodes=6)
    assert set(bundle["validation_dataset"][0]["episode_index"].view(1).tolist()) == {1}
    assert len(bundle["dataset"]) == 4 * FRAMES
    copy = pickle.loads(pickle.dumps(bundle["dataset"]))
    assert torch.equal(copy[5]["observation.images.head"], bundle["dataset"][5]["observation.images.head"])


def test_wrong_params_are_told_together():
    with pytest.raises(ConfigError) as caught:
        built(episodes=0, camera=["head"])
    assert "episodes is 0" in str(caught.value)
    assert "did you mean 'cameras'?" in str(caught.value)
