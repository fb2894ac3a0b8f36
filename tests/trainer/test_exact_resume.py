"""The hard reference run, stopped in every way there is: it ends equal, to the bit, to one that was not stopped.

`reference_run/` holds it: flow noise, dropout, augmentation, batch statistics, a moving average on one component and a
schedule-free optimizer on the other, accumulation, held-out episodes, and a data set that draws random numbers.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_compare import assert_equal_checkpoints, lines_of, tensors_of

from trainer.checkpoint import checkpoint_folders, newest_checkpoint

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent / "reference_run"
STOPPED = 99
LAST = 14
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


class Driver:
    """Runs of the command line, in processes forked from one that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, str(HERE / "driver.py")], env=ENVIRONMENT, **pipes)
        self._whole: dict[tuple, Path] = {}

    def run(
        self,
        name: str,
        overrides: dict[str, Any] | None = None,
        *,
        processes: int = 1,
        resume: str = "auto",
        **stop: Any,
    ) -> list[int]:
        """The exit status of each process; `stop` says how they are to end."""
        settings = {"train.save_dir": str(self.folder / name), "train.keep_last": 100, **(overrides or {})}
        job = {
            "config": str(HERE / "config.yaml"),
            "overrides": [f"{key}={json.dumps(value)}" for key, value in settings.items()],
            **{"log": str(self.folder / f"{name}.log"), "processes": processes, "resume": resume, **stop},
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(job)}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def finish(self, name: str, overrides: dict[str, Any] | None = None, processes: int = 1, **how: Any) -> Path:
        """Run, or continue, to the end."""
        codes = self.run(name, overrides, processes=processes, **how)  # `how` may name threads, or an environment
        assert codes == [0] * processes, self.log(name)
        return self.folder / name

    def whole(self, processes: int = 1) -> Path:
        """The run that nothing stops; once for all tests."""
        key = (processes,)
        if key not in self._whole:
            self._whole[key] = self.finish(f"whole-{processes}", processes=processes)
        return self._whole[key]

    def events(self, name: str) -> list[str]:
        """What the first process did to the disk, in its last start that was not stopped."""
        return json.loads((self.folder / f"{name}.log.events").read_text())

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()[-3000:]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    driver = Driver(tmp_path_factory.mktemp("runs"))
    yield driver
    driver.close()


def assert_equal_runs(one: Path, other: Path) -> None:
    """The last checkpoint, every checkpoint that both have, and every line."""
    assert newest_checkpoint(one).step == newest_checkpoint(other).step == LAST
    shared = {path.name for path in checkpoint_folders(one)} & {path.name for path in checkpoint_folders(other)}
    assert f"step_{LAST}" in shared
    for name in shared:
        assert_equal_checkpoints(one / name, other / name)
    assert lines_of(one) == lines_of(other)
    for link in ("latest", "best"):
        assert (one / link).readlink() == (other / link).readlink()


def assert_sound(run_dir: Path, whole: Path) -> int:
    """A run that has just been stopped: its newest valid checkpoint is the whole run's of that update."""
    if not checkpoint_folders(run_dir):
        return 0
    newest = newest_checkpoint(run_dir)
    assert newest is not None
    if (whole / newest.path.name).exists():
        assert_equal_checkpoints(newest.path, whole / newest.path.name)
    return newest.step


def stopped_at_events(driver: Driver, name: str, events: Iterator[int], processes: int, **overrides: Any) -> list[int]:
    """One start after another, each gone at its n-th event; the updates that each left behind."""
    steps, whole = [], driver.whole(processes)
    for event in events:
        codes = driver.run(name, overrides, processes=processes, stop_at_event=event)
        assert codes[0] in (STOPPED, 0), driver.log(name)
        steps.append(assert_sound(driver.folder / name, whole))
        if codes[0] == 0:
            break
    return steps


def test_the_reference_run_has_all_that_makes_a_resume_hard(driver: Driver) -> None:
    whole = driver.whole()
    held = tensors_of(whole / f"step_{LAST}")
    assert any(name.startswith("observation_embedder_ema/") for name in held)
    assert any(name.startswith("action_decoder_ema/") for name in held)
    assert any("running_var" in name for name in held)
    shown = lines_of(whole)
    assert [line["step"] for line in shown if "validation_loss" in line] == [3, 6, 9, 12, 14]
    assert {line["step"] for line in shown if "loss" in line} == {5, 10, 14}
    assert len({line["loss"] for line in shown if "loss" in line}) == 3
    names = driver.events("whole-1")
    assert {"half", "save", "fsync", "rename", "replace", "symlink", "half a text", "line"} <= set(names)


@pytest.mark.parametrize("overrides", [{"data.num_workers": 2}, {"train.deterministic": True}], ids=str)
def test_a_second_run_is_equal_with_workers_and_with_deterministic_algorithms(driver: Driver, overrides: dict) -> None:
    """Without this, no other test here says anything."""
    assert_equal_runs(driver.finish(f"other-{next(iter(overrides))}", overrides), driver.whole())


