"""Columns: a LeRobot v3 data set as contiguous tensors, read once; windows of them are index arithmetic.

root folder -> Columns (one tensor per feature) -> ColumnDataset (items, batches, statistics)

Items equal, to the bit, what `LeRobotDataset` returns for the same index and `delta_timestamps`. That includes its
habits: a feature of shape (1,) loses that dimension, every float becomes float32, every integer int64.
Shapes: F frames of the set, N frames of the chosen episodes, B batch, T steps of a window, D size of a feature.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset

from model_constructor.errors import ConfigError, Problem, nearest

TOLERANCE_S = 1e-4
"""How far a window's step may lie from a frame, as in LeRobotDataset."""


@dataclass(frozen=True, slots=True)
class Columns:
    """All low-dimensional features of a data set, frame after frame, episode after episode."""

    root: Path
    fps: float
    numbers: dict[str, Tensor]  # key -> [F, *D]
    texts: dict[str, list[str]]  # key -> F strings; "task" is one of them
    episode_start: Tensor  # [E] first frame of each episode
    episode_end: Tensor  # [E] one past its last frame

    @property
    def episodes(self) -> range:
        return range(len(self.episode_start))


def read_columns(root: Path) -> Columns:
    """Reads and checks the whole set; every way in which it can be broken ends here, in one ConfigError."""
    try:
        return _read(root)
    except ConfigError:
        raise
    except Exception as error:  # damage has no end of forms, and pyarrow, torch and numpy a name for each
        why = " ".join(f"{error}".split())[:160]
        raise _broken(root, f"it cannot be read ({type(error).__name__}: {why})") from error


def _read(root: Path) -> Columns:
    info = _read_info(root)
    files = _open_parquet(root, "data")
    frames = sum(file.metadata.num_rows for file in files)
    if frames != info["total_frames"]:
        raise _broken(root, f"its files hold {frames} frames, meta/info.json says {info['total_frames']}")
    tables = [file.read() for file in files]
    numbers: dict[str, Tensor] = {}
    texts: dict[str, list[str]] = {}
    for key, feature in info["features"].items():
        chunks = [chunk for table in tables for chunk in _column(root, table, key).chunks]
        if feature["dtype"] == "string":
            texts[key] = [text for chunk in chunks for text in chunk.to_pylist()]
        else:
            numbers[key] = _tensor(root, key, chunks, frames, tuple(feature["shape"]))
    for name in ("task", "subtask"):
        path = root / f"meta/{name}s.parquet"
        if f"{name}_index" in numbers and (name == "task" or path.exists()):
            names = _names(_open(root, path).read(), f"{name}_index")
            texts[name] = [names[number] for number in numbers[f"{name}_index"].tolist()]
    start, end = _episode_bounds(root, info, numbers)
    return Columns(root, info["fps"], numbers, texts, start, end)


def frame_offsets(steps: Sequence[int], hz: float, fps: float) -> list[int]:
    """Steps of a window at `hz` -> frames relative to the current one."""
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
    steps outside the episode. All other features are those of the frame itself.
    """

    def __init__(
        self, columns: Columns, windows: Mapping[str, Sequence[int]], episodes: Sequence[int] | None = None
    ) -> None:
        _check_request(columns, windows, episodes)
        self.columns = columns
        self.windows = {key: torch.tensor(list(offsets)) for key, offsets in windows.items()}
        episode_F = columns.numbers["episode_index"]
        chosen = torch.isin(episode_F, torch.tensor(columns.episodes if episodes is None else episodes))
        self.frames = chosen.nonzero().squeeze(-1)  # [N] the set's frames behind this data set's indices
        _check_finite(columns, self.frames)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch in one gather per feature: tensors are stacked, texts are lists."""
        frame_B = self.frames[torch.as_tensor(indices)]
        episode_B = self.columns.numbers["episode_index"][frame_B]
        start_B1 = self.columns.episode_start[episode_B].unsqueeze(1)
        end_B1 = self.columns.episode_end[episode_B].unsqueeze(1)
        batch: dict[str, Any] = {}
        for key, column in self.columns.numbers.items():
            if key not in self.windows:
                batch[key] = column[frame_B]  # [B, *D]
                continue
            wanted_BT = frame_B.unsqueeze(1) + self.windows[key]
            batch[key] = column[wanted_BT.clamp(start_B1, end_B1 - 1)]  # [B, T, *D]
            batch[f"{key}_is_pad"] = (wanted_BT < start_B1) | (wanted_BT >= end_B1)
        frames = frame_B.tolist()
        return batch | {key: [text[frame] for frame in frames] for key, text in self.columns.texts.items()}

    def statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """Of each windowed float key, over this data set's frames: one float64 value per dimension."""
        stats = {}
        for key in self.windows:
            column = self.columns.numbers[key]
            if not column.is_floating_point():
                continue
            values = column[self.frames].double().numpy()  # [N, *D]
            values = values.reshape(len(values), *(values.shape[1:] or (1,)))
            q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
            stats[key] = {
                "mean": values.mean(axis=0),
                "std": values.std(axis=0),
                "min": values.min(axis=0),
                "max": values.max(axis=0),
                "q01": q01,
                "q99": q99,
                "count": np.array([len(values)]),
            }
        return stats


