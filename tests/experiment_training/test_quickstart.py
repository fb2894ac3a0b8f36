"""The quickstart's own config: before training its policy can do nothing, afterwards the task."""

from pathlib import Path

import pytest

from experiment_training.quickstart.record import Recording, record
from trainer import train
from trainer.evaluate import evaluate_run

CONFIG = Path(__file__).resolve().parents[2] / "experiment_training/quickstart/pick_place.yaml"


def test_a_policy_with_untrained_weights_succeeds_nowhere(recorded: Path, tmp_path: Path) -> None:
    overrides = {
        "data.datamodule.params.root": str(recorded),
        "train.save_dir": str(tmp_path / "policy"),
        "train.max_steps": 1,
        # The one update has a learning rate of 0: the first step of the warm-up.
        "model.component_optims.observation_embedder.params.warmup_steps": 1,
        "model.component_optims.action_decoder.params.warmup_steps": 1,
    }
    train(CONFIG, overrides)
    result = evaluate_run(tmp_path / "policy", {"episodes": 4, "max_steps": 100, "films": 0})
    assert result.summary == "success 0.0 % (0 of 4 held-out placements)"


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "least"), [(0, 27), (1, 25), (2, 25)])
def test_the_trained_policy_does_the_task(seed: int, least: int, tmp_path: Path) -> None:
    demonstrations = tmp_path / "demonstrations"
    record(demonstrations, Recording())
    overrides = {
        "seed": seed,
        "data.datamodule.params.root": str(demonstrations),
        "train.save_dir": str(tmp_path / "policy"),
    }
    train(CONFIG, overrides)
    result = evaluate_run(tmp_path / "policy", {"films": 0})
    again = evaluate_run(tmp_path / "policy", {"films": 0})
    assert result.metrics["successes"] >= least
    assert again.summary == result.summary