def test_additional_saves_validations_and_evaluations_change_nothing(driver: Driver) -> None:
    one = driver.finish(
        "busy", {f"train.{what}": 1 for what in ("save_every_steps", "validate_every", "evaluate_every")}
    )
    other = driver.whole()
    best = ("training_state/best_loss", "training_state/best")  # more validations may find another
    assert_equal_checkpoints(one / f"step_{LAST}", other / f"step_{LAST}", but=best)
    assert [line for line in lines_of(one) if "loss" in line] == [line for line in lines_of(other) if "loss" in line]


@pytest.mark.fault("F3", "a resume of a resume, twice in one epoch")
def test_stopped_within_saves_and_off_them_twice_within_one_epoch_it_ends_equal(driver: Driver) -> None:
    """In the middle of a file of the second save, behind its rename, by SIGTERM off any save step, then by SIGKILL."""
    names = driver.events(driver.whole().name)
    saves = [number for number, name in enumerate(names, start=1) if name == "rename"]
    stops = [saves[1] - 12, saves[0] + 1]
    assert stopped_at_events(driver, "stopped", iter(stops), 1)[-1] > 0
    assert driver.run("stopped", sigterm=[10, 0]) == [128 + signal.SIGTERM]
    assert newest_checkpoint(driver.folder / "stopped").step == 11
    assert driver.run("stopped", {"data.num_workers": 2}, kill_after_s=0.5)[0] in (-signal.SIGKILL, 0)
    assert_equal_runs(driver.finish("stopped"), driver.whole())


def test_another_number_of_processes_continues_the_order_of_the_samples(driver: Driver, tmp_path: Path) -> None:
    """Two processes with batches of 4 take each update's samples as one with batches of 8 does, also from the middle."""
    names = {"two": (2, 4), "one": (1, 8), "both": (2, 4)}
    seen: dict[str, list] = {}
    for name, (processes, batch_size) in names.items():
        environment = {"REFERENCE_SEEN": str(tmp_path / name)}
        sizes = {"data.batch_size": batch_size}
        stop = {"sigterm": [6, 0]} if name == "both" else {}
        driver.run(f"order-{name}", sizes, processes=processes, environment=environment, **stop)
        seen[name] = samples(tmp_path / name, processes)
    assert seen["two"] == seen["one"]
    assert len(seen["one"]) == LAST * 2
    done = newest_checkpoint(driver.folder / "order-both").step
    assert 6 < done < LAST
    environment = {"REFERENCE_SEEN": str(tmp_path / "alone")}
    driver.finish("order-both", {"data.batch_size": 8}, environment=environment)
    assert samples(tmp_path / "alone", 1) == seen["one"][done * 2 :]


def samples(path: Path, processes: int) -> list:
    """Each micro-batch of all processes together, [micro-batch][sample] -> (episode, frame)."""
    ranks = [
        [json.loads(line) for line in Path(f"{path}-{rank}").read_text().splitlines()] for rank in range(processes)
    ]
    return [[sample for part in parts for sample in part] for parts in zip(*ranks, strict=True)]


MATRIX = [(processes, workers) for processes in (1, 2) for workers in (0, 2)]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("processes", "workers"), MATRIX)
def test_gone_after_each_write_flush_and_rename_it_ends_equal(driver: Driver, processes: int, workers: int) -> None:
    """Start n is gone at its n-th event: through the opening of the folder, a whole save, and its retention."""
    name = f"events-{processes}-{workers}"
    whole = driver.whole(processes)
    names = driver.events(whole.name)
    second_save = [number for number, event in enumerate(names, start=1) if event == "rename"][1]
    every = 1 if workers == 0 else 5
    overrides = {"data.num_workers": workers, "train.keep_last": 2}
    events = iter(range(1, second_save + 12, every))
    steps = stopped_at_events(driver, name, events, processes, **overrides)
    assert steps == sorted(steps)  # nothing that was saved is lost again
    assert {0, LAST} <= set(steps)
    assert_equal_runs(driver.finish(name, overrides, processes), whole)
    print(f"\n{processes} processes, {workers} workers: {len(steps)} starts, each gone at another event; steps {steps}")


@pytest.mark.timeout(1800)
def test_gone_between_a_rename_and_the_end_of_retention_it_ends_equal(driver: Driver) -> None:
    """From the same folder each time: links, and the removal of what is older, file by file."""
    overrides = {"train.keep_last": 2}
    whole = driver.finish("kept", overrides)
    assert driver.run("behind", overrides, sigterm=[7, 0]) == [128 + signal.SIGTERM]  # after update 8
    assert newest_checkpoint(driver.folder / "behind").step == 8
    started = shutil.copytree(driver.folder / "behind", driver.folder / "behind-whole", symlinks=True)
    driver.finish(started.name, overrides)
    names = driver.events(started.name)
    renames = [number for number, event in enumerate(names, start=1) if event == "rename"]
    for event in range(renames[0], renames[0] + 30):
        run_dir = shutil.copytree(driver.folder / "behind", driver.folder / f"behind-{event}", symlinks=True)
        assert driver.run(run_dir.name, overrides, stop_at_event=event) == [STOPPED], driver.log(run_dir.name)
        assert assert_sound(run_dir, driver.whole()) >= 9
        assert_equal_runs(driver.finish(run_dir.name, overrides), whole)
    print(f"\ngone at {names[renames[0] - 1 : renames[0] + 29]}")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("processes", "workers"), MATRIX)
