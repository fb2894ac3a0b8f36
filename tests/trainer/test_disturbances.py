"""What goes on beside the updates changes none of them: a rehearsal, a validation, an update left out, another run."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
import toy_plugin
from torch import Tensor, nn
from torch.utils.data import Subset, random_split
from toy_compare import assert_equal_checkpoints

from model_constructor import ConfigError
from trainer import train
from trainer.metrics import read_metrics
from trainer.registry import DATASET_BUILDER_REGISTRY, LOSS_BUILDER_REGISTRY, TRAINER_REGISTRY
from trainer.templates import StepOutput

NORMED = """\
schema_version: 2
params: {state_dim: 3, dim: 8}
inputs: {state: [B, H, state_dim]}
modules: {net: "Linear(state_dim, dim)", norm: BatchNorm1d(dim)}
outputs: norm(net(state).transpose(1, 2)).transpose(1, 2)
"""
HELD_OUT = {"data.validation": {"episodes": [9]}}


class RunningError(nn.Module):
    """Divides by a mean of its own that goes along in training; a loss as plugins have them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        error = (prediction - target).square().mean()
        if self.training:
            self.mean.lerp_(error.detach(), 0.1)
        return error / self.mean


@LOSS_BUILDER_REGISTRY.register("running_loss")
class RunningLoss:
    def build(self) -> nn.Module:
        return RunningError()


@LOSS_BUILDER_REGISTRY.register("learned_loss")
class LearnedLoss:
    def build(self) -> nn.Module:
        loss = RunningError()
        loss.log_variance = nn.Parameter(torch.zeros(()))
        return loss


@TRAINER_REGISTRY.register("counting_trainer")
class CountingTrainer(toy_plugin.ToyTrainer):
    """Scales its loss by how often it was called, and keeps the count."""

    calls = 0

    def compute_loss(self, batch: dict) -> StepOutput:
        self.calls += 1
        output = super().compute_loss(batch)
        return StepOutput(output.loss / self.calls, {"calls": torch.tensor(float(self.calls))})

    def state_dict(self) -> dict:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict) -> None:
        self.calls = state["calls"]


@TRAINER_REGISTRY.register("sometimes_trainer")
class SometimesTrainer(toy_plugin.ToyTrainer):
    name = "one"

    def compute_loss(self, batch: dict) -> StepOutput:
        self.calls = getattr(self, "calls", 0) + 1
        metrics = {self.name: torch.ones(())} if self.calls % 2 else {}
        return StepOutput(super().compute_loss(batch).loss, metrics)


@TRAINER_REGISTRY.register("step_trainer")
class StepTrainer(SometimesTrainer):
    name = "step"


@DATASET_BUILDER_REGISTRY.register("split_data")
class SplitData:
    """Splits as many do it, by torch's global random stream."""

    seen: ClassVar[list[list[int]]] = []

    def build(self, opt_params: dict, params: dict) -> dict:
        whole = toy_plugin.ToyDataset(list(range(10)))
        training, held_out = random_split(whole, [64, 16])
        self.seen.append(sorted(training.indices))
        bundle = toy_plugin.ToyData().build({}, {})
        return {**bundle, "dataset": training, "validation_dataset": held_out}


@pytest.mark.parametrize(
    "stateful",
    [
        {"train.loss.type": "running_loss"},
        pytest.param({"train.trainer.type": "counting_trainer"}, marks=pytest.mark.slow),
    ],
)
def test_a_loss_or_trainer_with_state_resumes_exactly_and_validates_without_a_trace(
    config: Path, project: Path, stateful: dict
) -> None:
    common = {**HELD_OUT, **stateful, "train.save_every_steps": 5, "train.validate_every": 6}
    whole = train(config, {**common, "train.save_dir": "runs/whole"})
    often = train(config, {**common, "train.validate_every": 1, "train.save_dir": "runs/often"})
    train(config, {**common, "train.save_dir": "runs/parts"})
    (project / "runs/parts" / whole.checkpoint.name / "manifest.json").unlink()
    parts = train(config, {**common, "train.save_dir": "runs/parts"}, resume="auto")
    assert_equal_checkpoints(parts.checkpoint, whole.checkpoint)
    assert_equal_checkpoints(often.checkpoint, whole.checkpoint)


