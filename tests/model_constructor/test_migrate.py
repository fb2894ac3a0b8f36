"""`model-constructor migrate`: a version-1 file reads as one of version 2, and builds the same model, or nothing is written."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_constructor import ConfigError, build_model, register
from model_constructor.migration import Migration, migrate
from model_constructor.tools import migrate as command
from model_constructor.tools.cli import main
from model_constructor.tools.trial import Sample, find_inputs, sample

FILES = sorted((Path(__file__).parent / "version1").glob("*.yaml"))
INPUTS = {"base": [(2, 3, 8, 8), (2, 5)], "narrow": [(2, 3, 8, 8), (2, 5)], "steps": [(2, 3, 6)]}

OLD = """\
# A policy head.
# Written for the older system.
schema_version: 1
settings: {strict: true}
sizes:
  obs: 6               # joint positions
  hidden: {width: 8}
  mlp_width: ${4 * sizes.hidden.width}
  dims: ["${sizes.obs}", 16, "${sizes.hidden.width}"]
act: ${env:MIGRATED_ACT,tanh}
training: 0.0
templates:
  norm: {_type_: nn.LayerNorm, normalized_shape: "${sizes.hidden.width}", eps: 1e-6}
model:
  graph:
    inputs: [obs]
    modules:
      # the trunk
      embed:
        _type_: mlp
        dims: ${sizes.dims}
        activation: {_type_: nn.GELU, approximate: "${act}"}
      norm: {_template_: norm}         # before the head
      widen:
        _type_: nn.Sequential
        _args_:
          - {_type_: nn.Linear, in_features: "${sizes.hidden.width}", out_features: "${sizes.mlp_width}"}
          - {_type_: nn.Dropout, p: "${training}"}
          - {_type_: nn.Linear, in_features: "${sizes.mlp_width}", out_features: "${2 * sizes.dims[1]}"}
      unused: {_type_: nn.ReLU}
    nodes:
      - {name: h, call: module:embed, args: [$obs]}
      - {name: norm, call: module:norm, args: [$h]}
      # then the head
      - {name: w, call: module:widen, args: [$norm]}
      - {name: c, call: op:clamp, args: [$w], kwargs: {min: -.inf, max: "${sizes.hidden.width}"}}
      - {name: text, call: op:rearrange, args: [$c, "b (k d) -> b k d"], kwargs: {k: "${len(sizes.dims) + 1}"}}
    outputs: {text: $text, h: $h}
"""
NEW = """\
# A policy head.
# Written for the older system.
schema_version: 2

params:
  sizes_obs: 6  # joint positions
  width: 8
  mlp_width: '${4 * width}'
  dims: ['${sizes_obs}', 16, '${width}']
  act: '${env:MIGRATED_ACT,tanh}'

inputs:
  obs: any

modules:
  # the trunk
  embed: mlp(dims=dims, activation=GELU(approximate=act))
  norm: LayerNorm(width, eps=1e-6)  # before the head
  widen: Linear(width, mlp_width) >> Dropout(p=0.0) >> Linear(mlp_width, 2 * dims[1])

graph:
  h: embed(obs)
  norm_: norm(h)
  # then the head
  w: widen(norm_)
  c: clamp(w, min=-inf, max=width)
  text: rearrange(c, 'b (k d) -> b k d', k=len(dims) + 1)

outputs:
  text: text
  h: h
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    return path


def flat(value: Any) -> list[Tensor]:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    return [value] if isinstance(value, Tensor) else [tensor for one in values for tensor in flat(one)]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] if path.stem == "narrow" else []) for path in FILES],
    ids=lambda path: path.stem,
)
def test_every_example_of_version_1_is_the_same_model_in_version_2(path: Path, tmp_path: Path):
    out = tmp_path / "new.yaml"
    assert main(["migrate", str(path), "-o", str(out)]) == 0
    before, after = build_model(path), build_model(out)
    assert "schema_version: 2" in out.read_text()
    assert not re.search(r"\$|_type_|_args_|in_features=|nn\.", out.read_text())
    assert list(before.state_dict()) == list(after.state_dict())
    after.load_state_dict(before.state_dict())
    inputs = [torch.randn(shape) for shape in INPUTS.get(path.stem, [(2, 6)])]
    for training in (False, True):
        results = []
        for model in (before, after):
            torch.manual_seed(0)
            results.append(flat(model.train(training)(*inputs)))
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_the_result_reads_as_its_author_would_write_it(old: Path):
    assert migrate(old).text == NEW


