"""Weights: each tensor of a checkpoint finds its place in a model by a key map, and what becomes of each is said."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model_constructor import ConfigError, GraphModel, build_model
from model_constructor.key_map import KeyMap
from model_constructor.tools.cli import main
from model_constructor.weights import TensorReport, load_weights

MODEL = """
    params: {depth: 2, classes: 3}
    inputs: {x: [B, T, 8]}
    blocks:
      layer:
        inputs: {x: [B, T, 8]}
        modules: {norm: LayerNorm(8), attn: "Attention(8, heads=2, bias=False)"}
        outputs: x + attn(norm(x))
    modules:
      layers: layer() * depth
      head: Linear(8, classes)
    outputs: head(layers(x).mean(1))
"""
KEYS = {
    **{f"layers.*.attn.{name}.*": {"from": "blocks.*.attn.qkv.*", "part": i, "of": 3} for i, name in enumerate("qkv")},
    "layers.*.attn.out.*": "blocks.*.attn.proj.*",
    "layers.**": "blocks.**",
}


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a table has to cut depends on the terminal."""
    monkeypatch.setenv("COLUMNS", "200")


class Reference(nn.Module):
    """The same model as another author has written it: a fused projection, and torch's own attention."""

    def __init__(self, depth: int = 2, classes: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Module() for _ in range(depth))
        for block in self.blocks:
            block.norm = nn.LayerNorm(8)
            block.attn = nn.Module()
            block.attn.qkv = nn.Linear(8, 24, bias=False)
            block.attn.proj = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, classes)
        for weight in self.parameters():
            nn.init.normal_(weight)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            q, k, v = (
                part.unflatten(-1, (2, 4)).transpose(1, 2) for part in block.attn.qkv(block.norm(x)).chunk(3, -1)
            )
            weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
            x = x + block.attn.proj((weights @ v).transpose(1, 2).flatten(-2))
        return self.head(x.mean(1))


@pytest.fixture
def model(build: Callable[..., GraphModel]) -> GraphModel:
    return build(MODEL)


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_weights(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["pt", "safetensors", "state dict"])
def test_a_model_with_the_weights_of_its_reference_computes_what_that_does(
    model: GraphModel, tmp_path: Path, kind: str
):
    reference, x = Reference(), torch.randn(2, 5, 8)
    path = tmp_path / f"w.{kind}"
    torch.save(reference.state_dict(), path) if kind == "pt" else save_file(reference.state_dict(), path)
    report = load_weights(model, reference.state_dict() if kind == "state dict" else path, KEYS)
    torch.testing.assert_close(model(x), reference(x))
    assert report.fits
    assert report.summary == "14 tensors: 2 loaded, 12 renamed"
    assert report.of("renamed")[3] == TensorReport(
        "renamed", "layers.0.attn.k.weight", (8, 8), "blocks.0.attn.qkv.weight", (24, 8), (1, 3)
    )
    assert [" ".join(line.split()) for line in str(report).splitlines()][:6] == [
        "ours theirs",
        "loaded head.weight [3, 8]",
        "loaded head.bias [3]",
        "renamed layers.0-1.norm.weight [8] blocks.0-1.norm.weight [8]",
        "renamed layers.0-1.norm.bias [8] blocks.0-1.norm.bias [8]",
        "renamed layers.0-1.attn.q.weight [8, 8] blocks.0-1.attn.qkv.weight part 0 of 3 [24, 8]",
    ]


def test_all_that_is_missing_or_left_over_or_of_another_shape_is_said_at_once(build: Callable):
    state = Reference().state_dict()
    state["scale"] = state.pop("blocks.1.norm.bias")
    text = refused(build(MODEL, params={"depth": 3, "classes": 4}), state, KEYS)
    assert "the checkpoint does not fit the model: 7 missing, 1 unexpected, 2 of another shape." in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "missing layers.1-2.norm.bias [8] no blocks.1-2.norm.bias" in lines
    assert "missing layers.2.attn.q.weight [8, 8] no blocks.2.attn.qkv.weight" in lines
    assert "unexpected scale [8]" in lines
    assert "shape differs head.weight [4, 8] head.weight [3, 8]" in lines
    assert not any(line.startswith("loaded") for line in lines)


