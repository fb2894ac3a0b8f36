"""Configs that are wrong: each is refused before any device is touched, at its place, with what would have been right."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_project import CONFIG, Project


@dataclass(frozen=True)
class Mistake:
    """`wrong` stands for `right` in the config; `at` is where the message points: at that text, after the change."""

    name: str
    right: str
    wrong: str
    at: str
    told: str
    hint: str = ""
    is_late: bool = False  # told when the data set is open, since `total_steps` follows from its size


# fmt: off
MISTAKES = [
    # keys
    Mistake("a misspelt section", "train:\n", "trian:\n", "trian", "unknown key 'trian'", "did you mean 'train'?"),
    Mistake("a misspelt key of data", "batch_size", "batchsize", "batchsize", "unknown key 'data.batchsize'", "'batch_size'?"),
    Mistake("a misspelt key of train", "max_steps", "maxsteps", "maxsteps", "unknown key 'train.maxsteps'", "'max_steps'?"),
    Mistake("a misspelt key of model", "component_optims", "component_optim", "component_optim:", "unknown key 'model.component_optim'", "'component_optims'?"),
    Mistake("a misspelt key of EMA", "{decay: 0.9}", "{decai: 0.9}", "decai", "unknown key 'train.ema.decai'", "'decay'?"),
    Mistake("a misspelt key of validation", "episodes: [5]", "episode: [5]", "episode:", "unknown key 'data.validation.episode'", "'episodes'?"),
    Mistake("a key of another section", "batch_size: 8", "batch_size: 8\n  max_steps: 3", "max_steps: 3", "unknown key 'data.max_steps'"),
    Mistake("a key that is written twice", "seed: 3", "seed: 3\nseed: 4", "seed: 4", "'seed'"),
    Mistake("a key of an inner section that is written twice", "batch_size: 8", "batch_size: 8\n  batch_size: 9", "batch_size: 9", "'batch_size'"),
    Mistake("type of a component is missing", "{type: l2_loss}", "{}", "{}", "'train.loss.type' is missing", "add `type:` here"),
    Mistake("a section is missing", "  loss: {type: l2_loss}\n", "", "trainer: {type: follower}", "'train.loss' is missing", "add `loss:` here"),
    # YAML
    Mistake("a tab", "  batch_size: 8", "\tbatch_size: 8", "\t", "tab"),
    Mistake("an open bracket", "{type: drifts}", "{type: drifts", "", "config.yaml"),
    Mistake("an open quote", "save_dir: runs/run", "save_dir: 'runs/run", "", "config.yaml"),
    Mistake("wrong indentation", "  batch_size: 8", "   batch_size: 8", "", "config.yaml"),
    Mistake("no space behind a colon", "batch_size: 8", "batch_size:8", "", "config.yaml"),
    Mistake("the whole is a list", CONFIG, "- train\n- data\n", "", "config.yaml"),
    # kinds of values
    Mistake("a text for a whole number", "batch_size: 8", "batch_size: eight", "eight", "data.batch_size should be a whole number, not the text \"eight\""),
    Mistake("a quoted number", "batch_size: 8", "batch_size: '8'", "'8'", "data.batch_size should be a whole number", "without quotes: 8"),
    Mistake("a fraction for a whole number", "max_steps: 6", "max_steps: 6.5", "6.5", "train.max_steps should be a whole number, not 6.5"),
    Mistake("zero", "batch_size: 8", "batch_size: 0", "0\n", "data.batch_size should be above 0, not 0"),
    Mistake("a negative number", "keep_last: 2", "keep_last: -1", "-1", "train.keep_last should be above 0, not -1"),
    Mistake("a number out of its range", "decay: 0.9", "decay: 1.5", "1.5", "train.ema.decay should be below 1, not 1.5"),
    Mistake("not a number", "decay: 0.9", "decay: .nan", ".nan", "train.ema.decay should be"),
    Mistake("infinity", "max_steps: 6", "max_steps: 6\n  clip_grad_norm: .inf", ".inf", "train.clip_grad_norm should be a finite number"),
    Mistake("null where a value belongs", "log_every: 1", "log_every:", "", "train.log_every should be a whole number, and nothing is written"),
    Mistake("a number for a switch", "ema: {decay: 0.9}", "deterministic: 1", "1\n", "train.deterministic should be true or false, not 1", "write true"),
    Mistake("a text for a switch", "ema: {decay: 0.9}", "deterministic: 'yes'", "'yes'", "train.deterministic should be true or false", "write true"),
    Mistake("a text for a list", "plugins: [fault_plugin]", "plugins: fault_plugin", "fault_plugin", "plugins should be a list", "write [fault_plugin]"),
    Mistake("a text for a mapping", "loss: {type: l2_loss}", "loss: l2_loss", "l2_loss", "train.loss should be a mapping", "write {type: l2_loss}"),
    Mistake("a list for a mapping", "ema: {decay: 0.9}", "ema: [0.9]", "[0.9]", "train.ema should be a mapping"),
    Mistake("an unknown choice", "max_steps: 6", "max_steps: 6\n  precision: fp61", "fp61", "train.precision should be 'fp32' or 'bf16'"),
    Mistake("another unknown choice", "max_steps: 6", "max_steps: 6\n  on_nonfinite: skipp", "skipp", "train.on_nonfinite should be 'stop' or 'skip'"),
    Mistake("an unknown logger", "max_steps: 6", "max_steps: 6\n  loggers: [tensorbord]", "tensorbord", "train.loggers[0] should be 'wandb' or 'tensorboard'"),
    Mistake("no end", "  max_steps: 6\n", "", "trainer: {type: follower}", "say when the run ends"),
    Mistake("both forms of a validation", "{episodes: [5]}", "{episodes: [5], fraction: 0.1}", "{episodes", "give either `fraction` (of the episodes) or `episodes`"),
    Mistake("an empty list", "{episodes: [5]}", "{episodes: []}", "[]", "data.validation.episodes has 0 entries; it should have at least 1"),
    # registered names and their parameters
    Mistake("an unknown loss", "l2_loss", "l3_loss", "l3_loss", "is called 'l3_loss'", "'l2_loss'?"),
    Mistake("an unknown trainer", "{type: follower}", "{type: folower}", "folower", "is called 'folower'", "'follower'?"),
    Mistake("an unknown data set", "{type: drifts}", "{type: drift}", "drift}", "is called 'drift'", "'drifts'?"),
    Mistake("an unknown optimizer", "head: {type: adamw_warmup_cosine_decay", "head: {type: adamw_warmup_cosine", "adamw_warmup_cosine,", "is called 'adamw_warmup_cosine'", "'adamw_warmup_cosine_decay'?"),
    Mistake("an unknown evaluation", "max_steps: 6", "max_steps: 6\n  evaluation: {type: metawrld}", "metawrld", "is called 'metawrld'"),
    Mistake("an unknown parameter", "peak_lr: 0.02", "peak_lr: 0.02, warmup: 3", "warmup: 3", "has no parameter 'warmup'", "'warmup_steps'?"),
    Mistake("a missing parameter", "params: {peak_lr: 0.02}", "params: {warmup_steps: 1}", "{warmup_steps: 1}", "peak_lr"),
    Mistake("a parameter of the wrong kind", "peak_lr: 0.02", "peak_lr: '2e-2'", "'2e-2'", "head.params.peak_lr should be a number", "without quotes: 2e-2"),
    Mistake("a negative learning rate", "peak_lr: 0.02", "peak_lr: -0.02", "-0.02", "peak_lr is -0.02", is_late=True),
    Mistake("parameters of a loss that has none", "{type: l2_loss}", "{type: l2_loss, params: {scale: 2}}", "scale", "has no parameter 'scale'"),
    Mistake("a selector that matches nothing", "params: {peak_lr: 0.02}}", "params: {peak_lr: 0.02}, groups: {outt: {peak_lr: 0.1}}}", "{peak_lr: 0.1}", "'outt' selects nothing", "'out'?"),
    # components
    Mistake("an optimizer of no component", "    head: {type", "    haed: {type", "haed", "model.component_optims: there is no component 'haed'", "'head'?"),
    Mistake("parameters of no component", "  component_optims:", "  component_params: {hed: {dim: 2}}\n  component_optims:", "hed", "model.component_params: there is no component 'hed'", "'head'?"),
    Mistake("build args of no component", "  component_optims:", "  component_build_args: {encodr: {init: true}}\n  component_optims:", "encodr", "model.component_build_args: there is no component 'encodr'", "'encoder'?"),
    Mistake("EMA of no component", "{decay: 0.9}", "{decay: 0.9, components: [hed]}", "hed", "train.ema: there is no component 'hed'", "'head'?"),
    Mistake("a component's name that is taken", "    head: head.yaml", "    training_state: head.yaml", "training_state", "this name is taken"),
    Mistake("no file of a component", "head: head.yaml", "head: haed.yaml", "haed.yaml", "component 'head': there is no file 'haed.yaml'"),
    Mistake("a component without an optimizer", "    head: {type: adamw_warmup_cosine_decay, params: {peak_lr: 0.02}}\n", "", "", "'head'"),
    Mistake("an unknown parameter of a model", "  component_optims:", "  component_params: {head: {dimm: 2}}\n  component_optims:", "", "'head' has no param 'dimm'", "'dim'?"),
    Mistake("weights that are not there", "  component_optims:", "  component_build_args: {head: {weights: best.pt}}\n  component_optims:", "best.pt", "best.pt"),
    Mistake("freeze that matches nothing", "  component_optims:", "  component_build_args: {head: {freeze: [outt]}}\n  component_optims:", "outt", "outt"),
    # what several keys say together, and plugins
    Mistake("a plugin that is not there", "[fault_plugin]", "[fault_plugin, fault_plugn]", "fault_plugn]", "fault_plugn"),
    Mistake("a plugin that fails", "[fault_plugin]", "[fault_plugin, broken_plugin]", "broken_plugin]", "broken_plugin"),
    Mistake("defaults that are not there", "plugins:", "defaults: [bse.yaml]\nplugins:", "bse.yaml", "bse.yaml"),
    Mistake("defaults in a circle", "plugins:", "defaults: [config.yaml]\nplugins:", "config.yaml", "config.yaml"),
    Mistake("an interpolation of nothing", "batch_size: 8", "batch_size: ${sed}", "sed}", "no value is called 'sed'", "'seed'?"),
]
# fmt: on


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Whoever looks for a device has come too far."""
    mistake = request.node.callspec.params.get("mistake") if hasattr(request.node, "callspec") else None
    if not getattr(mistake, "is_late", False):
        monkeypatch.setattr("trainer.build.pick_device", lambda: pytest.fail("a device was asked for"))


