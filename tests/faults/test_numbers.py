"""Numbers that are none: the update is left out, and what is said names the component and the samples."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
from fault_plugin import Follower
from fault_project import Project
from torch import Tensor

from trainer.checkpoint import newest_checkpoint

BAD_UPDATE, BAD_ITEM = 3, 13  # the item: episode 1, frame 5
Changed = list[bool]  # whether each update changed any weight or any optimizer's state


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Changed:
    """Filled by the run: an update that is left out, or that ends the run, has changed nothing."""
    original, updates = Follower.train_step, Changed()

    def values(trainer: Follower) -> list[Tensor]:
        states = [state for one in trainer.optimizers.values() for state in one.state.values()]
        numbers = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return [value.detach().clone() for value in (*trainer.models.state_dict().values(), *numbers)]

    def step(self: Follower, *given: Any) -> dict:
        before = values(self)
        try:
            return original(self, *given)
        finally:
            after = values(self)
            same = len(before) == len(after) and all(map(torch.equal, before, after))
            updates.append(not same)

    monkeypatch.setattr(Follower, "train_step", step)
    return updates


def in_update(number: int, spoil: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    updates = count(1)
    return lambda value: spoil(value) if next(updates) == number else value


def a_bad_item(index: int, item: dict) -> None:
    if index == BAD_ITEM:
        item["action"] = item["action"] * torch.nan


FAULTS = {
    "nan in the data": ("item", lambda: a_bad_item, "encoder, head"),
    "nan as the loss": ("loss", lambda: in_update(BAD_UPDATE, lambda loss: loss * torch.nan), "encoder, head"),
    "infinite loss": ("loss", lambda: in_update(BAD_UPDATE, lambda loss: loss * torch.inf), "encoder, head"),
    "nan in a gradient": ("gradient", lambda: in_update(BAD_UPDATE, lambda grad: grad * torch.nan), "encoder"),
    "infinite gradient": ("gradient", lambda: in_update(BAD_UPDATE, lambda grad: grad + torch.inf), "encoder"),
}
QUICK = ("nan in the data", "nan as the loss", "infinite gradient")
CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]


@pytest.mark.parametrize("fault", CASES)
@pytest.mark.fault("F12", "NaN or infinity in the data, the loss, a gradient: stop")
def test_an_update_that_is_not_finite_ends_the_run(
    project: Project, changed: Changed, hook: Callable, capsys: pytest.CaptureFixture, fault: str
) -> None:
    place, spoil, components = FAULTS[fault]
    hook(place, spoil())
    assert project.run("train.save_every_steps=1", "train.keep_last=9") == 1
    error = capsys.readouterr().err
    done = len(changed) - 1
    what = f"training stopped: the gradient of {components} is not finite in update {done + 1}"
    assert error.startswith(f"{what}; the batch holds episode:frame ")
    assert "Traceback" not in error
    assert changed == [True] * done + [False]
    assert f"after {done} updates" in error
    assert newest_checkpoint(project.run_dir).step == done
    if fault == "nan in the data":
        assert " 1:5" in error
    else:
        assert done == BAD_UPDATE - 1


@pytest.mark.parametrize("fault", CASES)
@pytest.mark.fault("F12", "NaN or infinity in the data, the loss, a gradient: skip")
def test_an_update_that_is_not_finite_is_left_out(
    project: Project, changed: Changed, hook: Callable, capsys: pytest.CaptureFixture, fault: str
) -> None:
    place, spoil, components = FAULTS[fault]
    hook(place, spoil())
    assert project.run("train.on_nonfinite=skip") == 0
    assert f"left out: the gradient of {components} is not finite" in capsys.readouterr().out
    assert len(changed) == 6
    if fault == "nan in the data":  # six updates of eight are one epoch of 40 and a bit: the item is met once or twice
        assert 1 <= changed.count(False) <= 2
    else:
        assert [number for number, one in enumerate(changed, start=1) if not one] == [BAD_UPDATE]
    state = torch.load(newest_checkpoint(project.run_dir).path / "head_ema.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state.values())