@pytest.mark.fault("F2", "1 and 2 processes, 0 and 2 workers, all that draws: kill -9 at random instants")
def test_killed_at_random_instants_it_ends_equal(driver: Driver, processes: int, workers: int) -> None:
    name, whole = f"killed-{processes}-{workers}", driver.whole(processes)
    instants, steps = random.Random(processes * 10 + workers), []
    for _ in range(12):
        codes = driver.run(
            name, {"data.num_workers": workers}, processes=processes, kill_after_s=instants.uniform(0.2, 4.0)
        )
        steps.append(assert_sound(driver.folder / name, whole))
        if codes == [0] * processes:
            break
    assert_equal_runs(driver.finish(name, {"data.num_workers": workers}, processes), whole)
    print(f"\n{processes} processes, {workers} workers: killed {len(steps)} times; steps {steps}")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.fault("F3", "a resume of a resume, twice in one epoch: 2 processes, 0 and 2 workers")
def test_sigterm_to_one_of_two_processes_saves_on_both_and_it_ends_equal(
    driver: Driver, rank: int, workers: int
) -> None:
    """Twice within the second epoch (of six updates each), off every save step."""
    name, overrides = f"sigterm-{rank}-{workers}", {"data.num_workers": workers}
    for update in (6, 9):
        codes = driver.run(name, overrides, processes=2, sigterm=[update, rank])
        assert codes == [128 + signal.SIGTERM] * 2, driver.log(name)
        assert newest_checkpoint(driver.folder / name).step in (update + 1, update + 2)  # agreed on one update later
    assert_equal_runs(driver.finish(name, overrides, 2), driver.whole(2))


def test_three_processes_add_up_in_one_order(driver: Driver) -> None:
    """The sum of two numbers does not depend on their order; that of three does."""
    overrides = {"data.batch_size": 3}
    whole = driver.finish("three-whole", overrides, 3)
    assert driver.run("three", overrides, processes=3, sigterm=[6, 1]) == [128 + signal.SIGTERM] * 3
    assert_equal_runs(driver.finish("three", overrides, 3), whole)


def test_two_threads_are_as_exact_as_one(driver: Driver) -> None:
    """Sums are taken in another order than with one thread, and in the same one every time."""
    whole = driver.finish("threads-whole", threads=2)
    names = driver.events("threads-whole")
    stop = [number for number, event in enumerate(names, start=1) if event == "rename"][2] - 3
    assert driver.run("threads", threads=2, stop_at_event=stop) == [STOPPED]
    assert_equal_runs(driver.finish("threads", threads=2), whole)


@pytest.fixture(scope="module")
def video_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lerobot") / "set"
    subprocess.run(
        [sys.executable, str(HERE / "record.py"), str(root)], env=ENVIRONMENT, check=True, capture_output=True
    )
    return root


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (2, 0)])
def test_killed_ten_times_on_a_real_video_set_it_ends_equal_in_every_byte(
    driver: Driver, video_set: Path, processes: int, workers: int
) -> None:
    """Each time 1 to 6 updates behind its newest checkpoint, and up to 0.2 s later: in a step, a validation or a save."""
    params = {"repo_id": "local/reference", "root": str(video_set), "local_files_only": True, "action_horizon": 4}
    overrides = {
        "data.datamodule": {"type": "lerobot_dataset_factory", "params": params},
        **{"train.max_steps": 80, "train.save_every_steps": 5, "data.num_workers": workers},
    }
    last, name = "step_80", f"video-killed-{processes}"
    whole = driver.finish(f"video-whole-{processes}", overrides, processes)
    instants, kills = random.Random(0), []
    while len(kills) < 10:
        newest = newest_checkpoint(driver.folder / name)
        update = (newest.step if newest else 0) + instants.randint(1, 6)
        delay_s = instants.uniform(0.0, 0.2)
        codes = driver.run(name, overrides, processes=processes, kill_behind=[update, delay_s])
        assert -signal.SIGKILL in codes, driver.log(name)
        kills.append(f"{update}+{1e3 * delay_s:.0f} ms")
    killed = driver.finish(name, overrides, processes)
    names = [path.name for path in checkpoint_folders(whole)]
    files = compared = 0
    for checkpoint in names:
        assert_equal_checkpoints(killed / checkpoint, whole / checkpoint)
        for path in (whole / checkpoint).glob("*"):
            if path.name not in ("training_state.pt", "manifest.json"):  # both hold the time that was trained
                assert path.read_bytes() == (killed / checkpoint / path.name).read_bytes(), path
                files, compared = files + 1, compared + path.stat().st_size
    assert last in names
    assert lines_of(killed) == lines_of(whole)
    print(f"\n{processes} processes, {workers} workers: killed behind updates {', '.join(kills)}")
    print(f"{len(names)} checkpoints equal in every tensor; {files} files, {compared:,} bytes equal")
