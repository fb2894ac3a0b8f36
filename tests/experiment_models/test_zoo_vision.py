"""zoo/resnet18.yaml and zoo/vit_tiny.yaml are timm's models."""

import pytest
import timm
import torch
import torchvision
from key_map import read_key_map
from proof import ZOO, assert_close, count, prove_equal, prove_initial

from model_constructor import build_model

RESNETS = [  # the larger ones in float32, for time
    ("resnet18", [2, 2, 2, 2], 2, (64, 64), torch.float64),
    ("resnet18", [2, 2, 2, 2], 3, (33, 70), torch.float32),
    pytest.param("resnet34", [3, 4, 6, 3], 2, (33, 33), torch.float32, marks=pytest.mark.slow),
]
VITS = [
    ("vit_tiny_patch16_224", 192, 3, 2, 48, torch.float64),
    ("vit_tiny_patch16_224", 192, 3, 3, 32, torch.float64),
    pytest.param("vit_small_patch16_224", 384, 6, 2, 32, torch.float32, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "layers", "batch", "size", "dtype"), RESNETS)
def test_resnet_is_timms(name, layers, batch, size, dtype):
    ours = build_model(ZOO / "resnet18.yaml", params={"layers": layers, "classes": 10}).to(dtype)
    theirs = timm.create_model(name, num_classes=10).to(dtype)
    image = torch.randn(batch, 3, *size, dtype=dtype)
    prove_equal(ours, theirs, {}, lambda model: model(image))


@pytest.mark.parametrize("reference", [lambda: timm.create_model("resnet18"), torchvision.models.resnet18])
def test_resnet_reads_and_writes_the_checkpoints_of_timm_and_torchvision_as_they_are(reference):
    ours, theirs, again = build_model(ZOO / "resnet18.yaml"), reference(), reference()
    ours.load_state_dict(theirs.state_dict())
    again.load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    image = torch.randn(2, 3, 32, 32)
    assert_close([ours.eval()(image), again.eval()(image)], [theirs.eval()(image)] * 2)


def test_resnet_and_vit_begin_as_timms():
    prove_initial(build_model(ZOO / "resnet18.yaml"), timm.create_model("resnet18"), {})
    key_map = read_key_map(ZOO / "vit_tiny.keys.yaml")
    prove_initial(build_model(ZOO / "vit_tiny.yaml"), timm.create_model("vit_tiny_patch16_224"), key_map)


def test_a_resnet_of_half_the_width_has_half_the_channels_everywhere():
    whole, half = (build_model(ZOO / "resnet18.yaml", params={"width": width}).state_dict() for width in (64, 32))
    for name, tensor in half.items():
        ends = {3, 1000}  # of the image and of the classes
        expected = [size if size in ends or dim > 1 else size // 2 for dim, size in enumerate(whole[name].shape)]
        assert list(tensor.shape) == expected, name


@pytest.mark.parametrize(("name", "dim", "heads", "batch", "size", "dtype"), VITS)
def test_vit_is_timms(name, dim, heads, batch, size, dtype):
    ours = build_model(ZOO / "vit_tiny.yaml", params={"dim": dim, "heads": heads, "size": size}).to(dtype)
    theirs = timm.create_model(name, img_size=size).to(dtype)
    image = torch.randn(batch, 3, size, size, dtype=dtype)
    prove_equal(ours, theirs, read_key_map(ZOO / "vit_tiny.keys.yaml"), lambda model: model(image))


def test_vit_tiny_has_the_size_of_timms_at_224_pixels():
    with torch.device("meta"):
        ours, theirs = build_model(ZOO / "vit_tiny.yaml"), timm.create_model("vit_tiny_patch16_224")
    assert count(ours) == count(theirs)
