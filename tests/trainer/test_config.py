"""A train config that is wrong is explained, all at once and where it is wrong; and nothing is written."""

import sys
from collections.abc import Callable, Sequence  # noqa: F401 - in the annotations of a table
from pathlib import Path
from typing import Any, Literal  # noqa: F401

import pytest
import yaml

from model_constructor import ConfigError
from trainer import load_policy, train
from trainer.build import build_run
from trainer.config import load_run_config, written_overrides
from trainer.distributed import World

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
    ("batch_size: 16", "batch_size: large", 'data.batch_size should be a whole number, not the text "large"', ""),
    ("batch_size: 16", "batch_size: 0", "data.batch_size should be above 0, not 0", ""),
    ("seed: 3", "seed: 99999999999999999999999999", "seed should be below 9223372036854775808, not", ""),
    ("params: {episodes: 2}", "params: {episodes: 0}", "episodes is 0", "a whole number from 1"),
    ("model:", "model:\n  component_params: {head: {horizon: 3}}", "the first batch does not go through", "[4, 2]"),
    ("batch_size: 16", "batch_size: true", "data.batch_size should be a whole number, not true", ""),
    ("log_every: 4", "precision: fp16", "train.precision should be 'fp32' or 'bf16', not \"fp16\"", ""),
    ("  loss: {type: toy_loss}\n", "", "'train.loss' is missing", "add `loss:` here"),
    ("max_steps: 12", "clip_grad_norm: 1.0", "say when the run ends", ""),
    (
        "max_steps: 12",
        "max_steps: 12\n  validate_every: 2",
        "validate_every would have no effect: data.validation holds no",
        "add data.validation",
    ),
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


