"""Sinusoidal and rotary embeddings, against sines and complex numbers written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model_constructor.blocks import RotaryEmbedding, SinusoidalEmbedding


def test_a_sinusoidal_embedding_is_cosines_then_sines_of_geometric_frequencies():
    x = torch.tensor([[0.0, 1.0], [2.5, 300.0]])
    embedded = SinusoidalEmbedding(6, max_period=100.0)(x)
    assert embedded.shape == (2, 2, 6)
    for i in range(2):
        for j in range(2):
            angles = [float(x[i, j]) * 100.0 ** (-k / 3) for k in range(3)]
            expected = [*map(math.cos, angles), *map(math.sin, angles)]
            torch.testing.assert_close(embedded[i, j], torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_a_sinusoidal_embedding_is_of_its_inputs_dtype_and_float32_of_whole_numbers():
    module = SinusoidalEmbedding(4)
    torch.testing.assert_close(module(torch.tensor([3])), module(torch.tensor([3.0])))
    half = module(torch.tensor([3.0], dtype=torch.float16))
    torch.testing.assert_close(half, module(torch.tensor([3.0])).half())  # the angles did not pass through float16


def test_a_sinusoidal_embedding_has_an_even_width_and_no_parameters():
    assert not SinusoidalEmbedding(4).state_dict()
    with pytest.raises(ValueError, match="5 is odd"):
        SinusoidalEmbedding(5)


def turned(x: np.ndarray, position: float, base: float) -> np.ndarray:
    """One vector in float64: entries i and i + E / 2 as a complex number, turned by position * base ** (-2i / E)."""
    half = len(x) // 2
    angles = position * base ** (-2 * np.arange(half) / len(x))
    result = (x[:half] + 1j * x[half:]) * np.exp(1j * angles)
    return np.concatenate([result.real, result.imag])


def test_a_rotary_embedding_turns_pairs_by_the_position():
    x = torch.randn(2, 3, 5, 6)
    y = RotaryEmbedding(base=50.0)(x).numpy()
    for b, head, t in np.ndindex(2, 3, 5):
        np.testing.assert_allclose(y[b, head, t], turned(x[b, head, t].double().numpy(), t, 50.0), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 3, 5, 4), (2, 3, 1, 5, 4)], ids=str)
def test_each_member_of_a_batch_can_have_positions_of_its_own(shape: tuple[int, ...]):
    x, positions = torch.randn(shape), torch.tensor([[0, 1, 2, 3, 4], [7, 3, 0, 0, 9]])
    module = RotaryEmbedding(base=50.0)
    y = module(x, positions)
    for b in range(2):
        torch.testing.assert_close(y[b], module(x[b], positions[b]))
        np.testing.assert_allclose(
            y[b].reshape(-1, 5, 4)[-1, 4],
            turned(x[b].reshape(-1, 5, 4)[-1, 4].double().numpy(), 4 + 5 * b, 50.0),
            atol=1e-5,
        )


def test_a_rotary_embedding_keeps_the_dtype_and_computes_in_float32():
    x, positions = torch.randn(3, 8), torch.tensor([1000, 2001, 3003])  # bfloat16 would round these
    module = RotaryEmbedding()
    low = module(x.bfloat16(), positions)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), module(x.bfloat16().float(), positions), atol=0.02, rtol=0.01)


def test_a_rotary_embedding_takes_an_even_width_and_has_no_state():
    assert not RotaryEmbedding().state_dict()
    with pytest.raises(ValueError, match="a width of 3 is odd"):
        RotaryEmbedding()(torch.randn(2, 3))
