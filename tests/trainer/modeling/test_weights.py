"""`weights`: what a file holds is what the component has, or every difference is told; nothing in a file is run."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model_constructor import ConfigError, GraphModel
from trainer.modeling.weights import load_weights


@pytest.fixture
def file(tmp_path: Path, build_tower: Callable[..., GraphModel]) -> Path:
    torch.save(build_tower(seed=9).state_dict(), tmp_path / "tower.pt")
    return tmp_path / "tower.pt"


def changed(file: Path, change: Callable[[dict], object]) -> Path:
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)
    return file


@pytest.mark.parametrize("kind", ["pt", "old pt", "safetensors"])
def test_every_tensor_is_the_files(
    tower: GraphModel, build_tower: Callable[..., GraphModel], tmp_path: Path, kind: str
) -> None:
    state = build_tower(seed=9).state_dict()
    path = tmp_path / f"w.{kind.split()[-1]}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pt")
    load_weights(tower, path, None, "tower")
    assert all(torch.equal(value, state[name]) for name, value in tower.state_dict().items())


def test_missing_unexpected_and_misshapen_tensors_are_told_together(tower: GraphModel, file: Path) -> None:
    def change(state: dict) -> None:
        state["layers.0.p.bias"] = state.pop("layers.0.q.bias")
        state["head.weight"] = torch.zeros(3, 8)

    with pytest.raises(ConfigError) as raised:
        load_weights(tower, changed(file, change), None, "tower")
    text = str(raised.value)
    assert "component 'tower'" in text
    assert "lacks layers.0.q.bias" in text
    assert "has besides layers.0.p.bias" in text
    assert "has other shapes: head.weight [3, 8] for [2, 8]" in text
    assert len(raised.value.problems) == 3


def test_not_strict_loads_what_fits_and_tells_the_rest_in_a_line(
    tower: GraphModel, build_tower: Callable[..., GraphModel], file: Path, capsys: pytest.CaptureFixture
) -> None:
    before, given = tower.head.weight.clone(), build_tower(seed=9).state_dict()
    changed(file, lambda state: state.update({"head.weight": torch.zeros(3, 8)}))
    load_weights(tower, file, None, "tower", strict=False)
    for name, value in tower.state_dict().items():
        assert torch.equal(value, before if name == "head.weight" else given[name])
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("strict", [True, False])
def test_a_file_of_something_else_is_refused(tower: GraphModel, tmp_path: Path, strict: bool) -> None:
    torch.save({"layer.q.bias": torch.zeros(8)}, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match=r"holds none of its tensors"):
        load_weights(tower, tmp_path / "other.pt", None, "tower", strict=strict)


def test_a_file_with_lora_matrices_says_what_it_is(tower: GraphModel, file: Path) -> None:
    changed(file, lambda state: state.update({"head.lora_A": torch.zeros(2, 8), "head.lora_B": torch.zeros(2, 2)}))
    with pytest.raises(ConfigError, match=r"LoRA matrices: continue from it by train.load_dir"):
        load_weights(tower, file, None, "tower")


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["hostile.pt", "hostile.safetensors"])
def test_a_hostile_pickle_is_refused_and_not_run(tower: GraphModel, tmp_path: Path, name: str) -> None:
    torch.save({"head.bias": Hostile(tmp_path / "owned")}, tmp_path / name)
    with pytest.raises(ConfigError, match=r"nothing of it was run"):
        load_weights(tower, tmp_path / name, None, "tower")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"text"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_damaged_file_is_refused(tower: GraphModel, file: Path, damage: Callable, suffix: str) -> None:
    if suffix == "safetensors":
        save_file(tower.state_dict(), file.with_suffix(".safetensors"))
    path = file.with_suffix(f".{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=r"is damaged"):
        load_weights(tower, path, None, "tower")


def test_a_file_that_is_no_state_dict_says_what_it_holds(tower: GraphModel, tmp_path: Path) -> None:
    torch.save({"state_dict": tower.state_dict(), "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"it holds state_dict, epoch"):
        load_weights(tower, tmp_path / "w.pt", None, "tower")


def test_on_the_meta_device_the_same_is_checked_and_nothing_is_said(
    build_tower: Callable[..., GraphModel], file: Path, recwarn: pytest.WarningsRecorder, capsys: pytest.CaptureFixture
) -> None:
    with torch.device("meta"):
        hollow = build_tower()
    load_weights(hollow, file, None, "tower")
    changed(file, lambda state: state.pop("token"))
    load_weights(hollow, file, None, "tower", strict=False)
    assert not recwarn.list
    assert not capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"lacks token"):
        load_weights(hollow, file, None, "tower")
