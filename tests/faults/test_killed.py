"""A run that is killed, anywhere and often, and is started again: nothing is lost, nothing has to be cleaned up."""

import os
import random
import shutil
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import injections
import pytest
from fault_project import Project
from fault_runs import assert_ended_alike

from trainer.checkpoint import newest_checkpoint

ONE_KEPT = ("train.keep_last=1",)  # so that every save also removes an older checkpoint


def die_in_the_save(project: Project, kinds: Sequence[str] = (), step: int = 4) -> list[tuple[str, Path]]:
    """The run folders that are left by deaths behind each change of the disk in a save, and what it was."""
    left = project.folder / "left"
    left.mkdir()
    saving = project.start(
        *ONE_KEPT, inject=partial(injections.die_at_each_change_of_a_save, step, str(left), tuple(kinds))
    )
    assert saving.wait(1200) == 0, saving.said
    names = [line.partition(": ")[2] for line in saving.said.splitlines() if line.startswith("died behind")]
    return [(name, left / str(number)) for number, name in enumerate(names)]


def resume(project: Project, run_dir: Path) -> None:
    resumed = project.start(f"train.save_dir={run_dir}", *ONE_KEPT, resume="auto")
    assert resumed.wait() == 0, resumed.said


@pytest.mark.fault("F5", "process ends behind each rename and link of a save")
def test_a_save_is_whole_or_not_there(project: Project, undisturbed: Path) -> None:
    trials = die_in_the_save(project, ["mkdir", "rename", "replace", "symlink", "rmdir"])
    kinds = [kind for kind, _ in trials]
    assert kinds == ["mkdir", "rename", "symlink", "replace", "symlink", "replace", "rename", "rmdir"]
    steps = [newest_checkpoint(run_dir).step for _, run_dir in trials]  # which verifies every hash
    assert steps == [2] + [4] * 7
    for _, run_dir in (trials[0], trials[1], trials[6]):
        resume(project, run_dir)
        assert_ended_alike(run_dir, undisturbed)