def test_without_strict_what_fits_is_loaded_and_the_rest_keeps_its_values(build: Callable):
    model, state = build(MODEL, params={"depth": 3, "classes": 4}), Reference().state_dict()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_weights(model, state, KEYS, strict=False)
    kept = {one.ours for one in report.of("missing", "shape differs")}
    assert kept == {"head.weight", "head.bias"} | {name for name in before if name.startswith("layers.2.")}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name in kept)


@pytest.mark.parametrize("classes", [2, 5])
def test_a_tensor_that_has_grown_or_shrunk_is_adapted_where_that_is_asked_for(build: Callable, classes: int):
    model, state = build(MODEL, params={"classes": classes}), Reference().state_dict()
    before = model.head.weight.detach().clone()
    report = load_weights(model, state, KEYS, adapt=True)
    assert [(one.ours, one.shape, one.their_shape) for one in report.of("adapted")] == [
        ("head.weight", (classes, 8), (3, 8)),
        ("head.bias", (classes,), (3,)),
    ]
    for row in range(classes):
        assert torch.equal(model.head.weight[row], state["head.weight"][row] if row < 3 else before[row])


def test_a_tensor_with_another_number_of_dimensions_is_not_adapted(model: GraphModel):
    state = {**Reference().state_dict(), "head.bias": torch.zeros(3, 1)}
    assert "shape differs  head.bias  [3]  head.bias  [3, 1]" in refused(model, state, KEYS, adapt=True)


def test_only_what_begins_with_the_prefix_is_looked_at(model: GraphModel):
    state = {f"policy.model.{name}": tensor for name, tensor in Reference().state_dict().items()}
    state["normalizer.mean"] = torch.zeros(8)
    assert load_weights(model, state, KEYS, prefix="policy.model.").fits
    assert torch.equal(model.head.bias, state["policy.model.head.bias"])
    assert "all of its names begin with 'policy.': prefix (--prefix)" in refused(
        model, {name: tensor for name, tensor in state.items() if name.startswith("policy.")}, KEYS
    )
    assert "no name begins with 'polcy.'.\n    known here: normalizer., policy.   did you mean 'policy.'?" in refused(
        model, state, KEYS, prefix="polcy."
    )


def test_what_the_key_map_says_is_unused_is_not_left_over(model: GraphModel):
    state = {**Reference().state_dict(), "blocks.0.attn.mask": torch.zeros(2)}
    assert "unexpected" in refused(model, state, KEYS)
    report = load_weights(model, state, {**KEYS, "_unused_": ["blocks.*.attn.mask"]})
    assert [one.theirs for one in report.of("unused")] == ["blocks.0.attn.mask"]


def test_a_checkpoint_of_another_model_is_refused_also_where_strict_is_off(model: GraphModel):
    text = refused(model, {"heads.weight": torch.zeros(3, 8), "head.wieght": torch.zeros(1)}, strict=False)
    assert "holds none of the model's tensors" in text


def test_a_tensor_under_two_names_needs_one_of_them(build: Callable):
    module = nn.ModuleDict({"embed": nn.Linear(4, 4, bias=False), "head": nn.Linear(4, 4, bias=False)})
    module["head"].weight = module["embed"].weight
    report = load_weights(module, {"embed.weight": torch.ones(4, 4)})
    assert [one.ours for one in report.of("shared")] == ["head.weight"]
    assert torch.equal(module["head"].weight, torch.ones(4, 4))


def test_a_tensor_that_would_be_loaded_twice_is_refused():
    module = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    text = refused(module, {"w": torch.ones(4, 4)}, {"*.weight": "w"})
    assert text == "their 'w' would be loaded twice: as 'a.weight' and as 'b.weight'."