# A value of the wrong kind: what the config says instead of `max_steps: 12`, message, hint
WRONG_KIND = [
    ("max_steps: 1e4", "train.max_steps should be a whole number, not 10000.0", "write 10000"),
    ("max_steps: 12.5", "train.max_steps should be a whole number, not 12.5", ""),
    ("max_steps: '12'", 'should be a whole number, not the text "12"', "a number is written without quotes: 12"),
    ("max_steps: -12", "train.max_steps should be above 0, not -12", ""),
    ("max_minutes: .inf", "train.max_minutes should be a finite number, not Infinity", ""),
    ("max_minutes: 1h", 'train.max_minutes should be a number, not the text "1h"', ""),
    ("deterministic: 1", "train.deterministic should be true or false, not 1", "write true"),
    ("deterministic: off", 'train.deterministic should be true or false, not the text "off"', "write false"),
    ("loggers: wandb", 'train.loggers should be a list, not the text "wandb"', "write [wandb]"),
    ("loggers: [wandbb]", "train.loggers[0] should be 'wandb' or 'tensorboard', not \"wandbb\"", ""),
    ("ema: true", "train.ema should be a mapping, not true", "its keys are decay, warmup, components"),
    ("ema: {decay: 1}", "train.ema.decay should be below 1, not 1", ""),
    ("ema: {components: []}", "train.ema.components has 0 entries; it should have at least 1", ""),
    ("log_every:", "train.log_every should be a whole number, and nothing is written (null)", ""),
    ("evaluation: toy", 'train.evaluation should be a mapping, not the text "toy"', "write {type: toy}"),
]
WRONG_BUILD_ARGS = [
    ("freeze: all", 'head.freeze should be true or false, or a list, not the text "all"', ""),
    ("weights: 3", "head.weights should be a text, or a mapping, not 3", "its keys are path, strict"),
    ("weights: {pth: x}", "unknown key 'model.component_build_args.head.weights.pth'", "did you mean 'path'?"),
    ("lora: {rank: 4}", "'model.component_build_args.head.lora.targets' is missing", "add `targets:` here"),
    ("dtype: fp16", "head.dtype should be 'float32' or 'bfloat16', not \"fp16\"", ""),
]
# Params of registered components, held to the annotations of their constructors
WRONG_PARAMS = [
    ("{lr: 0.01}", "{lr: '1e-4'}", 'encoder.params.lr should be a number, not the text "1e-4"', "without quotes: 1e-4"),
    ("{lr: 0.01}", "{lr: true}", "encoder.params.lr should be a number, not true", ""),
    (
        "toy_sgd, params: {lr: 0.05}",
        "adamw_warmup_cosine_decay, params: {peak_lr: 1, betas: 0.9}",
        "head.params.betas should be a list, not 0.9",
        "write [0.9]",
    ),
    ("{lr: 0.01}", "{lr: 1, total_steps: 2.5}", "encoder.params.total_steps should be a whole number, not 2.5", ""),
    (
        "{type: toy_loss}",
        "{type: toy_loss, params: {scale: [1]}}",
        "loss.params.scale should be a number, not the list",
        "",
    ),
    ("{type: toy_loss}", "{type: toy_loss, params: 3}", "train.loss.params should be a mapping, not 3", ""),
    ("{lr: 0.05}}", "{lr: 0.05}, groups: {out: {lr: x}}}", 'groups.out.lr should be a number, not the text "x"', ""),
    ("{lr: 0.05}}", "{lr: 0.05}, groups: {out: {lrr: 1}}}", "optimizer 'toy_sgd' has no parameter 'lrr'", "'lr'?"),
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


def told(config: Path) -> str:
    """What a config is refused with, pydantic's own words never among it."""
    with pytest.raises(ConfigError) as raised:
        load_run_config(config)
    text = str(raised.value)
    assert not any(word in text for word in ("Input", "valid ", "instance of", "dictionary")), text
    assert all(problem.place is not None for problem in raised.value.problems)
    return text


@pytest.mark.parametrize(("wrong", "message", "hint"), WRONG_KIND, ids=[wrong for wrong, _, _ in WRONG_KIND])
def test_a_value_of_the_wrong_kind_is_told_in_plain_words(config: Path, wrong: str, message: str, hint: str) -> None:
    broken(config, "  evaluation: {type: toy_evaluation, params: {episodes: 2}}\n", "")
    broken(config, "  max_steps: 12\n  log_every: 4\n", f"  epoch: 1\n  {wrong}\n")
    text = told(config)
    assert message in text
    assert hint in text


@pytest.mark.parametrize(("wrong", "message", "hint"), WRONG_BUILD_ARGS, ids=[one[0] for one in WRONG_BUILD_ARGS])
def test_of_a_key_with_two_forms_the_one_that_was_meant_is_told(
    config: Path, wrong: str, message: str, hint: str
) -> None:
    broken(config, "model:", f"model:\n  component_build_args: {{head: {{{wrong}}}}}")
    text = told(config)
    assert message in text
    assert hint in text
    assert "write [all]" not in text


@pytest.mark.parametrize(("right", "wrong", "message", "hint"), WRONG_PARAMS, ids=[one[1] for one in WRONG_PARAMS])
def test_a_param_is_held_to_its_annotation_before_anything_is_built(
    config: Path, right: str, wrong: str, message: str, hint: str
) -> None:
    broken(config, right, wrong)
    text = told(config)
    assert message in text
    assert hint in text


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        ("float", [1, 0.5], ["1", True, None, [1.0]]),
        ("int", [3], [3.5, "3", False]),
        ("bool", [True], [1, "true"]),
        ("str", ["x"], [1, None]),
        ("float | None", [None, 2.0], ["none"]),
        ("Literal['euler', 'midpoint']", ["euler"], ["rk5", 1]),
        ("tuple[float, float]", [[0.9, 0.95]], [[0.9], 0.9, ["a", "b"]]),
        ("Sequence[int]", [[1, 2], []], [[1.5], 1]),
        ("dict[str, float]", [{"a": 1.0}], [{"a": "b"}, []]),
        ("Unknown", ["anything", 3], []),
        ("Callable", ["anything"], []),
    ],
)
def test_what_an_annotation_says_decides(
    config: Path, monkeypatch: pytest.MonkeyPatch, annotation: str, right: list[Any], wrong: list[Any]
) -> None:
    from toy_plugin import ToyLoss

    from trainer.registry import LOSS_BUILDER_REGISTRY

    class Annotated(ToyLoss):
        def __init__(self, value) -> None:
            super().__init__()

    Annotated.__init__.__annotations__["value"] = annotation
    monkeypatch.setattr(LOSS_BUILDER_REGISTRY, "get", lambda name: Annotated)
    for value in right:
        load_run_config(config, written_overrides({"train.loss.params.value": value}))
    for value in wrong:
        with pytest.raises(ConfigError, match=r"train\.loss\.params\.value"):
            load_run_config(config, written_overrides({"train.loss.params.value": value}))


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


