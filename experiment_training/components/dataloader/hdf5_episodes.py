"""HDF5 episodes: one file per episode, as ACT and ALOHA record them -> Columns.

A file holds /action [T, A], /observations/<key> [T, D], and /observations/images/<camera>: either raw pictures
[T, H, W, C] or one encoded picture (JPEG, PNG) per frame, [T, L] padded with zeros or [T] of variable length.
Numbers are read once and kept; pictures are read frame by frame from files that stay open.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model_constructor.errors import ConfigError, Problem, nearest
from trainer.data.cameras import Camera, channels_first, map_in_threads
from trainer.data.columns import Columns

ACTION, OBSERVATIONS, IMAGES = "action", "observations", "observations/images"


@dataclass(frozen=True)
class Episode:
    """What is kept of one file; keys are those of the file."""

    path: Path
    numbers: Mapping[str, np.ndarray]  # key -> [T, D] float32
    pictures: Mapping[str, str]  # key -> "[H, W, C]", or "encoded": only decoding would tell

    @property
    def length(self) -> int:
        return len(self.numbers[ACTION])


class HdfCamera:
    """One camera of all episodes: a `trainer.data.cameras.Camera`."""

    def __init__(self, key: str, files: Sequence[Path], episode_start: Tensor) -> None:
        self.key, self.files = key, list(files)
        # A copy: torch moves a tensor that goes to a worker into shared memory, and a view keeps the freed place.
        self.episode_start = episode_start.numpy().copy()  # [E] the set's first frame of each episode

    def read(self, frames: Sequence[int]) -> Tensor:
        episodes = self._episodes(frames)
        steps = np.asarray(frames) - self.episode_start[episodes]
        datasets = {episode: _opened(self.files[episode])[self.key] for episode in np.unique(episodes)}
        stored = [datasets[episode][step] for episode, step in zip(episodes, steps, strict=True)]
        pictures = stored if stored[0].ndim == 3 else map_in_threads(decoded, stored)
        return torch.from_numpy(np.stack([channels_first(picture) for picture in pictures]))  # [M, C, H, W]

    def file(self, frame: int) -> Path:
        return self.files[self._episodes([frame])[0]]

    def _episodes(self, frames: Sequence[int]) -> np.ndarray:
        return np.searchsorted(self.episode_start, frames, side="right") - 1


def decoded(encoded: np.ndarray) -> np.ndarray:
    """An encoded picture -> [H, W, 3] uint8, red first, as any viewer shows it; zeros behind its end do not matter."""
    return np.asarray(Image.open(io.BytesIO(encoded.tobytes())).convert("RGB"))


@lru_cache(maxsize=64)
def _opened(path: Path) -> h5py.File:
    """A file that stays open; the one not used for longest makes room, and closes when nobody holds it."""
    return h5py.File(path, "r")


os.register_at_fork(after_in_child=_opened.cache_clear)  # a worker opens its own, and shares no file position


def episode_files(pattern: Path) -> list[Path]:
    """The files of a folder, or those that a glob matches; episode_2 comes before episode_10."""
    found: Iterable[Path]
    if pattern.is_dir():
        found = [path for path in pattern.iterdir() if path.suffix in (".hdf5", ".h5")]
    else:
        found = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
    return sorted(
        found, key=lambda path: [part.zfill(20) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]
    )


def read_episodes(
    files: Sequence[Path], state_keys: Sequence[str], cameras: Sequence[str] | None, fps: float, task: str
) -> Columns:
    """Episode e is `files[e]`; `observation.state` joins the `state_keys`; `cameras` None: those of the first file.

    Raises ConfigError with everything that is wrong in any of the files.
    """
    keys = [ACTION, *(f"{OBSERVATIONS}/{key}" for key in state_keys)]
    images = None if cameras is None else [f"{IMAGES}/{name}" for name in cameras]
    episodes: list[Episode] = []
    problems: list[Problem] = []
    told: dict[str, list[Problem]] = {}  # the same of several files is told once
    for path in files:
        try:
            with h5py.File(path, "r") as file:
                if images is None:
                    images = [f"{IMAGES}/{name}" for name in sorted(file.get(IMAGES, ()))]
                episodes.append(_read(path, file, keys, images))
        except ConfigError as error:
            for problem in error.problems:
                told.setdefault(problem.message.replace(str(path), ""), []).append(problem)
        except (OSError, RuntimeError) as error:  # what h5py makes of a file that is cut off or no HDF5 at all
            why = " ".join(f"{error}".split())[:160]
            hint = "record or copy it again, or move it away"
            problems.append(Problem(f"{path} cannot be read as HDF5 ({why})", hint=hint))
    for first, *others in told.values():
        more = f"; the same holds of {len(others)} more files" if others else ""
        problems.append(Problem(first.message + more, first.place, first.hint))
    problems += [problem for episode in episodes for problem in _differences(episodes[0], episode)]
    if problems:
        raise ConfigError(problems)
    return _columns(episodes, keys[1:], images or [], fps, task)


def _read(path: Path, file: h5py.File, keys: Sequence[str], images: Sequence[str]) -> Episode:
    problems = [
        Problem(f"{path} has no data set '{key}'", hint=nearest(key, _names(file)))
        for key in [*keys, *images]
        if not isinstance(file.get(key), h5py.Dataset)
    ]
    if problems:
        raise ConfigError(problems)
    for key in keys:
        if file[key].ndim != 2 or file[key].dtype.kind not in "biuf":
            problems.append(Problem(f"'{key}' of {path} is {_kind(file[key])}", hint="numbers of the shape [T, D]"))
    for key in images:
        if _picture_shape(file[key]) is None:
            right = "uint8 [T, H, W, C], or encoded pictures: uint8 [T, L], or [T] of variable length"
            problems.append(Problem(f"'{key}' of {path} is {_kind(file[key])}", hint=right))
    lengths = {key: file[key].shape[0] for key in [*keys, *images] if file[key].ndim}
    if len({*lengths.values()}) > 1 or {*lengths.values()} == {0}:
        told = ", ".join(f"'{key}' {length}" for key, length in lengths.items())
        problems.append(
            Problem(f"{path} does not hold the same frames of everything: {told}", hint="at least one each")
        )
    if problems:
        raise ConfigError(problems)
    numbers = {key: file[key][()].astype(np.float32) for key in keys}
    return Episode(path, numbers, {key: _picture_shape(file[key]) or "" for key in images})


def _picture_shape(dataset: h5py.Dataset) -> str | None:
    """None: these are no pictures."""
    if dataset.ndim == 4 and dataset.dtype == np.uint8:
        return f"{list(dataset.shape[1:])}"
    encoded = dataset.ndim == 2 and dataset.dtype == np.uint8
    variable = dataset.ndim == 1 and h5py.check_vlen_dtype(dataset.dtype) == np.uint8
    return "encoded" if encoded or variable else None


def _differences(first: Episode, episode: Episode) -> Iterator[Problem]:
    hint = "all episodes of a data set have the same widths"
    for key, values in episode.numbers.items():
        if (found := values.shape[1]) != (expected := first.numbers[key].shape[1]):
            message = f"'{key}' has {found} dimensions in {episode.path}, and {expected} in {first.path}"
            yield Problem(message, hint=hint)
    for key, shape in episode.pictures.items():
        if shape != first.pictures[key]:
            yield Problem(f"'{key}' is {shape} in {episode.path}, and {first.pictures[key]} in {first.path}", hint=hint)


def _columns(
    episodes: Sequence[Episode], states: Sequence[str], images: Sequence[str], fps: float, task: str
) -> Columns:
    lengths = torch.tensor([episode.length for episode in episodes])
    end = lengths.cumsum(0)
    start = end - lengths
    frame_index = torch.cat([torch.arange(length) for length in lengths.tolist()])
    joined = {"action": [ACTION]} | ({"observation.state": states} if states else {})
    numbers = {
        name: torch.from_numpy(
            np.concatenate([np.concatenate([one.numbers[key] for key in keys], axis=1) for one in episodes])
        )
        for name, keys in joined.items()
    }
    numbers |= {
        "timestamp": (frame_index / fps).float(),
        "frame_index": frame_index,
        "episode_index": torch.arange(len(episodes)).repeat_interleave(lengths),
        "index": torch.arange(len(frame_index)),
    }
    files = [episode.path for episode in episodes]
    cameras: dict[str, Camera] = {
        f"observation.images.{key.rpartition('/')[2]}": HdfCamera(key, files, start) for key in images
    }
    digest = hashlib.sha256(repr([(path.name, path.stat().st_size) for path in files]).encode())
    for name in joined:
        digest.update(numbers[name].numpy().tobytes())
    return Columns(
        files[0].parent,
        fps,
        numbers,
        {"task": [task] * len(frame_index)},
        start,
        end,
        cameras,
        digest.hexdigest(),
    )


def _names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, entry: names.append(name) if isinstance(entry, h5py.Dataset) else None)
    return names


def _kind(dataset: h5py.Dataset) -> str:
    return f"{dataset.dtype} {list(dataset.shape)}"
