"""Reading that fails: the message says what, where and in which worker; no process is left; the run can go on."""

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import injections
import pytest
from fault_project import Project
from fault_runs import Started, assert_ended_alike

from trainer.checkpoint import newest_checkpoint

LATE_ITEM = 13  # episode 1, frame 5; not among those that are tried before the run begins


def processes_of(started: Started) -> list[int]:
    """Whoever still lives in the session that the run began."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = entry.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it has just ended
        if int(session) == started.process.pid and state != "Z":
            found.append(int(entry.parent.name))
    return found


def assert_nothing_is_left(started: Started) -> None:
    deadline = time.monotonic() + 10
    while processes_of(started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(started) == []


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGKILL, "was ended by SIGKILL: the machine has probably run out of memory"),
        pytest.param(signal.SIGSEGV, "was ended by SIGSEGV: a native library crashed", marks=pytest.mark.slow),
        pytest.param(signal.SIGBUS, "was ended by SIGBUS: shared memory", marks=pytest.mark.slow),
    ],
)
@pytest.mark.fault("F11", "a data worker is killed, or crashes")
def test_a_worker_that_dies_ends_the_run(project: Project, undisturbed: Path, number: int, told: str) -> None:
    died = project.start("data.num_workers=2", inject=partial(injections.worker_dies, number, LATE_ITEM))
    assert died.wait(60) == 1, died.said
    assert told in died.said and "data worker " in died.said
    assert_nothing_is_left(died)
    assert newest_checkpoint(project.run_dir) is None or newest_checkpoint(project.run_dir).step < 6
    resumed = project.start("data.num_workers=2", resume="auto")
    assert resumed.wait() == 0, resumed.said
    assert_ended_alike(project.run_dir, undisturbed)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.fault("F11", "an item cannot be read, with and without workers")
def test_an_item_that_cannot_be_read_is_named(project: Project, undisturbed: Path, workers: int) -> None:
    failed = project.start(f"data.num_workers={workers}", inject=partial(injections.item_cannot_be_read, LATE_ITEM))
    assert failed.wait(60) == 1
    assert "OSError: the cable is torn" in failed.said
    assert f"while reading item {LATE_ITEM} of the data set" in failed.said
    assert ("in data worker " in failed.said) == bool(workers)
    assert_nothing_is_left(failed)
    resumed = project.start(resume="auto")
    assert resumed.wait() == 0, resumed.said
    assert_ended_alike(project.run_dir, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.fault("F11", "a frame of a video cannot be read: camera, file, episode, frame")
def test_a_frame_that_cannot_be_read_is_named(project: Project, workers: int) -> None:
    root = recorded(project.folder / "set")
    (video,) = root.glob("videos/*/*/file-001.mp4")  # of the second episode
    content = bytearray(video.read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 4] = random.Random(0).randbytes(len(content) // 4)
    video.write_bytes(content)
    project.config.write_text(
        project.config.read_text().replace(
            "{type: drifts}",
            f"{{type: lerobot_dataset_factory, params: {{repo_id: local/set, root: {root}, action_horizon: 1}}}}",
        )
    )
    unvalidated = ("data.validation=null", "train.validate_every=null", "train.keep_best=false")
    failed = project.start(*unvalidated, f"data.num_workers={workers}")
    assert failed.wait(60) == 1, failed.said
    assert "training stopped: 'observation.images.front' of episode 1, frame " in failed.said
    assert f"cannot be read from {video}" in failed.said
    assert_nothing_is_left(failed)


def recorded(root: Path) -> Path:
    """Two episodes of ten frames, each in a video file of its own, made by lerobot itself."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import numpy as np
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        "action": {"dtype": "float32", "shape": (2,), "names": None},
        "observation.state": {"dtype": "float32", "shape": (3,), "names": None},
        "observation.images.front": {"dtype": "video", "shape": (64, 96, 3), "names": ["height", "width", "channels"]},
    }
    dataset = LeRobotDataset.create("local/set", 10, features, root=root, vcodec="h264")
    dataset.meta.update_chunk_settings(video_files_size_in_mb=1e-6)
    chance = np.random.default_rng(0)
    for _ in range(2):
        for _ in range(10):
            numbers = {
                key: chance.normal(size=size).astype(np.float32)
                for key, size in (("action", 2), ("observation.state", 3))
            }
            picture = chance.integers(0, 256, (64, 96, 3)).astype(np.uint8)
            dataset.add_frame({**numbers, "observation.images.front": picture, "task": "see"})
        dataset.save_episode()
    dataset.finalize()
    return root
