"""Diagonal Gaussians: their divergence against torch.distributions, and draws against their own moments."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from experiment_training.components.loss.gaussian_kl import gaussian_kl, sample


def gaussians(seed):
    return 2 * torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(seed))  # mean and log variance


def distribution(mean, log_var):
    return Independent(Normal(mean, (0.5 * log_var).exp()), 1)


def test_the_divergence_is_that_of_torch_distributions_and_zero_of_equals():
    q, p = gaussians(0), gaussians(1)
    torch.testing.assert_close(gaussian_kl(*q, *p), kl_divergence(distribution(*q), distribution(*p)))
    assert torch.equal(gaussian_kl(*q, *q), torch.zeros(5))


def test_a_shape_that_would_broadcast_is_refused():
    q, p = gaussians(0), gaussians(1)
    with pytest.raises(ValueError, match=r"\[\[5, 3\], \[5, 3\], \[1, 3\], \[5, 3\]\]"):
        gaussian_kl(*q, p[0, :1], p[1])


def test_it_is_computed_in_float32_under_autocast():
    q, p = gaussians(0).bfloat16(), gaussians(1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        divergence, draw = gaussian_kl(*q, *p), sample(*q)
    assert divergence.dtype == draw.dtype == torch.float32
    torch.testing.assert_close(divergence, gaussian_kl(*q.float(), *p.float()))


def test_draws_have_the_mean_and_the_variance_and_gradients_pass_through_them():
    mean, log_var = torch.tensor([[1.0, -2.0]]).requires_grad_(), torch.tensor([[0.0, 2.0]]).requires_grad_()
    draws = sample(mean.expand(20_000, 2), log_var.expand(20_000, 2), torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws.mean(0), mean[0], atol=0.06, rtol=0)
    torch.testing.assert_close(draws.var(0), log_var[0].exp(), atol=0, rtol=0.04)
    draws.square().sum().backward()
    assert mean.grad.all() and log_var.grad.all()


def test_a_generator_makes_a_draw_repeat():
    first, again, other = (sample(*gaussians(0), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