def _read_info(root: Path) -> dict[str, Any]:
    if not root.is_dir():
        raise ConfigError(
            Problem(f"there is no data set at {root}", hint="check `root` and `repo_id`, or record the data first")
        )
    path = root / "meta/info.json"
    if not path.is_file():
        raise _broken(root, "meta/info.json is missing", "a LeRobot v3 data set has meta/, data/ and meta/info.json")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version, features = info["codebase_version"], info["features"]
        complete = {"fps", "total_frames", "total_episodes"} <= info.keys()
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(root, f"meta/info.json cannot be read ({type(error).__name__}: {error})") from None
    if not str(version).startswith("v3."):
        raise ConfigError(
            Problem(
                f"the data set at {root} is in LeRobot format {version}; v3.0 is read here",
                hint="convert it: python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=...",
            )
        )
    if not complete:
        raise _broken(root, "meta/info.json lacks one of fps, total_frames, total_episodes")
    if type(info["fps"]) not in (int, float) or not 0 < info["fps"] < float("inf"):
        raise _broken(root, f"meta/info.json says that its fps is {info['fps']!r}", "a number above 0")
    for key, feature in features.items():
        if lacking := {"dtype", "shape"} - feature.keys():
            raise _broken(root, f"meta/info.json gives the feature '{key}' no {' and no '.join(sorted(lacking))}")
    if seen := [key for key, feature in features.items() if feature["dtype"] in ("image", "video")]:
        raise ConfigError(
            Problem(
                f"the data set at {root} holds images or videos ({', '.join(seen)}), which are not read yet",
                hint="use a data set whose features are all low-dimensional",
            )
        )
    return info


def _open_parquet(root: Path, folder: str) -> list[pq.ParquetFile]:
    paths = sorted((root / folder).glob("*/*.parquet"))
    if not paths:
        raise _unfinished(root, f"there is no parquet file under {folder}/")
    return [_open(root, path) for path in paths]


def _open(root: Path, path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise _broken(root, f"{path.relative_to(root)} is missing") from None
    except pa.ArrowInvalid:
        raise _unfinished(root, f"{path.relative_to(root)} has no footer") from None


def _column(root: Path, table: pa.Table, key: str) -> pa.ChunkedArray:
    if key not in table.column_names:
        raise _broken(root, f"its files have no column '{key}', which meta/info.json declares")
    return table[key]


def _tensor(root: Path, key: str, chunks: Sequence[pa.Array], frames: int, shape: tuple[int, ...]) -> Tensor:
    values = np.concatenate([_flat(chunk) for chunk in chunks])
    if values.dtype.kind not in "biuf" or values.size != frames * prod(shape):
        raise _broken(root, f"column '{key}' does not hold {prod(shape)} numbers in each of its {frames} frames")
    if values.dtype.kind != "b":
        values = values.astype(np.float32 if values.dtype.kind == "f" else np.int64, copy=False)
    return torch.from_numpy(values.reshape(frames, *(() if shape == (1,) else shape)))


def _flat(array: pa.Array) -> np.ndarray:
    """The numbers of nested lists, one after another; a missing one becomes NaN."""
    while not pa.types.is_primitive(array.type):
        array = array.storage if isinstance(array, pa.ExtensionArray) else array.flatten()
    if array.null_count:
        array = array.cast(pa.float64()).fill_null(float("nan"))
    if pa.types.is_boolean(array.type):
        return np.from_dlpack(array.cast(pa.uint8())).astype(bool)
    return np.from_dlpack(array)  # Array.to_numpy would import pandas, which costs most of a second


def _names(table: pa.Table, index: str) -> list[str]:
    """The texts that a `*_index` column counts: the one other column of its table."""
    (column,) = (name for name in table.column_names if name != index)
    return table[column].to_pylist()


def _episode_bounds(root: Path, info: Mapping[str, Any], numbers: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Start and end of each episode, once they agree with what the frames say of themselves."""
    names = ["episode_index", "dataset_from_index", "dataset_to_index"]
    tables = [file.read(columns=names) for file in _open_parquet(root, "meta/episodes")]
    episode, start, end = (
        torch.tensor([number for table in tables for number in table[name].to_pylist()]) for name in names
    )
    if len(episode) != info["total_episodes"]:
        raise _broken(root, f"it has {len(episode)} episodes, meta/info.json says {info['total_episodes']}")
    in_order = torch.equal(episode, torch.arange(len(episode)))
    frames = len(numbers["index"])
    if not (
        in_order
        and torch.equal(numbers["index"], torch.arange(frames))
        and torch.equal(numbers["episode_index"], episode.repeat_interleave(end - start))
    ):
        raise _broken(root, "the episodes in meta/episodes/ are not those of the frames in data/")
    return start, end


def _check_request(columns: Columns, windows: Mapping[str, Sequence[int]], episodes: Sequence[int] | None) -> None:
    problems = [
        Problem(f"the data set at {columns.root} has no numeric feature '{key}'", hint=nearest(key, columns.numbers))
        for key in windows
        if key not in columns.numbers
    ]
    if missing := sorted(set(episodes or ()) - set(columns.episodes)):
        problems.append(
            Problem(
                f"the data set at {columns.root} has no episode {', '.join(map(str, missing))}",
                hint=f"its episodes are 0 to {len(columns.episodes) - 1}",
            )
        )
    if episodes is not None and not len(episodes):
        problems.append(Problem("no episode is chosen", hint="leave `episodes` out to use all of them"))
    if problems:
        raise ConfigError(problems)


def _check_finite(columns: Columns, frames: Tensor) -> None:
    problems = []
    for key, column in columns.numbers.items():
        bad = frames[~column[frames].isfinite().reshape(len(frames), -1).all(dim=1)]
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


def _broken(root: Path, why: str, hint: str = "record or download it again") -> ConfigError:
    return ConfigError(Problem(f"the data set at {root} is broken: {why}", hint=hint))


def _unfinished(root: Path, why: str) -> ConfigError:
    return _broken(
        root,
        f"{why}; the recording was not finalized",
        "call finalize() on the LeRobotDataset when recording ends, and record this one again",
    )
