"""Recording: what the data set holds, and that under its name there is a whole one or none."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiment_training.components.evaluation import rollouts
from experiment_training.components.evaluation.episode import (
    HELD_OUT_SEED,
    STATE,
)
from experiment_training.quickstart import record as recording
from experiment_training.quickstart.record import (
    TASK,
    Expert,
    Recording,
    RecordingError,
    demonstrate,
    main,
    project_root,
    record,
)

EPISODES = 3  # of the fixture `recorded`
PROJECT = Path(__file__).resolve().parents[2]


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_the_data_set_holds_what_was_demonstrated(recorded: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/pick_place", root=recorded)
    episodes = list(demonstrate(Recording(EPISODES)))
    assert (dataset.num_episodes, dataset.fps) == (EPISODES, 80)
    assert dataset.num_frames == sum(len(episode.actions) for episode in episodes)
    rows = iter(dataset[index] for index in range(dataset.num_frames))
    for number, episode in enumerate(episodes):
        for state, action in zip(episode.states, episode.actions, strict=True):
            row = next(rows)
            assert (row["episode_index"], row["task"]) == (number, TASK)
            assert np.array_equal(row[STATE].numpy(), state)
            assert np.array_equal(row["action"].numpy(), action)


def test_what_is_stored_is_the_experts_answer_without_the_noise() -> None:
    expert = Expert(TASK)
    (calm,), (disturbed,) = (list(demonstrate(Recording(1, noise=noise))) for noise in (0.0, 0.1))
    for state, action in zip(disturbed.states, disturbed.actions, strict=True):
        assert np.array_equal(action, np.clip(expert.select_action({STATE: state}), -1, 1))
    assert np.array_equal(calm.states[0], disturbed.states[0])
    assert np.abs(calm.states[10] - disturbed.states[10]).max() > 1e-4  # the noise was executed


def test_an_episode_that_fails_is_recorded_anew(monkeypatch) -> None:
    attempts = []

    def first_one_fails(*args, **kwargs):
        attempts.append(run_episode(*args, **kwargs))
        return replace(attempts[-1], success=len(attempts) > 1)

    run_episode = rollouts.run_episode
    monkeypatch.setattr(rollouts, "run_episode", first_one_fails)
    (kept,) = demonstrate(Recording(1))
    assert len(attempts) == 2
    assert np.array_equal(kept.states, attempts[1].states)
    assert np.array_equal(attempts[0].states[0], attempts[1].states[0])  # the same placement,
    assert not np.array_equal(attempts[0].states[1], attempts[1].states[1])  # other noise


def test_an_expert_that_always_fails_is_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(recording, "ATTEMPTS", 2)
    with pytest.raises(RecordingError, match=r"failed at 2 of 2 placements, 2 times each, .* 50.0: lower --noise"):
        record(tmp_path / "demonstrations", Recording(1, noise=50.0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_where_the_expert_fails_the_next_placement_takes_its_place(monkeypatch) -> None:
    placed = []

    def fails_at_the_first(environment, placement, *args, **kwargs):
        episode = run_episode(environment, placement, *args, **kwargs)
        placed.append(placement)
        return replace(episode, success=episode.success and placement is not placed[0])

    run_episode = rollouts.run_episode
    monkeypatch.setattr(rollouts, "run_episode", fails_at_the_first)
    kept = list(demonstrate(Recording(2)))
    monkeypatch.undo()
    without_the_first = list(demonstrate(Recording(3)))[1:]
    assert [len(one.states) for one in kept] == [len(one.states) for one in without_the_first]
    for mine, theirs in zip(kept, without_the_first, strict=True):
        assert np.array_equal(mine.states, theirs.states)


def test_a_whole_recording_is_reused(recorded: Path) -> None:
    before = contents(recorded)
    line = record(recorded, Recording(EPISODES))
    frames = sum(len(episode.actions) for episode in demonstrate(Recording(EPISODES)))
    assert line == f"demonstrations: {EPISODES} episodes, {frames} frames, reused from {recorded}"
    assert contents(recorded) == before


def test_a_recording_with_other_settings_is_not_passed_off_as_this_one(recorded: Path, capsys) -> None:
    before = contents(recorded)
    assert main(["--root", str(recorded), "--episodes", "4", "--noise", "0.2"]) == 1
    message = capsys.readouterr().err
    assert "recorded with episodes 3 instead of 4, noise 0.1 instead of 0.2" in message
    assert "remove that folder" in message
    assert contents(recorded) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "recording.json").unlink(), "holds no whole recording"),
        (lambda root: [path.unlink() for path in root.rglob("data/**/*.parquet")], "holds 0 of the"),
        (lambda root: [path.write_bytes(b"PAR1") for path in root.rglob("data/**/*.parquet")], "no whole recording"),
    ],
    ids=["unfinished", "no data", "cut off"],
)
def test_half_a_recording_is_an_error(recorded: Path, tmp_path: Path, damage, message: str) -> None:
    root = tmp_path / "demonstrations"
    for path, (content, _) in contents(recorded).items():
        copy = root / path.relative_to(recorded)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    damage(root)
    with pytest.raises(RecordingError, match=message) as caught:
        record(root, Recording(EPISODES))
    assert "remove that folder" in str(caught.value)


def test_the_held_out_placements_cannot_be_demonstrated(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="held out for the evaluation"):
        record(tmp_path / "demonstrations", Recording(seed=HELD_OUT_SEED))


@pytest.mark.slow
def test_a_killed_recording_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    root = tmp_path / "demonstrations"
    command = [sys.executable, "-m", "experiment_training.quickstart.record", "--root", str(root), "--episodes", "50"]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".*/data/**/*.parquet")):  # it is in the middle of writing
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    abandoned = list(tmp_path.iterdir())
    assert len(abandoned) == 1 and not root.exists()

    stranger = tmp_path / f".{root.name}.recording-{os.getpid()}-of-another"
    stranger.mkdir()
    record(root, Recording(1))
    assert sorted(tmp_path.iterdir()) == sorted([stranger, root])


def test_the_default_place_does_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert project_root() == PROJECT
