"""Gradient checkpointing: the same step, to the bit, with less kept for the backward pass."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from model_constructor import ConfigError, GraphModel
from trainer.modeling.recompute import Recomputed, recompute_repeated_blocks, repeated_blocks


def step(component: nn.Module, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients, buffers and the random stream after one step, and the bytes that forward kept."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(11)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = component.train()(x).square().sum()
    size = sum(kept.values())
    loss.backward()
    gradients = {f"grad {name}": one.grad for name, one in component.named_parameters() if one.grad is not None}
    return {**gradients, **dict(component.named_buffers()), "loss": loss.detach(), "rng": torch.get_rng_state()}, size


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_step_with_dropout_and_batch_norm_is_the_same_to_the_bit(
    build_tower: Callable[..., GraphModel], place: Callable, x: torch.Tensor, copied: Callable
) -> None:
    plain, recomputing = build_tower(), build_tower()
    recompute_repeated_blocks(recomputing, place)
    expected, _ = step(plain, x)
    found, _ = step(copied(recomputing), x)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert found["layers.0.norm.num_batches_tracked"] == 1
    assert set(recomputing.state_dict()) == set(plain.state_dict())


def test_it_keeps_less(build_tower: Callable[..., GraphModel], place: Callable) -> None:
    x = torch.randn(256, 16)
    plain, recomputing = build_tower(dim=16, depth=8), build_tower(dim=16, depth=8)
    recompute_repeated_blocks(recomputing, place)
    kept = step(recomputing, x)[1] + 8 * x.nbytes  # the inputs of the blocks, which no hook sees
    assert kept < 0.2 * step(plain, x)[1]


class Counting(nn.Module):
    """A block whose buffer changes at every call, and decides its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)
        self.register_buffer("calls", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x) * self.calls
        self.calls = self.calls + 1
        return y


def test_a_block_is_recomputed_as_it_was_however_often(place: Callable) -> None:
    found = []
    for recomputes in (False, True):
        torch.manual_seed(0)
        blocks = nn.ModuleDict({"list": nn.ModuleList([Counting()])})
        if recomputes:
            recompute_repeated_blocks(blocks, place)
        (block,) = blocks["list"]
        loss = sum(block(torch.ones(3, 2)).sum() for _ in range(2))
        loss.backward(retain_graph=True)
        loss.backward()
        found.append((block.net.weight.grad, block.calls))
    assert torch.equal(found[0][0], torch.full((2, 2), 2 * 3.0 * (1 + 2)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_nothing_is_recomputed_without_gradients(tower: GraphModel, place: Callable, x: torch.Tensor) -> None:
    expected = tower.eval()(x)
    recompute_repeated_blocks(tower, place)
    calls = []
    tower.layers[0].q.register_forward_hook(lambda *_: calls.append(1))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(tower(x), expected)
    assert len(calls) == 2


def test_the_blocks_are_members_of_lists_and_equal_links_of_chains() -> None:
    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    component = nn.ModuleDict(
        {
            "levels": nn.ModuleList([nn.ModuleList([block(), block()]), nn.ModuleList([block()])]),
            "chain": nn.Sequential(nn.TransformerEncoderLayer(4, 2), nn.TransformerEncoderLayer(4, 2), nn.Linear(4, 4)),
            "mixed": nn.Sequential(nn.Conv1d(2, 2, 1), block()),
            "leaves": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]),
        }
    )
    names = {id(module): name for name, module in component.named_modules()}
    found = [names[id(one)] for one in repeated_blocks(component)]
    assert found == ["levels.0.0", "levels.0.1", "levels.1.0", "chain.0", "chain.1"]


def test_a_component_that_repeats_nothing_is_refused(place: Callable) -> None:
    with pytest.raises(ConfigError, match=r"no block repeats") as raised:
        recompute_repeated_blocks(nn.Linear(2, 2), place)
    assert raised.value.problems[0].place.file == "gradient_checkpointing"


def test_a_mistake_inside_a_block_is_told_at_its_line(tower: GraphModel, place: Callable) -> None:
    recompute_repeated_blocks(tower, place)
    assert isinstance(tower.layers[0].forward, Recomputed)
    tower.layers[0].q = nn.Linear(5, 5)
    with pytest.raises(RuntimeError) as raised:
        tower(torch.ones(4, 8))
    assert "in the outputs of 'layer' (layers[0]), calling q" in raised.value.__notes__[0]
    weight = torch.ones(3, requires_grad=True)  # what comes after is no business of the block that failed
    (weight * weight).sum().backward()
    assert weight.grad.tolist() == [2.0, 2.0, 2.0]