def test_a_none_is_told_instead_of_being_a_text(config: Path, project: Path) -> None:
    broken(config, "batch_size: 16", "batch_size: None")
    with pytest.raises(ConfigError) as raised:
        load_run_config(config, ["train.save_dir=None", "train.project_name='None'"])
    assert [problem.message for problem in raised.value.problems] == 2 * ["YAML reads None as text"]
    assert {problem.hint for problem in raised.value.problems} == {"write null, or 'None' for the text"}
    run = load_run_config(config, ["data.batch_size=16", "train.save_dir=null", "train.project_name='None'"])
    assert run.name == "None"
    assert run.save_dir == project / "runs" / config.stem


def test_a_mapping_is_held_to_the_same_rules_as_a_file(
    written: dict[str, Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "configs")
    assert load_run_config(written).experiment.data.batch_size == 16
    written["data"]["batchsize"] = written["data"].pop("batch_size")
    with pytest.raises(ConfigError, match=r"did you mean 'batch_size'"):
        load_run_config(written)


def test_a_mapping_trains_what_its_file_trains(
    config: Path, written: dict[str, Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "configs")
    from_file = train(config, {"train.save_dir": "runs/file"})
    from_mapping = train(written, {"train.save_dir": "runs/mapping"})
    assert from_mapping.run_dir == project / "runs/mapping"
    assert from_mapping.metrics["loss"] == from_file.metrics["loss"]


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


@pytest.mark.parametrize(
    ("section", "key"),
    [
        *(("train", key) for key in ("accumulate: 2", "clip_grad_norm: 1.0", "ema: {}", "on_nonfinite: stop")),
        *(("train", key) for key in ("keep_best: true", "validate_every: 5", "evaluate_every: 5")),
        ("data", "validation: {episodes: [0]}"),
    ],
)
def test_what_a_plain_trainer_cannot_read_is_refused(config: Path, section: str, key: str) -> None:
    plain(config)
    load_run_config(config)
    line = broken(config, f"{section}:\n", f"{section}:\n  {key}\n") + 1
    with pytest.raises(ConfigError, match=f"does its own step, so {section}.{key.partition(':')[0]} would") as raised:
        load_run_config(config)
    assert raised.value.problems[0].place.line == line


def test_what_asks_for_nothing_takes_back_what_a_base_asks_of_a_plain_trainer(config: Path) -> None:
    broken(config, "max_steps: 12", "max_steps: 12\n  accumulate: 4\n  ema: {}\n  validate_every: 2\n  keep_best: true")
    broken(config, "batch_size: 16", "batch_size: 16\n  validation: {episodes: [0]}")
    load_run_config(config)
    config.with_name("mine.yaml").write_text(
        "defaults: [config.yaml]\ndata: {validation: null}\ntrain: {trainer: {type: toy_plain_trainer}, accumulate: 1, "
        "ema: null, validate_every: null, keep_best: false, evaluation: null}\n"
    )
    load_run_config(config.with_name("mine.yaml"))


def test_a_component_that_is_taken_away_leaves_no_entry_behind(config: Path) -> None:
    child = config.with_name("mine.yaml")
    child.write_text("defaults: [config.yaml]\nmodel:\n  component_config_paths: {encoder: null}\n")
    with pytest.raises(
        ConfigError, match=r"no component 'encoder'(?s:.*)mine\.yaml:3.*takes the component away"
    ) as raised:
        load_run_config(child)
    assert "write `encoder: null` here too" in str(raised.value)
    child.write_text(child.read_text() + "  component_optims: {encoder: null}\n")
    assert "encoder" not in load_run_config(child).experiment.model.component_optims


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("validate_every: 2", "train.validate_every would have no effect: data.validation holds no episodes out"),
        ("keep_best: true", "train.keep_best would have no effect: data.validation holds no episodes out"),
        ("evaluate_every: 2", "train.evaluate_every would have no effect: train.evaluation names nothing"),
        ("allow_missing: [head.pt]", "train.allow_missing would have no effect: it speaks of train.load_dir"),
        ("keep_every: 2\n  keep_last: null", "train.keep_every would have no effect: with keep_last: null"),
        ("ema: {components: [hed]}", "train.ema: there is no component 'hed'"),
    ],
)
def test_a_key_that_another_makes_meaningless_is_refused_at_its_place(config: Path, key: str, message: str) -> None:
    broken(config, "  evaluation: {type: toy_evaluation, params: {episodes: 2}}\n", "")
    line = broken(config, "  log_every: 4\n", f"  {key}\n")
    with pytest.raises(ConfigError) as raised:
        load_run_config(config)
    (problem,) = raised.value.problems
    assert problem.message.startswith(message)
    assert problem.place.line == line
    assert problem.hint


