"""Files that are not what was written: damaged ones are passed over by name, code in them is never run."""

import ast
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fault_project import CONFIG, Project
from fault_runs import assert_ended_alike, dates_in, lines_of

import trainer
from trainer.checkpoint import open_checkpoint

FILES = [
    *("encoder.pt", "encoder_opt.pt", "encoder_ema.pt", "head.pt", "head_opt.pt", "head_ema.pt", "training_state.pt"),
    *("encoder.yaml", "head.yaml", "manifest.json"),
]


@pytest.fixture(scope="module")
def four_of_six(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run that stopped behind its fourth update, with checkpoints of the second and the fourth."""
    project = Project(tmp_path_factory.mktemp("four"))
    stopped = project.start()
    assert stopped.wait() == 0, stopped.said
    shutil.rmtree(project.run_dir / "step_6")
    (project.run_dir / "latest").unlink()
    (project.run_dir / "latest").symlink_to("step_4")
    write_checkpoint_of_step_2(project)
    return project


def write_checkpoint_of_step_2(project: Project) -> None:
    """Retention keeps two, and three were written: the first one comes from a run of its own."""
    if (project.run_dir / "step_2").exists():
        return
    other = project.start("train.save_dir=runs/other", "train.keep_last=9")
    assert other.wait() == 0, other.said
    shutil.copytree(project.folder / "runs/other/step_2", project.run_dir / "step_2")
    shutil.rmtree(project.folder / "runs/other")


@pytest.fixture
def stopped(four_of_six: Project, tmp_path: Path) -> Project:
    """A copy of it, to damage."""
    shutil.copytree(four_of_six.run_dir, tmp_path / "runs/run", symlinks=True)
    return Project(tmp_path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def with_a_flipped_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"sha256") if path.suffix == ".json" else len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = (truncated, emptied, zeroed, with_a_flipped_bit, Path.unlink)
QUICK = {("encoder_ema.pt", zeroed), ("training_state.pt", with_a_flipped_bit), ("manifest.json", truncated)}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param(name, damage, marks=() if (name, damage) in QUICK else pytest.mark.slow)
        for name in FILES
        for damage in DAMAGES
    ],
)
@pytest.mark.fault("F6", "each file truncated, emptied, zeroed, with a flipped bit, missing")
def test_a_damaged_checkpoint_is_passed_over_by_name(
    stopped: Project, undisturbed: Path, capsys: pytest.CaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    newest = stopped.run_dir / "step_4"
    damage(newest / name)
    assert stopped.run(resume=str(newest)) == 2  # asked for by name, it is refused
    assert_names(capsys.readouterr().err, newest, name)
    assert stopped.run(resume="auto") == 0
    told = capsys.readouterr().out
    assert "passed over: " in told and "continued at 2" in told
    assert_names(told, newest, name)
    assert_ended_alike(stopped.run_dir, undisturbed)


def assert_names(message: str, checkpoint: Path, name: str) -> None:
    """What a manifest that was changed says of another file may be what is told."""
    assert f"{checkpoint} is not a checkpoint: " in message
    assert name == "manifest.json" or name in message.partition("is not a checkpoint: ")[2]


@pytest.mark.fault("F6", "every checkpoint is damaged")
def test_where_no_checkpoint_is_whole_nothing_is_written(stopped: Project, capsys: pytest.CaptureFixture) -> None:
    for name in ("step_2", "step_4"):
        truncated(stopped.run_dir / name / "head.pt")
    before = dates_in(stopped.run_dir)
    assert stopped.run(resume="auto") == 2
    message = capsys.readouterr().err
    assert "holds no valid checkpoint" in message
    assert all(f"{stopped.run_dir / name} is not a checkpoint: head.pt" in message for name in ("step_2", "step_4"))
    assert dates_in(stopped.run_dir) == before


@pytest.mark.fault("F6", "newer checkpoints are damaged: retention keeps those that are whole")
def test_damaged_checkpoints_do_not_count_as_kept(stopped: Project, undisturbed: Path) -> None:
    for later in ("step_8", "step_10", "step_12"):
        shutil.copytree(stopped.run_dir / "step_4", stopped.run_dir / later)
        manifest = json.loads((stopped.run_dir / later / "manifest.json").read_text())
        manifest["step"] = int(later.removeprefix("step_"))
        (stopped.run_dir / later / "manifest.json").write_text(json.dumps(manifest))
        truncated(stopped.run_dir / later / "head.pt")
    no_best = "train.keep_best=false"  # the best one is kept in any case
    assert stopped.run("train.keep_last=1", no_best, resume="auto") == 0
    assert open_checkpoint(stopped.run_dir / "step_6").step == 6
    assert not (stopped.run_dir / "step_2").exists()
    assert lines_of(stopped.run_dir) == lines_of(undisturbed)


@pytest.mark.fault("F6", "a folder that is no checkpoint has the name of the next one")
def test_a_folder_in_the_next_checkpoints_place_is_replaced(stopped: Project, undisturbed: Path) -> None:
    for name in ("step_6", "epoch_1"):
        (stopped.run_dir / name).mkdir()
        (stopped.run_dir / name / "half.pt").write_bytes(b"half")
    assert stopped.run("train.save_every=1", resume="auto") == 0
    assert_ended_alike(stopped.run_dir, undisturbed)
    assert not (stopped.run_dir / "step_6/half.pt").exists()


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage", [cut_in_half, *(pytest.param(one, marks=pytest.mark.slow) for one in (emptied, zeroed, Path.unlink))]
)
@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("environment.json", "dataset_stats.json", "dataset_stats.pkl", ".lock")
        ),
    ],
)
@pytest.mark.fault("F6", "each of the run's own files cut in half, emptied, zeroed, missing")
def test_a_run_goes_on_without_what_only_people_read(
    stopped: Project, undisturbed: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(stopped.run_dir / name)
    if name == "environment.json" and damage is Path.unlink:
        assert stopped.run(resume="auto") == 2  # by that file a run's folder is told from any other
        return
    assert stopped.run(resume="auto") == 0
    assert_ended_alike(stopped.run_dir, undisturbed)


class Hostile:
    """What unpickles it creates the file."""

    def __init__(self, effect: Path) -> None:
        self.effect = effect

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.effect}",)


WAYS = {
    "torch's format": lambda content, path: torch.save(content, path),
    "torch's old format": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "a plain pickle": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
}


def plant(path: Path, way: str) -> Path:
    """Put a pickle with code in the place of a file; where a manifest names the file, it is made to fit."""
    effect = path.parent / "effect"
    WAYS[way]({"weight": Hostile(effect)}, path)
    manifest_path = path.parent / "manifest.json"
    if manifest_path.exists():
        manifest = json.loads(manifest_path.read_text())
        content = path.read_bytes()
        manifest["files"][path.name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest_path.write_text(json.dumps(manifest))
    return effect


QUICK_WAYS = {  # each file once, and each way
    *(("encoder.pt", "torch's format"), ("head_opt.pt", "a plain pickle")),
    *(("head_ema.pt", "torch's format"), ("training_state.pt", "torch's old format")),
}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=() if (name, way) in QUICK_WAYS else pytest.mark.slow)
        for name in ("encoder.pt", "head_opt.pt", "head_ema.pt", "training_state.pt")
        for way in WAYS
    ],
)
@pytest.mark.fault("F13", "a pickle with code in each file of a checkpoint, its hash made to fit")
def test_code_in_a_checkpoint_is_never_run(
    stopped: Project, capsys: pytest.CaptureFixture, name: str, way: str
) -> None:
    effect = plant(stopped.run_dir / "step_4" / name, way)
    ended = stopped.run(resume="auto")
    told = capsys.readouterr().err
    if name.endswith("_ema.pt"):  # which only a policy reads
        assert ended == 0
        with pytest.raises(Exception, match="nothing of it was run"):
            trainer.load_policy(stopped.run_dir / "step_4")
    else:
        assert ended != 0
        assert name in told and "nothing of it was run" in told and "Traceback" not in told
        assert not (stopped.run_dir / "step_6").exists()
    assert not effect.exists()


@pytest.mark.fault("F13", "a pickle with code as dataset_stats.pkl")
def test_the_pickled_statistics_are_never_read(stopped: Project, undisturbed: Path) -> None:
    effect = plant(stopped.run_dir / "dataset_stats.pkl", "a plain pickle")
    assert stopped.run(resume="auto") == 0
    assert_ended_alike(stopped.run_dir, undisturbed)
    trainer.load_policy(stopped.run_dir)
    assert not effect.exists()


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=() if (name, way) in QUICK_WAYS else pytest.mark.slow)
        for name in ("encoder.pt", "head_opt.pt")
        for way in WAYS
    ],
)
@pytest.mark.fault("F13", "a pickle with code in train.load_dir and as weights")
def test_code_in_foreign_weights_is_never_run(
    stopped: Project, capsys: pytest.CaptureFixture, name: str, way: str
) -> None:
    folder = stopped.folder / "foreign"
    shutil.copytree(stopped.run_dir / "step_4", folder)
    (folder / "manifest.json").unlink()
    effect = plant(folder / name, way)
    overrides = [[f"train.load_dir={folder}"]]
    if not name.endswith("_opt.pt"):
        overrides.append([f"model.component_build_args={{encoder: {{weights: {folder / name}}}}}"])
    for given in overrides:
        assert stopped.run("train.save_dir=runs/new", *given) == 2
        assert "nothing of it was run" in capsys.readouterr().err
    assert not effect.exists()
    assert not (stopped.folder / "runs/new").exists()


@pytest.mark.fault("F13", "no code path unpickles anything but tensors")
def test_nothing_in_the_trainer_unpickles() -> None:
    """A pickle that is made and read in one breath (can this exception travel?) holds nothing foreign."""
    found = []
    for path in sorted(Path(trainer.__file__).parent.rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name, text = ast.unparse(call.func), ast.unparse(call)
            is_safe = any(one.arg == "weights_only" and ast.unparse(one.value) == "True" for one in call.keywords)
            unpickles = name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load")
            if (unpickles and "pickle.loads(pickle.dumps(" not in text) or (name == "torch.load" and not is_safe):
                found.append((path.name, text))
            if "allow_pickle" in text or name.startswith(("dill.", "cloudpickle.", "joblib.")):
                found.append((path.name, text))
    assert found == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (("params: {dim: 4, action_dim: 2}", "params: {dim: 4, action_dim: 3}"), ["'head' is not the model"]),
        (
            ("encoder.yaml\n    head: head.yaml", "encoder.yaml\n    arm: head.yaml"),
            ["the components encoder, head; the config has"],
        ),
    ],
    ids=["another size", "a component renamed"],
)
@pytest.mark.fault("F16", "a checkpoint of another architecture")
def test_a_checkpoint_of_another_architecture_is_refused_before_anything_is_loaded(
    stopped: Project, capsys: pytest.CaptureFixture, changed: tuple[str, str], told: list[str]
) -> None:
    head, config = stopped.folder / "head.yaml", stopped.config
    for path in (head, config):
        path.write_text(path.read_text().replace(*changed))
    if "arm" in changed[1]:
        config.write_text(config.read_text().replace("    head: {type", "    arm: {type"))
    before = dates_in(stopped.run_dir)
    assert stopped.run(resume="auto") == 2
    error = capsys.readouterr().err
    assert all(part in error for part in told)
    assert dates_in(stopped.run_dir) == before


@pytest.mark.fault("F16", "weights of another architecture: missing, unexpected, other shapes, by component")
def test_foreign_weights_that_do_not_fit_are_listed_by_component(
    stopped: Project, capsys: pytest.CaptureFixture
) -> None:
    folder = stopped.folder / "foreign"
    shutil.copytree(stopped.run_dir / "step_4", folder)
    (folder / "manifest.json").unlink()
    head, encoder = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("head", "encoder"))
    torch.save({"out.weight": head["out.weight"], "outt.bias": head["out.bias"]}, folder / "head.pt")
    torch.save(encoder | {"net.0.weight": encoder["net.0.weight"][:1]}, folder / "encoder.pt")
    assert stopped.run("train.save_dir=runs/new", f"train.load_dir={folder}") == 2
    error = capsys.readouterr().err
    for part in ("lacks out.bias", "has besides outt.bias"):
        assert f"component 'head': {folder / 'head.pt'} {part}" in error
    assert f"component 'encoder': {folder / 'encoder.pt'} has other shapes: net.0.weight [1, 3] for [4, 3]" in error
    assert not (stopped.folder / "runs/new").exists()


@pytest.mark.fault("F6", "the data are not those of the run")
def test_other_data_are_refused(stopped: Project, capsys: pytest.CaptureFixture) -> None:
    before = dates_in(stopped.run_dir)
    assert stopped.run("data.datamodule.params.other_data=true", resume="auto") == 2
    error = capsys.readouterr().err
    assert "the run was trained with data of fingerprint" in error
    line = CONFIG[: CONFIG.index("  datamodule:")].count("\n") + 1
    assert f"config.yaml:{line}:" in error
    assert dates_in(stopped.run_dir) == before