def test_params_are_params_again(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "new.yaml").write_text(migrate(old).text)
    wide = build_model(tmp_path / "new.yaml", params={"width": 4, "sizes_obs": 5})
    assert [layer.out_features for layer in (wide.embed.net[0], wide.embed.net[2], wide.widen[0])] == [16, 4, 16]
    assert wide.embed.net[0].in_features == 5
    monkeypatch.setenv("MIGRATED_ACT", "none")
    assert build_model(tmp_path / "new.yaml").embed.net[1].approximate == "none"


def test_what_does_not_come_along_is_told_with_its_place(old: Path):
    assert [(note.place.line, note.message) for note in migrate(old).notes if note.place] == [
        (30, "nothing uses the module 'unused': it is left out."),
        (4, "version 2 has no 'settings'."),
        (11, "'training' can be no param: its value is written out where it is read."),
        (33, "the value 'norm' is called 'norm_'."),
    ]


def test_a_value_that_is_left_out_has_no_other_name(old: Path):
    old.write_text(OLD.replace("args: [$norm]", "args: [$h]"))
    assert not any("is called" in note.message for note in migrate(old).notes)


def test_a_comment_or_a_value_without_a_place_is_told(tmp_path: Path, old: Path):
    old.write_text(OLD.replace("settings: {strict: true}", "notes: free   # of use to nobody"))
    messages = [note.message for note in migrate(old).notes]
    assert "no '${...}' of the model reads 'notes': it is left out." in messages
    assert "no entry stands beside this comment: # of use to nobody" in messages


def test_a_comment_behind_the_key_of_a_text_comes_along(old: Path):
    old.write_text(
        OLD.replace(
            "mlp_width: ${4 * sizes.hidden.width}", "mlp_width: >-  # of the head\n    ${4 * sizes.hidden.width}"
        )
    )
    migrated = migrate(old)
    assert "# of the head" in migrated.text + "".join(note.message for note in migrated.notes)


def test_a_chain_in_a_chain_keeps_its_names(tmp_path: Path):
    inner = "{_type_: nn.Sequential, _args_: [{_type_: nn.Linear, in_features: 4, out_features: 4}, {_type_: nn.ReLU}]}"
    outer = f"{{_type_: nn.Sequential, _args_: [{inner}, {{_type_: nn.Linear, in_features: 4, out_features: 2}}]}}"
    node = "{name: h, call: module:m, args: [$x]}"
    (tmp_path / "old.yaml").write_text(
        f"schema_version: 1\nmodel:\n  graph:\n    inputs: [x]\n    modules: {{m: {outer}}}\n    nodes: [{node}]\n    outputs: [$h]\n"
    )
    assert main(["migrate", str(tmp_path / "old.yaml"), "-o", str(tmp_path / "new.yaml")]) == 0
    assert [*build_model(tmp_path / "new.yaml").state_dict()] == [
        "m.0.0.weight",
        "m.0.0.bias",
        "m.1.weight",
        "m.1.bias",
    ]


def test_a_model_that_gives_no_numbers_is_the_same_all_the_same(tmp_path: Path):
    node = "{name: h, call: op:log, args: [$x]}"
    (tmp_path / "old.yaml").write_text(
        f"schema_version: 1\nmodel:\n  graph:\n    inputs: [x]\n    nodes: [{node}]\n    outputs: [$h]\n"
    )
    assert main(["migrate", str(tmp_path / "old.yaml"), "-o", str(tmp_path / "new.yaml")]) == 0


def test_defaults_are_merged_into_the_file(old: Path, tmp_path: Path):
    (tmp_path / "wide.yaml").write_text("schema_version: 1\ndefaults: [old.yaml]\nsizes: {hidden: {width: 12}}\n")
    text = migrate(tmp_path / "wide.yaml").text
    assert "width: 12" in text and "defaults" not in text


