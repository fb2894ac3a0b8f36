"""The run's folder: two runs at once, moved, links broken, clocks that go astray, a home that cannot be written."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import injections
import pytest
from fault_project import Project
from fault_runs import assert_ended_alike, assert_same_values, dates_in, lines_of

import trainer
from trainer.checkpoint import newest_checkpoint


def rest(run_dir: Path) -> None:
    """As if the run had stopped behind its fourth update."""
    shutil.rmtree(run_dir / "step_6")
    (run_dir / "latest").unlink()
    (run_dir / "latest").symlink_to("step_4")


@pytest.fixture
def stopped(undisturbed: Path, tmp_path: Path) -> Project:
    project = Project(tmp_path)
    shutil.copytree(undisturbed, project.run_dir, symlinks=True)
    rest(project.run_dir)
    return project


@pytest.mark.parametrize("resume", [pytest.param("none", marks=pytest.mark.slow), "auto"])
@pytest.mark.fault("F22", "a second run in the same folder")
def test_a_second_run_in_the_folder_is_refused(
    project: Project, undisturbed: Path, capsys: pytest.CaptureFixture, resume: str
) -> None:
    waiting, release = project.folder / "waiting", project.folder / "release"
    inject = partial(injections.waits_in_the_third_update, str(waiting), str(release))
    first = project.start("data.num_workers=1", inject=inject)
    while not waiting.exists():
        assert first.process.exitcode is None, first.said
        time.sleep(0.01)
    assert project.run(resume=resume) == 2
    error = capsys.readouterr().err
    if resume == "auto":
        assert (
            f"another run is at work in {project.run_dir}: process {first.process.pid} on {os.uname().nodename}"
            in error
        )
    else:
        assert "holds a run already" in error
    release.touch()
    assert first.wait() == 0, first.said
    assert_ended_alike(project.run_dir, undisturbed)


@pytest.mark.fault("F22", "the lock of a run that is no more")
def test_a_lock_that_nobody_holds_is_taken_over(stopped: Project, undisturbed: Path) -> None:
    (stopped.run_dir / ".lock").write_text("process 1 on elsewhere\n")
    assert stopped.run(resume="auto") == 0
    assert_ended_alike(stopped.run_dir, undisturbed)


@pytest.mark.parametrize("resume", ["none", "auto"])
@pytest.mark.fault("F5", "what a run leaves that ended before it wrote its first file")
def test_what_was_begun_and_never_written_is_no_run(project: Project, undisturbed: Path, resume: str) -> None:
    project.run_dir.mkdir(parents=True)
    (project.run_dir / ".lock").write_text("process 1 on elsewhere\n")
    (project.run_dir / ".tmp-environment.json").write_text('{"run": "co')
    assert project.run(resume=resume) == 0
    assert_ended_alike(project.run_dir, undisturbed)


@pytest.mark.fault("F18", "the folder holds a run, or something else, and nobody asked to go on")
def test_nothing_is_overwritten_unless_asked(stopped: Project, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    notes = tmp_path / "runs/notes"
    notes.mkdir()
    (notes / "thesis.txt").write_text("years of work")
    before = dates_in(tmp_path / "runs")
    assert stopped.run() == 2
    assert "holds a run already" in capsys.readouterr().err
    for resume in ("none", "auto"):
        assert stopped.run(f"train.save_dir={notes}", resume=resume) == 2
        assert f"{notes} holds files that are not a run's" in capsys.readouterr().err
    assert dates_in(tmp_path / "runs") == before


def nowhere(link: Path) -> None:
    link.unlink()
    link.symlink_to("step_99")


def at_an_older_one(link: Path) -> None:
    link.unlink()
    link.symlink_to("step_2")


def at_itself(link: Path) -> None:
    link.unlink()
    link.symlink_to("latest")


def at_an_absolute_path(link: Path) -> None:
    link.unlink()
    link.symlink_to("/nowhere/step_4")


SLOW_CHANGES = (Path.unlink, at_itself, at_an_absolute_path)


@pytest.mark.parametrize(
    "change", [nowhere, at_an_older_one, *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW_CHANGES)]
)
@pytest.mark.fault("F24", "`latest` is missing or points elsewhere")
def test_the_newest_checkpoint_is_found_whatever_latest_says(
    stopped: Project, undisturbed: Path, change: Callable[[Path], None], capsys: pytest.CaptureFixture
) -> None:
    change(stopped.run_dir / "latest")
    assert stopped.run(resume="auto") == 0
    assert "continued at 4" in capsys.readouterr().out
    assert_ended_alike(stopped.run_dir, undisturbed)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch], ids=["a folder", "a file"])
@pytest.mark.parametrize("name", ["latest", "best"])
@pytest.mark.fault("F24", "a folder or a file in the place of `latest` or `best`")
def test_what_is_in_a_links_way_is_told_before_anything_is_done(
    stopped: Project, capsys: pytest.CaptureFixture, name: str, make: Callable[[Path], None]
) -> None:
    (stopped.run_dir / name).unlink(missing_ok=True)
    make(stopped.run_dir / name)
    before = dates_in(stopped.run_dir)
    assert stopped.run(resume="auto") == 2
    assert f"{stopped.run_dir / name} is in the way" in capsys.readouterr().err
    assert dates_in(stopped.run_dir) == before


@pytest.mark.fault("F24", "the run folder was moved")
def test_a_folder_that_was_moved_goes_on(stopped: Project, undisturbed: Path) -> None:
    moved = stopped.folder / "elsewhere/moved"
    moved.parent.mkdir()
    stopped.run_dir.rename(moved)
    assert stopped.run(f"train.save_dir={moved}", resume="auto") == 0
    assert_ended_alike(moved, undisturbed)


@pytest.mark.parametrize(
    "now",
    [
        pytest.param(0, id="1970"),
        pytest.param(1, id="a second later", marks=pytest.mark.slow),
        pytest.param(4e9, id="2096", marks=pytest.mark.slow),
    ],
)
@pytest.mark.fault("F24", "files are dated wrongly")
def test_the_dates_of_files_do_not_matter(stopped: Project, undisturbed: Path, now: float) -> None:
    for path in stopped.run_dir.rglob("*"):
        os.utime(path, (now, now), follow_symlinks=False)
    later = stopped.run_dir / "step_2"
    if later.exists():
        os.utime(later, (5e9, 5e9))
    assert stopped.run(resume="auto") == 0
    assert_ended_alike(stopped.run_dir, undisturbed)


@pytest.mark.fault("F24", "the clock goes back while the run is at work")
def test_a_clock_that_goes_back_does_not_matter(project: Project, undisturbed: Path) -> None:
    run = project.start("train.max_minutes=30", inject=injections.clock_goes_back)
    assert run.wait() == 0, run.said
    assert_same_values(newest_checkpoint(project.run_dir).path, newest_checkpoint(undisturbed).path)
    assert lines_of(project.run_dir) == lines_of(undisturbed)


@pytest.mark.slow
@pytest.mark.fault("F24", "no home folder that can be written to")
def test_a_home_that_cannot_be_written_does_not_matter(project: Project, undisturbed: Path) -> None:
    """The whole command, with its picture of the losses; below /proc nobody can write, not even root."""
    nowhere = {name: "/proc/1/nowhere" for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR")}
    environment = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"} | nowhere
    environment |= {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    script = Path(trainer.__file__).parent / "offline_trainer.py"
    command = [sys.executable, str(script), "--train_config", str(project.config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (project.run_dir / "loss.png").is_file()
    assert_ended_alike(project.run_dir, undisturbed)