@pytest.mark.parametrize("mistake", MISTAKES, ids=[one.name for one in MISTAKES])
@pytest.mark.fault("F14", f"{len(MISTAKES)} mistakes in a config")
def test_a_mistake_is_told_at_its_place(
    project: Project, untouched: None, capsys: pytest.CaptureFixture, mistake: Mistake
) -> None:
    assert CONFIG.count(mistake.right) == 1
    text = CONFIG.replace(mistake.right, mistake.wrong)
    project.config.write_text(text)
    (project.folder / "broken_plugin.py").write_text("import nothing_of_this_name\n")
    assert project.run() == 2
    error = capsys.readouterr().err
    assert mistake.told in error and mistake.hint in error, error
    place = f"{project.config}:"
    if mistake.at:
        found = text.find(mistake.at, CONFIG.index(mistake.right))
        before = text[: text.index(mistake.at) if found < 0 else found]
        place += f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
    assert place in error, error
    assert "Traceback" not in error
    assert not (project.folder / "runs").exists()


PARENTS = {
    "a key": ("batch_size: 8", "batchsize: 8", "unknown key 'data.batchsize'", "'batch_size'?"),
    "a value": ("batch_size: 8", "batch_size: eight", "data.batch_size should be a whole number", ""),
    "a name": ("{type: drifts}", "{type: drift}", "is called 'drift'", "'drifts'?"),
}