def test_nothing_is_written_unless_both_build_the_same(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out, right = tmp_path / "new.yaml", migrate(old)
    for change, said in [
        (("max=width", "max=width - 7.9"), "the outputs or weights in eval mode; the outputs or weights in training"),
        (("p=0.0", "p=0.5"), "the outputs or weights in training"),
        (("embed", "embedding"), "missing"),
    ]:
        wrong = Migration(right.text.replace(*change), ())
        monkeypatch.setattr(command, "migrate", lambda path, wrong=wrong: wrong)
        assert main(["migrate", str(old), "-o", str(out)]) == 1
        assert said in capsys.readouterr().err
        assert not out.exists()


def test_it_overwrites_nothing_unless_it_is_told_to(old: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["migrate", str(old), "-o", str(old)]) == 1
    assert "the file is there already" in capsys.readouterr().err
    assert old.read_text() == OLD
    assert main(["migrate", str(old), "-o", str(old), "--force"]) == 0
    assert old.read_text() == NEW
    assert main(["migrate", str(old)]) == 1
    assert "is no file of version 1" in capsys.readouterr().err


def test_without_an_output_the_file_goes_to_the_standard_output_alone(old: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["migrate", str(old)]) == 0
    captured = capsys.readouterr()
    assert captured.out == NEW
    assert "equal weights give equal outputs, in eval mode and in training, for obs [2, 6]" in captured.err


def test_inputs_that_cannot_be_found_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "old.yaml"
    node = "{name: h, call: op:pixel_shuffle, args: [$x, 7]}"
    path.write_text(f"schema_version: 1\nmodel:\n  graph:\n    inputs: [x]\n    nodes: [{node}]\n    outputs: [$h]\n")
    assert main(["migrate", str(path)]) == 1
    assert (
        "no inputs were found that the model runs with.\n    give them: --input 'x: [...]'" in capsys.readouterr().err
    )
    assert main(["migrate", str(path), "--input", "x: [1, 49, 2, 2]"]) == 0
    assert main(["migrate", str(path), "--input", "y: [1, 49, 2, 2]"]) == 1
    assert "no input is called 'y'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "x: 3",
        "x: [2, B]",
        "x: [-2, 3]",
        "x: [2], y: [3]",
        "{x: [2], y: [3]}",
        "x: {shape: [2], type: int64}",
        "x: {shape: [2], dtype: int}",
    ],
)
def test_an_input_that_is_not_declared_as_in_a_model_file_is_refused(
    old: Path, text: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        main(["migrate", str(old), "--input", text])
    assert re.search(r"is not written as 'x: \[2, 3, 64, 64\]'|--input:1:", capsys.readouterr().err)


def test_an_input_may_have_another_dtype():
    assert sample("x: {shape: [2, 5], dtype: int64}") == ("x", Sample((2, 5), torch.int64))
    assert sample("x: [2, 5]")[1].random().dtype == torch.float32


TRIED = [
    ("{_type_: nn.Conv1d, in_channels: 4, out_channels: 2, kernel_size: 3}", 4),
    ("{_type_: nn.Conv2d, in_channels: null, out_channels: 2, kernel_size: 3}", None),
    ("{_type_: nn.Embedding, num_embeddings: 9, embedding_dim: 2}", None),
    ("{_type_: nn.GRU, input_size: 7, hidden_size: 2}", 7),
    ("{_type_: nn.Sequential, _args_: [{_type_: nn.Flatten}, {_type_: nn.Linear, in_features: 192, out_features: 2}]}", None),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "size"), TRIED, ids=[spec for spec, _ in TRIED])
def test_inputs_are_found_by_what_the_modules_take(tmp_path: Path, spec: str, size: int | None):
    path = tmp_path / "old.yaml"
    path.write_text(f"schema_version: 1\nmodel:\n  sequential:\n    layers: [{spec}]\n")
    model = build_model(path)
    inputs = find_inputs(model, {})
    assert inputs is not None
    assert size is None or size in inputs["x"].shape
    model(**{name: one.random() for name, one in inputs.items()})


def test_a_file_that_is_wrong_is_refused_as_when_it_is_built(tmp_path: Path):
    path = tmp_path / "old.yaml"
    path.write_text(textwrap.dedent(OLD).replace("module:widen", "module:wide"))
    with pytest.raises(ConfigError, match=r"no module is called 'wide'"):
        migrate(path)


def test_a_type_that_asks_for_values_is_tried_with_data(tmp_path: Path):
    @register("ScaledByItsMean")
    class ScaledByItsMean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.mean().item()

    path = tmp_path / "old.yaml"
    layers = "[{_type_: nn.Linear, in_features: 7, out_features: 2}, {_type_: ScaledByItsMean}]"
    path.write_text(f"schema_version: 1\nmodel:\n  sequential:\n    layers: {layers}\n")
    assert find_inputs(build_model(path), {}) == {"x": Sample((2, 7))}
