"""Augmentation: what each transform does to a batch, what it may depend on, and what a config may ask for.

The oracles are torchvision, which changes one image by given numbers, and slow loops in numpy.
"""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as V

from model_constructor import ConfigError, load_config
from trainer.data.augmentation import augmentation_problems, build_augmentation
from trainer.data.image_transforms import (
    TRANSFORMS,
    Draws,
    affine_matrix,
    blend,
    blur,
    erase,
    grey,
    shift,
    turn_hue,
    warp,
)

B, T, C, H, W = 4, 2, 3, 30, 40
TOP, WRIST = "observation.images.top", "observation.images.wrist"
CAMERAS = {TOP: 3, WRIST: 3}
CPU = torch.device("cpu")


@pytest.fixture
def images():
    return torch.rand(B, T, C, H, W, generator=torch.Generator().manual_seed(0))


class Scripted(Draws):
    """Instead of random numbers: the given fraction of each range."""

    def __init__(self, fraction):
        self.fraction, self.ranges = fraction, []

    def uniform(self, low, high, *shape):
        self.ranges.append((low, high))
        return torch.full(shape, low + self.fraction * (high - low))


def close(given, expected, tolerance=3e-6):
    torch.testing.assert_close(given, expected, rtol=0, atol=tolerance)


# What the functions do with the numbers that were drawn


def test_a_shift_is_a_crop_of_the_padded_image(images):
    down, right = [-3, 0, 2, 3], [1, -3, 0, 3]
    padded = F.pad(images.flatten(1, 2), (3, 3, 3, 3), mode="replicate").view(B, T, C, H + 6, W + 6)
    shifted = shift(images, torch.tensor(down), torch.tensor(right))
    for b in range(B):
        y, x = 3 + down[b], 3 + right[b]
        assert torch.equal(shifted[b], padded[b, :, :, y : y + H, x : x + W])


def test_a_warp_samples_bilinearly_and_repeats_the_edge(images):
    matrix = torch.tensor([[[0.8, 0.1, -0.3], [-0.2, 0.9, 0.4]]]).expand(B, 2, 3)
    warped = warp(images, matrix)
    for y, x in [(0, 0), (7, 31), (15, 20), (29, 39)]:
        where = matrix[0].numpy() @ [(2 * x + 1) / W - 1, (2 * y + 1) / H - 1, 1]
        column, row = np.clip(((where + 1) * [W, H] - 1) / 2, 0, [W - 1, H - 1])
        left, above = int(column), int(row)
        right, below = min(left + 1, W - 1), min(above + 1, H - 1)
        across, along = column - left, row - above
        corners = images.double()[..., [above, above, below, below], [left, right, left, right]]
        weights = [(1 - along) * (1 - across), (1 - along) * across, along * (1 - across), along * across]
        close(warped[..., y, x].double(), (corners * torch.tensor(weights)).sum(-1), 2e-5)


def test_the_affine_matrix_turns_zooms_and_moves_as_torchvision_does():
    images = F.avg_pool2d(torch.rand(B, C, H, W), 5, 1, 2).unsqueeze(1)  # smooth: both interpolate
    degrees, x, y, zoom = [0.0, 10.0, -25.0, 40.0], [0, 0.1, -0.2, 0], [0, 0.1, 0.2, 0.1], [1, 1.1, 0.9, 1.3]
    numbers = (torch.tensor(degrees).deg2rad(), torch.tensor(x), torch.tensor(y), torch.tensor(zoom))
    warped = warp(images, affine_matrix(*numbers, W / H))
    for b in range(B):
        move = [x[b] * W / 2, y[b] * H / 2]
        expected = V.affine(images[b], degrees[b], move, zoom[b], [0.0, 0.0], V.InterpolationMode.BILINEAR)
        close(warped[b][..., 12:-12, 14:-14], expected[..., 12:-12, 14:-14])  # torchvision's outside is black