def test_names_that_modules_know_from_older_files_load_as_they_do_in_torch(write: Callable, tmp_path: Path):
    norm = nn.BatchNorm1d(4)
    state = {name: tensor for name, tensor in norm.state_dict().items() if name != "num_batches_tracked"}
    assert [one.ours for one in load_weights(norm, {**state}).of("handled")] == ["num_batches_tracked"]
    old = tmp_path / "old.yaml"
    layers = "layers: [{_type_: nn.Linear, in_features: 2, out_features: 2}]"
    old.write_text(f"schema_version: 1\nmodel:\n  sequential:\n    {layers}\n")
    model = build_model(old)
    weights = {f"graph_modules.{name}": torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    report = load_weights(model, weights)
    assert report.of("renamed")[0].theirs == "graph_modules.layer0.weight"
    assert model(torch.ones(1, 2)).tolist() == [[3.0, 3.0]]


def test_each_tensor_has_the_dtype_of_the_model(model: GraphModel):
    reference = Reference().double()
    load_weights(model.bfloat16(), reference.state_dict(), KEYS)
    assert model.head.weight.dtype == torch.bfloat16
    assert torch.equal(model.head.weight, reference.head.weight.bfloat16())


def test_what_is_imaginary_is_not_dropped(model: GraphModel):
    weights = {name: tensor.to(torch.complex64) for name, tensor in model.state_dict().items()}
    before = model.head.bias.clone()
    assert "their 'head.bias' is complex, and our 'head.bias' is not." in refused(model, weights)
    assert torch.equal(model.head.bias, before)


def test_on_the_meta_device_the_same_is_checked_and_nothing_is_said(build: Callable, recwarn: pytest.WarningsRecorder):
    with torch.device("meta"):
        hollow = build(MODEL, params={"classes": 4})
    assert load_weights(hollow, Reference().state_dict(), KEYS, adapt=True).summary == (
        "14 tensors: 12 renamed, 2 adapted"
    )
    assert "2 of another shape" in refused(hollow, Reference().state_dict(), KEYS)
    assert not recwarn.list


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_not_run(model: GraphModel, tmp_path: Path):
    torch.save({"head.bias": Hostile(tmp_path / "owned")}, tmp_path / "hostile.pt")
    assert "nothing of it was run" in refused(model, tmp_path / "hostile.pt")
    assert not (tmp_path / "owned").exists()


def test_a_file_that_is_not_there_or_holds_more_than_tensors_is_refused(model: GraphModel, tmp_path: Path):
    assert "none.pt: there is no such file" in refused(model, tmp_path / "none.pt")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "run.pt")
    assert "it holds state_dict, epoch; save the state dict alone" in refused(model, tmp_path / "run.pt")


# the key map


def test_a_star_is_a_segment_or_a_stretch_of_one_and_two_stars_are_any_number():
    keys = KeyMap.read({"layers.*.fc*.*": "blocks.*.linear*.*", "layers.**": "blocks.**"})
    assert keys.look_up("layers.3.fc1.bias") == ("blocks.3.linear1.bias", 0, 1)
    assert keys.look_up("layers.3.mlp.fc1.bias") == ("blocks.3.mlp.fc1.bias", 0, 1)
    assert keys.look_up("head.layers.0") == ("head.layers.0", 0, 1)
    assert keys.look_up(r"layers.\1.*") == (r"blocks.\1.*", 0, 1)  # a name is no pattern


def test_the_parts_of_a_fused_tensor_are_equal_stretches_of_its_rows():
    module = nn.ParameterDict({name: torch.zeros(2, 2) for name in "qkv"})
    fused = torch.arange(12.0).view(6, 2)
    load_weights(module, {"qkv": fused}, {name: {"from": "qkv", "part": i, "of": 3} for i, name in enumerate("qkv")})
    assert torch.equal(torch.cat([module["q"], module["k"], module["v"]]), fused)


def test_a_fused_tensor_is_used_whole_and_in_equal_parts():
    parts = {name: {"from": "qkv", "part": i, "of": 3} for i, name in enumerate("qkv")}
    two = nn.ParameterDict({"q": torch.zeros(2), "k": torch.zeros(2)})
    assert "1 unexpected" in refused(two, {"qkv": torch.zeros(6)}, parts)
    assert "their 'qkv' [5] has no 3 equal parts." in refused(two, {"qkv": torch.zeros(5)}, parts)
    assert "their 'qkv' [] has no 3 equal parts." in refused(two, {"qkv": torch.zeros(())}, parts)


