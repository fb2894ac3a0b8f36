"""A key map gives every tensor of a reference exactly one place."""

import pytest
import torch
from key_map import load_foreign, look_up, translate
from torch import nn

QKV = {f"*.{name}": {"from": "*.qkv", "part": part, "of": 3} for part, name in enumerate("qkv")}


def test_a_star_is_a_segment_or_a_stretch_of_one_and_two_stars_are_any_number():
    key_map = {"layers.*.fc*.*": "blocks.*.linear*.*", "layers.**": "blocks.**"}
    assert look_up("layers.3.fc1.bias", key_map) == ("blocks.3.linear1.bias", 0, 1)
    assert look_up("layers.3.mlp.fc1.bias", key_map) == ("blocks.3.mlp.fc1.bias", 0, 1)
    assert look_up("head.layers.0", key_map) == ("head.layers.0", 0, 1)


def test_the_parts_of_a_fused_tensor_are_equal_stretches_of_its_rows():
    fused = torch.arange(12).view(6, 2)
    ours = translate(["a.q", "a.k", "a.v"], {"a.qkv": fused}, QKV)
    assert torch.equal(torch.cat([ours["a.q"], ours["a.k"], ours["a.v"]]), fused)
    assert torch.equal(ours["a.k"], fused[2:4])


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (["a.q", "a.k", "a.v", "b"], {"a.qkv": 6}, "our 'b' is their 'b', which does not exist"),
        (["a.q", "a.k", "a.v"], {"a.qkv": 6, "b": 1}, "their 'b' is used 0 times"),
        (["a.q", "a.k"], {"a.qkv": 6}, "their 'a.qkv' is used 2 times"),
        (["a.q", "a.k", "a.v"], {"a.qkv": 5}, "their 'a.qkv' .* has no 3 equal parts"),
    ],
)
def test_a_tensor_without_a_place_is_refused(ours, theirs, message):
    with pytest.raises((KeyError, ValueError), match=message):
        translate(ours, {key: torch.zeros(rows) for key, rows in theirs.items()}, QKV)


def test_a_foreign_tensor_of_another_shape_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        load_foreign(nn.Linear(2, 3), nn.Linear(3, 3).state_dict(), {})