@pytest.mark.parametrize("mistake", PARENTS)
@pytest.mark.fault("F14", "a mistake in a file that a config starts from")
def test_a_mistake_in_a_parent_names_the_parents_file(
    project: Project, untouched: None, capsys: pytest.CaptureFixture, mistake: str
) -> None:
    right, wrong, told, hint = PARENTS[mistake]
    grandparent = project.folder / "grandparent.yaml"
    grandparent.write_text(CONFIG.replace(right, wrong))
    (project.folder / "parent.yaml").write_text("defaults: [grandparent.yaml]\nseed: 4\n")
    project.config.write_text("defaults: [parent.yaml]\ntrain: {max_steps: 3}\n")
    assert project.run() == 2
    error = capsys.readouterr().err
    line = next(number for number, one in enumerate(grandparent.read_text().splitlines(), start=1) if wrong in one)
    assert f"{grandparent}:{line}:" in error and told in error and hint in error


@pytest.mark.fault("F14", "several mistakes at once")
def test_all_mistakes_are_told_at_once(project: Project, untouched: None, capsys: pytest.CaptureFixture) -> None:
    changes = [
        ("batch_size", "batchsize"),
        ("l2_loss", "l3_loss"),
        ("max_steps: 6", "max_steps: six"),
        ("peak_lr: 0.02", "lr: 0.02"),
        ("head: head.yaml", "head: no.yaml"),
    ]
    text = CONFIG
    for right, wrong in changes:
        text = text.replace(right, wrong)
    project.config.write_text(text)
    assert project.run() == 2
    error = capsys.readouterr().err
    assert all(
        part in error for part in ("'data.batchsize'", "'l3_loss'", "train.max_steps should be", "'lr'", "'no.yaml'")
    )


