"""Vector quantisation, against a search by hand and the gradients that the papers derive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import model_constructor
from model_constructor.blocks import VectorQuantizer

ROOT = Path(model_constructor.__file__).parents[1]


def random_quantizer(codes: int, dim: int, **options: bool) -> VectorQuantizer:
    module = VectorQuantizer(codes, dim, **options)
    torch.nn.init.normal_(module.codebook)
    return module


def nearest_codes(x: torch.Tensor, codebook: torch.Tensor) -> list[int]:
    codebook = codebook.detach()

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True))

    return [min(range(len(codebook)), key=lambda k: distance(vector, codebook[k])) for vector in x.flatten(0, -2)]


@pytest.mark.parametrize("noise_substitution", [False, True])
def test_each_vector_becomes_exactly_its_nearest_code(noise_substitution: bool):
    module, x = random_quantizer(7, 3, noise_substitution=noise_substitution).eval(), torch.randn(2, 4, 3)
    quantized, index = module(x)
    assert index.flatten().tolist() == nearest_codes(x, module.codebook)
    assert len(set(index.flatten().tolist())) > 2
    assert torch.equal(quantized, module.codebook[index])


def test_codes_are_told_apart_in_float32_also_under_autocast():
    module = VectorQuantizer(2, 1)
    module.codebook.data = torch.tensor([[1.0], [1.001]])
    with torch.autocast("cpu", torch.bfloat16):
        assert module(torch.tensor([[1.0002], [1.0009]]))[1].tolist() == [0, 1]


def test_straight_through_the_gradient_goes_to_x_unchanged_and_the_codebook_gets_none():
    module, x = random_quantizer(7, 3), torch.randn(5, 3, requires_grad=True)
    quantized, _ = module(x)
    upstream = torch.randn(5, 3)
    quantized.backward(upstream)
    assert torch.equal(x.grad, upstream)
    assert module.codebook.grad is None


def test_the_loss_of_the_codebook_is_written_with_its_index():
    module, x = random_quantizer(7, 3), torch.randn(5, 3)
    _, index = module(x)
    (F.embedding(index, module.codebook) - x).square().sum().backward()
    expected = torch.zeros(7, 3)
    for vector, k in zip(x, nearest_codes(x, module.codebook), strict=True):
        expected[k] += 2 * (module.codebook[k].detach() - vector)
    torch.testing.assert_close(module.codebook.grad, expected)


def test_noise_substitution_keeps_the_length_of_the_error_and_draws_its_direction():
    module, x = random_quantizer(7, 3, noise_substitution=True), torch.randn(1, 3)
    quantized, index = module(x.expand(20_000, 3))
    length = (x - module.codebook[index[0]]).norm()
    torch.testing.assert_close((quantized - x).norm(dim=-1), length.expand(20_000), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(((quantized - x) / length).mean(0), torch.zeros(3), atol=0.02, rtol=0)
    covariance = ((quantized - x) / length).T.cov()
    torch.testing.assert_close(covariance, torch.eye(3) / 3, atol=0.02, rtol=0)  # no direction is preferred


def test_noise_substitution_trains_x_and_the_codebook_from_the_task():
    module, x = random_quantizer(7, 3, noise_substitution=True), torch.randn(5, 3, requires_grad=True)
    quantized, index = module(x)
    upstream = torch.randn(5, 3)
    quantized.backward(upstream)
    error = (x - module.codebook[index]).detach()
    along = ((quantized - x).detach() / error.norm(dim=-1, keepdim=True) * upstream).sum(-1, keepdim=True)
    through_length = error / error.norm(dim=-1, keepdim=True) * along  # d|x - code| / dx = error / |error|
    torch.testing.assert_close(x.grad, upstream + through_length)
    expected = torch.zeros(7, 3).index_add(0, index, -through_length)
    torch.testing.assert_close(module.codebook.grad, expected)


def test_uses_are_counted_in_training_alone():
    module, x = random_quantizer(7, 3), torch.randn(2, 40, 3)
    module.eval()(x)
    assert not module.uses.any()
    module.train()(x)
    module(x[:1])
    found = nearest_codes(x, module.codebook) + nearest_codes(x[:1], module.codebook)
    assert module.uses.tolist() == [found.count(k) for k in range(7)]


def test_the_nearest_codes_can_be_asked_for_without_a_use():
    module, x = random_quantizer(7, 3, noise_substitution=True), torch.randn(2, 4, 3, requires_grad=True)
    assert module.nearest(x).flatten().tolist() == nearest_codes(x, module.codebook)
    assert module.nearest(x).shape == (2, 4) and not module.uses.any()


def test_dead_codes_move_beside_codes_in_use_drawn_by_their_use_and_the_rows_are_told():
    module = VectorQuantizer(1003, 2)
    module.uses[:3] = torch.tensor([300, 100, 4])
    before = module.codebook.data = torch.randn(1003, 2) * 10
    dead = module.replace_dead_codes(least_uses=5, spread=0.01)
    assert dead.tolist() == [False, False, *[True] * 1001]
    assert torch.equal(module.codebook[:2], before[:2])
    distance = torch.cdist(module.codebook[2:], before[:2])
    assert distance.amin(-1).max() < 0.06  # five standard deviations
    assert float((distance[:, 0] < 0.1).float().mean()) == pytest.approx(0.75, abs=0.05)
    assert module.codebook.unique(dim=0).shape[0] == 1003
    assert not module.uses.any()


def test_if_no_code_was_used_none_is_replaced():
    module = random_quantizer(4, 2)
    before = module.codebook.detach().clone()
    assert not module.replace_dead_codes().any()
    assert torch.equal(module.codebook, before)


def test_the_optimizer_state_of_replaced_rows_can_be_reset():
    module = random_quantizer(4, 2, noise_substitution=True)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(50, 2))[0].square().sum().backward()
    optimizer.step()
    module.uses.copy_(torch.tensor([3, 0, 2, 0]))
    mean = optimizer.state[module.codebook]["exp_avg"]
    kept = mean[[0, 2]].clone()
    mean[module.replace_dead_codes()] = 0
    assert torch.equal(mean[[0, 2]], kept) and kept.any() and not mean[[1, 3]].any()


ONE_OF_TWO = """
import sys, torch
from model_constructor.blocks import VectorQuantizer
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(rank)
module = VectorQuantizer(4, 2)
module.codebook.data = torch.arange(8.0).reshape(4, 2)
module.uses[rank] = 1
torch.save((module.replace_dead_codes(), module.codebook.data), f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_add_up_their_counts_and_keep_one_codebook(tmp_path: Path):
    commands = [[sys.executable, "-c", ONE_OF_TWO, str(rank), str(tmp_path)] for rank in range(2)]
    assert [process.wait(120) for process in [subprocess.Popen(command, cwd=ROOT) for command in commands]] == [0, 0]
    (dead, first), (_, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert dead.tolist() == [False, False, True, True]
    assert torch.equal(first, second)