@pytest.mark.fault("F5", "process ends behind each rename and link of the last save")
def test_what_the_last_save_left_undone_is_done(project: Project, undisturbed: Path) -> None:
    """Everything is trained: the restart has links to set and folders to remove, and nothing else."""
    for kind, run_dir in die_in_the_save(project, ["rename", "symlink", "replace", "rmdir"], step=6):
        assert newest_checkpoint(run_dir).step == 6, kind
        resume(project, run_dir)
        assert_ended_alike(run_dir, undisturbed)
        assert os.readlink(run_dir / "best") == os.readlink(undisturbed / "best")
        assert len(list(run_dir.glob("step_*"))) == len({os.readlink(run_dir / name) for name in ("latest", "best")})


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.fault("F5", "process ends behind each write, flush, rename and unlink of a save")
def test_every_change_of_the_disk_within_a_save(project: Project, undisturbed: Path) -> None:
    trials = die_in_the_save(project)
    kinds = [kind for kind, _ in trials]
    assert len(trials) > 300
    assert {"write", "half a write", "fsync", "rename", "replace", "symlink", "unlink", "rmdir"} <= set(kinds)
    steps = [newest_checkpoint(run_dir).step for _, run_dir in trials]
    assert steps == sorted(steps) and set(steps) == {2, 4}  # the older one, until the newer one stands
    assert steps[kinds.index("rename") - 1 : kinds.index("rename") + 1] == [2, 4]
    for number, (kind, run_dir) in enumerate(trials):
        if kind != "write" or number % 20 == 0:
            resume(project, run_dir)
            assert_ended_alike(run_dir, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.fault("F5", "process ends behind each change of the run's other files")
def test_every_change_of_the_disk_outside_of_saves(project: Project, undisturbed: Path) -> None:
    """environment.json, config.yaml, the statistics, the lock, the lines of metrics."""
    for change in range(1000):
        shutil.rmtree(project.run_dir, ignore_errors=True)
        died = project.start(inject=partial(injections.die_outside_saves, change))
        if died.wait() == 0:
            assert change > 20
            return
        assert f"died behind {change}" in died.said
        resumed = project.start(resume="auto")
        assert resumed.wait() == 0, (died.said.splitlines()[-1], resumed.said)
        assert_ended_alike(project.run_dir, undisturbed)


def kill_and_restart(project: Project, undisturbed: Path, kills: int) -> tuple[int, int]:
    """A run that saves after every update, killed at random instants and started again and again.

    How many kills fell into a save, and how often the run came to its end.
    """
    overrides = ("train.save_every_steps=1", "train.keep_last=2")
    chance, killed, in_a_save, finished = random.Random(0), 0, 0, 0
    longest_s = 0.2  # of an instant, after training began; finds by itself what lets one run in five come to its end
    while killed < kills:
        from_training = killed % 5 > 0
        instant_s = chance.uniform(0.0, longest_s)
        started = project.start(
            *overrides, resume="auto", inject=partial(injections.killed_after, instant_s, from_training)
        )
        ended = started.wait()
        assert ended in (0, -signal.SIGKILL), started.said
        newest = newest_checkpoint(project.run_dir)  # raises if any stands there and none is whole
        if ended:
            killed += 1
            in_a_save += any(project.run_dir.glob(".tmp-*_*"))
            longest_s *= 1.05
        else:
            finished += 1
            longest_s *= 0.8
            assert newest is not None and newest.step == 6
            assert_ended_alike(project.run_dir, undisturbed)
            shutil.rmtree(project.run_dir)
    return in_a_save, finished


@pytest.mark.slow
@pytest.mark.fault("F5", "kill -9 at random instants")
def test_killed_at_random_instants(project: Project, undisturbed: Path) -> None:
    kill_and_restart(project, undisturbed, 3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.fault("F5", "kill -9 at 200 random instants")
def test_killed_at_200_random_instants(project: Project, undisturbed: Path) -> None:
    in_a_save, finished = kill_and_restart(project, undisturbed, 200)
    print(
        f"200 kills, {in_a_save} of them within a save; {finished} runs came to their end, each equal to the undisturbed one"
    )
    assert in_a_save >= 10 and finished >= 10


@pytest.mark.parametrize(
    ("number", "place"),
    [
        pytest.param(signal.SIGTERM, "save", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "validation", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "step", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "save"),
        pytest.param(signal.SIGINT, "step", marks=pytest.mark.slow),
    ],
)
@pytest.mark.fault("F9", "SIGTERM or SIGINT within a step, a validation, a save; with workers")
def test_a_signal_saves_and_the_run_goes_on(project: Project, undisturbed: Path, number: int, place: str) -> None:
    stopped = project.start("data.num_workers=1", inject=partial(injections.signal_during, place, number))
    assert stopped.wait(30) == 128 + number, stopped.said
    step = newest_checkpoint(project.run_dir).step
    assert step == {"step": 3, "validation": 4, "save": 5}[place]
    assert stopped.said.splitlines()[-1].startswith(f"{signal.Signals(number).name}: stopped after update {step};")
    resumed = project.start("data.num_workers=1", resume="auto")
    assert resumed.wait() == 0, resumed.said
    assert_ended_alike(project.run_dir, undisturbed)


@pytest.mark.fault("F5", "kill -9 leaves workers behind; the restart comes at once")
def test_workers_that_outlive_a_killed_run_do_not_hold_its_folder(project: Project, undisturbed: Path) -> None:
    killed = project.start("data.num_workers=2", inject=partial(injections.signal_during, "step", signal.SIGKILL))
    assert killed.wait() == -signal.SIGKILL
    resumed = project.start(resume="auto")
    assert resumed.wait() == 0, resumed.said
    assert_ended_alike(project.run_dir, undisturbed)
