"""A checkpoint is whole or it is not there; what is neither is passed over by name."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer import checkpoint as checkpoints
from trainer.checkpoint import (
    CheckpointError,
    checkpoint_folders,
    locked,
    newest_checkpoint,
    open_checkpoint,
    remove_leftovers,
    remove_old,
    write_checkpoint,
)


def write(run_dir: Path, step: int, value: float = 1.0) -> Path:
    run_dir.mkdir(exist_ok=True)
    tensors = {"head": {"weight": torch.full((100,), value)}, "training_state": {"step": step}}
    return write_checkpoint(run_dir, f"step_{step}", step, tensors, {"head.yaml": "dim: 8\n"}).path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path, 20, 3.5))
    assert (checkpoint.step, checkpoint.components) == (20, ("head",))
    assert torch.equal(checkpoint.tensors("head")["weight"], torch.full((100,), 3.5))
    assert checkpoint.text("head.yaml") == "dim: 8\n"
    assert os.readlink(tmp_path / "latest") == "step_20"  # relative: the run folder can be moved
    assert not list(tmp_path.glob(".tmp-*"))


def test_the_manifest_holds_sizes_and_hashes(tmp_path: Path) -> None:
    path = write(tmp_path, 20)
    files = json.loads((path / "manifest.json").read_text())["files"]
    assert set(files) == {"head.pt", "head.yaml", "training_state.pt"}
    for name, entry in files.items():
        listed = subprocess.run(["sha256sum", path / name], capture_output=True, text=True, check=True).stdout.split()[
            0
        ]
        assert entry == {"size": (path / name).stat().st_size, "sha256": listed}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["head.pt", "head.yaml", "training_state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, flip_one_bit, Path.unlink], ids=["truncated", "one bit", "removed"])
def test_a_damaged_checkpoint_is_passed_over_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, damage
) -> None:
    good = write(tmp_path, 10)
    bad = write(tmp_path, 20)
    if name == "manifest.json" and damage is flip_one_bit:
        (bad / name).write_text("{}")  # a flipped bit of JSON may be JSON still; a manifest of nothing never is one
    else:
        damage(bad / name)
    assert newest_checkpoint(tmp_path).path == good
    message = capsys.readouterr().out
    if not (bad / "manifest.json").exists():
        assert "manifest" in message
    else:
        assert name in message
    assert str(bad) in message


@pytest.mark.parametrize("target", ["step_999", "step_10", None], ids=["nowhere", "an older one", "no link"])
def test_the_newest_is_found_whatever_latest_says(tmp_path: Path, target: str | None) -> None:
    write(tmp_path, 10)
    newest = write(tmp_path, 20)
    (tmp_path / "latest").unlink()
    if target:
        (tmp_path / "latest").symlink_to(target)
    assert newest_checkpoint(tmp_path).path == newest


def test_steps_are_compared_as_numbers_and_epochs_among_them(tmp_path: Path) -> None:
    write(tmp_path, 9)
    write_checkpoint(tmp_path, "epoch_2", 1000, {"training_state": {}}, {})
    write(tmp_path, 100)
    assert newest_checkpoint(tmp_path).path.name == "epoch_2"


def test_other_folders_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "step_x").mkdir()
    (tmp_path / "notes").mkdir()
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "changed",
    [{"step": "a"}, {"files": []}, {"files": {}}, {"components": ["head", "arm"]}, {"components": None}],
    ids=str,
)
def test_a_manifest_that_does_not_name_all_is_none(tmp_path: Path, changed: dict) -> None:
    path = write(tmp_path, 20) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(CheckpointError, match=r"manifest.json cannot be read"):
        open_checkpoint(path.parent)


def test_where_none_is_valid_all_are_named(tmp_path: Path) -> None:
    for step in (10, 20):
        (write(tmp_path, step) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no valid checkpoint:(.|\n)*step_[12]0 (.|\n)*step_[12]0 "):
        newest_checkpoint(tmp_path)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = write(tmp_path, 20)
    torch.save(Hostile(), path / "head.pt")
    with pytest.raises(CheckpointError, match=r"head.pt .*weights_only"):
        checkpoints.Checkpoint(path, 20, ("head",)).tensors("head")
    assert not (tmp_path / "ran").exists()


def test_a_write_that_fails_leaves_the_older_ones_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write(tmp_path, 10)

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", disk_full)
    with pytest.raises(CheckpointError, match=r"step_20 could not be written.*No space left(.|\n)*intact"):
        write(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_10"]
    assert newest_checkpoint(tmp_path).path == good


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    good = write(tmp_path, 10)
    with pytest.raises(CheckpointError, match=r"could not be written: .*head.pt holds something else than tensors"):
        write_checkpoint(tmp_path, "step_20", 20, {"head": {"best": np.float64(0.1)}}, {})
    assert newest_checkpoint(tmp_path).path == good and not list(tmp_path.glob(".tmp*"))


def test_a_run_folder_that_is_gone_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone/step_20 could not be written: .*No such file"):
        write_checkpoint(tmp_path / "gone", "step_20", 20, {"head": torch.zeros(2)}, {})


KILLED_AT_EACH_CALL = """
import os, signal, sys
from pathlib import Path
import torch
from trainer.checkpoint import write_checkpoint
calls = 0
def count(function):
    def counted(*args, **kwargs):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return counted
