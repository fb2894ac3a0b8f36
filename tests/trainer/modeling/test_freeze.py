"""Frozen means: no gradient, eval mode whatever is called, in no optimizer, not in DistributedDataParallel's buckets."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model_constructor import ConfigError, GraphModel
from trainer.modeling.freeze import freeze
from trainer.modeling.optimizers import parameter_groups


def train_once(component: nn.Module, x: torch.Tensor) -> None:
    component.train()
    trainable = [parameter for parameter in component.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    component(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("selectors", "frozen"),
    [
        (["layers[1]"], {"layers.1."}),
        (["type:BatchNorm1d"], {"layers.0.norm.", "layers.1.norm.", "layers.2.norm."}),
        (["layers[*].q.bias", "token"], {"layers.0.q.bias", "layers.1.q.bias", "layers.2.q.bias", "token"}),
    ],
)
@pytest.mark.fault("F23", "frozen tensors and statistics stay bit for bit")
def test_frozen_tensors_and_statistics_stay_bit_for_bit_and_all_others_move(
    tower: GraphModel, place: Callable, x: torch.Tensor, selectors: list[str], frozen: set[str]
) -> None:
    before = copy.deepcopy(tower.state_dict())
    freeze(tower, selectors, place)
    train_once(tower, x)
    for name, value in tower.state_dict().items():
        stays = name.startswith(tuple(frozen)) or name == "scale"
        assert torch.equal(value, before[name]) == stays, name


def test_a_frozen_module_stays_in_eval_mode_whoever_calls_train(tower: GraphModel, place: Callable) -> None:
    freeze(tower, ["layers[1]"], place)
    holder = nn.ModuleDict({"tower": tower}).train()
    for module in [holder, tower, tower.layers, tower.layers[1], tower.layers[1].mlp, tower.layers[1].norm]:
        assert module.train() is module
        assert not any(inner.training for inner in tower.layers[1].modules())
    assert all(inner.training for inner in tower.layers[0].modules())


def test_a_whole_component_is_frozen(tower: GraphModel, place: Callable, x: torch.Tensor) -> None:
    freeze(tower, None, place)
    tower.train()
    first, second = tower(x), tower(x)
    assert torch.equal(first, second)
    assert not first.requires_grad


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_a_copy_stays_frozen_by_itself(tower: GraphModel, place: Callable, copied: Callable) -> None:
    freeze(tower, ["layers[1]"], place)
    twin = copied(tower).train()
    assert not any(inner.training for inner in twin.layers[1].modules())
    assert twin.layers[0].training
    assert twin.layers[1].train.module is twin.layers[1]
    assert not any(parameter.requires_grad for parameter in twin.layers[1].parameters())


@pytest.mark.fault("F23", "no optimizer has what is frozen")
def test_an_optimizer_gets_what_is_not_frozen(tower: GraphModel, place: Callable) -> None:
    from trainer.config.schemas import Optimizer

    freeze(tower, ["layers"], place)
    (rest,) = parameter_groups(tower, "tower", Optimizer(type="any"), place).values()
    assert set(rest) == {"token", "head.weight", "head.bias"}


def test_ddp_puts_no_frozen_parameter_in_a_bucket(
    tower: GraphModel, place: Callable, x: torch.Tensor, tmp_path: Path
) -> None:
    freeze(tower, ["layers"], place)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(tower, broadcast_buffers=False)
        wrapped(x).sum().backward()
        data = wrapped.logger._get_ddp_logging_data().ints_map
        assert data["num_parameter_tensors"] == 3
        assert data["total_parameter_size_bytes"] == 4 * (8 + 2 * 8 + 2)
    finally:
        dist.destroy_process_group()


def test_selectors_that_freeze_nothing_are_all_told(tower: GraphModel, place: Callable) -> None:
    with pytest.raises(ConfigError) as raised:
        freeze(tower, ["lyers", "head", "scale"], place)
    problems = raised.value.problems
    assert [problem.place.file for problem in problems] == ["freeze.0", "freeze.2"]
    assert "'lyers' selects nothing" in str(raised.value)
    assert "did you mean 'layers'?" in str(raised.value)
    assert "'scale' is a buffer" in str(raised.value)
    assert all(parameter.requires_grad for parameter in tower.parameters())  # refused as a whole
