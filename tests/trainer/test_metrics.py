"""Metrics cost no waiting, bars fit a terminal, curves are pictures."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from trainer.metrics import MetricsFile, MetricWindow, ProgressBar, _smoothed, draw_loss, read_metrics, summary

LINE = {"step": 50, "loss": 0.03121, "lr": {"a": 9.8e-4, "b": 1e-5}, "samples_per_s": 4012.4, "data_wait": 0.012}


def test_a_window_is_the_mean_of_what_was_added_and_empty_after_reading() -> None:
    window = MetricWindow()
    for value in (1.0, 2.0, 6.0):
        window.add({"loss": torch.tensor(value, requires_grad=True), "plain": 2 * value})
    window.add({"rare": torch.tensor(5.0)})
    assert window.read() == {"loss": 3.0, "plain": 6.0, "rare": 5.0}
    assert window.read() == {}


def test_a_window_does_not_change_what_it_was_given() -> None:
    window, first = MetricWindow(), torch.tensor(1.0)
    window.add({"loss": first})
    window.add({"loss": torch.tensor(2.0)})
    assert first.item() == 1.0


def test_a_window_can_be_put_away_and_taken_up() -> None:
    window, later = MetricWindow(), MetricWindow()
    window.add({"loss": 1.0})
    later.load_state_dict(window.state_dict(), torch.device("cpu"))
    window.add({"loss": 100.0})
    later.add({"loss": 3.0})
    assert later.read() == {"loss": 2.0}


def test_lines_after_the_checkpoint_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (10, 20, 30)) + '{"step": 40, "l')
    file = MetricsFile(path, keep_until_step=20)
    file.write({"step": 25})
    file.close()
    assert [line["step"] for line in read_metrics(path)] == [10, 20, 25]


def test_a_bar_fits_eighty_columns_and_says_what_matters(capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: (80, 24))
    monkeypatch.setenv("COLUMNS", "80")
    bar = ProgressBar("pick_place_with_a_long_name", 0, 2000)
    bar.advance()
    bar.show(LINE)
    bar._bar.ncols, bar._bar.dynamic_ncols = 80, None
    bar._bar.refresh()
    shown = str(bar._bar)
    bar.close()
    assert len(shown) <= 80
    for part in ("1/2000", "loss 0.03121", "lr 9.8e-04", "4012/s", "wait 1%"):
        assert part in shown


def test_without_a_terminal_there_are_a_few_plain_lines(capsys: pytest.CaptureFixture) -> None:
    bar = ProgressBar("run", 0, 1000)
    for _ in range(1000):
        bar.advance()
        bar.show(LINE)
    lines = capsys.readouterr().out.splitlines()
    assert 9 <= len(lines) <= 11
    assert lines[-1] == f"step 1000/1000  {summary(LINE)}"


def test_the_smoothed_curve_is_the_mean_over_neighbours_and_does_not_lag() -> None:
    assert _smoothed((4.0, 4.0, 4.0)) == pytest.approx([4.0, 4.0, 4.0])
    assert _smoothed((1.0, 3.0, 8.0, 1.0)) == pytest.approx([2.0, 4.0, 4.0, 4.5])
    falling = tuple(float(100 - i) for i in range(100))
    assert _smoothed(falling)[50] == pytest.approx(falling[50])


def test_a_loss_curve_is_a_picture_of_the_lines(tmp_path: Path) -> None:
    assert draw_loss(tmp_path, "nothing yet") is None
    lines = [{"step": step, "loss": 1 / step} for step in range(1, 50)] + [{"step": 49, "validation_loss": 0.1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Image.open(draw_loss(tmp_path, "a run")) as picture:
        assert picture.size == (960, 540)
        assert len(picture.convert("RGB").getcolors(maxcolors=2**20)) > 50
