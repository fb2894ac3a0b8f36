"""Metrics cost no waiting, are means over steps and ranks, and bars fit a terminal."""

import copy
import json
import os
import pty
import random
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
import torch

from trainer.checkpoint import CheckpointError
from trainer.metrics import ROWS, MetricsFile, MetricWindow, ProgressBar, draw_curves, read_metrics, summary

LINE = {"step": 50, "loss": 0.03121, "lr/a": 9.8e-4, "lr/b": 1e-5, "samples_per_s": 4012.4, "data_wait": 0.012}


class ThreadsAsRanks:
    """What a window needs of several processes, as threads that meet."""

    def __init__(self, size: int) -> None:
        self.size, self._values, self._met = size, {}, Barrier(size)

    def each(self, windows: list[MetricWindow]) -> list[dict[str, float]]:
        found: dict[int, dict[str, float]] = {}
        ranks = [Rank(self, rank) for rank in range(self.size)]
        threads = [Thread(target=lambda r=r: found.update({r: windows[r].read(ranks[r])})) for r in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found[rank] for rank in range(self.size)]


class Rank:
    def __init__(self, all_: ThreadsAsRanks, rank: int) -> None:
        self._all, self._rank, self.size = all_, rank, all_.size

    def gather(self, value: Any) -> list[Any]:
        self._all._values[self._rank] = copy.deepcopy(value)
        self._all._met.wait(timeout=10)
        return [self._all._values[rank] for rank in range(self.size)]


def test_a_window_is_the_mean_of_what_was_added_and_empty_after_reading() -> None:
    window = MetricWindow()
    for value in (1.0, 2.0, 6.0):
        window.add({"loss": torch.tensor(value, requires_grad=True), "plain": 2 * value})
    window.add({"rare": torch.tensor(5.0)})
    assert window.read() == {"loss": 3.0, "plain": 6.0, "rare": 5.0}
    assert window.read() == {}


@pytest.mark.parametrize("steps", [1, ROWS - 1, ROWS, 3 * ROWS + 5])
def test_means_are_weighted_and_over_the_steps_that_emitted_a_metric(steps: int) -> None:
    """The oracle is a list per name; names come and go, kinds and dtypes too."""
    random.seed(steps)
    window, seen = MetricWindow(), {}
    for step in range(steps):
        weight = random.randint(1, 40)
        metrics = {"loss": random.random(), **({"aux": random.random()} if random.random() < 0.3 else {})}
        for name, value in metrics.items():
            seen.setdefault(name, []).append((weight, value))
        tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}
        window.add(tensors if step % 2 else metrics, torch.tensor(float(weight)) if step % 3 else weight)
    means = window.read()
    for name, pairs in seen.items():
        mean = sum(weight * value for weight, value in pairs) / sum(weight for weight, _ in pairs)
        assert means[name] == pytest.approx(mean, rel=1e-6)
    assert means.keys() == seen.keys()


def test_small_differences_survive_many_steps() -> None:
    window = MetricWindow()
    for _ in range(3000):
        window.add({"loss": torch.tensor(0.1)}, 100_000.0)
    assert window.read()["loss"] == pytest.approx(torch.tensor(0.1).item(), rel=1e-12)  # float32 sums are 1e-5 off


def test_a_window_keeps_a_copy_and_changes_nothing_it_was_given() -> None:
    window, temperature = MetricWindow(), torch.tensor(1.0)
    window.add({"temperature": temperature})
    temperature += 2.0  # a parameter that is trained in place
    window.add({"temperature": temperature})
    assert window.read() == {"temperature": 2.0}
    assert temperature.item() == 3.0


def test_adding_reads_nothing_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, lambda self, name=name: pytest.fail(f"{name} waits for the device"))
    window = MetricWindow()
    for _ in range(2 * ROWS):
        window.add({"loss": torch.ones(()), "bf16": torch.ones((), dtype=torch.bfloat16), "plain": 1.0}, torch.ones(()))


def test_a_metric_that_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match=r"'weights' has shape \[3\]"):
        MetricWindow().add({"loss": torch.tensor(1.0), "weights": torch.ones(3)})
    window = MetricWindow()
    window.add({"one": torch.ones(1, 1)})
    assert window.read() == {"one": 1.0}


def test_several_ranks_read_one_mean_also_of_what_only_one_of_them_emits() -> None:
    windows = [MetricWindow() for _ in range(3)]
    windows[0].add({"loss": 1.0, "only_first": 7.0}, 10)
    windows[1].add({"loss": 4.0}, 30)
    windows[1].add({"late": 5.0}, 2)
    windows[1].add({"late": 8.0}, 1)
    read = ThreadsAsRanks(3).each(windows)  # the third has nothing
    assert read == [{"loss": 3.25, "only_first": 7.0, "late": 6.0}] * 3
    assert [list(one) for one in read] == [["loss", "only_first", "late"]] * 3


