"""The README is true: what it quotes and counts, components, files and targets it names; test_docs.py runs it.

The table of keys is held to the schema, and each key to its effect, by tests/trainer/test_keys.py.
"""

import re
from pathlib import Path

import pytest

from model_constructor import ConfigError, build_model
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
    row = re.search(r"^\| \[vit_tiny.yaml\].*$", (ROOT / "docs/zoo.md").read_text(), re.MULTILINE)
    assert row is not None
    _, _, lines, reference_lines, *_ = (cell.strip() for cell in row[0].split("|"))
    told = README.split("These are ")[1].split("A test gives")[0]
    assert re.findall(r"\d+", told) == [lines, reference_lines]


def test_the_components_that_ship_are_all_named() -> None:
    load_shipped_plugins()
    registered = {name: each.get(name) for each in REGISTRIES for name in each.keys()}  # noqa: SIM118
    shipped = {name for name, one in registered.items() if one.__module__.startswith("experiment_training.")}
    table = README.split("The components that ship")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", table)) - {"type"} == shipped


def test_the_tree_names_every_module_of_both_programs() -> None:
    tree = README.split("## The tree\n\n```\n")[1].split("```")[0]
    for folder, rest in re.findall(r"^(\w+)/ .*\n((?:  .*\n)+)", tree, re.MULTILINE):
        named = {
            name.rstrip("/") for line in rest.splitlines() for name in re.match(r"  (\S+(?: \S+)*)", line)[1].split()
        }
        there = {path.stem for path in (ROOT / folder).iterdir() if not path.name.startswith("__")}
        assert named == there, folder


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
