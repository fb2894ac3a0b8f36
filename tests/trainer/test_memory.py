"""A batch that the memory does not hold is told with what makes it smaller; what a run frees, it uses again."""

import platform
import resource
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
    ran = subprocess.run([sys.executable, "-c", PAGES_FAULTED], capture_output=True, text=True, check=True)
    returned, kept = map(int, ran.stdout.split())
    pages = 10 * 8 * 2**22 // resource.getpagesize()
    assert returned > pages / 2
    assert kept < pages / 100


def test_the_program_keeps_what_it_frees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr("trainer.memory.keep_freed_memory", lambda: kept.append(True))
    assert main(["--train_config", str(tmp_path / "missing.yaml")]) == 2
    assert kept == [True]
