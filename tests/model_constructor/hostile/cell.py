"""Cell: a process in which files nobody trusts are built, and what it saw of each.

`Cell` is the side of the tests. Run as a script, this file is the process inside: it reads the path of a file from a
line, builds the file as one that is not trusted, and answers with a `Fate`. An audit hook sees whatever Python does on
the way and stops what a model has no business with.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[3]
SECONDS = 2.0  # of CPU time for one file
BYTES = 2**30  # that one file may make the process grow by
ADDRESSES = 8 * 2**30  # of address space beyond what torch takes, so that nothing hurts the machine
PATIENCE = 10.0  # seconds until a process that says nothing is given up

# What the hook stops wherever it comes from. Python's own imports are told apart by their frames.
FORBIDDEN = (
    "os.system os.exec os.posix_spawn os.fork os.forkpty os.spawn os.startfile os.kill os.remove os.rename os.rmdir "
    "os.mkdir os.link os.symlink os.truncate os.chmod os.chown os.putenv os.unsetenv os.chdir subprocess.Popen "
    "socket shutil ctypes mmap pickle.find_class marshal webbrowser.open urllib.Request tempfile code.__new__ "
    "sys.settrace sys.setprofile syslog pty.spawn ftplib http.client smtplib"
).split()
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(slots=True)
class Fate:
    """What became of a file. `kind` is "model", "refused", the name of another exception, "silent" or "dead"."""

    kind: str
    message: str = ""
    places: list[str | None] = field(default_factory=list)  # of each problem, as file:line:column
    seconds: float = 0.0  # of CPU time
    grew: int = 0  # bytes
    seen: list[str] = field(default_factory=list)  # what the hook stopped, and global state that changed

    @property
    def harmless(self) -> bool:
        return not self.seen and self.seconds < SECONDS and self.grew < BYTES


class Cell:
    """Keeps one process, and starts another when a file has ended it.

    warm: files that the process builds first, since what they import is imported once.
    misbehave: a Python file whose `act()` takes the place of every later build, to see what the process sees.
    """

    def __init__(self, *warm: Path, misbehave: Path | None = None) -> None:
        self._arguments = [str(misbehave or ""), *map(str, warm)]
        self._process: subprocess.Popen[str] | None = None

    def build(self, path: Path) -> Fate:
        if self._process is None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, __file__, *self._arguments]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=ROOT)
            assert self._answer(300) == {"kind": "ready"}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(str(path)) + "\n")
        self._process.stdin.flush()
        answer = self._answer(PATIENCE)
        if "places" not in answer:
            self.close()
        return Fate(**answer)

    def _answer(self, patience: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], patience)[0]:
            return {"kind": "silent"}
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"kind": "dead"}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


# inside


class Guard:
    """The audit hook. It records, and stops, what it is on guard against while `folder` is set."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or not self._is_forbidden(event, arguments):
            return
        shown = f"{event} {arguments!r:.200} by {_caller().f_code.co_filename}"
        self.seen.append(shown)
        raise PermissionError(shown)

    def _is_forbidden(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            path, _, flags = arguments
            return bool(flags & WRITING) or not self._may_read(path)
        if event == "import":
            caller = _caller().f_code.co_filename
            return caller.startswith(str(ROOT / "model_constructor")) and arguments[0].split(".")[0] not in KNOWN
        if event in ("exec", "compile"):
            return not _is_importing() and _caller().f_code.co_filename not in COMPILERS
        return _is_listed(event) and not _is_importing()

    def _may_read(self, path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # a descriptor: of something that was opened before
        path = os.fsdecode(path)
        if path.endswith((".yaml", ".yml")):
            return True  # a file may start from any other
        real = os.path.realpath(path)
        return real.startswith((str(self.folder), str(ROOT), sys.prefix, sys.base_prefix, "/proc/self/"))


@cache
def _is_listed(event: str) -> bool:
    return any(event == name or event.startswith(f"{name}.") for name in FORBIDDEN)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            yield frame
        frame = frame.f_back


def _caller() -> FrameType:
    """The innermost frame that is not of the machinery of imports."""
    return next((f for f in _frames() if "importlib" not in f.f_code.co_filename), sys._getframe())


def _is_importing() -> bool:
    return any(frame.f_code.co_filename == "<frozen importlib._bootstrap>" for frame in _frames())


def _fate(path: str, guard: Guard) -> Fate:
    from model_constructor import ConfigError, build_model

    before, state = _memory("VmRSS"), _state()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    used = _memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES, resource.RLIM_INFINITY))
    guard.folder, guard.seen = os.path.realpath(os.path.dirname(path)), []
    began, fate = time.process_time(), Fate("model")
    try:
        model = build_model(path, untrusted=True)
        fate.seconds = time.process_time() - began
        again = build_model(model.spec)
        code = model.code.replace(f"class {type(model).__name__}(", "class model(")
        if code != again.code:
            fate.kind, fate.message = "its specification builds another model", f"{code}\n---\n{again.code}"
    except ConfigError as error:
        fate = Fate("refused", str(error), [str(p.place) if p.place else None for p in error.problems])
    except BaseException as error:
        fate = Fate(type(error).__name__, str(error))
    fate.seconds = fate.seconds or time.process_time() - began
    guard.folder = None
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    fate.grew = _memory("VmHWM") - before
    fate.seen = guard.seen + [f"{name} changed" for name, value in _state().items() if state[name] != value]
    return fate


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def _state() -> dict[str, Any]:
    """What a file could change for everyone else in the process."""
    import torch

    from model_constructor import names

    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "recursion": sys.getrecursionlimit(),
        "warnings": len(warnings.filters),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "registered": (names.TYPES.keys(), names.OPS.keys()),
        "torch": (len(vars(torch)), len(vars(torch.nn)), len(vars(torch.Tensor))),
    }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.path.insert(0, str(ROOT))
    import torch

    import model_constructor
    from model_constructor import ConfigError, build_model, compiler

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    misbehave, *warm = sys.argv[1:]
    for file in warm:  # what is imported late is imported now
        with suppress(ConfigError):
            build_model(build_model(file).spec).code  # noqa: B018
    KNOWN.update(name.split(".")[0] for name in sys.modules)
    COMPILERS.update((compiler.__file__, __import__("ast").__file__))
    if misbehave:
        exec(Path(misbehave).read_text(), scope := {})
        model_constructor.build_model = lambda path, **_: scope["act"]()
    guard = Guard()
    sys.addaudithook(guard)
    print(json.dumps({"kind": "ready"}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(_fate(json.loads(line), guard))), file=answers, flush=True)


KNOWN: set[str] = set()  # packages that may be imported, once main has run
COMPILERS: set[str] = set()  # files that may run code they have made

if __name__ == "__main__":
    main()
