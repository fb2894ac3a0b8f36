"""Preparation: uint8 images become floats, training changes them, everything is normalised, and nothing waits."""

import re
import warnings

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional as V

from model_constructor import ConfigError, load_config
from trainer.data.preparation import build_preparation, image_channels

B, T = 4, 2
TOP, WRIST = "observation.images.top", "observation.images.wrist"
STATS = {
    "observation.state": {"mean": np.array([1.0, 2.0, 3.0]), "std": np.array([1.0, 2.0, 4.0])},
    "action": {"min": np.array([-2.0, 0.0]), "max": np.array([2.0, 8.0])},
}
NORMALIZATION = {"action": "min_max", WRIST: "imagenet"}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return {
        TOP: torch.randint(0, 256, (B, T, 3, 20, 24), dtype=torch.uint8, generator=generator),
        WRIST: torch.randint(0, 256, (B, 3, 20, 24), dtype=torch.uint8, generator=generator),
        "observation.state": torch.rand(B, T, 3, generator=generator),
        "action": torch.rand(B, 16, 2, generator=generator),
        "action_is_pad": torch.zeros(B, 16, dtype=torch.bool),
        "buttons": torch.randint(0, 2, (B, T, 3), dtype=torch.uint8, generator=generator),
        "episode_index": torch.arange(B),
        "task": ["reach"] * B,
    }


def first_item(batch):
    return {key: value[0] for key, value in batch.items()}


def preparation(batch, normalization=NORMALIZATION, augmentation=None, stats=STATS):
    return build_preparation(first_item(batch), stats, normalization, augmentation)


def test_a_batch_is_scaled_and_normalised_key_by_key(batch):
    kept = {key: value.clone() if isinstance(value, torch.Tensor) else [*value] for key, value in batch.items()}
    prepared = preparation(batch)(batch)
    assert list(prepared) == list(batch)
    top = torch.from_numpy(batch[TOP].numpy().astype(np.float32) / np.float32(255))
    assert torch.equal(prepared[TOP], top)  # to the bit
    assert torch.equal(prepared[TOP], batch[TOP].type(torch.float32) / 255)  # what LeRobotDataset does to a frame
    torch.testing.assert_close(prepared[WRIST], V.normalize(batch[WRIST] / 255, MEAN, STD))
    expected = (batch["observation.state"] - torch.tensor([1.0, 2, 3])) / torch.tensor([1.0, 2, 4])
    torch.testing.assert_close(prepared["observation.state"], expected)
    torch.testing.assert_close(prepared["action"], batch["action"] / torch.tensor([2.0, 4]) - torch.tensor([0.0, 1]))
    for key in ("action_is_pad", "buttons", "episode_index", "task"):
        assert prepared[key] is batch[key]
    assert all(torch.equal(batch[key], kept[key]) for key in kept if key != "task")  # the given batch is left alone


def test_only_a_seed_changes_images_and_before_they_are_normalised(batch):
    augmented = preparation(batch, augmentation=[{"type": "random_shift", "keys": [WRIST]}])
    plain = preparation(batch)(batch)
    assert all(torch.equal(augmented(batch)[key], plain[key]) for key in (TOP, WRIST))
    changed = augmented(batch, (0, 1, 0))
    assert torch.equal(changed[TOP], plain[TOP]) and torch.equal(changed["action"], plain["action"])
    assert not torch.equal(changed[WRIST], plain[WRIST])
    black = {"type": "random_erasing", "params": {"area": [1.0, 1.0], "aspect": [1.0, 1.0]}}
    erased = preparation({**batch, WRIST: batch[WRIST][..., :20]}, augmentation=[black])
    wrist = erased({**batch, WRIST: batch[WRIST][..., :20]}, (0,))[WRIST]
    torch.testing.assert_close(wrist, -(torch.tensor(MEAN) / torch.tensor(STD)).view(3, 1, 1).expand(B, 3, 20, 20))


@pytest.mark.parametrize(
    ("how", "low", "high"),
    [
        ("identity", [0, 0, 0], [1, 1, 1]),
        ("min_max", [-1, -1, -1], [1, 1, 1]),
        ({"mean": [0.0, 0.5, 1.0], "std": [1, 0.5, 2]}, [0, -1, -0.5], [1, 1, 0]),
    ],
)
def test_each_channel_of_an_image_is_one_dimension(batch, how, low, high):
    batch[TOP] = torch.stack([torch.zeros(T, 3, 5, 5), torch.full((T, 3, 5, 5), 255)]).to(torch.uint8)
    prepared = preparation(batch, {"action": "min_max", TOP: how})
    dark, bright = prepared(batch)[TOP].amax(dim=(1, 3, 4))
    assert (dark.tolist(), bright.tolist()) == (low, high)
    back = prepared.normalizer.denormalize(TOP, prepared(batch)[TOP])
    torch.testing.assert_close(back, batch[TOP] / 255, rtol=0, atol=1e-6)


