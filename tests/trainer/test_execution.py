"""Predicted chunks become actions: by receding horizon, or by temporal ensembling against its formula written out.

Against lerobot's ensemble it is held in tests/experiment_training/test_act_trainer.py.
"""

import math

import numpy as np
import pytest

from model_constructor import ConfigError
from trainer import train
from trainer.execution import RecedingHorizon, TemporalEnsemble, wrong_execution

STEPS, HORIZON, ACTION = 9, 4, 2


@pytest.fixture
def chunks() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(STEPS, HORIZON, ACTION)).astype(np.float32)


@pytest.mark.parametrize("decay", [0.01, 0.0, -0.5, 3.0, 1e4, -1e4])
def test_an_ensembles_action_is_the_weighted_mean_of_all_that_was_predicted_for_the_step(
    chunks: np.ndarray, decay: float
) -> None:
    ensemble = TemporalEnsemble(decay)
    for step in range(STEPS):
        assert ensemble.needs_chunk
        ensemble.add(chunks[step])
        said = [chunks[made][step - made] for made in range(step + 1) if step - made < HORIZON]  # oldest first
        total, weights = np.zeros(ACTION), 0.0
        for age_rank, action in enumerate(said):
            weight = math.exp(-decay * (age_rank - (len(said) - 1 if decay < 0 else 0)))  # up to a common factor
            total, weights = total + weight * action, weights + weight
        action = ensemble.action()
        assert action.dtype == np.float32
        assert np.allclose(action, total / weights, rtol=1e-6, atol=1e-7)


def test_predictions_that_agree_are_executed_as_they_are() -> None:
    path = np.arange(STEPS + HORIZON, dtype=np.float32)[:, None]
    ensemble = TemporalEnsemble(0.01)
    for step in range(STEPS):
        ensemble.add(path[step : step + HORIZON])
        assert ensemble.action() == pytest.approx(step)


@pytest.mark.parametrize(("steps", "asked_at"), [(None, [0, 4, 8]), (4, [0, 4, 8]), (3, [0, 3, 6]), (1, range(9))])
def test_a_receding_horizon_asks_when_its_actions_are_used_up(
    chunks: np.ndarray, steps: int | None, asked_at: list[int]
) -> None:
    horizon, asked = RecedingHorizon(steps), []
    for step in range(STEPS):
        if horizon.needs_chunk:
            asked.append(step)
            horizon.add(chunks[step])
        assert np.array_equal(horizon.action(), chunks[asked[-1]][step - asked[-1]])
    assert asked == [*asked_at]


@pytest.mark.parametrize(
    ("execute_steps", "ensemble_decay", "told"),
    [
        (None, None, []),
        (HORIZON, None, []),
        (None, 0, []),
        (None, -0.01, []),
        (HORIZON + 1, None, ["execute_steps is 5"]),
        (0, None, ["execute_steps is 0"]),
        (True, None, ["execute_steps is True"]),
        (None, math.nan, ["ensemble_decay is nan"]),
        (None, "slow", ["ensemble_decay is 'slow'"]),
        (1, 0.01, ["execute_steps is 1 and ensemble_decay is 0.01"]),
    ],
)
def test_what_does_not_go_together_is_told(execute_steps: object, ensemble_decay: object, told: list[str]) -> None:
    assert [what for what, _ in wrong_execution(execute_steps, ensemble_decay, HORIZON)] == told


def test_a_config_with_both_is_refused_before_it_trains_whatever_the_trainer(config) -> None:
    (config.parent / "both.py").write_text(
        "from toy_plugin import ToyTrainer\nfrom trainer.registry import TRAINER_REGISTRY\n"
        "@TRAINER_REGISTRY.register('both_trainer')\nclass Both(ToyTrainer):\n    ensemble_decay = 0.5\n"
    )
    overrides = {"plugins": ["toy_plugin", "both"], "train.trainer": {"type": "both_trainer", "params": {}}}
    assert train(config, overrides).step == 12
    overrides |= {"train.trainer.params": {"execute_steps": 2}, "train.save_dir": "runs/both"}
    with pytest.raises(ConfigError, match=r"execute_steps is 2 and ensemble_decay is 0\.5") as caught:
        train(config, overrides)
    assert "leave out one of the two" in str(caught.value)
    assert caught.value.problems[0].place is not None
