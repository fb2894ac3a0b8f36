"""A train config that is wrong is explained, all at once and where it is wrong; and nothing is written."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_constructor import ConfigError
from trainer import load_policy, train
from trainer.config import load_run_config
from trainer.config.schemas import ExperimentConfig

# Text in the config, what to write instead, message, nearest name or hint
WRONG = [
    ("seed: 3", "sed: 3", "unknown key 'sed'", "did you mean 'seed'?"),
    ("max_steps: 12", "max_step: 12\n  epoch: 1", "unknown key 'train.max_step'", "did you mean 'max_steps'?"),
    ("batch_size: 16", "batchsize: 16", "unknown key 'data.batchsize'", "did you mean 'batch_size'?"),
    (
        "component_optims:",
        "component_optim: {}\n  component_optims:",
        "unknown key 'model.component_optim'",
        "did you mean",
    ),
    (
        "encoder: {type: toy_adam, params: {lr: 0.01}}",
        "encoder: {typ: toy_adam}",
        "unknown key",
        "did you mean 'type'?",
    ),
    ("batch_size: 16", "batch_size: large", 'data.batch_size: should be a valid integer, not "large"', ""),
    ("batch_size: 16", "batch_size: 0", "data.batch_size: should be greater than 0, not 0", ""),
    ("seed: 3", "seed: 99999999999999999999999999", "seed: should be less than", ""),
    ("params: {episodes: 2}", "params: {episodes: 0}", "episodes is 0", "a whole number from 1"),
    ("model:", "model:\n  component_params: {head: {horizon: 3}}", "the first batch does not go through", "[4, 2]"),
    ("batch_size: 16", "batch_size: true", "data.batch_size: should be a valid integer, not true", ""),
    ("log_every: 4", "precision: fp16", "train.precision: should be 'fp32' or 'bf16', not \"fp16\"", ""),
    ("  loss: {type: toy_loss}\n", "", "'train.loss' is missing", "add `loss:` here"),
    ("max_steps: 12", "clip_grad_norm: 1.0", "say when the run ends", ""),
    ("max_steps: 12", "max_steps: 12\n  validate_every: 2", "data.validation holds no episodes out", ""),
    ("batch_size: 16", "batch_size: 16\n  validation: {}", "give either `fraction`", ""),
    ("type: toy_trainer", "type: toy_trainr", "no trainer is called 'toy_trainr'", "did you mean 'toy_trainer'?"),
    ("type: toy_loss", "type: toy_los", "no loss is called 'toy_los'", "did you mean 'toy_loss'?"),
    ("type: toy_data", "type: toy_date", "no dataset factory is called 'toy_date'", "did you mean 'toy_data'?"),
    ("type: toy_adam", "type: toy_adm", "no optimizer is called 'toy_adm'", "did you mean 'toy_adam'?"),
    ("type: toy_evaluation", "type: toy_eval", "no evaluation is called 'toy_eval'", "did you mean 'toy_evaluation'?"),
    ("{lr: 0.01}", "{lrr: 0.01, lr: 0.01}", "optimizer 'toy_adam' has no parameter 'lrr'", "did you mean 'lr'?"),
    (", params: {lr: 0.01}", "", "optimizer 'toy_adam' needs the parameter 'lr'", "add `lr:`"),
    ("{type: toy_trainer}", "{type: toy_trainer, params: {models: 1}}", "has no parameter 'models'", "noise"),
    ("{type: toy_loss}", "{type: toy_loss, params: {scal: 2.0}}", "has no parameter 'scal'", "did you mean 'scale'?"),
    ("    head: {type: toy_sgd", "    hed: {type: toy_sgd", "there is no component 'hed'", "did you mean 'head'?"),
    ("model:", "model:\n  component_params: {encodr: {dim: 4}}", "no component 'encodr'", "did you mean 'encoder'?"),
    ("model:", "model:\n  component_build_args: {hea: {init: true}}", "no component 'hea'", "did you mean 'head'?"),
    (
        "    head: {type: toy_sgd, params: {lr: 0.05}}\n",
        "",
        "'head' has parameters to train and no optimizer",
        "freeze",
    ),
    ("models/head.yaml", "models/haed.yaml", "there is no file 'models/haed.yaml'", "looked for it in"),
    ("model:", "model:\n  component_params: {encoder: {dmi: 4}}", "dmi", "did you mean 'dim'?"),
    ("    encoder: encoder.yaml", "    training_state: encoder.yaml", "this name is taken by a checkpoint's files", ""),
    (
        "    encoder: encoder.yaml",
        "    keys: encoder.yaml",
        "this name is taken by a checkpoint's files or by torch",
        "",
    ),
    ("[toy_plugin]", "[toy_plugin, not_a_module]", "plugin 'not_a_module' cannot be imported", "importable"),
]


def broken(config: Path, right: str, wrong: str) -> int:
    """Writes the mistake into the file; its line, counted from 1."""
    text = config.read_text()
    assert text.count(right) == 1, right
    config.write_text(text.replace(right, wrong))
    return text[: text.index(right)].count("\n") + 1


@pytest.mark.parametrize(("right", "wrong", "message", "hint"), WRONG)
def test_a_mistake_is_explained_where_it_is(
    config: Path, project: Path, right: str, wrong: str, message: str, hint: str
) -> None:
    broken(config, right, wrong)
    with pytest.raises(ConfigError) as raised:
        train(config)
    text = str(raised.value)
    assert message in text
    assert hint in text
    assert any(problem.place is not None and problem.place.file.endswith(".yaml") for problem in raised.value.problems)
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("right", "wrong", "column"),
    [("batch_size: 16", "batchsize: 16", 3), ("batch_size: 16", "batch_size: large", 15)],
    ids=["a key", "a value"],
)
def test_the_place_is_that_of_the_key_or_the_value(config: Path, right: str, wrong: str, column: int) -> None:
    line = broken(config, right, wrong)
    with pytest.raises(ConfigError) as raised:
        load_run_config(config)
    (problem,) = [one for one in raised.value.problems if "batch" in one.message]
    assert (problem.place.line, problem.place.column) == (line, column)


def test_all_problems_are_told_at_once_in_file_order(config: Path) -> None:
    for right, wrong in [
        ("seed: 3", "sed: 3"),
        ("models/head.yaml", "nowhere.yaml"),
        ("type: toy_adam", "type: toy_adm"),
        ("batch_size: 16", "batch_size: large"),
        ("type: toy_trainer", "type: toy_trainr"),
        ("{type: toy_loss}", "{type: toy_loss, params: {scal: 2.0}}"),
    ]:
        broken(config, right, wrong)
    with pytest.raises(ConfigError) as raised:
        load_run_config(config)
    lines = [problem.place.line for problem in raised.value.problems]
    assert len(lines) == 6
    assert lines == sorted(lines)


def test_an_override_is_held_to_the_same_rules(config: Path) -> None:
    assert load_run_config(config, ["train.max_steps=7"]).experiment.train.max_steps == 7
    with pytest.raises(ConfigError, match=r"unknown key 'train.max_step'"):
        load_run_config(config, ["train.max_step=7"])


def test_a_mapping_is_held_to_the_same_rules_as_a_file(
    written: dict[str, Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "configs")
    assert load_run_config(written).experiment.data.batch_size == 16
    written["data"]["batchsize"] = written["data"].pop("batch_size")
    with pytest.raises(ConfigError, match=r"did you mean 'batch_size'"):
        load_run_config(written)


def test_a_plugin_that_fails_keeps_its_own_exception(
    config: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "broken_plugin.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(project))
    broken(config, "[toy_plugin]", "[toy_plugin, broken_plugin]")
    with pytest.raises(ConfigError, match=r"ZeroDivisionError") as raised:
        load_run_config(config)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_plugin_may_lie_beside_the_config(config: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (config.parent / "beside_plugin.py").write_text(
        "from trainer.registry import LOSS_BUILDER_REGISTRY\n"
        "from toy_plugin import ToyLoss\n"
        "@LOSS_BUILDER_REGISTRY.register('beside_loss')\n"
        "class BesideLoss(ToyLoss): ...\n"
    )
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if Path(entry) != config.parent])
    broken(config, "[toy_plugin]", "[toy_plugin, beside_plugin]")
    broken(config, "type: toy_loss", "type: beside_loss")
    result = train(config)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if Path(entry) != config.parent])
    monkeypatch.delitem(sys.modules, "beside_plugin")
    load_policy(result.run_dir)  # the run folder remembers where the plugin lay


def test_a_run_in_which_nothing_trains_is_refused(config: Path, project: Path) -> None:
    frozen = "model:\n  component_build_args: {encoder: {freeze: true}, head: {freeze: true}}"
    broken(config, "model:", frozen)
    with pytest.raises(ConfigError, match="nothing trains"):
        train(config)
    assert not (project / "runs").exists()


def test_a_batch_that_does_not_fit_is_told_at_the_models_line(config: Path) -> None:
    broken(config, "model:", "model:\n  component_params: {encoder: {state_dim: 7}}")
    with pytest.raises(ConfigError, match="does not go through") as raised:
        train(config)
    assert raised.value.problems[0].place.file.endswith("encoder.yaml")
    assert "of 'encoder', calling" in raised.value.problems[0].hint


@pytest.mark.parametrize("key", ["accumulate: 2", "clip_grad_norm: 2.0"])
def test_what_a_plain_trainer_cannot_read_is_refused(config: Path, key: str) -> None:
    broken(config, "type: toy_trainer", "type: toy_plain_trainer")
    broken(config, "max_steps: 12", f"max_steps: 12\n  {key}")
    with pytest.raises(ConfigError, match=r"does its own step"):
        load_run_config(config)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("batch_size: 16", "batch_size: 500", "80 frames"),
        ("batch_size: 16", "batch_size: 16\n  normalization: {actoin: identity}", "did you mean 'action'"),
        ("batch_size: 16", "batch_size: 16\n  validation: {fraction: 0.2}", "returned no validation_dataset"),
        ("max_steps: 12", "max_minutes: 1", "needs total_steps"),
    ],
    ids=["too few frames", "normalization", "a factory that holds nothing out", "a schedule without an end"],
)
def test_what_only_the_data_can_tell_is_told_before_anything_is_written(
    config: Path, project: Path, right: str, wrong: str, message: str
) -> None:
    broken(config, right, wrong)
    with pytest.raises(ConfigError, match=message) as raised:
        train(config)
    assert all(problem.place is not None for problem in raised.value.problems)
    assert not (project / "runs").exists()


def test_defaults(config: Path) -> None:
    experiment = load_run_config(config).experiment
    assert experiment.train.clip_grad_norm == 1.0
    assert experiment.train.accumulate == 1
    assert experiment.run_seed == experiment.seed == 3
    assert experiment.model.build_args("encoder").model_dump() == {"init": False, "freeze": False}


def test_an_empty_file_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("{}\n")
    with pytest.raises(ConfigError) as raised:
        load_run_config(path)
    for section in ("model", "data", "train"):
        assert f"'{section}' is missing" in str(raised.value)


def test_no_key_of_the_schema_is_without_a_test() -> None:
    """The table of effects: each declared key is named in a test of this folder."""
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("*.py"))
    sections: list[Any] = [ExperimentConfig]
    for section in sections:
        for name, key in section.model_fields.items():
            assert name in tests, name
            inner = [key.annotation, *getattr(key.annotation, "__args__", ())]
            sections += [one for one in inner if isinstance(one, type) and hasattr(one, "model_fields")]


def test_relative_paths_begin_at_the_config_then_at_the_project(config: Path, project: Path) -> None:
    run_config = load_run_config(config)
    assert run_config.folders.find("encoder.yaml") == project / "configs/encoder.yaml"
    assert run_config.folders.find("models/head.yaml") == project / "models/head.yaml"
    assert run_config.folders.find("encoder.yml") is None
    assert run_config.save_dir == project / "runs/toy"


def test_a_config_is_written_back_as_it_was_used(config: Path, project: Path) -> None:
    train(config, {"train.max_steps": 1})
    saved = yaml.safe_load((project / "runs/toy/config.yaml").read_text())
    assert saved["train"]["max_steps"] == 1
    assert saved["data"]["batch_size"] == 16


def test_a_config_starts_from_others_and_computes_its_values(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_STEPS", "5")
    config.with_name("mine.yaml").write_text(
        "defaults: [{base: config.yaml}]\n"
        "seed: ${train.log_every + 1}\n"
        "data: {datamodule: {params: {episodes: '${data.batch_size}'}}}\n"
        "train:\n"
        "  max_steps: ${env:int:TOY_STEPS}\n"
        "  save_dir: runs/${train.trainer.type}-${seed}\n"
        "  clip_grad_norm: null\n"
    )
    run = load_run_config(config.with_name("mine.yaml"), ["data.batch_size=4"])
    experiment = run.experiment
    assert (experiment.seed, experiment.data.batch_size, experiment.train.max_steps) == (5, 4, 5)
    assert experiment.data.datamodule.params == {"episodes": 4}
    assert experiment.train.save_dir == "runs/toy_trainer-5"
    assert experiment.train.clip_grad_norm is None  # null is a value here, and takes nothing away
    assert experiment.model.component_optims["head"].params == {"lr": 0.05}


def test_what_a_base_gets_wrong_is_told_in_the_base(config: Path) -> None:
    line = broken(config, "batch_size: 16", "batchsize: 16")
    config.with_name("mine.yaml").write_text("defaults: [config.yaml]\ndata: {num_workers: 0}\n")
    with pytest.raises(ConfigError) as raised:
        load_run_config(config.with_name("mine.yaml"))
    (problem,) = raised.value.problems
    assert (Path(problem.place.file).name, problem.place.line) == ("config.yaml", line)


def test_a_mapping_starts_from_files_of_the_working_directory(
    config: Path, written: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    run = load_run_config({"defaults": [Path("config.yaml")], "seed": 8})
    assert run.data == {**written, "seed": 8}
