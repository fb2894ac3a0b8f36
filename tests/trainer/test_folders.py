"""Where a run lives: the folders that its relative paths begin at, and what a data set's factory is told of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import toy_plugin

from trainer.build import build_data
from trainer.config import load_run_config
from trainer.config.folders import Folders
from trainer.distributed import World


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A config of an inner project within an outer one, two folders below the inner one's pyproject.toml."""
    config = tmp_path / "outer/inner/configs/arm/reach.yaml"
    config.parent.mkdir(parents=True)
    config.touch()
    for project in ("outer", "outer/inner"):
        (tmp_path / project / "pyproject.toml").touch()
    return config


def test_the_project_is_the_nearest_parent_with_a_pyproject(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    inner = deep.parents[2]
    assert Folders.of_file(deep) == Folders(config=deep.parent, project=inner, stem="reach")
    (deep.parent / "pyproject.toml").touch()
    assert Folders.of_file(deep).project == deep.parent
    for project in (deep.parent, inner):
        (project / "pyproject.toml").unlink()
    assert Folders.of_file(deep).project == inner.parent


def test_without_a_pyproject_the_project_is_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    folders = Folders.of_file(tmp_path / "configs/reach.yaml")
    assert (folders.config, folders.project) == (tmp_path / "configs", tmp_path / "work")
    assert folders.save_dir("runs/reach") == tmp_path / "work/runs/reach"
    assert folders.save_dir("/runs/reach") == Path("/runs/reach")


def test_the_paths_of_a_linked_config_begin_where_the_link_leads(deep: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").symlink_to(deep)
    assert Folders.of_file(tmp_path / "mine.yaml") == Folders(config=deep.parent, project=deep.parents[2], stem="mine")


def test_a_file_beside_the_config_comes_before_one_of_the_project(deep: Path) -> None:
    folders = Folders.of_file(deep)
    (folders.project / "arm.yaml").touch()
    assert folders.find("arm.yaml") == folders.project / "arm.yaml"
    (folders.config / "arm.yaml").touch()
    assert folders.find("arm.yaml") == folders.config / "arm.yaml"


@pytest.mark.parametrize(
    ("validation", "told"),
    [
        ("null", {}),
        ("{episodes: [2, 5]}", {"validation": {"episodes": [2, 5], "seed": 3}}),
        ("{fraction: 0.2}", {"validation": {"fraction": 0.2, "seed": 3}}),
    ],
)
def test_a_data_sets_factory_is_told_where_the_run_lives_and_what_is_held_out(
    config: Path, project: Path, monkeypatch: pytest.MonkeyPatch, validation: str, told: dict[str, Any]
) -> None:
    """What is held out is fixed by `seed`: `train.seed` decides only what a run draws."""
    given: list[tuple[dict, dict]] = []

    class Told(toy_plugin.ToyData):
        def build(self, opt_params: dict, params: dict) -> dict:
            given.append((opt_params, dict(params)))
            return super().build({"validation": {"episodes": [9]}} if told else {}, params)

    monkeypatch.setattr("trainer.build.DATASET_BUILDER_REGISTRY.get", lambda name: Told)
    overrides = [f"data.validation={validation}", "train.seed=8"]
    run_config = load_run_config(config, overrides)
    where = {"project_root": project, "config_dir": project / "configs", "save_dir": project / "runs/toy"}

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    build_data(run_config, torch.device("cpu"), World())
    alone = {**where, **told, "local_rank": 0, "dist_enabled": False}
    monkeypatch.setenv("LOCAL_RANK", "1")  # the second process of its machine, the fourth of the run
    build_data(run_config, torch.device("cpu"), World(3, 4))
    among_four = {**where, **told, "local_rank": 1, "dist_enabled": True}
    assert given == [(alone, {"episodes": 10}), (among_four, {"episodes": 10})]
