"""Columns: a data set as contiguous tensors and cameras, frame after frame; windows of them are index arithmetic.

Columns (one tensor per number, one camera per picture) -> ColumnDataset (items, batches, statistics)

Shapes: F frames of the set, E episodes, N frames of the chosen episodes, B batch, T steps of a window,
D size of a feature, M distinct frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from model_constructor.errors import ConfigError, Problem, nearest
from trainer.data.cameras import TOLERANCE_S, Camera, UnreadableFrame, map_in_threads
from trainer.data.statistics import column_statistics


@dataclass(frozen=True)
class Columns:
    """All features of a data set, frame after frame, episode after episode."""

    root: Path
    fps: float
    numbers: dict[str, Tensor]  # key -> [F, *D]; "episode_index" and "frame_index" are two of them
    texts: dict[str, list[str]]  # key -> F strings; "task" is one of them
    episode_start: Tensor  # [E] first frame of each episode
    episode_end: Tensor  # [E] one past its last frame
    cameras: dict[str, Camera] = field(default_factory=dict)
    fingerprint: str = ""  # changes when the content of the set does
    reopen: tuple[Callable[..., Columns], tuple] | None = None  # how another process gets what is not in memory

    def __reduce_ex__(self, protocol: Any) -> Any:
        """In-memory columns travel to workers, where torch shares them; mapped ones are mapped again."""
        return self.reopen or super().__reduce_ex__(protocol)

    @property
    def episodes(self) -> range:
        return range(len(self.episode_start))


MAX_WINDOW = 100_000  # steps; a batch of 32 such windows takes 0.1 s to gather, and far longer ones no time can hold


def frame_offsets(steps: Sequence[int], hz: float, fps: float) -> list[int]:
    """Steps of a window at `hz` -> frames relative to the current one."""
    if len(steps) > MAX_WINDOW:
        hint = f"action_horizon, obs_proprio_history and obs_images_history are at most {MAX_WINDOW:,}"
        raise ConfigError(Problem(f"a window of {len(steps):,} steps is asked for", hint=hint))
    exact = [step / hz * fps for step in steps]
    if any(abs(offset - round(offset)) / fps > TOLERANCE_S for offset in exact):
        fits = ", ".join(f"{fps / frames:g}" for frames in (1, 2, 4, 8) if fps % frames == 0)
        raise ConfigError(
            Problem(f"HZ {hz:g} does not fit a data set of {fps:g} fps", hint=f"fps divided by a whole number: {fits}")
        )
    return [round(offset) for offset in exact]


class ColumnDataset(Dataset[dict[str, Any]]):
    """Windows over the frames of some episodes of a set, clamped at each episode's edges.

    `windows` maps a key to frame offsets, oldest first: the key becomes [T, *D], with a mask `<key>_is_pad` [T] of the
    steps outside the episode. All other features are those of the frame itself. Pictures are uint8, channels first.
    """

    draws_nothing = stacks_items = True  # see trainer.data.seeded

    def __init__(
        self, columns: Columns, windows: Mapping[str, Sequence[int]], episodes: Sequence[int] | None = None
    ) -> None:
        _check_request(columns, windows, episodes)
        self.columns = columns
        self.windows = {key: np.array(offsets) for key, offsets in windows.items()}  # [T]
        chosen = torch.tensor(columns.episodes if episodes is None else episodes)
        self.frames = torch.isin(columns.numbers["episode_index"], chosen).nonzero().squeeze(-1)
        """[N] the set's frames behind this data set's indices."""
        _check_finite(columns, self.frames)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch in one gather per feature: tensors are stacked, texts are lists. Raises UnreadableFrame.

        Indices are worked out in numpy, whose small operations cost a fraction of torch's; values are gathered by
        torch, whose memory is aligned: by how it is, a matrix product may round.
        """
        frame_B = self.frames.numpy()[np.asarray(indices)]
        episode_B = self.columns.numbers["episode_index"].numpy()[frame_B]
        start_B1 = self.columns.episode_start.numpy()[episode_B, None]
        last_B1 = self.columns.episode_end.numpy()[episode_B, None] - 1
        batch: dict[str, Any] = {}

        def wanted(key: str) -> np.ndarray:
            """The frames [B] or [B, T] of a key; those of a window come with its mask."""
            if key not in self.windows:
                return frame_B
            wanted_BT = frame_B[:, None] + self.windows[key]
            inside_BT = np.minimum(np.maximum(wanted_BT, start_B1), last_B1)
            batch[f"{key}_is_pad"] = torch.from_numpy(inside_BT != wanted_BT)
            return inside_BT

        of_the_frame = torch.from_numpy(frame_B)
        for key, column in self.columns.numbers.items():
            batch[key] = column[torch.from_numpy(wanted(key)) if key in self.windows else of_the_frame]
        pictures = {key: wanted(key) for key in self.columns.cameras}
        batch |= zip(pictures, map_in_threads(self._read, pictures.items()), strict=True)  # [B, (T,) C, H, W]
        frames = frame_B.tolist()
        return batch | {key: [text[frame] for frame in frames] for key, text in self.columns.texts.items()}

    def _read(self, request: tuple[str, np.ndarray]) -> Tensor:
        """(camera, frames in any shape) -> their pictures; one that is wanted several times is decoded once."""
        key, wanted = request
        frame_M, position = np.unique(wanted, return_inverse=True)
        camera, frames = self.columns.cameras[key], frame_M.tolist()
        try:
            return torch.from_numpy(camera.read(frames).numpy()[position.reshape(wanted.shape)])
        except Exception:
            self._blame(key, frames)
            raise

    def _blame(self, key: str, frames: Sequence[int]) -> None:
        """Raises UnreadableFrame for the frame that cannot be read, or is of another size than those before it."""
        expected: list[int] = []
        for frame in frames:
            try:
                shape = list(self.columns.cameras[key].read([frame]).shape[1:])
                expected = expected or shape
                if shape != expected:
                    raise ValueError(f"it is {shape}, the frames before it are {expected}")
            except Exception as error:
                raise UnreadableFrame(self._describe(key, frame, error)) from error

    def _describe(self, key: str, frame: int, error: Exception) -> str:
        episode, number = (int(self.columns.numbers[name][frame]) for name in ("episode_index", "frame_index"))
        file = self.columns.cameras[key].file(frame)
        return f"'{key}' of episode {episode}, frame {number} cannot be read from {file} ({_words(error)})"

    def statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """Of each windowed float key, over this data set's frames; no picture is decoded."""
        return mixed_statistics([self], [1.0])

    @property
    def fingerprint(self) -> str:
        """Changes with the content of the set and with the choice of episodes, hence with what an index means."""
        digest = hashlib.sha256(self.columns.fingerprint.encode())
        digest.update(self.frames.numpy().tobytes())
        return digest.hexdigest()[:32]


