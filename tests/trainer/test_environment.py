"""environment.json tells what each start of a run was trained with and on."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainer.environment import git_state, write_environment


@pytest.fixture
def run(tmp_path: Path) -> SimpleNamespace:
    """As much of a run as its environment is made of."""
    config = SimpleNamespace(
        name="my run",
        folders=SimpleNamespace(config=tmp_path / "configs", project=tmp_path),
        experiment=SimpleNamespace(seed=3, run_seed=4),
    )
    return SimpleNamespace(config=config, device=torch.device("cpu"), world=SimpleNamespace(size=2))


def test_a_start_is_described(run: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["trainer/offline_trainer.py", "--train_config", "a.yaml"])
    write_environment(run, tmp_path / "environment.json")
    told = json.loads((tmp_path / "environment.json").read_text())
    assert told["command"] == ["trainer/offline_trainer.py", "--train_config", "a.yaml"]
    assert told["config_folder"] == str(tmp_path / "configs")
    assert (told["run"], told["seed"], told["train_seed"], told["processes"]) == ("my run", 3, 4, 2)
    assert (told["packages"]["torch"], told["packages"]["numpy"]) == (version("torch"), version("numpy"))
    assert told["python"] == sys.version.split()[0]
    assert (told["device"], told["git_commit"], told["git_dirty"], told["earlier"]) == ("cpu", None, None, [])


def test_a_resumed_run_keeps_what_earlier_starts_were(run: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    for seed in (1, 2, 3):
        run.config.experiment.seed = seed
        write_environment(run, path)
    told = json.loads(path.read_text())
    assert [told["seed"], *(start["seed"] for start in told["earlier"])] == [3, 2, 1]
    assert not list(tmp_path.glob(".tmp*"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}"])
def test_a_damaged_file_is_replaced(run: SimpleNamespace, tmp_path: Path, text: str) -> None:
    path = tmp_path / "environment.json"
    path.write_text(text)
    write_environment(run, path)
    assert json.loads(path.read_text())["earlier"] == []


def test_the_commit_is_told_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *names, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    assert git_state(tmp_path) == {"git_commit": None, "git_dirty": None}
    git("init", "-q")
    (tmp_path / "plugin.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-qm", "first")
    git("tag", "-a", "v1.0", "-m", "a release")
    commit = git("rev-parse", "HEAD")
    assert git_state(tmp_path) == {"git_commit": commit, "git_dirty": False}
    (tmp_path / "runs.txt").touch()  # what git does not follow changes nothing
    assert git_state(tmp_path)["git_dirty"] is False
    (tmp_path / "plugin.py").write_text("a = 2\n")
    assert git_state(tmp_path) == {"git_commit": commit, "git_dirty": True}
