"""The benchmark of the image transforms runs; what it measures is for a quiet machine."""

import importlib.util
from pathlib import Path

import pytest

from trainer.data.image_transforms import TRANSFORMS


def test_every_transform_is_timed_against_its_peer(capsys: pytest.CaptureFixture[str]):
    spec = importlib.util.spec_from_file_location("augmentation", Path(__file__).with_name("augmentation.py"))
    assert spec and spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    benchmark.main(["--batch", "2", "--size", "16", "--rounds", "1"])
    rows = [line.split("|")[1:5] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [name.strip() for name, *_ in rows] == list(TRANSFORMS)
    assert all(float(milliseconds) > 0 for _, _, milliseconds, _ in rows)