def mixed_statistics(datasets: Sequence[ColumnDataset], shares: Sequence[float]) -> dict[str, dict[str, np.ndarray]]:
    """Of each windowed float key, over the frames of sets that are drawn in proportion to `shares`."""
    numbers = datasets[0].columns.numbers
    keys = [key for key in datasets[0].windows if key in numbers and numbers[key].is_floating_point()]
    return {key: column_statistics([one.columns.numbers[key][one.frames] for one in datasets], shares) for key in keys}


def _check_request(columns: Columns, windows: Mapping[str, Sequence[int]], episodes: Sequence[int] | None) -> None:
    known = [*columns.numbers, *columns.cameras]
    problems = [
        Problem(f"the data set at {columns.root} has no numbers or pictures '{key}'", hint=nearest(key, known))
        for key in windows
        if key not in known
    ]
    chosen = columns.episodes if episodes is None else episodes
    if missing := sorted(set(chosen) - set(columns.episodes)):
        problems.append(
            Problem(
                f"the data set at {columns.root} has no episode {', '.join(map(str, missing))}",
                hint=f"its episodes are 0 to {len(columns.episodes) - 1}",
            )
        )
    if not len(chosen):
        problems.append(Problem("no episode is chosen", hint="leave `episodes` out to use all of them"))
    longest = int((columns.episode_end - columns.episode_start).max())
    problems += [
        Problem(
            f"the window of '{key}' has {len(offsets):,} steps, more than ten times the {longest:,} frames of the "
            "longest episode: nearly all of it would be padding",
            hint="lower action_horizon, or the history",
        )
        for key, offsets in windows.items()
        if len(offsets) > 10 * longest
    ]
    first_frames = [int(columns.episode_start[episode]) for episode in chosen if episode in columns.episodes]
    for key, camera in columns.cameras.items():
        missing_files = sorted(file for file in set(map(camera.file, first_frames)) if not file.is_file())
        problems += [
            Problem(f"the data set at {columns.root} has no file {file}, which holds '{key}'") for file in missing_files
        ]
    if problems:
        raise ConfigError(problems)


def _check_finite(columns: Columns, frames: Tensor) -> None:
    problems = []
    for key, column in columns.numbers.items():
        if not column.is_floating_point():
            continue
        finite_F = column.isfinite().reshape(len(column), -1).all(dim=1)
        bad = frames[~finite_F[frames]]
        if len(bad):
            episode = int(columns.numbers["episode_index"][bad[0]])
            frame = int(columns.numbers["frame_index"][bad[0]])
            problems.append(
                Problem(
                    f"'{key}' is not finite in {len(bad)} frames, first in episode {episode}, frame {frame}",
                    hint="repair the recording, or leave that episode out with `episodes`",
                )
            )
    if problems:
        raise ConfigError(problems)


def _words(error: Exception) -> str:
    """The error in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