os.fsync, os.replace, Path.rename, Path.symlink_to = map(count, (os.fsync, os.replace, Path.rename, Path.symlink_to))
tensors = {"head": {"weight": torch.zeros(100)}, "training_state": {"step": 20}}
for attempt in range(int(sys.argv[2]) + 1):
    pid = os.fork()
    if pid == 0:
        sys.argv[2] = str(attempt)
        write_checkpoint(Path(sys.argv[1]) / str(attempt), "step_20", 20, tensors, {"head.yaml": "dim: 8"})
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    print(attempt, status, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_point_of_a_save_a_run_has_a_valid_checkpoint(tmp_path: Path) -> None:
    """One process after another, each killed at its n-th flush, rename or link; the older one is always there."""
    last = 12
    for attempt in range(last + 1):
        write(tmp_path / str(attempt), 10)
    command = [sys.executable, "-c", KILLED_AT_EACH_CALL, str(tmp_path), str(last)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    statuses = {int(attempt): int(status) for attempt, status in (line.split() for line in lines)}
    steps = []
    for attempt in range(last + 1):
        run_dir = tmp_path / str(attempt)
        steps.append(newest_checkpoint(run_dir).step)
        if statuses[attempt] == 0:
            assert steps[-1] == 20
        remove_leftovers(run_dir)
        assert write(run_dir, 20, 2.0).name == "step_20"
        assert newest_checkpoint(run_dir).step == 20
    assert statuses[0] == 0
    assert statuses[1] == signal.SIGKILL
    assert {10, 20} == set(steps)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100, 20):
        write(tmp_path, step)
    remove_old(tmp_path, keep_last=2)
    assert {path.name for path in tmp_path.iterdir()} == {"step_100", "step_20", "latest"}


@pytest.mark.parametrize(
    ("best", "keep_every", "kept"),
    [(None, None, {20, 25}), (5, None, {5, 20, 25}), (None, 10, {10, 20, 25}), (25, 5, {5, 10, 15, 20, 25})],
)
def test_the_best_and_every_so_many_updates_are_kept_too(
    tmp_path: Path, best: int | None, keep_every: int | None, kept: set[int]
) -> None:
    for step in (5, 10, 15, 20, 25):
        tensors = {"training_state": {"step": step}}
        write_checkpoint(tmp_path, f"step_{step}", step, tensors, {}, f"step_{best}")
    remove_old(tmp_path, keep_last=2, keep_every=keep_every)
    assert {open_checkpoint(path).step for path in checkpoint_folders(tmp_path)} == kept
    assert (os.readlink(tmp_path / "best") if best else None) == (f"step_{best}" if best else None)


def test_a_run_folder_is_held_by_one_process_and_let_go_however_it_ends(tmp_path: Path) -> None:
    """Killed, with a child that outlives it as a data worker does for seconds."""
    code = (
        "import os, sys, time; from pathlib import Path; from trainer.checkpoint import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    if os.fork() == 0: time.sleep(20)\n"
        "    print('held', flush=True); time.sleep(20)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(CheckpointError, match=rf"another run is at work in .*: process {holder.pid} on "):
        locked(tmp_path).__enter__()
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_checkpoint_that_cannot_be_removed_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for step in (5, 10):
        write(tmp_path, step)

    def refused(*_: object) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "rename", refused)
    remove_old(tmp_path, keep_last=1)
    assert "could not remove the old checkpoint" in capsys.readouterr().out
    assert newest_checkpoint(tmp_path).step == 10