def test_grey_blend_and_hue_are_those_of_torchvision(images):
    images[0, 0] = images[0, 0, :1]  # without a hue
    turns = [-0.3, -0.01, 0.2, 0.5]
    turned = turn_hue(images, torch.tensor(turns).view(B, 1, 1, 1))
    for b in range(B):
        close(turned[b], V.adjust_hue(images[b], turns[b]))
    close(grey(images), V.rgb_to_grayscale(images))
    assert torch.equal(grey(images[:, :, :1]), images[:, :, :1])
    factor = torch.tensor([0.5, 1.0, 1.3, 2.0])
    blended = blend(images, grey(images), factor.view(B, 1, 1, 1, 1))
    for b in range(B):
        close(blended[b], V.adjust_saturation(images[b], float(factor[b])))


def test_a_blur_is_torchvisions_with_the_edge_repeated(images):
    sigma, radius = [0.1, 0.5, 1.0, 1.5], 5
    blurred = blur(images, torch.tensor(sigma), radius)
    padded = F.pad(images.flatten(1, 2), (radius,) * 4, mode="replicate").view(B, T, C, H + 10, W + 10)
    for b in range(B):
        expected = V.gaussian_blur(padded[b], 2 * radius + 1, sigma[b])[..., radius:-radius, radius:-radius]
        close(blurred[b], expected)


def test_an_erased_rectangle_is_black_and_nothing_else_changes(images):
    top, left, tall, wide = [0.0, 5.0, 29.0, 3.0], [0.0, 7.0, 39.0, 0.0], [1.0, 6.0, 1.0, 9.0], [1.0, 8.0, 1.0, 40.0]
    erased = erase(images, *map(torch.tensor, (top, left, tall, wide)))
    for b in range(B):
        expected = V.erase(images[b], *map(int, (top[b], left[b], tall[b], wide[b])), torch.zeros(()))
        assert torch.equal(erased[b], expected)


# What the transforms draw


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_a_transform_draws_from_the_ranges_that_its_parameters_say(images, fraction):
    def changed(name, **params):
        draws = Scripted(fraction)
        return TRANSFORMS[name](**params)(images, draws), draws.ranges

    signed = 2 * fraction - 1  # -1, 0, 1
    moved = torch.full((B,), round(3 * signed))
    assert torch.equal(changed("random_shift", pixels=3)[0], shift(images, moved, moved))

    side = 0.5 + 0.3 * fraction
    window, _ = changed("random_crop", scale=[0.5, 0.8])
    centre = signed * (1 - side)
    close(window, warp(images, torch.tensor([[[side, 0, centre], [0, side, centre]]]).expand(B, 2, 3)))

    _, ranges = changed("random_affine", degrees=90.0, translate=0.1, scale=[0.5, 2.0])
    assert ranges == [(-90, 90), (-0.1, 0.1), (0.5, 2)]
    half_turn, _ = changed("random_affine", degrees=180.0, translate=0.0, scale=[1.0, 1.0])
    close(half_turn, images if fraction == 0.5 else images.flip(-1, -2), 2e-5)

    jittered, _ = changed("color_jitter", brightness=0.3, contrast=0.4, saturation=0.5, hue=0.1)
    for b in range(B):
        expected = V.adjust_contrast(V.adjust_brightness(images[b], 1 + 0.3 * signed), 1 + 0.4 * signed)
        close(jittered[b], V.adjust_hue(V.adjust_saturation(expected, 1 + 0.5 * signed), 0.1 * signed), 1e-5)

    close(changed("gaussian_blur", sigma=[0.5, 1.0])[0], blur(images, torch.full((B,), 0.5 + 0.5 * fraction), 3))

    erased, ranges = changed("random_erasing", area=[0.04, 0.25], aspect=[0.5, 2.0])
    assert ranges == [(0.04, 0.25), (math.log(0.5), math.log(2.0)), (0, 1)]
    assert float((erased == 0).float().mean()) == pytest.approx(0.04 + 0.21 * fraction, rel=0.1)


def test_noise_has_the_given_deviation_and_differs_from_frame_to_frame():
    images = torch.full((8, 2, 3, 64, 64), 0.5)
    noise = TRANSFORMS["gaussian_noise"](std=0.05)(images, Draws((1,), CPU)) - images
    assert float(noise.std()) == pytest.approx(0.05, rel=0.01) and abs(float(noise.mean())) < 1e-3
    assert not torch.equal(noise[:, 0], noise[:, 1])


