"""A policy is rebuilt from a run folder alone, and speaks the data set's units."""

import json
import math
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_plugin import ToyDataset, ToyEvaluation, ToyTrainer

from model_constructor import ConfigError, names, register
from trainer import Policy, load_policy, train
from trainer.checkpoint import CheckpointError
from trainer.data.augmentation import Augmentation
from trainer.data.normalization import Normalizer, load_stats, normalization_modes
from trainer.data.preparation import Preparation
from trainer.evaluate import main as evaluate
from trainer.registry import EVALUATION_BUILDER_REGISTRY, TRAINER_REGISTRY
from trainer.templates import EvaluationResult, StepOutput

OBSERVATION = {"observation.state": np.array([4.0, 12.0, 5.1])}


@pytest.fixture
def run_dir(project: Path, trained_project: Path) -> Path:
    return shutil.copytree(trained_project / "runs/toy", project / "runs/toy", symlinks=True)


def test_an_action_is_the_models_in_the_data_sets_units(run_dir: Path) -> None:
    action = load_policy(run_dir).select_action(OBSERVATION)

    weights = {name: torch.load(run_dir / f"step_12/{name}.pt", weights_only=True) for name in ("encoder", "head")}
    stats = json.loads((run_dir / "dataset_stats.json").read_text())
    mean, std = (torch.tensor(stats["observation.state"][name]) for name in ("mean", "std"))
    state = ((torch.tensor(OBSERVATION["observation.state"]) - mean) / std).float()
    hidden = torch.nn.functional.gelu(weights["encoder"]["net.0.weight"] @ state + weights["encoder"]["net.0.bias"])
    chunk = (weights["head"]["out.weight"] @ hidden + weights["head"]["out.bias"]).reshape(4, 2)
    expected = chunk[0].double() * torch.tensor(stats["action"]["std"]) + torch.tensor(stats["action"]["mean"])
    assert action.dtype == np.float32
    assert np.allclose(action, expected, rtol=1e-4)


