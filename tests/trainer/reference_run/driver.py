"""Driver: jobs (a JSON line each, on stdin) -> runs of the trainer's command line, each in forked processes.

torch and the trainer are imported once, so a run that is interrupted fifty times takes seconds. A job can end its
processes in every way that this part of the tests is about; a process that ends early takes the others with it, as on
a machine that goes down.
"""

import functools
import io
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent)]
STOPPED = 99  # the exit status of a process that stopped at an event
ON_DISK = ("fsync", "replace", "rename", "symlink", "mkdir", "unlink", "rmdir")


class Events:
    """Counts what this process does to its files; at the `stop_at`-th, it is gone."""

    def __init__(self, stop_at: int | None) -> None:
        import torch

        from trainer import checkpoint, files
        from trainer.metrics import MetricsFile

        self.names: list[str] = []
        self._stop_at, self._process = stop_at, os.getpid()
        for name in ON_DISK:
            setattr(os, name, self._counted(name, getattr(os, name)))
        MetricsFile.write = self._counted("line", MetricsFile.write)
        torch.save = self._in_halves(torch.save)
        write_bytes = files.write_bytes

        def text_in_halves(path: Path, content: bytes) -> None:
            path.write_bytes(content[: len(content) // 2])
            self._happened("half a text")
            write_bytes(path, content)

        files.write_bytes = checkpoint.write_bytes = text_in_halves

    def _counted(self, name: str, function: Any) -> Any:
        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self._happened(name)
            return result

        return counted

    def _in_halves(self, save: Any) -> Any:
        def save_in_halves(value: Any, file: Any, **how: Any) -> None:
            if how:  # what travels between processes
                return save(value, file, **how)
            whole = io.BytesIO()
            save(value, whole)
            content = whole.getvalue()
            for name, part in (("half", content[: len(content) // 2]), ("save", content[len(content) // 2 :])):
                file.write(part)
                file.flush()
                self._happened(name)

        return save_in_halves

    def _happened(self, name: str) -> None:
        if os.getpid() != self._process:
            return  # a data worker
        self.names.append(name)
        if len(self.names) == self._stop_at:
            os._exit(STOPPED)


def run_in_this_process(job: dict[str, Any], rank: int, port: int) -> int:
    import torch

    from trainer.build import Run
    from trainer.offline_trainer import main

    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    torch.set_num_threads(job.get("threads", 1))
    if job["processes"] > 1:
        size = str(job["processes"])
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= job.get("environment", {})
    events = Events(job.get("stop_at_event")) if rank == 0 else None
    if "sigterm" in job or "kill_behind" in job:
        step = Run.step

        def step_and_signal(run: Run, batch: Any, update: int) -> Any:
            if [update, rank] == job.get("sigterm"):
                os.kill(os.getpid(), signal.SIGTERM)
            if update == job.get("kill_behind", [None])[0]:
                threading.Timer(job["kill_behind"][1], os.kill, (os.getpid(), signal.SIGKILL)).start()
            return step(run, batch, update)

        Run.step = step_and_signal
    code = main(["--train_config", job["config"], "--resume", job["resume"], "--set", *job["overrides"]])
    if events is not None:
        Path(f"{job['log']}.events").write_text(json.dumps(events.names))
    return code


def run(job: dict[str, Any]) -> list[int]:
    """The exit status of each rank; negative: the signal that ended it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes: dict[int, int] = {}  # process -> rank
    for rank in range(job["processes"]):
        if (process := os.fork()) == 0:
            code = 1
            try:
                code = run_in_this_process(job, rank, port)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        processes[process] = rank
    kill_at = time.monotonic() + job.get("kill_after_s", 3600)
    codes = [0] * job["processes"]
    while processes:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process in processes:
            codes[processes.pop(process)] = os.waitstatus_to_exitcode(status)
        if time.monotonic() >= kill_at or STOPPED in codes or -signal.SIGKILL in codes:
            for other in processes:
                os.kill(other, signal.SIGKILL)
        time.sleep(0.005)
    return codes


def serve() -> None:
    """Whatever a run imports on its way is imported by building one here, with one thread: a fork has no others."""
    import matplotlib.pyplot  # noqa: F401
    import torch

    import trainer.training  # noqa: F401
    from trainer.build import build_run
    from trainer.config import load_run_config
    from trainer.distributed import World

    torch.set_num_threads(1)
    build_run(load_run_config(HERE / "config.yaml", []), World())
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
