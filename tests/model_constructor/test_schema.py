"""`model-constructor schema`: what is right is valid, what is wrong with the form of a file is not; types are described."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from torch import nn

from model_constructor import ConfigError, build_model, load_config, register
from model_constructor.block import BLOCK_KEYS, FILE_KEYS
from model_constructor.names import TYPES, type_names
from model_constructor.source import read_file, read_text
from model_constructor.tools.cli import main
from model_constructor.tools.schema import file_schema

ROOT = Path(__file__).parents[2]
MODELS = [path for path in sorted((ROOT / "experiment_models").rglob("*.yaml")) if not path.name.endswith(".keys.yaml")]
RIGHT = """\
schema_version: 2
params: {dim: 8, depth: int, sizes: [1, [2, 3]], name: null, wide: "${4 * dim}"}
inputs:
  x: [..., T, dim, 2 * dim, T + 1]
  anything: any
  mask: {shape: [B], dtype: bool, optional: true}
blocks:
  layer:
    params: {dim: int}
    inputs: {x: [B, dim]}
    blocks: {inner: {inputs: {x: any}, outputs: relu(x)}}
    outputs: inner(x)
modules:
  a: Linear(dim, 4) >> ReLU()
  b: ["Linear(dim, 4)", "layer(dim=2) * depth"]
  c: {inner: {d: "LayerNorm(_)"}}
  d: "ReLU() if depth else {'gelu': GELU()}[name]"
  e: >-
    Linear(dim,
           4)
graph:
  h: a(x)
  k, _, v: [h.relu(), 1, {key: h}]
  n: 2.5
  t: True
