"""The spatial soft-argmax, against a sum over pixels."""

from __future__ import annotations

import math

import pytest
import torch

from model_constructor.blocks import SpatialSoftArgmax


def test_a_point_is_the_mean_position_under_the_softmax_of_the_map():
    maps = torch.randn(2, 3, 4, 5)
    points = SpatialSoftArgmax(temperature=0.7)(maps)
    assert points.shape == (2, 3, 2)
    for b in range(2):
        for c in range(3):
            weights = {(i, j): math.exp(float(maps[b, c, i, j]) / 0.7) for i in range(4) for j in range(5)}
            total = sum(weights.values())
            x = sum(weight * (2 * j / 4 - 1) for (_, j), weight in weights.items()) / total
            y = sum(weight * (2 * i / 3 - 1) for (i, _), weight in weights.items()) / total
            torch.testing.assert_close(points[b, c], torch.tensor([x, y]), atol=1e-5, rtol=1e-5)


def test_a_sharp_peak_is_found_x_to_the_right_and_y_down():
    maps = torch.zeros(4, 5)
    maps[3, 0] = 100
    torch.testing.assert_close(SpatialSoftArgmax()(maps), torch.tensor([-1.0, 1.0]))


def test_a_learned_temperature_is_a_parameter_that_gets_a_gradient():
    assert not SpatialSoftArgmax().state_dict()
    module, maps = SpatialSoftArgmax(0.5, learned=True), torch.randn(3, 4, 4)
    torch.testing.assert_close(module(maps), SpatialSoftArgmax(0.5)(maps))
    module(maps).square().sum().backward()
    assert module.temperature.grad.abs() > 0


def test_a_temperature_is_positive():
    with pytest.raises(ValueError, match="temperature 0 is not positive"):
        SpatialSoftArgmax(0)