def test_an_update_that_is_left_out_leaves_no_batch_statistics(config: Path, project: Path) -> None:
    (project / "configs/encoder.yaml").write_text(NORMED)
    original = toy_plugin.ToyDataset.__getitem__

    def spoiled(self, index: int) -> dict:
        item = original(self, index)
        return {**item, "observation.state": item["observation.state"] * torch.nan} if index == 7 else item

    toy_plugin.ToyDataset.__getitem__ = spoiled
    try:
        result = train(config, {"train.on_nonfinite": "skip"})
    finally:
        toy_plugin.ToyDataset.__getitem__ = original
    assert any(line["skipped"] for line in read_metrics(result.run_dir / "metrics.jsonl"))
    state = torch.load(result.checkpoint / "encoder.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state.values())


def test_a_split_that_a_factory_draws_is_the_same_each_time(config: Path) -> None:
    for number in range(2):
        torch.manual_seed(number)
        train(config, {"data.datamodule": {"type": "split_data"}, "train.save_dir": f"runs/{number}"})
    assert SplitData.seen[-1] == SplitData.seen[-2]


def test_parameters_of_a_loss_are_refused_since_nothing_would_train_them(config: Path) -> None:
    with pytest.raises(ConfigError, match="'learned_loss' has parameters that no optimizer would train: log_variance"):
        train(config, {"train.loss.type": "learned_loss"})


def test_a_metric_counts_where_it_was_given(config: Path) -> None:
    result = train(config, {"train.trainer.type": "sometimes_trainer", "train.accumulate": 2, "data.batch_size": 8})
    assert [line["one"] for line in read_metrics(result.run_dir / "metrics.jsonl")] == [1.0, 1.0, 1.0]


def test_a_metric_may_not_take_the_place_of_the_lines_own_number(config: Path) -> None:
    with pytest.raises(ConfigError, match="a metric cannot be called 'step'"):
        train(config, {"train.trainer.type": "step_trainer"})


@DATASET_BUILDER_REGISTRY.register("nothing_held_out")
class NothingHeldOut(toy_plugin.ToyData):
    def build(self, opt_params: dict, params: dict) -> dict:
        return {**super().build({}, params), "validation_dataset": Subset(toy_plugin.ToyDataset([0]), [])}


def test_an_empty_validation_set_is_told_before_the_training(config: Path) -> None:
    with pytest.raises(ConfigError, match="its validation_dataset is empty"):
        train(config, {**HELD_OUT, "data.datamodule": {"type": "nothing_held_out"}})


def test_batches_beyond_an_epoch_are_no_new_ones(config: Path, capsys: pytest.CaptureFixture) -> None:
    train(config, {"train.overfit_batches": 1000})
    assert "data 80 frames, 5 updates an epoch" in capsys.readouterr().out


def test_a_run_that_ended_while_another_was_built_is_not_overwritten(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = toy_plugin.ToyData.build

    def build(self, opt_params: dict, params: dict) -> dict:
        monkeypatch.setattr(toy_plugin.ToyData, "build", original)
        train(config)
        return original(self, opt_params, params)

    monkeypatch.setattr(toy_plugin.ToyData, "build", build)
    with pytest.raises(ConfigError, match="another run was at work"):
        train(config)


def test_other_groups_are_refused_since_moments_would_change_places(config: Path) -> None:
    train(config, {"train.max_steps": 4})
    groups = {"net.0.bias": {"lr": 0.1}}
    with pytest.raises(ConfigError, match=r"the groups of the optimizer of encoder .* net\.0\.bias"):
        train(config, {"model.component_optims.encoder.groups": groups}, resume="auto")