def test_statistics_of_images_are_used_only_if_asked_for(batch):
    """As LeRobot's stats.json has them: one number per channel, in units of [0, 1]."""
    stats = {**STATS, TOP: {"mean": np.full((3, 1, 1), 0.25), "std": np.full((3, 1, 1), 0.5)}}
    assert torch.equal(preparation(batch, stats=stats)(batch)[TOP], batch[TOP] / 255)
    prepared = preparation(batch, {"action": "min_max", TOP: "mean_std"}, stats=stats)(batch)
    torch.testing.assert_close(prepared[TOP], (batch[TOP] / 255 - 0.25) / 0.5)


def test_an_image_is_told_by_its_type_and_shape():
    item = {
        "camera": np.zeros((3, 8, 9), dtype=np.uint8),
        "depth": torch.zeros(2, 1, 8, 9, dtype=torch.uint8),
        "observation.image": torch.zeros(3, 8, 9),  # floats: the key decides
        "touch": torch.zeros(3, 8, 9),
        "vector": torch.zeros(3, dtype=torch.uint8),
        "window of vectors": torch.zeros(3, 4, dtype=torch.uint8),
        "seven planes": torch.zeros(7, 8, 9, dtype=torch.uint8),
        "label image": torch.zeros(3, 8, 9, dtype=torch.int64),
        "task": "reach",
    }
    assert image_channels(item) == {"camera": 3, "depth": 1, "observation.image": 3}
    last = {"front": np.zeros((8, 9, 3), dtype=np.uint8), "back": torch.zeros(2, 8, 9, 1, dtype=torch.uint8)}
    with pytest.raises(ConfigError, match="their channels come last") as error:
        image_channels(last)
    assert len(error.value.problems) == 2


def test_images_that_are_floats_already_are_augmented_and_not_scaled(batch):
    given = {**batch, TOP: batch[TOP] / 255}
    whole = preparation(batch, augmentation=["random_shift"])
    of_floats = preparation(given, augmentation=["random_shift"])
    assert torch.equal(of_floats(given, (3,))[TOP], whole(batch, (3,))[TOP])


def test_counts_are_not_normalised_unless_asked_for(batch):
    """A data set may give statistics of everything, LeRobot's episode numbers included."""
    stats = {**STATS, "episode_index": {"mean": np.array([1.5]), "std": np.array([0.5])}}
    assert preparation(batch, stats=stats)(batch)["episode_index"].tolist() == [0, 1, 2, 3]
    asked = {**NORMALIZATION, "episode_index": "mean_std"}
    assert preparation(batch, asked, stats=stats)(batch)["episode_index"].tolist() == [-3, -1, 1, 3]


def test_all_that_is_wrong_is_reported_at_once_at_its_place(tmp_path, batch):
    (tmp_path / "train.yaml").write_text(
        "data:\n  normalization: {action: minmax, depth: identity}\n  augmentation: [random_shfit]\n"
    )
    config = load_config(tmp_path / "train.yaml")
    data = config.data["data"]
    with pytest.raises(ConfigError) as error:
        build_preparation(first_item(batch), STATS, data["normalization"], data["augmentation"], config)
    assert [f"{problem.place.line}:{problem.place.column}" for problem in error.value.problems] == [
        "2:27",
        "2:35",
        "3:18",
    ]


def test_statistics_of_another_size_are_refused(batch):
    stats = {**STATS, "observation.state": {"mean": np.zeros(2), "std": np.ones(2)}}
    message = "'observation.state' has 3 dimensions, its statistics have 2"
    with pytest.raises(ConfigError, match=re.escape(message)):
        preparation(batch, stats=stats)
    one = {**STATS, "observation.state": {"mean": np.zeros(1), "std": np.full(1, 2.0)}}  # the same for all of them
    prepared = preparation(batch, stats=one)(batch)["observation.state"]
    torch.testing.assert_close(prepared, batch["observation.state"] / 2)


class NothingWaits(TorchDispatchMode):
    """Refuses every operation whose result the host has to know: it would wait for the device there."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "index.Tensor")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not any(name in str(function) for name in self.WAITING), f"{function} waits for the device"
        return function(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device(batch):
    everything = ["random_shift", "random_crop", "random_affine", "color_jitter", "gaussian_blur", "gaussian_noise"]
    prepare = preparation(batch, augmentation=[*everything, {"type": "random_erasing", "probability": 0.5}])
    with NothingWaits():
        prepared = prepare(batch, (0, 1, 0))
        with pytest.raises(AssertionError, match="waits for the device"):
            float(prepared["action"].sum())  # the guard sees what it is there to see


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_waits_for_a_gpu(batch):
    everything = ["random_shift", "random_crop", "random_affine", "color_jitter", "gaussian_blur", "gaussian_noise"]
    prepare = preparation(batch, augmentation=[*everything, {"type": "random_erasing", "probability": 0.5}]).cuda()
    moved = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    once = prepare(moved, (0, 1, 0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = prepare(moved, (0, 1, 0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(once[key], again[key]) for key in (TOP, WRIST))


def test_its_module_moves_with_its_statistics(batch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved = preparation(batch).to("meta")
    assert {buffer.device.type for buffer in moved.buffers()} == {"meta"} and not list(moved.parameters())
