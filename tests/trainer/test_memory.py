"""A batch that the memory does not hold is told with what makes it smaller; what a run frees, it uses again."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy_plugin

from model_constructor import ConfigError
from trainer import train
from trainer.offline_trainer import main

PAGES_FAULTED = """
import resource
from trainer.memory import keep_freed_memory

def pages_faulted():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [bytearray(2**22) for _ in range(8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pages_faulted()
returned = pages_faulted()
keep_freed_memory()
pages_faulted()
print(returned, pages_faulted())
"""


def pages_faulted(**allocator: str) -> tuple[int, int]:
    """Before and after `keep_freed_memory`, in a process where nothing else sets the allocator up."""
    others = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    command = [sys.executable, "-c", PAGES_FAULTED]
    ran = subprocess.run(command, env=environment | allocator, capture_output=True, text=True, check=True)
    before, after = map(int, ran.stdout.split())
    return before, after


@pytest.mark.parametrize("when", ["at the rehearsal", "in training"])
def test_a_batch_that_does_not_fit_into_memory_is_told_with_a_smaller_one(
    config: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    original = toy_plugin.ToyTrainer.compute_loss

    def compute_loss(self, batch: dict):
        if torch.is_grad_enabled() == (when == "in training"):
            torch.empty(2**50)
        return original(self, batch)

    monkeypatch.setattr(toy_plugin.ToyTrainer, "compute_loss", compute_loss)
    with pytest.raises(
        ConfigError, match=r"a batch of 16 does not fit into the memory of the cpu: .*allocate"
    ) as raised:
        train(config)
    (problem,) = raised.value.problems
    assert problem.place.line == 12
    assert "batch_size: 8 with accumulate: 2" in problem.hint
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_another_error_of_the_run_stays_what_it_is(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.training.banner", lambda run, progress: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(config)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
def test_memory_that_is_freed_is_used_again_without_a_page_fault() -> None:
    returned, kept = pages_faulted()
    if returned < 1000:
        pytest.skip("huge pages, or another allocator: memory comes and goes without faults")
    assert kept < returned / 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
def test_what_the_environment_asks_of_the_allocator_stays() -> None:
    returned, after = pages_faulted(MALLOC_TRIM_THRESHOLD_="1000000", MALLOC_MMAP_THRESHOLD_="1000000")
    if returned < 1000:
        pytest.skip("huge pages, or another allocator: memory comes and goes without faults")
    assert after > returned / 2


@pytest.mark.parametrize("on_cuda", [False, True])
def test_the_command_line_keeps_what_it_frees_where_it_trains_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_cuda: bool
) -> None:
    kept = []
    monkeypatch.setattr("trainer.training.keep_freed_memory", lambda: kept.append("kept"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: on_cuda)
    assert main(["--train_config", str(tmp_path / "missing.yaml")]) == 2
    assert kept == ([] if on_cuda else ["kept"])
