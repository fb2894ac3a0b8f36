"""Diagonal Gaussians, each given by its mean and the logarithm of its variance [B, Z]: their divergence, and a draw."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_kl(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> Tensor:
    """KL(q || p) in nats, [B, Z] four times -> [B]; float32 also under autocast. ValueError for shapes that differ.

    The sum over dimensions of (log(v_p / v_q) + (v_q + (m_q - m_p)^2) / v_p - 1) / 2, with means m and variances v:
    Doersch 2016 (arXiv 1606.05908), eq. 6, of diagonal covariances.
    """
    shapes = [list(one.shape) for one in (mean_q, log_var_q, mean_p, log_var_p)]
    if shapes != shapes[:1] * 4:  # broadcasting would compare a distribution with those of other samples
        raise ValueError(f"means and log variances of q and p have one shape; these are {shapes}")
    mean_q, log_var_q, mean_p, log_var_p = (one.float() for one in (mean_q, log_var_q, mean_p, log_var_p))
    log_ratio = log_var_q - log_var_p
    distance = (mean_q - mean_p).square() * (-log_var_p).exp()
    return 0.5 * (log_ratio.exp() - log_ratio + distance - 1).sum(-1)


def sample(mean: Tensor, log_var: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """[B, Z] and [B, Z] -> a draw [B, Z], float32, that gradients pass through: Kingma & Welling 2014, section 2.4."""
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    return mean.float() + (0.5 * log_var.float()).exp() * noise