def test_the_offsets_of_a_shift_are_uniform_over_whole_pixels():
    ramp = torch.arange(20.0).expand(4000, 1, 1, 1, 20)
    offsets = TRANSFORMS["random_shift"](pixels=2)(ramp, Draws((5,), CPU))[:, 0, 0, 0, 10] - 10
    values, counts = offsets.unique(return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2] and counts.min() > 700


@pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - {"gaussian_noise"}))
def test_samples_are_changed_differently_and_the_steps_of_a_window_alike(images, name):
    same = images[:1, :1].expand(B, T, C, H, W)
    changed = TRANSFORMS[name]()(same, Draws((3,), CPU))
    assert changed.shape == same.shape and changed.min() >= 0 and changed.max() <= 1
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert all(not torch.equal(changed[0], changed[b]) for b in range(1, B))


# What the result depends on


EVERYTHING = [{"type": name, "probability": 0.7} for name in TRANSFORMS]


@pytest.fixture
def batch(images):
    return {TOP: images, WRIST: images[:, 0].clone(), "action": torch.ones(B, 2), "task": ["reach"] * B}


def test_equal_seeds_give_equal_bits_and_the_random_streams_of_training_are_left_alone(batch):
    before, torch_state, numpy_state = {**batch}, torch.get_rng_state(), np.random.get_state()[1].copy()
    copies = {TOP: batch[TOP].clone(), WRIST: batch[WRIST].clone()}
    augmentation = build_augmentation(EVERYTHING, CAMERAS)
    once = augmentation(batch, (0, 7, 0))
    torch.rand(1)
    torch.set_rng_state(torch_state)
    again = augmentation(batch, (0, 7, 0))
    assert torch.equal(torch.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()
    assert all(torch.equal(once[key], again[key]) and not torch.equal(once[key], batch[key]) for key in CAMERAS)
    assert once["action"] is batch["action"] and once["task"] is batch["task"]
    assert batch == before and all(torch.equal(batch[key], copies[key]) for key in CAMERAS)


@pytest.mark.parametrize("seed", [(1, 7, 0), (0, 8, 0), (0, 7, 1), (0, 7, 0, 0)])
def test_another_seed_step_rank_or_micro_batch_draws_other_numbers(batch, seed):
    augmentation = build_augmentation([{"type": "random_crop"}], CAMERAS)
    assert not torch.equal(augmentation(batch, (0, 7, 0))[TOP], augmentation(batch, seed)[TOP])


def test_steps_and_cameras_draw_from_streams_of_their_own(batch):
    batch[TOP] = batch[WRIST]
    once = build_augmentation([{"type": "random_shift"}], CAMERAS)(batch, (0, 1))
    assert not torch.equal(once[TOP], once[WRIST])
    alone = build_augmentation([{"type": "random_shift"}], {WRIST: 3})(batch, (0, 1))
    assert torch.equal(alone[WRIST], once[WRIST])  # a camera more or less changes nothing for the others
    crop = {"type": "random_crop"}
    first, both = build_augmentation([crop], {WRIST: 3}), build_augmentation([crop, crop], {WRIST: 3})
    assert not torch.equal(both(batch, (0, 1))[WRIST], first(first(batch, (0, 1)), (0, 1))[WRIST])


def test_transforms_are_applied_in_order_to_their_keys_with_their_probability():
    batch = {TOP: torch.full((2000, 3, 2, 2), 0.5), WRIST: torch.full((2000, 3, 2, 2), 0.5)}
    brightness = {"brightness": 0.5, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    entries = [{"type": "color_jitter", "params": brightness, "keys": [WRIST], "probability": 0.3}]
    changed = build_augmentation(entries, CAMERAS)(batch, (0, 0))
    assert changed[TOP] is batch[TOP]
    share = (changed[WRIST] != 0.5).flatten(1).any(1).float().mean()
    assert float(share) == pytest.approx(0.3, abs=0.03)
    erase_all = {"type": "random_erasing", "params": {"area": [1.0, 1.0], "aspect": [1.0, 1.0]}}
    noisy_black = build_augmentation([erase_all, "gaussian_noise"], {TOP: 3})(batch, (0, 0))[TOP]
    black = build_augmentation(["gaussian_noise", erase_all], {TOP: 3})(batch, (0, 0))[TOP]
    assert noisy_black.any() and not black.any()


def test_autocast_does_not_round_images(batch):
    augmentation = build_augmentation(EVERYTHING, CAMERAS)
    plain = augmentation(batch, (0, 0))
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = augmentation(batch, (0, 0))
    assert all(torch.equal(plain[key], under_autocast[key]) for key in CAMERAS)


# What a config may say


WRONG = [
    ("{type: random_crp}", "3:14", "did you mean 'random_crop'?"),
    ("{params: {pixels: 1}}", "3:7", "an augmentation has no type"),
    ("{type: random_shift, params: {pixel: 1}}", "3:37", "did you mean 'pixels'?"),
    ("{type: random_shift, params: {pixels: 0}}", "3:45", "pixels of 'random_shift' is 0"),
    ("{type: random_shift, params: {pixels: 1.5}}", "3:45", "should be a valid integer"),
    ("{type: random_shift, params: 4}", "3:36", "params is 4"),
    ("{type: random_crop, params: {scale: [0.9, 0.5]}}", "3:43", "should be [lowest, highest]"),
    ("{type: random_crop, params: {scale: [0.9, 1.5]}}", "3:49", "less than or equal to 1"),
    ("{type: gaussian_blur, params: {sigma: .inf}}", "3:45", "should be a valid list"),
    ("{type: gaussian_blur, probabilty: 1}", "3:29", "did you mean 'probability'?"),
    ("{type: gaussian_blur, probability: 0}", "3:42", "above 0, at most 1"),
    ("{type: gaussian_blur, keys: top}", "3:35", "a list of image keys"),
    ("7", "3:7", "augmentation is 7"),
]
WRONG_IMAGES = [
    ("{type: gaussian_blur, keys: [observation.images.tpo]}", "3:36", "did you mean 'observation.images.top'?"),
    ("{type: color_jitter, keys: [depth]}", "3:7", "'depth' has 1 channels"),
]


@pytest.mark.parametrize(("text", "place", "message"), WRONG + WRONG_IMAGES)
def test_a_wrong_entry_is_explained_at_its_place(tmp_path, text, place, message):
    (tmp_path / "train.yaml").write_text(f"data:\n  augmentation:\n    - {text}\n")
    config = load_config(tmp_path / "train.yaml")
    value = config.data["data"]["augmentation"]
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        build_augmentation(value, {**CAMERAS, "depth": 1}, config)
    assert f"train.yaml:{place}" in str(error.value)
    known_early = [problem.message for problem in augmentation_problems(value, config)]
    assert known_early == ([] if (text, place, message) in WRONG_IMAGES else [error.value.problems[0].message])


def test_all_wrong_entries_are_reported_at_once():
    entries = ["blurr", {"type": "random_shift", "params": {"pixels": -1, "size": 2}, "keys": ["x"]}]
    with pytest.raises(ConfigError) as error:
        build_augmentation(entries, CAMERAS)
    assert len(error.value.problems) == 4


def test_a_data_set_without_images_has_nothing_to_augment():
    with pytest.raises(ConfigError, match="the data set has no images"):
        build_augmentation(["random_shift"], {})
    assert build_augmentation(None, {}).steps == build_augmentation([], CAMERAS).steps == ()


def test_colours_need_three_channels_and_grey_images_can_do_without():
    grey_only = {"type": "color_jitter", "params": {"saturation": 0.0, "hue": 0.0}}
    changed = build_augmentation([grey_only], {TOP: 1})({TOP: torch.rand(2, 1, 4, 4)}, (0,))
    assert changed[TOP].shape == (2, 1, 4, 4)
    with pytest.raises(ConfigError, match="has 4 channels"):
        build_augmentation([grey_only], {TOP: 4})
