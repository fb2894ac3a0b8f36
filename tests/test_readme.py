"""The README is true: what it quotes and counts, its table of keys, the files and targets it names; test_docs.py runs it."""

import inspect
import re
import types
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from experiment_training.components.dataloader import lerobot_data
from model_constructor import ConfigError, build_model
from trainer.config import ExperimentConfig
from trainer.config.schemas import Registered, ValidationConfig
from trainer.registry import (
    DATASET_BUILDER_REGISTRY,
    EVALUATION_BUILDER_REGISTRY,
    LOSS_BUILDER_REGISTRY,
    OPTIMIZER_BUILDER_REGISTRY,
    TRAINER_REGISTRY,
)
from trainer.registry.plugins import load_shipped_plugins

REGISTRIES = (
    DATASET_BUILDER_REGISTRY,
    EVALUATION_BUILDER_REGISTRY,
    LOSS_BUILDER_REGISTRY,
    OPTIMIZER_BUILDER_REGISTRY,
    TRAINER_REGISTRY,
)

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DECODER = ROOT / "experiment_models/quickstart/pick_place/action_decoder.yaml"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_quoted_error_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = DECODER.read_text()
    assert "outputs: head(norm(h))" in text
    Path("action_decoder.yaml").write_text(text.replace("outputs: head(norm(h))", "outputs: hed(norm(h))"))
    with pytest.raises(ConfigError) as caught:
        build_model("action_decoder.yaml")
    assert f"{caught.value}\n" in blocks("text")


def test_the_architecture_is_quoted_whole_and_counted_as_the_zoo_counts_it() -> None:
    vit = (ROOT / "experiment_models/zoo/vit_tiny.yaml").read_text()
    assert vit in blocks("yaml")
    row = re.search(r"^\| \[vit_tiny.yaml\].*$", (ROOT / "experiment_models/zoo/README.md").read_text(), re.MULTILINE)
    assert row is not None
    _, _, lines, _, reference_lines, *_ = (cell.strip() for cell in row[0].split("|"))
    told = README.split("These are ")[1].split("A test gives")[0]
    assert re.findall(r"\d+", told) == [lines, reference_lines]


def test_the_table_of_keys_is_the_schema_with_its_defaults() -> None:
    rows = re.findall(
        r"^\| (`.*?) \| (.*?) \|",
        README.split("### The train config")[1].split("The components that ship")[0],
        re.MULTILINE,
    )
    told = {key: default for keys, default in rows for key in re.findall(r"`([\w.<>]+)`", keys)}
    declared = dict(leaves(ExperimentConfig))
    assert told.keys() == declared.keys()
    for key, default in declared.items():
        if default is not None and default not in ({}, []) and "," not in told[key]:
            assert str(default).lower() in told[key].lower(), key


def test_the_table_of_components_names_every_param_of_all_that_ship() -> None:
    load_shipped_plugins()
    rows = dict(re.findall(r"^\| `(\w+)`[^|]* \| (.*?) \|$", README, re.MULTILINE))
    for registry in REGISTRIES:
        shipped = [name for name in registry.keys() if registry.get(name).__module__.startswith("experiment_training.")]  # noqa: SIM118
        for name in shipped:
            if registry is DATASET_BUILDER_REGISTRY:
                params = set(lerobot_data.PARAMS)
            else:
                params = set(inspect.signature(registry.get(name)).parameters) - {
                    "models",
                    "optimizers",
                    "loss",
                    "device",
                }
            assert params <= set(re.findall(r"`(\w+)`", rows[name])), name


def leaves(section: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    """Every key of the schema as the README writes it, with its default."""
    found: list[tuple[str, Any]] = []
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        inner = [kind for kind in kinds if not isinstance(kind, types.GenericAlias) and issubclass(kind, BaseModel)]
        if key in ("model.component_build_args", "model.component_optims"):
            key += ".<c>"
        if not inner or issubclass(inner[0], Registered | ValidationConfig):
            found.append((key, None if field.is_required() else field.default))
        else:
            found += leaves(inner[0], f"{key}.")
    return found


def test_every_file_that_it_names_is_there() -> None:
    named = set(re.findall(r"\]\(([\w/.-]+)\)", README)) | set(re.findall(r'src="([^"]+)"', README))
    commands = set(
        re.findall(r"(?:experiment_training|experiment_models|trainer|tests|docs)/[\w/]+\.(?:py|yaml)", README)
    )
    missing = [name for name in named | commands if not (ROOT / name).exists()]
    assert not missing


def test_every_make_target_that_it_names_is_there() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:^|`|: |\()make ([a-z-]+)", README, re.MULTILINE)
    assert {"train", "test", "test-all", "clean-runs"} <= set(named) <= set(targets)
