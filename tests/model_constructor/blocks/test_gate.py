"""The noisy top-k gate, against a loop over tokens and the probability that theory gives a choice."""

from __future__ import annotations

import math

import pytest
import torch

from model_constructor.blocks import NoisyTopKGate


def random_gate(dim: int, experts: int, k: int) -> NoisyTopKGate:
    module = NoisyTopKGate(dim, experts, k)
    for weight in module.parameters():
        torch.nn.init.normal_(weight)
    return module


def test_without_noise_the_k_largest_logits_share_the_weight_by_their_softmax():
    module, x = random_gate(4, 5, k=2).eval(), torch.randn(2, 3, 4)
    weights, chosen, logits = module(x)
    assert (weights.shape, chosen.shape, logits.shape) == ((2, 3, 5), (2, 3, 2), (2, 3, 5))
    for b in range(2):
        for t in range(3):
            scores = [float(x[b, t].double() @ module.gate.weight[e].detach().double()) for e in range(5)]
            best = sorted(range(5), key=lambda e: -scores[e])[:2]
            total = sum(math.exp(scores[e]) for e in best)
            expected = [math.exp(scores[e]) / total if e in best else 0.0 for e in range(5)]
            torch.testing.assert_close(weights[b, t], torch.tensor(expected), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(logits[b, t], torch.tensor(scores), atol=1e-5, rtol=1e-4)
            assert chosen[b, t].tolist() == best


def test_in_training_an_expert_is_chosen_with_the_probability_of_its_noisy_lead():
    module = NoisyTopKGate(1, 2, k=1)
    module.gate.weight.data = torch.tensor([[0.5], [1.5]])
    module.noise.weight.data = torch.tensor([[0.0], [1.0]])
    _, chosen, logits = module(torch.ones(20_000, 1))
    spread = math.hypot(math.log(1 + math.exp(0.0)), math.log(1 + math.exp(1.0)))
    expected = 0.5 * (1 + math.erf((0.5 - 1.5) / spread / math.sqrt(2)))
    assert float((chosen == 0).float().mean()) == pytest.approx(expected, abs=0.015)
    assert torch.equal(logits, torch.tensor([0.5, 1.5]).expand(20_000, 2))  # these are without noise


def test_a_new_gate_gives_all_experts_the_same_load_of_any_token():
    _, chosen, _ = NoisyTopKGate(4, 5, k=2)(torch.randn(4).expand(10_000, 4))
    torch.testing.assert_close(chosen.flatten().bincount() / 20_000, torch.full((5,), 0.2), atol=0.015, rtol=0)


def test_both_layers_learn_in_training():
    module = random_gate(4, 5, k=2)
    weights, _, _ = module(torch.randn(8, 4))
    (weights * torch.randn(5)).sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in module.parameters())


@pytest.mark.parametrize("k", [0, 4])
def test_k_is_from_one_to_the_number_of_experts(k: int):
    with pytest.raises(ValueError, match=f"k {k} is not from 1 to the number of experts, 3"):
        NoisyTopKGate(4, 3, k=k)