WRONG = [  # a key map, what is wrong with it, and where
    ("a: [b]", "'a' is theirs, or {from: theirs, part: 0, of: 3}", "1:4"),
    ("a: {from: b, part: 0}", "'a' is theirs, or {from: theirs, part: 0, of: 3}", "1:4"),
    ("a: {from: b, part: 3, of: 3}", "there is no part 3 of 3: the first is 0", "1:4"),
    ("a: {form: b, part: 0, of: 3}", "a line of a key map has no key 'form'", "1:5"),
    ("a.*: b.*.*", "'b.*.*' has more stars than 'a.*' fills", "1:6"),
    ("_unused_: b", "'_unused_' is a list of their names", "1:11"),
    ("- a", "a key map is a mapping", "1:1"),
]


@pytest.mark.parametrize(("text", "message", "place"), WRONG, ids=[text for text, _, _ in WRONG])
def test_what_is_wrong_in_a_key_map_is_said_with_its_place(tmp_path: Path, text: str, message: str, place: str):
    path = tmp_path / "m.keys.yaml"
    path.write_text(text + "\n")
    with pytest.raises(ConfigError) as caught:
        KeyMap.read(path)
    assert f"{path}:{place}" in str(caught.value) and message in str(caught.value)


# the command


@pytest.fixture
def files(write: Callable[..., Path], tmp_path: Path) -> tuple[str, str]:
    """A model with a key map beside it, and a checkpoint of its reference."""
    lines = [f'"{ours}": {theirs}' for ours, theirs in KEYS.items()]
    (tmp_path / "model.keys.yaml").write_text("\n".join(lines).replace("'", "") + "\n")
    save_file(Reference().state_dict(), tmp_path / "reference.safetensors")
    return str(write(textwrap.dedent(MODEL))), str(tmp_path / "reference.safetensors")


def test_the_command_takes_the_key_map_beside_the_file_and_writes_weights_of_our_names(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file, checkpoint = files
    assert main(["load", file, checkpoint]) == 0
    assert f"14 tensors: 2 loaded, 12 renamed, by {tmp_path}/model.keys.yaml" in capsys.readouterr().out
    out = tmp_path / "ours.safetensors"
    assert main(["load", file, checkpoint, "-o", str(out)]) == 0
    model, x = build_model(file), torch.randn(2, 5, 8)
    model.load_state_dict(load_file(out))
    reference = Reference()
    reference.load_state_dict(load_file(checkpoint))
    torch.testing.assert_close(model(x), reference(x))
    assert main(["load", file, str(out)]) == 0  # which needs no key map
    assert "14 tensors: 14 loaded\n" in capsys.readouterr().out


def test_the_command_overwrites_nothing_unless_it_is_told_to(files: tuple[str, str], capsys: pytest.CaptureFixture):
    file, checkpoint = files
    before = Path(checkpoint).read_bytes()
    assert main(["load", file, checkpoint, "-o", checkpoint]) == 1
    assert "the file is there already" in capsys.readouterr().err
    assert Path(checkpoint).read_bytes() == before
    assert main(["load", file, checkpoint, "-o", checkpoint, "--force"]) == 0
    assert "layers.0.attn.q.weight" in load_file(checkpoint)


def test_the_commands_flags_are_the_functions_arguments(files: tuple[str, str], tmp_path: Path, capsys):
    file, checkpoint = files
    wider = ["load", file, checkpoint, "--set", "params.classes=4", "params.depth=3"]
    assert main(wider) == main([*wider, "--adapt"]) == 1
    assert "6 missing, 2 of another shape" in capsys.readouterr().err
    assert main([*wider, "--partial"]) == 0
    assert "12 renamed, 6 missing, 2 shape differs" in capsys.readouterr().out
    assert main([*wider, "--partial", "--adapt"]) == 0
    assert "12 renamed, 2 adapted, 6 missing" in capsys.readouterr().out
    (tmp_path / "none.keys.yaml").write_text("a: b\n")
    assert main(["load", file, checkpoint, "--keys", str(tmp_path / "none.keys.yaml")]) == 1
    assert main(["load", file, checkpoint, "--prefix", "head."]) == 1
