"""Files: written beside under a temporary name, flushed to disk, and renamed: a reader finds the old or the new one."""

import os
from pathlib import Path
from typing import IO

TEMPORARY = ".tmp-"


def replace_text(path: Path, text: str) -> None:
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    beside = path.with_name(f"{TEMPORARY}{path.name}")
    write_bytes(beside, content)
    os.replace(beside, path)


def write_bytes(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        flush(file)


def flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """What was renamed into it, or out of it."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