@pytest.mark.fault("F14", "several mistakes at once")
def test_what_only_building_finds_is_told_together_with_a_folder_in_the_way(
    project: Project, capsys: pytest.CaptureFixture
) -> None:
    assert project.run("train.max_steps=2") == 0
    capsys.readouterr()
    assert project.run("train.load_dir=nowhere", "data.batch_size=64") == 2
    error = capsys.readouterr().err
    told = ("holds a run already", "64 that one update takes", "there is no folder 'nowhere'")
    assert [part for part in told if part not in error] == []


@pytest.mark.fault("F14", "several mistakes at once")
def test_a_resume_that_cannot_begin_says_nothing_of_the_folder_that_the_run_once_began_from(
    project: Project, capsys: pytest.CaptureFixture
) -> None:
    assert project.run("train.load_dir=nowhere", "data.batch_size=64", resume="elsewhere") == 2
    error = capsys.readouterr().err
    assert "there is no checkpoint in elsewhere" in error and "64 that one update takes" in error
    assert "nowhere" not in error


@pytest.mark.parametrize("resume", ["atuo", "nowhere"])
@pytest.mark.fault("F14", "--resume that names nothing")
def test_a_resume_that_names_nothing_is_refused(project: Project, capsys: pytest.CaptureFixture, resume: str) -> None:
    assert project.run(resume=resume) == 2
    error = capsys.readouterr().err
    assert f"there is no checkpoint in {resume}" in error and "none, auto, or a path" in error
    assert not Path(project.folder / "runs").exists()


@pytest.mark.fault("F21", "a data set that is smaller than one update")
def test_a_set_smaller_than_one_update_is_told(project: Project, capsys: pytest.CaptureFixture) -> None:
    assert project.run("data.batch_size=64") == 2
    error = capsys.readouterr().err
    assert "64" in error and "40" in error and "Traceback" not in error
    assert not (project.folder / "runs").exists()
