"""LoRA: equal to peft's, under the author's names; only A and B train; merged, it is the author's model again."""

import copy
import pickle
from collections.abc import Callable

import peft
import pytest
import torch
from torch import nn

from model_constructor import ConfigError, GraphModel
from trainer.config.schemas import Lora
from trainer.modeling.lora import add_lora, has_lora, merge_lora

LORA = Lora(rank=4, alpha=6.0, dropout=0.3, targets=["layers[*].q", "head"])


def with_values(component: nn.Module) -> nn.Module:
    """B is zero at first; here it is not, so that something can be seen."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in component.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return component


def test_output_and_gradients_are_those_of_peft(
    build_tower: Callable[..., GraphModel], place: Callable, x: torch.Tensor
) -> None:
    ours = build_tower()
    add_lora(ours, LORA, place)
    theirs = build_tower()
    config = peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.3, target_modules=["q", "head"])
    peft.inject_adapter_in_model(config, theirs)
    with_values(ours), with_values(theirs)
    losses = []
    for component in (ours, theirs):
        torch.manual_seed(3)
        losses.append(component.train()(x).square().sum())
        losses[-1].backward()
    assert torch.equal(losses[0], losses[1])
    peers = {name.replace(".default.weight", ""): one for name, one in theirs.named_parameters() if "lora_" in name}
    trained = {name: one for name, one in ours.named_parameters() if one.requires_grad}
    assert trained.keys() == peers.keys()
    assert all(torch.equal(trained[name].grad, peers[name].grad) for name in trained)


def test_files_keep_the_authors_names(build_tower: Callable[..., GraphModel], place: Callable, x: torch.Tensor) -> None:
    tower = build_tower()
    names = set(tower.state_dict())
    before = tower.eval()(x)
    add_lora(tower, LORA, place)
    added = {f"{layer}.lora_{half}" for layer in ("layers.0.q", "layers.1.q", "layers.2.q", "head") for half in "AB"}
    assert set(tower.state_dict()) == names | added
    assert tower.head.lora_A.shape == (4, 8)
    assert tower.head.lora_B.shape == (2, 4)
    assert torch.equal(tower(x), before)  # B is zero
    assert {name for name, one in tower.named_parameters() if one.requires_grad} == added


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_merged_it_is_the_model_of_the_file(
    tower: GraphModel,
    build_tower: Callable[..., GraphModel],
    place: Callable,
    x: torch.Tensor,
    copied: Callable,
    tmp_path,
) -> None:
    add_lora(tower, LORA, place)
    expected = with_values(tower).eval()(x)
    merged = copied(tower)
    merge_lora(merged)
    torch.testing.assert_close(merged(x), expected, rtol=1e-5, atol=1e-5)
    assert list(merged.state_dict()) == list(build_tower().state_dict())
    assert not has_lora(merged)
    merged.save_pretrained(tmp_path)  # which refuses what the file does not describe
    assert torch.equal(GraphModel.from_pretrained(tmp_path).eval()(x), merged(x))
    assert torch.equal(tower(x), expected)  # the original keeps its own


def test_alpha_is_the_rank_unless_given(tower: GraphModel, place: Callable, x: torch.Tensor) -> None:
    add_lora(tower, Lora(rank=2, targets=["head"]), place)
    with_values(tower).eval()
    plain = tower.head.weight @ x.T + tower.head.bias[:, None]
    update = tower.head.lora_B @ tower.head.lora_A @ x.T
    torch.testing.assert_close(tower.head(x), (plain + update).T)
    torch.testing.assert_close(tower.head(input=x), (plain + update).T)


def test_torchs_fused_layers_do_not_pass_it_by(place: Callable) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.inference_mode():
        before = layer(torch.ones(1, 3, 8))
        add_lora(layer, Lora(rank=2, targets=["linear1"]), place)
        assert not torch.allclose(with_values(layer)(torch.ones(1, 3, 8)), before)


def test_targets_that_cannot_have_one_are_all_told(place: Callable, tower: GraphModel) -> None:
    with pytest.raises(ConfigError) as raised:
        add_lora(tower, Lora(rank=2, targets=["layers[0].mlp", "hed", "head", "token"]), place)
    text = str(raised.value)
    assert [problem.place.file for problem in raised.value.problems] == [f"lora.targets.{n}" for n in (0, 1, 3)]
    assert "'layers.0.mlp' is Sequential, not a linear layer" in text
    assert "layers[0].mlp.type:Linear" in text
    assert "did you mean 'head'?" in text
    assert all(parameter.requires_grad for parameter in tower.parameters())


def test_a_layer_that_is_not_called_is_refused(place: Callable) -> None:
    with pytest.raises(ConfigError, match=r"used without calling the layer"):
        add_lora(nn.MultiheadAttention(8, 2), Lora(rank=2, targets=["out_proj"]), place)


def test_a_layer_under_two_names_gets_one_update(place: Callable) -> None:
    shared = nn.Linear(4, 4)
    pair = nn.ModuleDict({"a": shared, "b": shared})
    add_lora(pair, Lora(rank=2, targets=["a", "b"]), place)
    assert len(shared._forward_hooks) == 1
    assert {name for name, _ in pair.named_parameters()} == {"a.weight", "a.bias", "a.lora_A", "a.lora_B"}
