"""`train.load_dir`: a new run begins with the weights and optimizer states of another."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from model_constructor import ConfigError
from trainer.checkpoint import write_checkpoint
from trainer.config import RunConfig, load_run_config
from trainer.modeling import build_components
from trainer.modeling.optimizers import build_optimizers
from trainer.modeling.warm_start import warm_start, warm_start_folder

Built = tuple[RunConfig, nn.ModuleDict, dict[str, Optimizer]]


def built(config: Path, *overrides: str) -> Built:
    run_config = load_run_config(config, list(overrides))
    models = build_components(run_config)
    return run_config, models, build_optimizers(run_config, models, planned=20)


def trained(config: Path, steps: int = 3) -> dict[str, dict]:
    """What the files of a run hold after a few updates."""
    _, models, optimizers = built(config, "seed=8")
    for step in range(steps):
        for one in models.parameters():
            one.grad = torch.full_like(one, 0.1 * (step + 1))
        for optimizer in optimizers.values():
            optimizer.step()
    files = {name: one.state_dict() for name, one in models.items()}
    return files | {f"{name}_opt": one.state_dict() for name, one in optimizers.items()}


@pytest.fixture
def files(config: Path) -> dict[str, dict]:
    return trained(config)


@pytest.fixture
def folder(project: Path, files: dict[str, dict]) -> Path:
    """As the older system wrote it: files alone."""
    (project / "old").mkdir()
    for name, state in files.items():
        torch.save(state, project / f"old/{name}.pt")
    return project / "old"


def begin(run: Built) -> None:
    config, models, optimizers = run
    folder = warm_start_folder(config)
    assert folder is not None
    warm_start(config, folder, models, optimizers)


def assert_begun(run: Built, files: dict[str, dict]) -> None:
    _, models, optimizers = run
    for name, component in models.items():
        assert all(torch.equal(value, files[name][key]) for key, value in component.state_dict().items())
    for name, optimizer in optimizers.items():
        state, expected = optimizer.state_dict()["state"], files[f"{name}_opt"]["state"]
        assert state.keys() == expected.keys()
        for number in state:
            assert all(
                torch.equal(value, expected[number][key]) for key, value in state[number].items() if value is not None
            )


def test_weights_and_moments_are_the_other_runs_and_the_schedule_begins_anew(
    config: Path, folder: Path, files: dict[str, dict]
) -> None:
    run = built(config, "train.load_dir=old", "model.component_optims.encoder.params.lr=0.03")
    begin(run)
    assert_begun(run, files)
    assert files["encoder_opt"]["param_groups"][0]["updates"] == 3
    (group,) = run[2]["encoder"].param_groups
    assert (group["updates"], group["total_steps"], group["lr"]) == (0, 20, 0.03)


@pytest.mark.parametrize("given", ["runs/other", "runs/other/step_7", "runs/other/latest"])
def test_a_run_folder_means_its_newest_checkpoint(
    config: Path, project: Path, files: dict[str, dict], given: str
) -> None:
    folder = project / "runs/other"
    folder.mkdir(parents=True)
    texts = {"encoder.yaml": "", "head.yaml": ""}
    older = {name: {} for name in files}
    write_checkpoint(folder, "step_3", 3, {**older, "training_state": {}}, texts)
    write_checkpoint(folder, "step_7", 7, {**files, "training_state": {}}, texts)
    run = built(config, f"train.load_dir={given}")
    begin(run)
    assert_begun(run, files)


def test_a_checkpoint_that_is_not_as_it_was_written_is_refused(
    config: Path, project: Path, files: dict[str, dict]
) -> None:
    (project / "runs").mkdir()
    texts = {"encoder.yaml": "", "head.yaml": ""}
    written = write_checkpoint(project / "runs", "step_7", 7, {**files, "training_state": {}}, texts)
    torch.save(files["head"], written.path / "encoder.pt")
    with pytest.raises(ConfigError, match=r"encoder.pt is not the file that was written"):
        begin(built(config, "train.load_dir=runs/step_7"))


def test_the_averages_of_a_schedule_free_run_go_on(config: Path, project: Path) -> None:
    config.write_text(
        config.read_text().replace("type: toy_sgd, params: {lr: 0.05}", "type: schedule_free_radam, params: {lr: 0.05}")
    )
    files = trained(config)
    (project / "old").mkdir()
    for name, state in files.items():
        torch.save(state, project / f"old/{name}.pt")
    run = built(config, "train.load_dir=old", "model.component_optims.head.params.lr=0.01")
    begin(run)
    (group,) = run[2]["head"].param_groups
    assert (group["k"], group["lr"]) == (3, 0.01)


def test_without_load_dir_there_is_no_folder(config: Path) -> None:
    assert warm_start_folder(load_run_config(config)) is None


def test_all_files_that_are_missing_are_told_unless_allowed(config: Path, folder: Path, files: dict[str, dict]) -> None:
    (folder / "head.pt").unlink()
    (folder / "encoder_opt.pt").unlink()
    with pytest.raises(ConfigError, match=r"lacks head.pt, encoder_opt.pt") as raised:
        begin(built(config, "train.load_dir=old"))
    assert "train.allow_missing: [head.pt, encoder_opt.pt]" in raised.value.problems[0].hint
    run = built(config, "train.load_dir=old", "train.allow_missing=[head.pt, encoder_opt.pt]")
    before = run[1]["head"].out.weight.clone()
    begin(run)
    assert torch.equal(run[1]["head"].out.weight, before)
    assert torch.equal(run[1]["encoder"].net[0].bias, files["encoder"]["net.0.bias"])
    assert not run[2]["encoder"].state


@pytest.mark.parametrize(
    ("overrides", "message", "hint"),
    [
        (["train.load_dir=nowhere"], "there is no folder 'nowhere'", "looked for it in"),
        (
            ["train.load_dir=old", "train.allow_missing=[hed.pt]"],
            "no file of this run is called 'hed.pt'",
            "did you mean 'head.pt'?",
        ),
        (
            ["train.load_dir=old", "model.component_params.head={dim: 4}"],
            "other shapes: out.weight [8, 8] for [8, 4]",
            "",
        ),
        (
            ["train.load_dir=old", "model.component_optims.encoder.groups={net.0.bias: {lr: 0.5}}"],
            "of other parameter groups",
            "begin without it",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    config: Path, folder: Path, overrides: list[str], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        begin(built(config, *overrides))
    (problem,) = raised.value.problems
    assert message in problem.message
    assert hint in problem.hint
    assert problem.place is not None


def test_values_that_the_files_replace_are_refused_where_the_config_asks_for_them(config: Path, folder: Path) -> None:
    asked = ["train.load_dir=old", "model.component_build_args.head={init: true, weights: old/head.pt}"]
    with pytest.raises(ConfigError) as raised:
        begin(built(config, *asked))
    init, weights = raised.value.problems
    assert "component 'head': init would have no effect: train.load_dir has head.pt" in init.message
    assert "component 'head': weights would have no effect" in weights.message
    assert "init: true" in init.place.text and "weights: old/head.pt" in weights.place.text
    assert "`init: false`" in init.hint and "`weights: null`" in weights.hint
    begin(built(config, *asked, "model.component_build_args.head={init: false, weights: null}"))


def test_what_a_file_does_not_hold_is_told_alone(config: Path, folder: Path) -> None:
    args = "{weights: old/head.pt, lora: {rank: 2, targets: [out]}}"
    with pytest.raises(ConfigError) as raised:
        begin(built(config, "train.load_dir=old", f"model.component_build_args.head={args}"))
    (problem,) = raised.value.problems
    assert "lora_A" in problem.message


def test_a_component_that_the_folder_does_not_fill_begins_as_its_build_args_say(config: Path, folder: Path) -> None:
    (folder / "head.pt").rename(folder.parent / "pretrained.pt")
    (folder / "head_opt.pt").unlink()
    run = built(
        config,
        "train.load_dir=old",
        "train.allow_missing=[head.pt, head_opt.pt]",
        "model.component_build_args.head={weights: pretrained.pt}",
    )
    before = run[1]["head"].out.weight.clone()
    begin(run)
    assert torch.equal(run[1]["head"].out.weight, before)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["encoder.pt", "encoder_opt.pt"])
def test_a_hostile_pickle_is_refused_and_not_run(config: Path, folder: Path, name: str) -> None:
    torch.save({"state": Hostile(folder / "owned")}, folder / name)
    with pytest.raises(ConfigError, match=r"nothing of it was run"):
        begin(built(config, "train.load_dir=old"))
    assert not (folder / "owned").exists()
