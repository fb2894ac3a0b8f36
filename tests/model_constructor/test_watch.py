"""`check --watch`: a real process that checks again after each change of a file, and ends quietly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue

import pytest

from model_constructor.tools.watch import files_of

GOOD = "schema_version: 2\nblocks: {scale: scale.yaml}\ninputs: {x: [B, 4]}\noutputs: scale(x)\n"
SCALE = "schema_version: 2\ninputs: {x: [B, D]}\noutputs: 2 * x\n"


class Watched:
    """The process, and the lines that it writes."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "model_constructor", "check", "--watch", *arguments]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.lines: Queue[str] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.rstrip())

    def until(self, part: str, within_s: float = 60) -> list[str]:
        """The lines up to one that has `part` in it."""
        seen: list[str] = []
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            try:
                seen.append(self.lines.get(timeout=0.1))
            except Empty:
                continue
            if part in seen[-1]:
                return seen
        raise AssertionError(f"{part!r} did not come; there came {seen}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    started: list[Watched] = []

    def start(*arguments: str) -> Watched:
        started.append(Watched(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.mark.slow
def test_each_change_of_a_file_or_of_one_it_is_built_from_is_checked(tmp_path: Path, watched: Callable[..., Watched]):
    file, scale = tmp_path / "model.yaml", tmp_path / "scale.yaml"
    file.write_text(GOOD)
    process = watched("-q", str(file))
    process.until("there is no such file")
    scale.write_text(SCALE)  # what was missing is there
    process.until("ok")
    scale.write_text(SCALE.replace("2 * x", "2 * y"))
    assert any("scale.yaml:3" in line for line in process.until("'y'"))
    scale.write_text(SCALE)
    process.until("ok")
    file.write_text(GOOD.replace("scale(x)", "scale(x"))  # no syntax, but still watched
    process.until("model.yaml:4")
    file.write_text(GOOD)
    before = process.until("ok")
    assert any(len(line) == 8 and line.count(":") == 2 for line in before), "the time stands above"
    time.sleep(1)
    assert process.lines.empty(), "nothing changed since"
    assert process.stop() == 0
    assert process.lines.empty(), "it ends without a traceback"


def test_a_file_names_the_files_of_its_defaults_and_blocks(tmp_path: Path):
    (tmp_path / "parts").mkdir()
    top, base, layer = tmp_path / "top.yaml", tmp_path / "base.yaml", tmp_path / "parts" / "layer.yaml"
    top.write_text("schema_version: 2\ndefaults: [base.yaml]\nparams: {dim: 4}\n")
    base.write_text("schema_version: 2\nblocks: {layer: parts/layer.yaml}\noutputs: layer(x)\ninputs: {x: [B]}\n")
    layer.write_text("schema_version: 2\ndefaults: [{base: ../top.yaml}]\n")  # a circle is an error, told by the check
    found = files_of([top], {})
    assert found.keys() == {top, base, layer}
    base.write_text("blocks: {layer: [}")
    assert files_of([top], found).keys() == {top, base, layer}, "while it cannot be read, it names what it did before"
    base.write_text("schema_version: 2\noutputs: 1\n")
    assert files_of([top], found).keys() == {top, base}