@TRAINER_REGISTRY.register("keeping_toy_trainer")
class KeepingTrainer(ToyTrainer):
    """Acts with what it has counted in training."""

    updates = 0

    def compute_loss(self, batch: dict) -> StepOutput:
        self.updates += self._objective.training
        return super().compute_loss(batch)

    def predict(self, batch: dict, generator: torch.Generator | None = None) -> torch.Tensor:
        return super().predict(batch, generator) + self.updates

    def state_dict(self) -> dict:
        return {"updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]


def test_a_policy_acts_with_what_its_trainer_has_kept(config: Path) -> None:
    run_dir = train(config, {"train.trainer.type": "keeping_toy_trainer"}).run_dir
    policy = load_policy(run_dir)
    acted = policy.select_action(OBSERVATION)
    assert policy.trainer.updates == 12
    policy.trainer.updates = 0
    policy.reset()
    scale = policy.prepare.normalizer.denormalize("action", torch.ones(2)) - policy.prepare.normalizer.denormalize(
        "action", torch.zeros(2)
    )
    assert np.allclose(acted, policy.select_action(OBSERVATION) + 12 * scale.numpy(), rtol=1e-4)


def test_the_model_files_and_the_data_are_not_needed(run_dir: Path, project: Path, tmp_path_factory) -> None:
    expected = load_policy(run_dir).select_action(OBSERVATION)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "run"
    shutil.move(run_dir, elsewhere)
    shutil.rmtree(project / "configs")
    shutil.rmtree(project / "models")
    assert np.array_equal(load_policy(elsewhere).select_action(OBSERVATION), expected)


def test_any_checkpoint_can_be_asked_for(run_dir: Path) -> None:
    newest, link, older = (
        load_policy(path).select_action(OBSERVATION) for path in (run_dir, run_dir / "latest", run_dir / "epoch_1")
    )
    assert np.array_equal(newest, link)
    assert not np.array_equal(newest, older)


class Recorder:
    """Stands for a trained trainer: notes what it is asked, answers with a counted chunk."""

    device = torch.device("cpu")

    def __init__(self, execute_steps: int | None, ensemble_decay: float | None = None) -> None:
        self.execute_steps, self.ensemble_decay, self.asked = execute_steps, ensemble_decay, []

    def predict(self, batch: dict, generator: torch.Generator) -> torch.Tensor:
        self.asked.append(batch)
        chunk = torch.arange(4.0) + 10 * len(self.asked)
        return chunk[None, :, None].expand(1, 4, 2)


SHAPES = {
    **{"observation.state": [3, 2], "observation.state_is_pad": [3], "observation.gripper": [1]},
    **{"observation.images.top": [3, 5, 7], "observation.images.wrist": [2, 1, 2, 4]},
    **{"observation.images.wrist_is_pad": [2], "action": [4, 2], "action_is_pad": [4], "index": []},
}
IMAGES = {"observation.images.top": 3, "observation.images.wrist": 1}


def unchanged() -> Preparation:
    return Preparation(Normalizer({}, {}), IMAGES, Augmentation())


@pytest.mark.parametrize(("execute_steps", "predictions"), [(None, 2), (2, 4), (1, 8)])
def test_a_chunk_is_executed_as_far_as_told(execute_steps: int | None, predictions: int) -> None:
    trainer = Recorder(execute_steps)
    policy = Policy(trainer, unchanged(), SHAPES, seed=0)
    executed = execute_steps or 4
    actions = [policy.select_action({"observation.state": np.zeros(2)})[0] for _ in range(8)]
    assert actions == [10 * (1 + step // executed) + step % executed for step in range(8)]
    assert len(trainer.asked) == predictions


def test_an_ensemble_predicts_at_every_step_and_forgets_at_a_reset() -> None:
    trainer = Recorder(None, ensemble_decay=0.0)  # the n-th chunk says 10 n, 10 n + 1, ...
    policy = Policy(trainer, unchanged(), SHAPES, seed=0)
    actions = [policy.select_action({"observation.state": np.zeros(2)})[0] for _ in range(6)]
    assert actions == [10, 15.5, 21, 26.5, 36.5, 46.5]  # means of 10; 11, 20; 12, 21, 30; ...
    assert len(trainer.asked) == len(policy.latencies_ms) == 6
    policy.reset()
    assert policy.select_action({"observation.state": np.zeros(2)})[0] == 70


def test_latencies_are_those_of_the_calls_that_predicted(monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    class Slow(Recorder):
        def predict(self, batch: dict, generator: torch.Generator) -> torch.Tensor:
            nonlocal now
            now += 0.02 * (1 + len(self.asked))
            return super().predict(batch, generator)

    policy = Policy(Slow(2), unchanged(), SHAPES, seed=0)
    for _ in range(6):
        policy.select_action({"observation.state": np.zeros(2)})
    assert [*policy.latencies_ms] == pytest.approx([20, 40, 60])


def test_history_is_oldest_first_and_padded_with_the_first_observation() -> None:
    trainer = Recorder(1)
    policy = Policy(trainer, unchanged(), SHAPES, seed=0)
    for step in range(4):
        policy.select_action({"observation.state": np.full(2, step), "observation.gripper": np.array([step])})
    windows = [batch["observation.state"][0, :, 0].tolist() for batch in trainer.asked]
    assert windows == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert [batch["observation.state_is_pad"][0].tolist() for batch in trainer.asked[:3]] == [
        *([True, True, False], [True, False, False], [False, False, False])
    ]
    assert [batch["observation.gripper"].tolist() for batch in trainer.asked] == [[[0.0]], [[1.0]], [[2.0]], [[3.0]]]

    policy.reset()
    policy.select_action({"observation.state": np.full(2, 7)})
    assert trainer.asked[-1]["observation.state"][0, :, 0].tolist() == [7, 7, 7]


def test_history_goes_on_while_a_chunk_is_executed() -> None:
    trainer = Recorder(2)
    policy = Policy(trainer, unchanged(), SHAPES, seed=0)
    for step in range(3):
        policy.select_action({"observation.state": np.full(2, step)})
    assert trainer.asked[-1]["observation.state"][0, :, 0].tolist() == [0, 1, 2]


def camera(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_an_image_is_uint8_with_channels_last_as_a_camera_gives_it_and_reaches_the_trainer_in_0_1() -> None:
    trainer = Recorder(1)
    image = camera(5, 7, 3)
    Policy(trainer, unchanged(), SHAPES, seed=0).select_action({"observation.images.top": image})
    given = trainer.asked[0]["observation.images.top"]
    assert (given.dtype, list(given.shape)) == (torch.float32, [1, 3, 5, 7])
    assert np.array_equal(given[0].numpy(), image.transpose(2, 0, 1).astype(np.float32) / np.float32(255))


def test_images_have_a_history_too() -> None:
    trainer, images = Recorder(1), [camera(2, 4, 1, seed) for seed in range(3)]
    policy = Policy(trainer, unchanged(), SHAPES, seed=0)
    for image in images:
        policy.select_action({"observation.images.wrist": image})
    for step, (older, newer) in enumerate([(0, 0), (0, 1), (1, 2)]):
        window = trainer.asked[step]["observation.images.wrist"]  # [1, 2, 1, 2, 4]
        expected = np.stack([images[older], images[newer]]).transpose(0, 3, 1, 2) / np.float32(255)
        assert np.array_equal(window[0].numpy(), expected)
        assert trainer.asked[step]["observation.images.wrist_is_pad"][0].tolist() == [step == 0, False]


def test_texts_reach_the_trainer_as_a_batch_of_one() -> None:
    trainer = Recorder(1)
    policy = Policy(trainer, unchanged(), SHAPES, seed=0)
    policy.select_action({"observation.state": np.zeros(2), "task": "open the drawer"})
    assert trainer.asked[0]["task"] == ["open the drawer"]


@pytest.mark.parametrize("image", [camera(5, 6, 3), camera(7, 5, 3), camera(5, 7, 3) / 255, camera(5, 7, 3).tolist()])
def test_an_image_of_another_kind_is_refused(image: object) -> None:
    told = r"'observation.images.top' is .*; the policy was trained with images of uint8 \[5, 7, 3\]"
    with pytest.raises(ValueError, match=told):
        Policy(Recorder(1), unchanged(), SHAPES, seed=0).select_action({"observation.images.top": image})


def test_an_observation_of_another_shape_is_refused(run_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"'observation.state' has shape \[2\]; the policy was trained with \[3\]"):
        load_policy(run_dir).select_action({"observation.state": np.zeros(2)})


@pytest.mark.parametrize("value", [np.full(3, np.nan), np.array([0, np.inf, 0]), None, "here", ["a", "b", "c"]])
def test_an_observation_that_is_no_number_is_refused(run_dir: Path, value: object) -> None:
    with pytest.raises(ValueError, match=r"'observation.state' (holds a number that is not finite|is not an array)"):
        load_policy(run_dir).select_action({"observation.state": value})


def test_the_units_are_the_checkpoints_own(run_dir: Path) -> None:
    expected = load_policy(run_dir).select_action(OBSERVATION)
    (run_dir / "dataset_stats.json").write_text("{}")
    (run_dir / "dataset_stats.pkl").unlink()
    assert np.array_equal(load_policy(run_dir).select_action(OBSERVATION), expected)


@pytest.mark.parametrize("override", ["episodes", "episodes=["])
def test_an_override_that_cannot_be_read_is_a_message(run_dir: Path, override: str, capsys) -> None:
    assert evaluate([str(run_dir), "--set", override]) == 2
    assert "--set" in capsys.readouterr().err


def test_a_runs_config_that_is_none_is_a_message(run_dir: Path, capsys: pytest.CaptureFixture) -> None:
    (run_dir / "config.yaml").write_text("model: {}\n")
    assert evaluate([str(run_dir)]) == 2
    assert "'train' is missing" in capsys.readouterr().err


def test_a_missing_key_is_named(run_dir: Path) -> None:
    with pytest.raises(KeyError, match=r"reads 'observation.state'"):
        load_policy(run_dir).select_action({"state": np.zeros(3)})


@pytest.mark.parametrize("name", ["", "nowhere", "step_7"])
def test_what_is_no_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "step_7").mkdir()
    with pytest.raises(CheckpointError, match=r"neither a run folder|no valid checkpoint"):
        load_policy(tmp_path / name)


def test_a_run_without_a_valid_checkpoint_is_refused(run_dir: Path) -> None:
    for path in run_dir.glob("*/manifest.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"no valid checkpoint"):
        load_policy(run_dir)
    with pytest.raises(CheckpointError, match=r"it has no manifest.json"):
        load_policy(run_dir / "step_12")


def test_normalization_of_the_run_is_the_policys(config: Path) -> None:
    overrides = {"data.normalization": {"action": "min_max", "observation.state": {"mode": "identity"}}}
    run_dir = train(config, overrides).run_dir
    policy = load_policy(run_dir)
    stats = load_stats(run_dir / "dataset_stats.json")
    normalizer = Normalizer(stats, normalization_modes(overrides["data.normalization"], stats))
    ours, theirs = policy.prepare.normalizer.state_dict(), normalizer.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_evaluate_prints_the_summary_first_and_writes_a_report(run_dir: Path, capsys: pytest.CaptureFixture) -> None:
    capsys.readouterr()
    assert evaluate([str(run_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "error over 2 episodes"
    shown = "\n".join(lines[1:])
    assert all(str(run_dir / name) in shown for name in ("step_12", "loss.png", "toy.txt"))
    report = json.loads((run_dir / "evaluations.jsonl").read_text())
    policy, errors = load_policy(run_dir), []
    dataset = ToyDataset([0, 1])
    for state, action in zip(dataset.state, dataset.action, strict=True):
        policy.reset()
        errors.append(np.abs(policy.select_action({"observation.state": state}) - action).max())
    assert report["metrics"] == {"error": pytest.approx(np.mean(errors))}
    assert (report["checkpoint"], report["step"], report["files"]) == ("step_12", 12, ["toy.txt"])
    latency = report["latency"]
    assert latency["chunks"] == len(errors) and 0 < latency["median_ms"] <= latency["worst_ms"]
    assert f"latency     {latency['median_ms']:.1f} ms a predicted chunk (median of {len(errors)}" in shown


def test_a_run_whose_trainer_predicts_no_actions_makes_no_policy(config: Path) -> None:
    (config.parent / "mute.py").write_text(
        "from toy_plugin import ToyTrainer\nfrom trainer.registry import TRAINER_REGISTRY\n"
        "from trainer.templates import ComponentTrainer\n@TRAINER_REGISTRY.register('mute_trainer')\n"
        "class Mute(ToyTrainer):\n    predict = ComponentTrainer.predict\n"
    )
    overrides = {"plugins": ["toy_plugin", "mute"], "train.trainer.type": "mute_trainer", "train.evaluation": None}
    with pytest.raises(ConfigError, match="trainer 'mute_trainer' has no `predict`"):
        load_policy(train(config, overrides).run_dir)


@pytest.mark.parametrize("arguments", [["--episodes", "5"], ["--set", "episodes=5"]])
def test_evaluation_params_can_be_overridden(
    run_dir: Path, arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert evaluate([str(run_dir), *arguments]) == 0
    assert "error over 5 episodes" in capsys.readouterr().out


def test_each_evaluation_is_kept_beside_those_before_it_with_what_it_was_of(run_dir: Path) -> None:
    evaluate([str(run_dir)])
    first = (run_dir / "evaluations.jsonl").read_text()
    evaluate([str(run_dir), "--episodes", "1"])
    text = (run_dir / "evaluations.jsonl").read_text()
    assert text.startswith(first)
    reports = [json.loads(line) for line in text.splitlines()]
    assert [report["evaluation"]["params"]["episodes"] for report in reports] == [2, 1]
    assert all((report["checkpoint"], report["step"]) == ("step_12", 12) for report in reports)


def test_an_evaluation_is_told_and_kept_whatever_stands_in_the_file_and_whatever_it_found(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    numbers = {"error": math.nan}
    monkeypatch.setattr(ToyEvaluation, "evaluate", lambda *given: EvaluationResult(numbers, "no error at all"))
    path = run_dir / "evaluations.jsonl"
    path.write_text('{"checkpoint": "step_1')  # a crash
    evaluate([str(run_dir)])
    _, whole = path.read_text().splitlines()
    assert json.loads(whole)["metrics"] == {"error": None}
    path.unlink()
    path.mkdir()
    capsys.readouterr()
    assert evaluate([str(run_dir)]) == 2
    told = capsys.readouterr()
    assert told.out.startswith("no error at all") and "cannot be read and written" in told.err


def test_a_run_is_judged_by_an_evaluation_that_its_config_does_not_name(
    run_dir: Path, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    class Other(ToyEvaluation):
        def __init__(self, factor: int, episodes: int = 1) -> None:
            super().__init__(factor * episodes)

    monkeypatch.setattr(EVALUATION_BUILDER_REGISTRY, "_entries", dict(EVALUATION_BUILDER_REGISTRY._entries))
    EVALUATION_BUILDER_REGISTRY.register("other_evaluation")(Other)
    without = train(config, {"train.evaluation": None, "train.save_dir": "runs/without"}).run_dir
    capsys.readouterr()
    assert evaluate([str(without), "--evaluation", "toy_evaluation"]) == 0
    assert capsys.readouterr().out.startswith("error over 3 episodes")  # its own default
    assert evaluate([str(run_dir), "--evaluation", "toy_evaluation"]) == 0
    assert capsys.readouterr().out.startswith("error over 2 episodes")  # the config's
    assert evaluate([str(run_dir), "--evaluation", "other_evaluation", "--set", "factor=4"]) == 0
    assert capsys.readouterr().out.startswith("error over 4 episodes")  # of the other's params, none is the config's
    assert evaluate([str(run_dir), "--evaluation", "other_evaluation"]) == 2
    assert "evaluation 'other_evaluation' needs the parameter 'factor'" in capsys.readouterr().err
    assert evaluate([str(run_dir), "--set", "episodes=0"]) == 2
    told = capsys.readouterr().err
    assert "episodes is 0" in told and "config.yaml" not in told  # which does not say so
    assert evaluate([str(run_dir), "--evaluation", "toy_evaluatoin"]) == 2
    assert "did you mean 'toy_evaluation'?" in capsys.readouterr().err


def test_a_wrong_evaluation_is_explained(run_dir: Path, config: Path, capsys: pytest.CaptureFixture) -> None:
    assert evaluate([str(run_dir), "--set", "episode=5"]) == 2
    assert "did you mean 'episodes'?" in capsys.readouterr().err
    without = train(config, {"train.evaluation": None, "train.save_dir": "runs/without"}).run_dir
    assert evaluate([str(without)]) == 2
    told = capsys.readouterr().err
    assert "names no evaluation" in told and "--evaluation TYPE" in told
    assert evaluate([str(config.parent)]) == 2
    assert "holds no valid checkpoint" in capsys.readouterr().err


def test_pretrained_weights_are_not_fetched_again(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    class Fetching(torch.nn.Linear):
        """As TimmBackbone does: weights are fetched unless it is built on the meta device."""

        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs)
            if torch.get_default_device().type != "meta":
                fetched.append(1)
                with torch.no_grad():
                    self.weight.fill_(0.5)

    monkeypatch.setattr(names.TYPES, "_entries", {**names.TYPES._entries})
    register("Fetching")(Fetching)
    model = config.with_name("encoder.yaml")
    model.write_text(model.read_text().replace("Linear(", "Fetching("))
    run_dir = train(config).run_dir
    before = len(fetched)
    policy = load_policy(run_dir)
    assert len(fetched) == before > 0
    saved = torch.load(run_dir / "latest/encoder.pt", weights_only=True)
    assert torch.equal(policy.trainer.models["encoder"].state_dict()["net.0.weight"], saved["net.0.weight"])


def test_a_policy_travels_to_another_process_and_acts_there_as_here(run_dir: Path) -> None:
    policy = load_policy(run_dir)
    copy = pickle.loads(pickle.dumps(policy))
    for one in (policy, copy):
        one.reset(7)
    assert np.array_equal(copy.select_action(OBSERVATION), policy.select_action(OBSERVATION))
    assert copy.trainer.optimizers == {}
