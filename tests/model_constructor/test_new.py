"""`model-constructor new`: the file that it writes is a model, and it replaces nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model_constructor import build_model, load_config
from model_constructor.block import FILE_KEYS
from model_constructor.tools.cli import main


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "start.yaml"
    assert main(["new", str(path)]) == 0
    return path


def test_the_starting_file_builds_and_its_params_can_be_set(file: Path):
    model = build_model(file, params={"depth": 3, "horizon": 5})
    mask = torch.tensor([[True, True, True, False, False]])
    observation = torch.randn(1, 5, 8)
    assert len(model.layers) == 3
    assert model(observation).shape == (1, 5)
    assert not model(observation).any(), "its init says that the head begins as zeros"
    torch.nn.init.ones_(model.head.weight)
    changed = torch.cat([observation[:, :3], torch.randn(1, 2, 8)], 1)
    torch.testing.assert_close(model(observation, mask)[:, :3], model(changed, mask)[:, :3])


def test_the_starting_file_has_each_section_under_a_comment(file: Path):
    lines = file.read_text().splitlines()
    sections = [key for key in load_config(file, model=True).data if key != "schema_version"]
    assert set(sections) == {*FILE_KEYS} - {"schema_version", "imports"}
    for section in sections:
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{section}:"))
        assert lines[at - 1].startswith("# "), f"{section} is not explained"


def test_the_starting_file_passes_the_check(file: Path, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    assert main(["check", str(file)]) == 0
    out, err = capsys.readouterr()
    assert "no problems" in out and "~" not in out and not err


def test_nothing_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    mine = tmp_path / "mine.yaml"
    mine.write_text("mine")
    assert main(["new", str(mine)]) == 1
    assert mine.read_text() == "mine"
    assert "there already" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["new", str(tmp_path / "none" / "start.yaml")]) == 1
    assert "cannot be written: No such file" in capsys.readouterr().err