outputs: {a: h, b: [k, v]}
init: {a: zeros, "type:Linear": {weight: normal(std=0.02), bias: zeros}, b: "ones if depth else zeros"}
"""
RIGHT_PARTS = [  # files that lay something over others
    "defaults: [base.yaml]\nmodules: {a: null}\ngraph: {h: null}",
    "defaults: [{base: base.yaml}]\nblocks: {layer: {graph: {h: relu(x)}}}",
    "defaults: [base.yaml]\nparams: {sizes: {_merge_: append, _value_: [4]}}",
]
FILE = "schema_version: 2\ninputs: {x: [B, 4]}\nmodules: {f: 'Linear(4, 4)'}\noutputs: f(x)\n"
WRONG = [  # a change of FILE, as lines that replace those of the same key, and where it is wrong
    ("schema_version: null", "$.schema_version"),
    ("schema_version: '2'", "$.schema_version"),
    ("schema_version: 3", "$.schema_version"),
    ("schema_version: true", "$.schema_version"),
    ("outputs: []", "$.outputs"),
    ("outputs: {}", "$.outputs"),
    ("module: {}", "$"),
    ("inputs: [x]", "$.inputs"),
    ("inputs: {x: anything}", "$.inputs.x"),
    ("inputs: {x: 4}", "$.inputs.x"),
    ("inputs: {x: [-1, 4]}", "$.inputs.x"),
    ("inputs: {x: [B, 2.5]}", "$.inputs.x"),
    ("inputs: {x: [B, ..., 4]}", "$.inputs.x"),
    ("inputs: {x: {dtype: float32}}", "$.inputs.x"),
    ("inputs: {x: {shape: [B, 4], dtype: float31}}", "$.inputs.x"),
    ("inputs: {x: {shape: [B, 4], optional: maybe}}", "$.inputs.x"),
    ("inputs: {x: {shape: [B, 4], optinal: true}}", "$.inputs.x"),
    ("inputs: {x: null}", "$.inputs.x"),
    ("inputs: {x: [B, 4], forward: any}", "$.inputs"),
    ("params: [dim]", "$.params"),
    ("params: {dim: {width: 4}}", "$.params.dim"),
    ("params: {lambda: 4}", "$.params"),
    ("params: {2d: 4}", "$.params"),
    ("params: {_dim: 4}", "$.params"),
    ("params: {training: true}", "$.params"),
    ("modules: ['Linear(4, 4)']", "$.modules"),
    ("modules: {f: 4}", "$.modules.f"),
    ("modules: {f: Linear}", "$.modules.f"),
    ("modules: {f: null}", "$.modules.f"),
    ("modules: {f: {}}", "$.modules.f"),
    ("modules: {f: {train: 'Linear(4, 4)'}}", "$.modules.f"),
    ("modules: {f: 'Linear(4, 4)', code: ReLU()}", "$.modules"),
    ("graph: [relu(x)]", "$.graph"),
    ("graph: {a b: relu(x)}", "$.graph"),
    ("graph: {'a, 2b': relu(x)}", "$.graph"),
    ("graph: {h: null}", "$.graph.h"),
    ("blocks: [layer]", "$.blocks"),
    ("blocks: {layer: layer}", "$.blocks.layer"),
    ("blocks: {layer: {inputs: {x: any}}}", "$.blocks.layer"),
    ("blocks: {layer: {inputs: {x: any}, outputs: x, output: x}}", "$.blocks.layer"),
    ("blocks: {layer: {inputs: {x: any}, outputs: x, imports: [os]}}", "$.blocks.layer"),
    ("blocks: {Param: {inputs: {x: any}, outputs: x}}", "$.blocks"),
    ("init: [zeros]", "$.init"),
    ("init: {f: [zeros]}", "$.init.f"),
    ("init: {f: {}}", "$.init.f"),
    ("init: {f: zero}", "$.init.f"),
    ("imports: my_package", "$.imports"),
    ("imports: [{a: b}]", "$.imports"),
    ("defaults: base.yaml", "$.defaults"),
    ("defaults: [[base.yaml]]", "$.defaults"),
]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    schema = file_schema()
    Draft7Validator.check_schema(schema)
    return schema


def problems(schema: dict[str, Any], document: Any) -> list[str]:
    return [error.json_path for error in Draft7Validator(schema).iter_errors(document)]


def changed(line: str) -> str:
    """FILE with a line in place of the one of the same key."""
    key = line.partition(":")[0]
    rest = re.sub(rf"^{key}:.*\n", "", FILE, flags=re.MULTILINE)
    return f"{rest}{line}\n"


@pytest.mark.parametrize("path", MODELS, ids=lambda path: str(path.relative_to(ROOT / "experiment_models")))
def test_every_model_that_ships_is_valid(schema: dict[str, Any], path: Path):
    assert problems(schema, read_file(path).plain) == []


def test_everything_that_the_dialect_allows_is_valid(schema: dict[str, Any], tmp_path: Path):
    assert problems(schema, read_text(RIGHT, "right").plain) == []
    assert problems(schema, load_config(ROOT / "experiment_models/zoo/act/act.yaml", model=True).data) == []
    assert problems(schema, read_text(FILE, "right").plain) == []
    assert (
        problems(
            schema, build_model(ROOT / "experiment_models/zoo/resnet18.yaml", params={"layers": [1, 1, 1, 1]}).spec
        )
        == []
    )
    for part in RIGHT_PARTS:
        assert problems(schema, read_text(part, "right").plain) == []


@pytest.mark.parametrize(("line", "place"), WRONG, ids=[line for line, _ in WRONG])
def test_what_is_wrong_with_the_form_of_a_file_is_refused_by_the_schema_as_by_the_builder(
    schema: dict[str, Any], tmp_path: Path, line: str, place: str
):
    text = changed(line)
    found = problems(schema, read_text(text, "wrong").plain)
    assert found and any(
        path == place or path.startswith(f"{place}.") or path.startswith(f"{place}[") for path in found
    )
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ConfigError):
        build_model(tmp_path / "wrong.yaml")


@pytest.mark.parametrize("key", ["schema_version", "outputs"])
def test_a_key_that_a_file_needs_is_missed(schema: dict[str, Any], key: str):
    document = read_text(FILE, "wrong").plain
    assert isinstance(document, dict)
    assert problems(schema, {name: value for name, value in document.items() if name != key}) == ["$"]


def test_it_has_the_keys_of_the_dialect_and_says_something_of_each(schema: dict[str, Any]):
    assert {*schema["properties"]} == {*FILE_KEYS, "defaults"}
    assert {*schema["definitions"]["block"]["properties"]} == {*BLOCK_KEYS}
    assert all(one["description"] for one in schema["properties"].values())


def branches(schema: dict[str, Any], text: str) -> Iterator[dict[str, Any]]:
    """The branches of a constructor that an editor finds for what is written."""
    for branch in schema["definitions"]["constructor"]["anyOf"]:
        if re.search(branch["pattern"], text):
            yield branch


def test_every_type_is_there_with_its_arguments_and_its_docstring():
    @register("SchemaTested")
    class SchemaTested(nn.Module):
        """Says what it is.

        dim: its width.
        """

        def __init__(self, dim: int, *, act: nn.Module | None = None, needed: float) -> None:
            super().__init__()

    schema = file_schema()
    (own,) = branches(schema, "SchemaTested(4, needed=1.0)")
    assert own["title"] == "SchemaTested(dim: int, *, act: Module | None = None, needed: float)"
    assert own["description"] == inspect.getdoc(SchemaTested)
    assert own["defaultSnippets"][0]["body"] == "SchemaTested(${1:dim}, needed=${2})"
    (linear,) = branches(schema, "Linear(4, 4) >> ReLU()")
    assert linear["title"] == "Linear(in_features: int, out_features: int, bias: bool = True)"
    assert linear["description"].startswith("Applies an affine linear transformation")
    (lstm,) = branches(schema, "LSTM(4, 4)")
    assert lstm["title"].startswith("LSTM(input_size, hidden_size, num_layers=1, bias=True")
    for name in type_names():
        (branch,) = branches(schema, f"{name}(1)")
        assert branch["title"].startswith(f"{name}("), name
        of_a_test = TYPES.has(name) and "test" in TYPES.get(name).__module__  # registered beside this one
        assert branch["description"] or of_a_test, name
    (block,) = branches(schema, "layer(dim=4) * 2")
    assert "title" not in block


def test_the_command_prints_it_or_writes_it_and_knows_the_types_of_imported_modules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Model file"
    module = """
        from torch import nn
        from model_constructor import register

        @register("FromAnImport")
        class FromAnImport(nn.Module):
            '''A type of somebody's.'''
    """
    (tmp_path / "types_of_somebody.py").write_text(textwrap.dedent(module))
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "model.schema.json"
    assert main(["schema", "-o", str(out), "--import", "types_of_somebody"]) == 0
    (found,) = branches(json.loads(out.read_text()), "FromAnImport()")
    assert found["description"] == "A type of somebody's."
    assert main(["schema", "-o", str(out)]) == 1
    assert main(["schema", "--import", "no_such_module"]) == 1
    assert "'no_such_module' cannot be imported" in capsys.readouterr().err
