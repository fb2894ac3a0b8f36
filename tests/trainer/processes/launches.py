"""Launches: the command line under torchrun, and whatever of it is still alive."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from process_cases import write_project

import trainer

HERE = Path(__file__).parent
REPOSITORY = Path(trainer.__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
SCRIPT = str(REPOSITORY / "trainer/offline_trainer.py")
PATHS = [str(HERE), str(HERE.parent), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SOON_S = 20  # in which all processes end after one of them did


def launch(folder: Path, *overrides: str, command: list[str] = TORCHRUN, **environment: str) -> subprocess.Popen:
    """torchrun in a process group of its own; what its processes inherit names them all."""
    config = write_project(folder)
    arguments = [*command, SCRIPT, "--train_config", str(config), "--set", f"train.save_dir={folder}/run", *overrides]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen(arguments, env={**ENVIRONMENT, "CASE_FOLDER": str(folder), **environment}, **pipes)


def processes_of(folder: Path) -> dict[int, str]:
    """All living processes of a case, by id, with what their environment says of their rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if f"CASE_FOLDER={folder}" in variables and state != "Z":
            found[int(entry.name)] = next((one[5:] for one in variables if one.startswith("RANK=")), "")
    return found


def until(process: subprocess.Popen, word: str) -> str:
    """Read the output up to a line that begins so."""
    read = ""
    for line in process.stdout:
        read += line
        if line.startswith(word):
            return read
    raise AssertionError(read)


def ended(process: subprocess.Popen, folder: Path, within_s: float = SOON_S) -> tuple[str, float]:
    """The rest of the output, and how long it took until nothing of the case was left."""
    began = time.monotonic()
    try:
        rest, _ = process.communicate(timeout=within_s)
        while processes_of(folder) and time.monotonic() - began < within_s:
            time.sleep(0.1)
        assert not processes_of(folder)
    finally:
        for left in processes_of(folder):
            os.kill(left, signal.SIGKILL)
    return rest, time.monotonic() - began


def rank_process(folder: Path, rank: int) -> int:
    """The process of a rank: of those with its RANK (its data workers have it too), the oldest."""
    return min(pid for pid, own in processes_of(folder).items() if own == str(rank))
