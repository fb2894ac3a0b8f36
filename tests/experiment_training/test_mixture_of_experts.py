"""Mixture-of-experts terms, against the papers' sums written out token by token in numpy."""

import re

import numpy as np
import pytest
import torch

from experiment_training.components.loss.mixture_of_experts import gated_velocity_loss
from model_constructor import ConfigError
from trainer.registry import LOSS_BUILDER_REGISTRY

NAMES = ["router_z_loss", "switch_load_balancing_loss"]


def term(name, **params):
    return LOSS_BUILDER_REGISTRY.get(name)(**params).build()


def make_logits(*shape, seed=0):
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def z_loss(tokens):
    """ST-MoE, eq. 5."""
    return sum(np.log(sum(np.exp(x) for x in token)) ** 2 for token in tokens) / len(tokens)


def balance(tokens):
    """Switch Transformer, eq. 4 to 6, without alpha."""
    experts = len(tokens[0])
    total = 0.0
    for expert in range(experts):
        fraction = sum(1 for token in tokens if max(range(experts), key=lambda one: token[one]) == expert) / len(tokens)
        probability = sum(np.exp(token[expert]) / sum(np.exp(x) for x in token) for token in tokens) / len(tokens)
        total += fraction * probability
    return experts * total


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(12, 4), (3, 5, 8)])
@pytest.mark.parametrize(("name", "oracle"), zip(NAMES, (z_loss, balance), strict=True))
def test_the_value_is_the_papers_sum_over_the_valid_tokens(name, oracle, shape, masked):
    logits = make_logits(*shape)
    valid = make_logits(*shape[:-1], seed=1) > 0 if masked else None
    kept = (logits if valid is None else logits[valid]).reshape(-1, shape[-1]).double().numpy().tolist()
    assert float(term(name, coefficient=0.5)(logits, valid)) == pytest.approx(0.5 * oracle(kept), rel=1e-5)


def test_the_coefficients_are_those_of_the_papers_unless_given():
    logits = make_logits(12, 4)
    for name, default in zip(NAMES, (1e-3, 1e-2), strict=True):
        torch.testing.assert_close(term(name)(logits), default * term(name, coefficient=1.0)(logits))


def test_balance_is_least_for_experts_that_are_equally_busy():
    even = 5 * torch.eye(4).repeat(3, 1)
    uneven = 5 * torch.eye(4)[torch.zeros(12, dtype=torch.long)]
    assert float(term(NAMES[1], coefficient=1.0)(even)) == pytest.approx(1.0)
    assert float(term(NAMES[1], coefficient=1.0)(uneven)) > 3.5


def test_the_gradient_of_balance_flows_through_the_probabilities_alone():
    logits = make_logits(12, 4).requires_grad_()
    term(NAMES[1], coefficient=1.0)(logits).backward()
    fraction = torch.nn.functional.one_hot(logits.argmax(-1), 4).double().mean(0)
    probability = logits.detach().double().requires_grad_()
    (4 * fraction * probability.softmax(-1).mean(0)).sum().backward()
    torch.testing.assert_close(logits.grad.double(), probability.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_a_token_that_is_not_valid_has_no_part_and_no_valid_token_is_a_loss_of_zero(name):
    logits, valid = make_logits(12, 4), torch.arange(12) < 7
    logits[~valid] = torch.nan
    logits.requires_grad_()
    loss = term(name)(logits, valid)
    loss.backward()
    assert torch.isfinite(loss) and bool((logits.grad[~valid] == 0).all()) and bool(logits.grad[valid].any())
    assert float(term(name)(logits, torch.zeros(12, dtype=torch.bool))) == 0


@pytest.mark.parametrize("name", NAMES)
def test_it_is_float32_of_bfloat16_logits_and_under_autocast(name):
    logits = make_logits(12, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = term(name)(logits)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, term(name)(logits.float()))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_values_are_explained(name):
    for wrong in (-1, "much", True, float("nan")):
        with pytest.raises(ConfigError, match=re.escape(f"coefficient is {wrong!r}\n    a number, 0 or above")):
            term(name, coefficient=wrong)
    with pytest.raises(ValueError, match=re.escape("the tokens are [3, 5]")):
        term(name)(make_logits(3, 5, 4), torch.ones(5, dtype=torch.bool))


def test_experts_are_compared_with_the_target_one_by_one_over_the_valid_steps_and_weighted():
    velocities, target, weights = make_logits(3, 4, 5, 2), make_logits(3, 5, 2, seed=1), make_logits(3, 4).softmax(-1)
    valid = torch.arange(5) < torch.tensor([5, 2, 0])[:, None]
    total = 0.0
    for chunk, expert in np.ndindex(3, 4):
        errors = [
            float(e)
            for t in range(5)
            if valid[chunk, t]
            for e in (velocities[chunk, expert, t] - target[chunk, t]) ** 2
        ]
        total += float(weights[chunk, expert]) * (np.mean(errors) if errors else 0.0) / 3
    loss = gated_velocity_loss(velocities, target, weights, valid)
    assert float(loss) == pytest.approx(total, rel=1e-5)
    assert gated_velocity_loss(velocities.bfloat16(), target.bfloat16(), weights, valid).dtype == torch.float32