def test_a_trainer_without_predict_cannot_be_evaluated(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toy_plugin import ToyTrainer

    monkeypatch.delattr(ToyTrainer, "predict")
    with pytest.raises(ConfigError, match=r"has no `predict`, so train\.evaluation has no policy"):
        load_run_config(config)


def test_keys_that_depend_on_the_machine_are_never_an_error(config: Path) -> None:
    overrides = ["data.persistent_workers=false", "data.prefetch_factor=3", "data.pin_memory=true"]
    load_run_config(config, [*overrides, "data.num_workers=0", "model.find_unused_parameters=true"])


def plain(config: Path) -> None:
    broken(config, "type: toy_trainer", "type: toy_plain_trainer")
    broken(config, "  evaluation: {type: toy_evaluation, params: {episodes: 2}}\n", "")


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


NOWHERE = "{type: lerobot_dataset_factory, params: {root: nowhere, action_horizon: 4}}"


def test_parts_that_do_not_need_each_other_tell_their_problems_together(config: Path, project: Path) -> None:
    lines = [
        broken(config, "toy_sgd, params: {lr: 0.05}", "adamw_warmup_cosine_decay, params: {peak_lr: -1.0}"),
        broken(config, "{type: toy_data, params: {episodes: 10}}", NOWHERE),
        broken(config, "{type: toy_loss}", "{type: act_loss, params: {kl_weight: -1.0}}"),
        broken(config, "params: {episodes: 2}", "params: {episodes: 0}"),
    ]
    with pytest.raises(ConfigError) as raised:
        train(config)
    assert [problem.place.line for problem in raised.value.problems] == lines
    messages = ("peak_lr is -1.0", "nowhere", "kl_weight is -1.0", "episodes is 0")
    assert all(one in problem.message for one, problem in zip(messages, raised.value.problems, strict=True))
    assert not (project / "runs").exists()


def test_what_a_constructor_refuses_is_told_at_the_param_that_it_speaks_of(config: Path) -> None:
    line = broken(config, "params: {episodes: 2}", "params: {episodes: 0}")
    with pytest.raises(ConfigError) as raised:
        train(config)
    place = raised.value.problems[0].place
    assert (place.line, config.read_text().splitlines()[line - 1][place.column - 1 :][:2]) == (line, "0}")


def test_what_a_constructor_refuses_is_told_at_the_override_that_gave_it(config: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        train(config, {"train.evaluation.params.episodes": -7})
    place = raised.value.problems[0].place
    assert (place.file, place.text) == ("--set", "train.evaluation.params.episodes=-7")


def test_an_error_that_is_no_mistake_of_the_config_takes_the_others_along(config: Path) -> None:
    broken(config, "{type: toy_data, params: {episodes: 10}}", NOWHERE)
    broken(config, "toy_sgd, params: {lr: 0.05}", "toy_sgd, params: {lr: -1.0}")  # torch's own ValueError
    with pytest.raises(ValueError, match="Invalid learning rate") as raised:
        train(config)
    assert any(note.startswith("besides:") and "nowhere" in note for note in raised.value.__notes__)


def test_a_trainer_tells_its_problems_beside_those_of_the_data(config: Path) -> None:
    data = broken(config, "{type: toy_data, params: {episodes: 10}}", NOWHERE)
    trainer = broken(config, "{type: toy_trainer}", "{type: toy_trainer, params: {execute_steps: 0}}")
    with pytest.raises(ConfigError) as raised:
        train(config)
    assert [problem.place.line for problem in raised.value.problems] == [data, trainer]


def test_without_the_data_no_schedule_is_told_that_the_run_is_too_short_for_it(config: Path) -> None:
    warm_up = "adamw_warmup_cosine_decay, params: {peak_lr: 0.05, warmup_steps: 500}"
    broken(config, "toy_sgd, params: {lr: 0.05}", warm_up)
    broken(config, "max_steps: 12", "epoch: 1")
    data = broken(config, "{type: toy_data, params: {episodes: 10}}", NOWHERE)
    with pytest.raises(ConfigError) as raised:
        train(config)
    assert [problem.place.line for problem in raised.value.problems] == [data]


def test_defaults(config: Path) -> None:
    experiment = load_run_config(config).experiment
    assert experiment.train.clip_grad_norm == 1.0
    assert experiment.train.accumulate == 1
    assert experiment.run_seed == experiment.seed == 3
    assert not any(experiment.model.build_args("encoder").model_dump().values())


def test_an_empty_file_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("{}\n")
    with pytest.raises(ConfigError) as raised:
        load_run_config(path)
    for section in ("model", "data", "train"):
        assert f"'{section}' is missing" in str(raised.value)


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


@pytest.mark.parametrize("spelling", ["[base.yaml]", "[{base: ./base.yaml}]", "[{the_base: base.yaml}]"])
def test_a_chain_of_files_tells_all_that_is_wrong_each_in_its_own_file(config: Path, spelling: str) -> None:
    """config.yaml <- base.yaml <- mine.yaml <- --set"""
    broken(config, "batch_size: 16", "batch_size: sixteen")
    config.with_name("base.yaml").write_text("defaults: [config.yaml]\ntrain: {max_stepz: 3}\n")
    config.with_name("mine.yaml").write_text(f"defaults: {spelling}\ndata: {{num_workers: -1}}\n")
    with pytest.raises(ConfigError) as raised:
        load_run_config(config.with_name("mine.yaml"), ["train.log_every=0"])
    told = {(Path(one.place.file).name, one.place.line): one.message for one in raised.value.problems}
    assert told == {
        ("config.yaml", 12): 'data.batch_size should be a whole number, not the text "sixteen"',
        ("base.yaml", 2): "unknown key 'train.max_stepz'",
        ("mine.yaml", 2): "data.num_workers should be at least 0, not -1",
        ("--set", 1): "train.log_every should be above 0, not 0",
    }


SEEDS_OWN = """\
plugins:
  - "experiment_training.components.dataloader.lerobot_data"
  - "experiment_training.components.trainer.imitation_learning.vfp_single_expert.vfp_single_expert_trainer"
seed: 123
model:
  find_unused_parameters: false
  component_config_paths:
    head_backbone: "experiment_models/vfp_single_expert/exp1/head_backbone.yaml"
    action_decoder: "models/head.yaml"
  component_build_args:
    head_backbone: { init: false, freeze: false }
    action_decoder: { init: true, freeze: false }
  component_optims:
    action_decoder:
      type: "adamw_warmup_cosine_decay"
      params: { peak_lr: 1.0e-4, total_steps: 200000, warmup_steps: 2000 }
data:
  datamodule:
    type: "lerobot_dataset_factory"
    params: { repo_id: "...", action_horizon: 40 }
  batch_size: 60
  num_workers: 12
  pin_memory: true
  persistent_workers: true
  prefetch_factor: 2
train:
  trainer: { type: "vfp_single_expert_trainer" }
  loss: { type: "sinkhorn_knopp", params: { p: 1, lam_state: 0.2, blur: 0.004 } }
  project_name: "my_experiment"
  save_dir: "~/checkpoints"
  save_every: 3
  epoch: 1000
  seed: 0
"""


def test_a_config_in_the_older_form_is_asked_for_nothing_but_the_names_that_do_not_exist(config: Path) -> None:
    """Its plugins list neither its loss nor its optimizer, and its trainer is where it always was."""
    config.write_text(SEEDS_OWN)
    with pytest.raises(ConfigError) as raised:
        load_run_config(config)
    assert [problem.message.partition(":")[0] for problem in raised.value.problems] == ["component 'head_backbone'"]
    config.write_text(
        SEEDS_OWN.replace(SEEDS_OWN.splitlines()[2], "  - toy_plugin")
        .replace("vfp_single_expert_trainer", "toy_trainer")
        .replace("experiment_models/vfp_single_expert/exp1/head_backbone.yaml", "encoder.yaml")
        .replace("  component_optims:\n", "  component_optims:\n    head_backbone: {type: toy_sgd}\n")
    )
    run = load_run_config(config)
    assert run.save_dir == Path.home() / "checkpoints"
    assert (run.experiment.train.save_every, run.experiment.run_seed, run.name) == (3, 0, "my_experiment")


def test_a_logger_that_is_not_there_is_told_with_everything_else(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.config.logger_checks._missing", lambda name: [("is not installed", "pip install it")])
    line = broken(config, "log_every: 4", "loggers: [tensorboard]")
    broken(config, "batch_size: 16", "batchsize: 16")
    with pytest.raises(ConfigError, match="unknown key") as raised:
        load_run_config(config)
    problem = raised.value.problems[-1]
    assert (problem.message, problem.place.line) == (
        "train.loggers asks for tensorboard, which is not installed",
        line,
    )


@pytest.mark.parametrize(
    ("read", "unread"),
    [
        ("params['episodes']", "hz, nested"),
        ("params.get('hz', 1), params.pop('nested')", "episodes"),
        ("dict(params)", ""),
        ("params.copy()", ""),
        ("(lambda episodes, **others: others)(**params)", ""),
        ("[value for _, value in params.items()]", ""),
        ("[name for name in params]", "episodes, hz, nested"),
    ],
)
def test_params_that_a_factory_does_not_read_are_named_in_one_warning(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, read: str, unread: str
) -> None:
    import toy_plugin

    dataset = toy_plugin.ToyData().build({}, {})

    def build(self, opt_params: dict, params: dict) -> dict:
        eval(read, {"params": params})
        return dataset

    monkeypatch.setattr(toy_plugin.ToyData, "build", build)
    broken(config, "params: {episodes: 10}", "params: {episodes: 10, hz: 5, nested: {a: 1}}")
    build_run(load_run_config(config), World())
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(warnings) == bool(unread)
    assert not unread or f"did not read {unread} of its params ({config}:11" in warnings[0]


def test_a_tuple_of_another_length_is_told_by_its_length(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toy_plugin import ToyLoss

    from trainer.registry import LOSS_BUILDER_REGISTRY

    class Pair(ToyLoss):
        def __init__(self, betas: tuple[float, float]) -> None: ...

    monkeypatch.setattr(LOSS_BUILDER_REGISTRY, "get", lambda name: Pair)
    for given, message in (("[0.9]", "has 1 entries; it should have at least 2"), ("[1, 2, 3]", "at most 2")):
        with pytest.raises(ConfigError, match=f"train.loss.params.betas .*{message}"):
            load_run_config(config, [f"train.loss.params.betas={given}"])


def test_a_component_with_keywords_of_any_name_is_asked_only_for_what_it_needs(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toy_plugin import ToyLoss

    from trainer.registry import LOSS_BUILDER_REGISTRY

    class Open(ToyLoss):
        def __init__(self, needed: int, **others: float) -> None: ...

    monkeypatch.setattr(LOSS_BUILDER_REGISTRY, "get", lambda name: Open)
    load_run_config(config, ["train.loss.params={needed: 1, anything: x}"])
    with pytest.raises(ConfigError, match="loss 'toy_loss' needs the parameter 'needed'"):
        load_run_config(config, ["train.loss.params={anything: x}"])
    with pytest.raises(ConfigError, match=r"needed should be a whole number, not the text"):
        load_run_config(config, ["train.loss.params={needed: x}"])


def test_a_mapping_starts_from_files_of_the_working_directory(
    config: Path, written: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    run = load_run_config({"defaults": [Path("config.yaml")], "seed": 8})
    assert run.data == {**written, "seed": 8}


def test_null_takes_away_an_entry_of_a_mapping_from_names(config: Path) -> None:
    child = config.with_name("child.yaml")
    child.write_text(
        "defaults: [config.yaml]\nmodel:\n  component_config_paths: {head: null}\n  component_optims: {head: null}\n"
    )
    experiment = load_run_config(child).experiment
    assert experiment.model.component_config_paths.keys() == experiment.model.component_optims.keys() == {"encoder"}
    child.write_text("defaults: [config.yaml]\nmodel: {component_optims: {hed: null}}\n")
    with pytest.raises(ConfigError, match=r"nothing is written for 'hed', and null finds no such entry(?s:.*)'head'"):
        load_run_config(child)
