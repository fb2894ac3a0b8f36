"""The benchmark of data loading runs; what it measures is for a quiet machine."""

import logging
import runpy
from pathlib import Path

import datasets
import pytest
import torch


@pytest.fixture
def main(monkeypatch):
    """What the benchmark sets for its whole process is set back."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", datasets.config.HF_DATASETS_CACHE)
    yield runpy.run_path(str(Path(__file__).with_name("data_loading.py")))["main"]
    torch.set_num_threads(threads)
    logging.disable(logging.NOTSET)
    datasets.enable_progress_bars()


@pytest.mark.slow
def test_every_kind_of_set_is_faster_than_its_peer_and_statistics_of_video_take_less_than_five_seconds(main, capsys):
    main(["--rounds", "2", "--frames", "8", "--statistics-frames", "10000"])
    *table, _, statistics = capsys.readouterr().out.strip().splitlines()
    rows = {kind.strip(): float(ratio) for _, kind, _, _, ratio, _ in (line.split("|") for line in table[2:])}
    assert rows.keys() == {"low-dim", "image", "video"}
    assert all(ratio > 1 for ratio in rows.values())
    assert statistics.startswith("statistics of 10,000 frames of video") and float(statistics.split()[-2]) < 5
