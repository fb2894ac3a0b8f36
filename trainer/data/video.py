"""Video: frames of mp4 files by their time, as LeRobotDataset picks them, from files that stay open.

FFmpeg decodes, either through PyAV, which brings its own, or through torchcodec, which needs one that is installed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from model_constructor.errors import ConfigError, Problem
from trainer.data.cameras import TOLERANCE_S, channels_first, map_in_threads

if TYPE_CHECKING:
    import av

OPEN_FILES = 32
"""So many files stay open in a process; the one that was not used for longest makes room."""

Backend = Literal["pyav", "torchcodec"]


class VideoFile(Protocol):
    def read(self, seconds: Sequence[float]) -> Sequence[np.ndarray]:
        """Ascending times -> the frame at each, uint8 [C, H, W]."""
        ...


class VideoFrames:
    """The camera of a set whose episodes lie, one behind the other, in video files."""

    def __init__(
        self,
        files: Sequence[Path],
        file_start_s: Sequence[float],
        episode_start: Tensor,
        timestamps: Tensor,
        backend: Backend,
    ) -> None:
        self.files = list(files)  # [E] of each episode
        self.file_start_s = np.array(file_start_s)  # [E] where the episode begins in its file
        # [E] its first frame; a copy, since torch moves the memory of a tensor that it sends to another process
        self.episode_start = episode_start.numpy().copy()
        self.timestamps = timestamps  # [F] seconds since the episode began
        self.backend: Backend = backend

    def read(self, frames: Sequence[int]) -> Tensor:
        episodes = self._episodes(frames)
        seconds = self.file_start_s[episodes] + self.timestamps[list(frames)].double().numpy()
        positions: dict[Path, list[int]] = {}  # of each file's frames in `frames`
        for position in np.argsort(seconds, kind="stable").tolist():
            positions.setdefault(self.files[episodes[position]], []).append(position)

        def decode(file: Path) -> Sequence[np.ndarray]:
            return _read(self.backend, file, seconds[positions[file]].tolist())

        pictures: dict[int, np.ndarray] = {}
        for places, decoded in zip(positions.values(), map_in_threads(decode, positions), strict=True):
            pictures |= zip(places, decoded, strict=True)
        stacked = np.stack([pictures[position] for position in range(len(frames))])
        return torch.from_numpy(stacked)  # [M, C, H, W]

    def file(self, frame: int) -> Path:
        return self.files[self._episodes([frame])[0]]

    def _episodes(self, frames: Sequence[int]) -> np.ndarray:
        return np.searchsorted(self.episode_start, frames, side="right") - 1


def pick_backend(asked: Backend | None) -> Backend:
    """The one that is asked for, else torchcodec where it can load, else PyAV: what lerobot means to do."""
    if asked == "pyav":
        return "pyav"
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        if asked is None:
            return "pyav"
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            Problem(f"video_backend torchcodec cannot be loaded: {reason}", hint="install FFmpeg, or choose pyav")
        ) from error
    return "torchcodec"


_open: dict[tuple[int, Backend, Path], VideoFile] = {}
"""By process, since a forked one must not touch its parent's decoders. A file that is being read is not in here."""


def _read(backend: Backend, path: Path, seconds: Sequence[float]) -> Sequence[np.ndarray]:
    key = (os.getpid(), backend, path)
    video = _open.pop(key, None) or (PyavFile(path) if backend == "pyav" else TorchcodecFile(path))
    frames = video.read(seconds)  # a decoder that raised is not used again
    _open[key] = video
    mine = [other for other in list(_open) if other[0] == key[0]]
    for oldest in mine[: len(mine) - OPEN_FILES]:
        _open.pop(oldest, None)
    return frames


class PyavFile:
    """Decodes forward while the next frame is near, and jumps to the key frame before it when it is not."""

    def __init__(self, path: Path) -> None:
        import av

        self._container = av.open(str(path), metadata_errors="ignore")
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1  # files are decoded in parallel, and a worker has one core
        self._tick_s = float(self._stream.time_base or 1)
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._now = math.inf  # the last decoded frame, in ticks; infinite: a jump has to come first
        self._near = 0  # the farthest that a wanted frame was seen to lie behind its key frame, in ticks

    def read(self, seconds: Sequence[float]) -> list[np.ndarray]:
        return [self._read(second) for second in seconds]

    def _read(self, second: float) -> np.ndarray:
        tolerance_s = TOLERANCE_S + float(np.spacing(np.float32(second)))  # times are stored as float32
        first, last = (
            math.ceil((second - tolerance_s) / self._tick_s),
            math.floor((second + tolerance_s) / self._tick_s),
        )
        is_near = self._now < first <= self._now + self._near
        frame = self._forward(first) if is_near else self._jump(first, last)
        if frame is None or frame.pts > last:
            raise ValueError(f"the video has no frame at {second:.4f} s")
        return channels_first(frame.to_rgb().to_ndarray())

    def _forward(self, tick: float) -> av.VideoFrame | None:
        """The next frame that is not before `tick`."""
        for frame in self._frames:
            if frame.pts >= tick:
                self._now = frame.pts
                return frame
        self._now = math.inf
        return None

    def _jump(self, first: int, last: int) -> av.VideoFrame | None:
        """The frame at `first`, or the one behind it.

        A file is searched by the order of decoding. With open groups of pictures the key frame that is found may be
        shown after the frame that is wanted; then the search begins earlier.
        """
        back_s = 0
        while True:
            start = max(0, last - round(back_s / self._tick_s))
            self._container.seek(start, backward=True, any_frame=False, stream=self._stream)
            self._frames = self._container.decode(self._stream)
            key_frame = self._forward(-math.inf)
            if key_frame is None or key_frame.pts <= last or start == 0:
                break
            back_s = 2 * back_s or 1
        if key_frame is None or key_frame.pts >= first:
            return key_frame
        self._near = max(self._near, first - key_frame.pts)
        return self._forward(first)


class TorchcodecFile:
    """Decodes by number, which is the time times the file's frame rate, as LeRobotDataset does."""

    def __init__(self, path: Path) -> None:
        from torchcodec.decoders import VideoDecoder

        self._decoder = VideoDecoder(str(path), seek_mode="approximate")

    def read(self, seconds: Sequence[float]) -> Sequence[np.ndarray]:
        fps = self._decoder.metadata.average_fps
        assert fps is not None, "the file does not say how many frames a second has"
        numbers = [round(second * fps) for second in seconds]
        found = self._decoder.get_frames_at(indices=numbers)
        for second, found_second in zip(seconds, found.pts_seconds.tolist(), strict=True):
            if abs(second - found_second) > TOLERANCE_S + np.spacing(np.float32(second)):
                raise ValueError(f"the video has no frame at {second:.4f} s; the nearest is at {found_second:.4f} s")
        return list(found.data.numpy())
