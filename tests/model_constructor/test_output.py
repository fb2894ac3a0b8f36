"""What the commands write: where it cannot be written is said at once, and nothing is replaced unasked."""

import shlex
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from model_constructor.tools.cli import main

MODEL = "schema_version: 2\ninputs: {x: [B, 8]}\nmodules: {head: 'Linear(8, 3)'}\noutputs: head(x)\n"
MODULE = """\
import sys
from torch import nn

class Loud(nn.Linear):
    def forward(self, x):
        print("noise")
        return super().forward(x)

def loud(): return nn.Sequential(Loud(8, 3))
def ends(): sys.exit(0)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("lin.yaml").write_text(MODEL)
    Path("a_module.py").write_text(MODULE)
    torch.save({"head.weight": torch.ones(3, 8), "head.bias": torch.zeros(3)}, "lin.pt")
    return tmp_path


@pytest.mark.parametrize(
    ("output", "message"),
    [("nowhere/out{}", "nowhere is no folder"), ("taken{}", " is a folder"), ("lin{}", "the file is there already")],
)
@pytest.mark.parametrize(
    ("command", "suffix"),
    [
        ("eject lin.yaml", ".py"),
        ("load lin.yaml lin.pt -o", ".safetensors"),
        ("schema -o", ".json"),
        ("import torch.nn:Identity --input 'x: [B]' -o", ".yaml"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_anything_is_done(
    folder: Path, capsys: pytest.CaptureFixture, command: str, suffix: str, output: str, message: str
) -> None:
    (folder / f"taken{suffix}").mkdir()
    (folder / f"lin{suffix}").touch()
    before = sorted(folder.rglob("*"))
    assert main([*shlex.split(command), output.format(suffix)]) != 0
    assert message in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_weights_are_written_under_the_name_of_what_they_are(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["load", "lin.yaml", "lin.pt", "-o", "out.pt"]) != 0
    assert "name it out.safetensors" in capsys.readouterr().err


def test_names_that_are_no_text_are_told(folder: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({1: torch.ones(3)}, "numbers.pt")
    assert main(["load", "lin.yaml", "numbers.pt"]) != 0
    assert "is no state dict" in capsys.readouterr().err


def test_a_file_whose_name_begins_with_a_digit_is_ejected(folder: Path) -> None:
    Path("2d.yaml").write_text(MODEL)
    assert main(["eject", "2d.yaml", "out.py"]) == 0
    scope: dict = {}
    exec(Path("out.py").read_text(), scope)
    assert any(isinstance(one, type) and issubclass(one, nn.Module) and "2d" in one.__name__ for one in scope.values())


def test_what_a_module_prints_stays_out_of_its_file(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["import", "a_module:loud", "--input", "x: [B, 8]"]) == 0
    shown = capsys.readouterr()
    assert "schema_version: 2" in shown.out and "noise" not in shown.out
    assert "noise" in shown.err


def test_a_module_that_ends_the_program_is_told(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["import", "a_module:ends", "--input", "x: [B, 8]", "-o", "out.yaml"]) != 0
    assert "a_module:ends ends the program, with code 0" in capsys.readouterr().err