@pytest.mark.parametrize("before", [0, 1, ROWS - 1, ROWS, ROWS + 7])
def test_a_window_that_was_put_away_and_taken_up_reads_the_same_bits(before: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(before)
    steps = [
        {"loss": torch.rand((), generator=generator), "b": torch.rand((), generator=generator)} for _ in range(200)
    ]
    whole, first, later = MetricWindow(), MetricWindow(), MetricWindow()
    for number, metrics in enumerate(steps):
        whole.add(metrics, 3.0)
        if number < before:
            first.add(metrics, 3.0)
    torch.save(first.state_dict(), tmp_path / "window.pt")
    later.load_state_dict(torch.load(tmp_path / "window.pt", weights_only=True), torch.device("cpu"))
    for metrics in steps[before:]:
        later.add(metrics, 3.0)
    assert later.read() == whole.read()


def test_a_window_that_is_taken_up_adds_in_the_order_of_the_first_appearances(tmp_path: Path) -> None:
    """Sums of floats depend on their order; the name that is first in one set of metrics is read last."""
    steps = [{"rare": 0.1, "loss": 0.1}, *[{"loss": 0.7}] * (ROWS + 1), {"other": 0.3, "loss": 0.3}]
    whole, first, later = MetricWindow(), MetricWindow(), MetricWindow()
    for metrics in steps:
        whole.add(metrics)
        first.add(metrics)
    torch.save(first.state_dict(), tmp_path / "window.pt")
    later.load_state_dict(torch.load(tmp_path / "window.pt", weights_only=True), torch.device("cpu"))
    assert list(later.read().items()) == list(whole.read().items())


def test_a_line_that_finds_no_room_is_one_error_and_leaves_nothing_for_the_end(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", keep_until_step=0)
    file.close()
    file._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(CheckpointError, match="No space left on device"):
        file.write({"step": 1, "loss": 0.5})
    file.close()


def test_lines_after_the_checkpoint_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (10, 20, 30)) + '{"step": 40, "l')
    file = MetricsFile(path, keep_until_step=20)
    file.write({"step": 25})
    file.close()
    assert [line["step"] for line in read_metrics(path)] == [10, 20, 25]


def test_a_bar_fits_eighty_columns_and_says_what_matters(capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr("trainer.metrics.is_screen", lambda: True)
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


def test_a_terminal_without_a_size_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    _, screen = pty.openpty()  # its size is 0 x 0
    with os.fdopen(screen, "w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        bar = ProgressBar("run", 0, 10)
        bar.advance()
        bar.show(LINE)
    assert capsys.readouterr().out == f"step 1/10  {summary(LINE)}\n"


def test_without_a_terminal_there_are_a_few_plain_lines(capsys: pytest.CaptureFixture) -> None:
    bar = ProgressBar("run", 0, 1000)
    for _ in range(1000):
        bar.advance()
        bar.show(LINE)
    lines = capsys.readouterr().out.splitlines()
    assert 9 <= len(lines) <= 11
    assert lines[-1] == f"step 1000/1000  {summary(LINE)}"


def test_a_line_says_what_there_is_to_say() -> None:
    assert summary(LINE) == "loss 0.03121 lr 9.8e-04 4012/s wait 1%"
    assert summary({**LINE, "samples_per_s": 120_430.0}).split()[4] == "120k/s"
    assert summary({"step": 3}) == ""


def test_every_line_is_json_that_any_reader_takes(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", keep_until_step=0)
    file.write({"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "lr/a": 0.1})
    file.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "loss": None, "grad_norm": None, "lr/a": 0.1}


def test_a_young_picture_stands_and_an_old_one_is_drawn_again(tmp_path: Path) -> None:
    assert draw_curves(tmp_path, "nothing yet") is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": null}\n')
    picture = draw_curves(tmp_path, "a run", at_most_every_s=600)
    assert picture == tmp_path / "loss.png" and [path.name for path in tmp_path.glob(".tmp*")] == []
    picture.write_bytes(b"")
    assert draw_curves(tmp_path, "a run", at_most_every_s=600) == picture and picture.read_bytes() == b""
    hour_ago = picture.stat().st_mtime - 3600
    os.utime(picture, (hour_ago, hour_ago))
    assert draw_curves(tmp_path, "a run", at_most_every_s=600).read_bytes().startswith(b"\x89PNG")
