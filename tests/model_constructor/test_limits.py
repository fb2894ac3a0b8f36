"""Limits: a file that nobody trusts reaches nothing but itself and asks for little; any other may do both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_constructor import ConfigError, build_model
from model_constructor.limits import TRUSTED, UNTRUSTED, limited, limits
from model_constructor.tools.cli import main

REACHING = {  # what: (text; its first line is line 2, line, what is said)
    "the environment": (
        "params: {home: '${env:SOMEWHERE}'}\ninputs: {x: [B, 4]}\noutputs: x\n",
        2,
        "'SOMEWHERE' is not read for a file that is not trusted",
    ),
    "a block elsewhere": ("inputs: {x: [B, 4]}\nblocks: {b: ../block.yaml}\noutputs: b(x)\n", 3, "own folder"),
    "a base elsewhere": ("defaults: [../block.yaml]\ninputs: {x: [B, 4]}\noutputs: x\n", 2, "own folder"),
    "a block behind a link": ("inputs: {x: [B, 4]}\nblocks: {b: link.yaml}\noutputs: b(x)\n", 3, "own folder"),
    "weights": (
        "inputs: {x: any}\nmodules: {m: 'TimmBackbone(\"resnet18\", pretrained=True)'}\noutputs: m(x)\n",
        3,
        "loads nothing",
    ),
    "a network by name": (
        "inputs: {x: any}\nmodules: {m: HuggingFaceBackbone('gpt2')}\noutputs: m(x)\n",
        3,
        "loads nothing",
    ),
}
LARGE = {
    "parameters": ("inputs: {x: [B, 9000]}\nmodules: {m: 'Linear(9000, 9000)'}\noutputs: m(x)\n", "takes 309 MiB"),
    "modules": (
        "inputs: {x: [B, 2]}\nblocks: {b: {inputs: {h: [B, 2]}, modules: {m: 'Linear(2, 2) * 50'}, outputs: m(h)}}\n"
        "modules: {m: b() * 50}\noutputs: m(x)\n",
        "more than 2000 modules",
    ),
}


@pytest.fixture
def write_inside(tmp_path: Path) -> Callable[[str], Path]:
    """A model file in a folder of its own; beside the folder a block, to which a link in the folder leads."""
    (tmp_path / "block.yaml").write_text("schema_version: 2\ninputs: {x: any}\noutputs: x\n")
    (folder := tmp_path / "own").mkdir()
    (folder / "link.yaml").symlink_to(tmp_path / "block.yaml")
    (folder / "inner.yaml").write_text("schema_version: 2\ninputs: {x: any}\noutputs: 2 * x\n")

    def write(text: str) -> Path:
        (folder / "model.yaml").write_text(f"schema_version: 2\n{text}")
        return folder / "model.yaml"

    return write


@pytest.mark.parametrize(("text", "line", "said"), REACHING.values(), ids=REACHING)
def test_what_an_untrusted_file_reaches_for_is_told_at_its_place(
    write_inside: Callable, text: str, line: int, said: str
):
    with pytest.raises(ConfigError, match=said) as caught:
        build_model(write_inside(text), untrusted=True)
    assert [problem.place.line for problem in caught.value.problems] == [line]


@pytest.mark.parametrize("what", ["the environment", "a block elsewhere", "a base elsewhere", "a block behind a link"])
def test_any_other_file_may(write_inside: Callable, what: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOMEWHERE", "4")
    x = torch.ones(2, 4)
    assert torch.equal(build_model(write_inside(REACHING[what][0]))(x), x)


@pytest.mark.parametrize(
    ("text", "said"),
    [pytest.param(*LARGE[what], id=what, marks=[pytest.mark.slow] * (what == "modules")) for what in LARGE],
)
def test_an_untrusted_file_is_small(write_inside: Callable, text: str, said: str):
    path = write_inside(text)
    with torch.device("meta"):
        build_model(path)
    for device in ("cpu", "meta"):
        with torch.device(device), pytest.raises(ConfigError, match=said):
            build_model(path, untrusted=True)


def test_an_untrusted_file_may_be_a_model_with_blocks_of_its_folder(write_inside: Callable, capsys):
    path = write_inside(
        "inputs: {x: [B, 4]}\nblocks: {b: inner.yaml}\nmodules: {m: 'Linear(4, 4)'}\noutputs: b(m(x))\n"
    )
    assert build_model(path, untrusted=True)(torch.ones(2, 4)).shape == (2, 4)
    assert main(["check", "--quiet", "--untrusted", str(path)]) == 0
    assert main(["check", "--quiet", "--untrusted", str(write_inside(REACHING["weights"][0]))]) == 1
    assert "loads nothing" in capsys.readouterr().err


def test_an_untrusted_file_gets_its_defaults_in_place_of_the_environment(write_inside: Callable, monkeypatch):
    monkeypatch.setenv("SIZE_OF_TEST", "8")
    path = write_inside("params: {size: '${env:int:SIZE_OF_TEST,4}'}\ninputs: {x: any}\noutputs: x * size\n")
    assert (build_model(path)(1), build_model(path, untrusted=True)(1)) == (8, 4)


def test_limits_end_with_the_build():
    with pytest.raises(ConfigError):
        build_model({"schema_version": 2}, untrusted=True)
    assert limits() is TRUSTED
    with limited(UNTRUSTED):
        assert limits() is UNTRUSTED and build_model({"schema_version": 2, "inputs": {"x": "any"}, "outputs": "x"})
