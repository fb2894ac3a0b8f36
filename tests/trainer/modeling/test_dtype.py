"""A component in bfloat16 between neighbours in float32: they notice nothing."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model_constructor import GraphModel
from trainer.config.schemas import Lora
from trainer.modeling.dtype import cast, set_dtype
from trainer.modeling.lora import add_lora


def test_what_it_computes_is_what_bfloat16_computes(tower: GraphModel, x: torch.Tensor) -> None:
    by_hand = copy.deepcopy(tower).to(torch.bfloat16).eval()
    set_dtype(tower.eval(), torch.bfloat16)
    assert {one.dtype for one in tower.parameters()} == {torch.bfloat16}
    result = tower(x)
    assert result.dtype == torch.float32
    assert torch.equal(result, by_hand(x.bfloat16()).float())


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_pass_through_its_door(tower: GraphModel, autocast: bool) -> None:
    before, after = nn.Linear(4, 8), nn.Linear(2, 3)
    set_dtype(tower, torch.bfloat16)
    tower.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        after(tower(before(torch.ones(5, 4)))).sum().backward()
    assert before.weight.grad.dtype == torch.float32
    assert before.weight.grad.any()


def test_inputs_and_outputs_are_cast_whatever_they_stand_in() -> None:
    whole = torch.arange(3)
    given = {"a": [torch.ones(2), (whole, None)], "b": "text"}
    made = cast(given, torch.bfloat16)
    assert made["a"][0].dtype == torch.bfloat16
    assert made["a"][1] == (whole, None)
    assert made["b"] == "text"
    assert given["a"][0].dtype == torch.float32


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_a_copy_casts_too(tower: GraphModel, x: torch.Tensor, copied: Callable) -> None:
    set_dtype(tower.eval(), torch.bfloat16)
    assert torch.equal(copied(tower)(x), tower(x))


def test_float32_needs_no_door(tower: GraphModel) -> None:
    set_dtype(tower.half(), torch.float32)
    assert {one.dtype for one in tower.parameters()} == {torch.float32}
    assert not tower._forward_hooks
    assert not tower._forward_pre_hooks


def test_lora_matrices_stay_float32_and_train_by_steps_that_bfloat16_would_lose(place: Callable) -> None:
    layer = nn.Sequential(nn.Linear(8, 8))
    set_dtype(layer, torch.bfloat16)
    add_lora(layer, Lora(rank=2, targets=["[0]"]), place)
    a = layer[0].lora_A
    assert a.dtype == torch.float32
    before = a.detach().clone()
    torch.optim.SGD([a], lr=1.0)
    a.data.add_(before, alpha=2.0**-12)
    assert not torch.equal(a, before)
    assert torch.equal(a.bfloat16(), before.bfloat16())  # as it would have been without
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    layer[0].lora_B.data.fill_(0.5)
    expected = layer[0].weight.float() + layer[0].lora_B @ a
    torch.testing.assert_close(layer(x), F.linear(x, expected, layer[0].bias.float()), rtol=0.05, atol=0.05)
