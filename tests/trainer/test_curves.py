"""Curves are a picture of the lines: what was logged is what stands on the axes."""

import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from trainer.curves import POINTS, draw, points, smoothed


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), original(self, *a, **k)))
    return figures


def line(step: int) -> dict:
    rates = {"lr/encoder": 1e-3 / step, "lr/head": 1e-4}
    return {"step": step, "loss": 1 / step, "grad_norm/encoder": 2.0 * step, "grad_norm/head": 1.0, **rates}


def test_the_loss_stands_above_norms_and_rates_of_each_component(drawn: list[Figure], tmp_path: Path) -> None:
    lines = [*map(line, range(1, 50)), {"step": 49, "validation_loss": 0.1}]
    assert draw(lines, tmp_path / "a.png", "a run")
    loss, norm, rate = drawn[0].axes
    assert [curve.get_label() for curve in loss.lines] == ["training loss", "smoothed", "validation loss"]
    assert list(loss.lines[0].get_ydata()) == [1 / step for step in range(1, 50)]
    assert (list(loss.lines[2].get_xdata()), list(loss.lines[2].get_ydata())) == ([49], [0.1])
    for axes, prefix in ((norm, "grad_norm/"), (rate, "lr/")):
        assert [curve.get_label() for curve in axes.lines] == ["encoder", "head"]
        assert list(axes.lines[0].get_ydata()) == [one[f"{prefix}encoder"] for one in lines[:-1]]
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (960, 840)
        assert len(picture.convert("RGB").getcolors(maxcolors=2**20)) > 50


def test_a_plain_trainers_loss_is_drawn_alone(drawn: list[Figure], tmp_path: Path) -> None:
    assert draw([{"step": 1, "loss": 2.0}, {"step": 2, "loss": -1.0}], tmp_path / "a.png", "a run")
    (axes,) = drawn[0].axes
    assert axes.get_yscale() == "linear"  # a negative loss has no logarithm
    assert not draw([{"step": 1, "lr/a": 1.0}], tmp_path / "none.png", "no loss")
    assert not (tmp_path / "none.png").exists()


def test_what_is_not_finite_is_left_out() -> None:
    lines = [{"step": 1, "loss": None}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": 0.5}, {"step": 4}]
    assert points(lines, "loss") == ([3], [0.5])


def test_a_long_run_is_thinned_and_keeps_its_last_value() -> None:
    steps, values = points([{"step": step, "loss": float(step)} for step in range(50 * POINTS + 7)], "loss")
    assert POINTS <= len(steps) <= POINTS + 1
    assert values[-1] == 50 * POINTS + 6


def test_the_smoothed_curve_is_the_mean_over_neighbours_and_does_not_lag() -> None:
    assert smoothed([4.0, 4.0, 4.0]) == pytest.approx([4.0, 4.0, 4.0])
    assert smoothed([1.0, 3.0, 8.0, 1.0]) == pytest.approx([2.0, 4.0, 4.0, 4.5])
    falling = [float(100 - i) for i in range(100)]
    assert smoothed(falling)[50] == pytest.approx(falling[50])
