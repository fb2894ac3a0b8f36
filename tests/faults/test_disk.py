"""Disks that are full, or that nothing may be written to: one message, older checkpoints intact, and on it goes.

The disks are real: small ones in memory, and folders mounted read-only. Both take the rights to mount.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest
from fault_project import Project
from fault_runs import assert_ended_alike, assert_same_values, lines_of
from torch import Tensor

from trainer.checkpoint import newest_checkpoint

DISK_KB = 1024


def mount(*arguments: object) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@contextmanager
def mounted(folder: Path, *arguments: object) -> Iterator[None]:
    mount(*arguments, folder)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Disk:
    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"

    def fill(self, but_kb: int = 0) -> None:
        with self._filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                file.truncate(max(0, file.tell() - 1024 * but_kb))

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(project: Project) -> Iterator[Disk]:
    """The run's folder lies on a disk of its own, of one MiB."""
    runs = project.run_dir.parent
    runs.mkdir()
    with mounted(runs, "-t", "tmpfs", "-o", f"size={DISK_KB}k", "tmpfs"):
        yield Disk(runs)


def in_update(number: int, act: Callable[[], object]) -> Callable[[Tensor], Tensor]:
    updates = count(1)

    def loss(loss: Tensor) -> Tensor:
        if next(updates) == number:
            act()
        return loss

    return loss


@pytest.mark.parametrize("room_kb", [4, *(pytest.param(one, marks=pytest.mark.slow) for one in (0, 20))])
@pytest.mark.fault("F7", "the disk is full at a save, with room for none, one or some of its files")
def test_a_full_disk_ends_the_run_and_leaves_the_older_checkpoint(
    project: Project, undisturbed: Path, disk: Disk, hook: Callable, capsys: pytest.CaptureFixture, room_kb: int
) -> None:
    hook("loss", in_update(4, lambda: disk.fill(room_kb)))
    assert project.run() == 1
    error = capsys.readouterr().err
    assert error.startswith(f"training stopped: the checkpoint {project.run_dir / 'step_4'} could not be written: ")
    assert "It takes about " in error and " are free." in error and "Earlier checkpoints are intact." in error
    assert "after 4 updates" in error and "Traceback" not in error
    assert os.readlink(project.run_dir / "latest") == "step_2"
    assert newest_checkpoint(project.run_dir).step == 2
    assert not list(project.run_dir.glob(".tmp-*"))
    disk.free()
    assert project.run(resume="auto") == 0
    assert_ended_alike(project.run_dir, undisturbed)


@pytest.mark.slow
@pytest.mark.fault("F7", "the disk is full at every later save: retention keeps the only checkpoint")
def test_a_disk_that_stays_full_costs_no_checkpoint(
    project: Project, undisturbed: Path, disk: Disk, hook: Callable
) -> None:
    hook("loss", in_update(4, disk.fill))
    assert project.run("train.keep_last=1") == 1
    lines = lines_of(project.run_dir)
    for _ in range(3):
        assert project.run("train.keep_last=1", resume="auto") != 0
        assert newest_checkpoint(project.run_dir).step == 2
    assert [line for line in lines_of(project.run_dir) if line["step"] <= 2] == [
        line for line in lines if line["step"] <= 2
    ]
    disk.free()
    assert project.run("train.keep_last=1", resume="auto") == 0
    assert_ended_alike(project.run_dir, undisturbed)


@pytest.mark.fault("F7", "the disk is full before the run begins")
def test_a_disk_that_is_full_at_the_start_is_one_message(
    project: Project, undisturbed: Path, disk: Disk, capsys: pytest.CaptureFixture
) -> None:
    disk.fill()
    assert project.run() == 2
    error = capsys.readouterr().err
    assert f"the run folder {project.run_dir} cannot be read and written: " in error and "No space left" in error
    assert "Traceback" not in error
    disk.free()
    assert project.run() == 0  # what was begun is no run yet
    assert_ended_alike(project.run_dir, undisturbed)


@pytest.mark.fault("F7", "the run folder becomes read-only")
def test_a_folder_that_becomes_read_only_ends_the_run(
    project: Project, undisturbed: Path, hook: Callable, capsys: pytest.CaptureFixture
) -> None:
    with ExitStack() as mounts:

        def read_only() -> None:  # a mount above the folder: the disk itself refuses while files are open for writing
            mounts.enter_context(mounted(project.run_dir, "--bind", project.run_dir))
            mount("-o", "remount,bind,ro", project.run_dir)

        hook("loss", in_update(4, read_only))
        assert project.run() == 1
    error = capsys.readouterr().err
    assert "training stopped: " in error and "Read-only file system" in error and "Traceback" not in error
    assert newest_checkpoint(project.run_dir).step == 2
    assert project.run(resume="auto") == 0
    assert_ended_alike(project.run_dir, undisturbed)


@pytest.mark.parametrize("resume", ["none", "auto"])
@pytest.mark.fault("F7", "the run folder is read-only from the start")
def test_a_read_only_folder_is_refused_at_the_start(
    project: Project, capsys: pytest.CaptureFixture, resume: str
) -> None:
    project.run_dir.mkdir(parents=True)
    with mounted(project.run_dir, "--bind", project.run_dir):
        mount("-o", "remount,bind,ro", project.run_dir)
        assert project.run(resume=resume) == 2
    error = capsys.readouterr().err
    assert f"the run folder {project.run_dir} cannot be read and written" in error and "Read-only" in error
    assert "config.yaml:" in error and "Traceback" not in error


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Neither it nor what is in it can be removed, by nobody; wherever it is moved in between."""
    if not shutil.which("chattr") or subprocess.run(["chattr", "+i", path], capture_output=True).returncode:
        pytest.skip("this file system knows no files that cannot be removed")
    run_dir = path.parents[1] if path.is_file() else path.parent
    try:
        yield
    finally:
        subprocess.run(["chattr", "-R", "-i", run_dir], stderr=subprocess.DEVNULL)  # of the links it complains


@pytest.mark.parametrize(
    "name",
    [pytest.param(".", id="the folder", marks=pytest.mark.slow), pytest.param("head.pt", id="a file in it")],
)
@pytest.mark.fault("F8", "an old checkpoint cannot be removed")
def test_an_old_checkpoint_that_cannot_be_removed_is_told_once(
    project: Project, undisturbed: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    assert project.run("train.save_every_steps=1", "train.keep_last=9") == 0
    with immutable(project.run_dir / "step_2" / name):
        for later in ("step_4", "epoch_1", "step_6"):
            shutil.rmtree(project.run_dir / later)
        capsys.readouterr()
        assert project.run("train.save_every_steps=1", "train.keep_last=1", resume="auto") == 0
        told = [line for line in capsys.readouterr().out.splitlines() if "could not remove" in line]
        assert len(told) == 1 and f"the old checkpoint {project.run_dir / 'step_2'}: " in told[0]
        assert newest_checkpoint(project.run_dir).step == 6
        assert_same_values(project.run_dir / "step_6", undisturbed / "step_6")
        assert lines_of(project.run_dir) == lines_of(undisturbed)
        assert project.run("train.max_steps=7", resume="auto") == 0  # what is left over does not keep it from starting
