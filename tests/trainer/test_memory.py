"""A batch that the memory does not hold is told with what makes it smaller."""

from pathlib import Path

import pytest
import torch
import toy_plugin

from model_constructor import ConfigError
from trainer import train


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
