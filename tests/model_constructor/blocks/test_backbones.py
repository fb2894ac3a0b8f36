"""Backbones of timm and of Hugging Face: equal to the libraries' own, and what a model file cannot reach through them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model_constructor.blocks import HuggingFaceBackbone, TimmBackbone

VISION = {
    "model_type": "dinov2",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
TEXT = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
}


def test_neither_library_is_imported_before_it_is_used():
    code = "import sys, model_constructor.blocks; print({'timm', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext.r160_in1k"])
def test_a_timm_backbone_gives_what_timm_gives(name: str):
    import timm

    image = torch.randn(2, 3, 160, 160)

    def same(module: TimmBackbone, reference: torch.nn.Module, result: Any) -> None:
        module.model.load_state_dict(reference.state_dict())
        torch.testing.assert_close(module.eval()(image), result)

    reference = timm.create_model(name, num_classes=0).eval()
    pooled = reference(image)
    same(TimmBackbone(name), reference, pooled)
    same(TimmBackbone(name, "pooled"), reference, pooled)
    reference = timm.create_model(name, num_classes=0, global_pool="").eval()
    same(TimmBackbone(name, "features"), reference, reference(image))
    reference = timm.create_model(name, features_only=True, out_indices=(1, 2)).eval()
    maps = reference(image)
    assert (pooled.ndim, [level.ndim for level in maps]) == (2, [4, 4])
    same(TimmBackbone(name, [1, 2]), reference, maps)


def test_a_timm_backbone_takes_other_images():
    small = TimmBackbone("test_vit", channels=1, image_size=64)
    assert small(torch.randn(2, 1, 64, 64)).ndim == 2
    assert small.model.patch_embed.num_patches == (64 // 16) ** 2
    assert TimmBackbone("test_resnet", channels=4)(torch.randn(2, 4, 48, 80)).ndim == 2


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_timm_backbone_loads_the_weights_it_is_asked_for_but_not_on_the_meta_device(
    pretrained: bool, monkeypatch: pytest.MonkeyPatch
):
    import timm

    asked = []
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained, **kw: asked.append(pretrained) or create(name, **kw)
    )
    assert TimmBackbone("test_resnet", pretrained=pretrained).pretrained == pretrained
    with torch.device("meta"):
        TimmBackbone("test_resnet", pretrained=pretrained)
    assert asked == [pretrained, False]


@pytest.mark.parametrize(
    "name", ["hf-hub:timm/resnet18", "hf_hub:timm/resnet18", "local-dir:/tmp", "timm/resnet18", "./resnet18", "resnet"]
)
def test_a_name_that_is_not_in_timms_registry_is_refused(name: str):
    with pytest.raises(ValueError, match=f"timm's registry has no model '{re.escape(name)}'.*known here: "):
        TimmBackbone(name)


def test_a_tag_of_weights_cannot_be_a_path():
    with pytest.raises((ValueError, RuntimeError), match="looks like"):
        TimmBackbone("resnet18./tmp/weights")


def test_an_output_of_timm_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="output 'maps' is neither 'pooled' nor 'features' nor a list of levels"):
        TimmBackbone("test_resnet", "maps")


@pytest.mark.parametrize(
    ("config", "given"),
    [(VISION, torch.randn(2, 3, 28, 28)), (TEXT, torch.arange(10).reshape(2, 5))],
    ids=["image", "text"],
)
def test_a_folder_gives_the_network_that_was_saved_there(config: dict, given: torch.Tensor, tmp_path: Path):
    from transformers import AutoConfig, AutoModel

    saved = AutoModel.from_config(AutoConfig.for_model(**config)).eval()
    saved.save_pretrained(tmp_path)
    module = HuggingFaceBackbone(str(tmp_path))
    assert module.pretrained
    assert module.training and all(part.training for part in module.modules())
    torch.testing.assert_close(module.eval()(given), saved(given).last_hidden_state)
    assert module(given).shape[::2] == (2, 8)


def test_a_configuration_gives_a_new_network_that_trains():
    module = HuggingFaceBackbone(VISION)
    assert not module.pretrained
    module(torch.randn(2, 3, 28, 28)).square().sum().backward()
    assert module.model.embeddings.patch_embeddings.projection.weight.grad.any()
    assert VISION["model_type"] == "dinov2" and len(VISION) == 6  # what was given is not changed


def test_a_mask_and_other_outputs_are_the_models_own():
    module, ids = HuggingFaceBackbone(TEXT, "hidden_states").eval(), torch.arange(10).reshape(2, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    states = module(ids, attention_mask=mask, output_hidden_states=True)
    expected = module.model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert len(states) == 3
    for state, reference in zip(states, expected, strict=True):
        torch.testing.assert_close(state, reference)


def test_asking_for_depth_makes_a_depth_model():
    sizes = {
        "reassemble_hidden_size": 8,
        "neck_hidden_sizes": [4, 8],
        "fusion_hidden_size": 8,
        "reassemble_factors": [4, 2],
    }
    backbone = {**VISION, "out_indices": [1, 2], "reshape_hidden_states": False}
    module = HuggingFaceBackbone(
        {"model_type": "depth_anything", "backbone_config": backbone, **sizes}, "predicted_depth"
    )
    assert module(torch.randn(2, 3, 28, 28)).shape == (2, 28, 28)


def test_attention_can_be_chosen_among_those_of_torch():
    module = HuggingFaceBackbone({**TEXT, "attn_implementation": "eager"})
    assert module.model.config._attn_implementation == "eager"


def test_pickled_weights_are_not_read(tmp_path: Path):
    torch.save(HuggingFaceBackbone(VISION).model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(VISION))
    with pytest.raises(OSError, match="safetensors"):
        HuggingFaceBackbone(str(tmp_path))


def test_on_the_meta_device_a_folder_needs_no_weights(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(VISION))
    with torch.device("meta"):
        module = HuggingFaceBackbone(str(tmp_path))
    assert module(torch.empty(2, 3, 28, 28, device="meta")).shape == (2, 5, 8)


HOSTILE = [
    ({**TEXT, "attn_implementation": "someone/kernel"}, "may be code to fetch"),
    ({**TEXT, "_attn_implementation_internal": "someone/kernel"}, "may be code to fetch"),
    ({"model_type": "llava", "text_config": {**TEXT, "attn_implementation": "a/b"}}, "may be code to fetch"),
    ({"model_type": "lightglue", "trust_remote_code": True}, "trust_remote_code True leads to other code"),
    ({"model_type": "detr"}, "use_timm_backbone True leads to other code or weights"),
    (
        {"model_type": "dpt", "backbone": "someone/network", "backbone_kwargs": {"trust_remote_code": True}},
        "backbone 'someone",
    ),
    ({"model_type": "timm_backbone", "backbone": "local-dir:/tmp"}, "leads to other code or weights"),
    ({"model_type": "timm_wrapper", "model_args": {"checkpoint_path": "/tmp/x.pth"}}, "leads to other code or weights"),
    ({**TEXT, "num_hidden_layers": 10**9}, "at most 1000 are built"),
    ({"model_type": "swin", "depths": [2, 10**9]}, "at most 1000 are built"),
]


@pytest.mark.parametrize(("config", "message"), HOSTILE, ids=str)
@pytest.mark.parametrize("from_folder", [False, True])
def test_a_configuration_that_leads_to_other_code_or_weights_is_refused(
    config: dict, message: str, from_folder: bool, tmp_path: Path
):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        HuggingFaceBackbone(str(tmp_path) if from_folder else config)


def test_code_in_a_folder_is_not_run(tmp_path: Path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    with pytest.raises(ValueError, match="model_type is 'evil', which transformers does not have"):
        HuggingFaceBackbone(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({**VISION, "auto_map": auto_map}))
    with pytest.raises(
        OSError, match="safetensors"
    ):  # the network is that of transformers; only its weights are missing
        HuggingFaceBackbone(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_misspelt_setting_is_refused():
    with pytest.raises(ValueError, match=r"dinov2 has no setting 'hiden_size'.*did you mean 'hidden_size'"):
        HuggingFaceBackbone({**VISION, "hiden_size": 8})
