"""Frozen batch norm, against torch's in eval."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model_constructor.blocks import FrozenBatchNorm


@pytest.mark.parametrize(
    ("reference", "shape"),
    [
        (nn.BatchNorm1d, (4, 3)),
        (nn.BatchNorm1d, (4, 3, 5)),
        (nn.BatchNorm2d, (4, 3, 5, 2)),
        (nn.BatchNorm3d, (4, 3, 5, 2, 2)),
    ],
)
def test_it_is_batch_norm_in_eval_with_the_weights_of_one_also_in_training(reference: type, shape: tuple[int, ...]):
    known = reference(3, eps=1e-3)
    nn.init.normal_(known.weight)
    nn.init.normal_(known.bias)
    known(torch.randn(shape) * 3 + 1)  # moves the statistics
    module = FrozenBatchNorm(3, eps=1e-3)
    module.load_state_dict(known.state_dict())
    x = torch.randn(shape)
    torch.testing.assert_close(module.train()(x), known.eval()(x))
    torch.testing.assert_close(module.running_mean, known.running_mean, atol=0, rtol=0)


def test_nothing_in_it_trains_and_a_gradient_passes_through():
    module, x = FrozenBatchNorm(3), torch.randn(2, 3, 4, 4, requires_grad=True)
    assert not list(module.parameters())
    module.weight.fill_(2.0)
    module(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 2 / (1 + 1e-5) ** 0.5))


def test_keys_that_it_does_not_have_are_still_refused():
    with pytest.raises(RuntimeError, match="running_median"):
        FrozenBatchNorm(3).load_state_dict({**FrozenBatchNorm(3).state_dict(), "running_median": torch.zeros(3)})
