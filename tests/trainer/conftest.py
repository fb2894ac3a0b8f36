"""A toy experiment in a folder of its own: two components, a data set in memory, a run of seconds."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

sys.path.append(str(Path(__file__).parent))  # where a config's `plugins: [toy_plugin]` is found

ENCODER = """\
schema_version: 2
params: {state_dim: 3, dim: 8}
inputs: {state: [B, H, state_dim]}
modules: {net: "Linear(state_dim, dim) >> GELU() >> Dropout(0.1)"}
outputs: net(state)
"""
HEAD = """\
schema_version: 2
params: {dim: 8, horizon: 4, action_dim: 2}
inputs: {h: [B, H, dim]}
modules: {out: "Linear(dim, horizon * action_dim)"}
outputs: "out(h[:, -1]).unflatten(-1, (horizon, action_dim))"
"""
CONFIG = """\
plugins: [toy_plugin]
seed: 3
model:
  component_config_paths:
    encoder: encoder.yaml
    head: models/head.yaml
  component_optims:
    encoder: {type: toy_adam, params: {lr: 0.01}}
    head: {type: toy_sgd, params: {lr: 0.05}}
data:
  datamodule: {type: toy_data, params: {episodes: 10}}
  batch_size: 16
train:
  trainer: {type: toy_trainer}
  loss: {type: toy_loss}
  evaluation: {type: toy_evaluation, params: {episodes: 2}}
  max_steps: 12
  log_every: 4
  save_dir: runs/toy
"""


@pytest.fixture(autouse=True)
def one_thread():
    """Numbers of a run depend on the number of threads; the suite shares its cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pictures() -> None:
    """For who looks at the picture of the losses."""


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture of the losses takes as long as the runs; nobody else looks at it."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("trainer.watch.draw_curves", lambda *given, **named: None)


def write_project(folder: Path) -> Path:
    """A project folder: pyproject.toml, configs/config.yaml, a model beside the config and one below the project."""
    (folder / "pyproject.toml").touch()
    (folder / "configs").mkdir()
    (folder / "models").mkdir()
    (folder / "configs/encoder.yaml").write_text(ENCODER)
    (folder / "models/head.yaml").write_text(HEAD)
    (folder / "configs/config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path)


@pytest.fixture(scope="session")
def trained_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `project`, with its run of seconds behind it, in runs/toy. Whoever changes it takes a copy."""
    from trainer import train

    project = write_project(tmp_path_factory.mktemp("trained"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(project / "configs/config.yaml", {"train.save_every_steps": 5})
    torch.set_num_threads(threads)
    return project


@pytest.fixture
def config(project: Path) -> Path:
    return project / "configs/config.yaml"


@pytest.fixture
def written(config: Path) -> dict[str, Any]:
    return yaml.safe_load(config.read_text())
