"""Watch: something done again whenever one of its model files changes, until Ctrl-C."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import ConfigError
from ..source import Node, read_file

INTERVAL_S = 0.3
SETTLE_S = 0.1
_CLEAR = "\033[2J\033[3J\033[H"

Stamp = tuple[int, int] | None  # when a file was written and its size in bytes; None where there is none


def watch(paths: Iterable[str], act: Callable[[], None]) -> int:
    """Call `act` now, and after each change of a file or of one that it is built from. Returns 0 on Ctrl-C."""
    roots, known = [Path(path) for path in paths], {}
    try:
        while True:
            known = files_of(roots, known)
            seen = _stamps(known)  # before they are read: a change meanwhile is seen below
            print(_CLEAR if sys.stdout.isatty() else "", time.strftime("%H:%M:%S"), sep="", flush=True)
            act()
            sys.stdout.flush()
            while (changed := _stamps(known)) == seen:
                time.sleep(INTERVAL_S)
            while seen != changed:  # until it is written whole
                time.sleep(SETTLE_S)
                seen, changed = changed, _stamps(known)
    except KeyboardInterrupt:
        return 0


def files_of(roots: Iterable[Path], known: dict[Path, list[Path]]) -> dict[Path, list[Path]]:
    """Each file that the roots name, whether it is there or not, and those it names; `known` are those of before.

    A file names another by `defaults` or `blocks`. One that cannot be read now names what it did before.
    """
    found: dict[Path, list[Path]] = {}
    waiting = list(roots)
    while waiting:
        file = waiting.pop()
        if file not in found:
            found[file] = _named(file, known.get(file, []))
            waiting += found[file]
    return found


def _named(file: Path, before: list[Path]) -> list[Path]:
    try:
        nodes = [read_file(file)]
    except ConfigError:
        return before
    named = []
    while nodes:
        node: Node = nodes.pop()
        nodes += [entry for _, entry in node.entries()]
        if isinstance(node.value, str) and node.value.endswith((".yaml", ".yml")) and "\0" not in node.value:
            named.append(Path(os.path.normpath(file.parent / node.value)))
    return named


def _stamps(files: Iterable[Path]) -> dict[Path, Stamp]:
    return {file: _stamp(file) for file in files}


def _stamp(file: Path) -> Stamp:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
