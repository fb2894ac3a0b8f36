"""LeRobot files: the folder of a LeRobot v3 data set -> Columns, read once and checked whole.

Values equal, to the bit, what `LeRobotDataset` returns. That includes its habits: a feature of shape (1,) loses that
dimension, every float becomes float32, every integer int64.
Shapes: F frames of the set, E episodes, D size of a feature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from model_constructor.errors import ConfigError, Problem
from trainer.data.cameras import Camera
from trainer.data.columns import Columns
from trainer.data.images import EncodedImages
from trainer.data.storage import cache_folder, in_memory, mapped
from trainer.data.video import Backend, VideoFrames, pick_backend

MEMORY_LIMIT_BYTES = 2 * 1024**3
"""Columns (encoded images among them) that take more than this are mapped from the cache folder."""

KINDS = ("number", "string", "image", "video")


def read_columns(
    root: Path, video_backend: Backend | None = None, memory_limit_bytes: int = MEMORY_LIMIT_BYTES
) -> Columns:
    """Reads and checks the whole set; every way in which it can be broken ends here, in one ConfigError."""
    try:
        return _read(root, video_backend, memory_limit_bytes)
    except ConfigError:
        raise
    except Exception as error:  # damage has no end of forms, and pyarrow, torch and numpy a name for each
        raise _unreadable(root, error) from error


def _read(root: Path, video_backend: Backend | None, memory_limit_bytes: int) -> Columns:
    info = _read_info(root)
    keys = {kind: [key for key, one in info["features"].items() if _kind(one) == kind] for kind in KINDS}
    paths, files = _open_parquet(root, "data")
    frames = sum(file.metadata.num_rows for file in files)
    if frames != info["total_frames"]:
        raise _broken(root, f"its files hold {frames} frames, meta/info.json says {info['total_frames']}")
    columns = [*keys["number"], *keys["image"], *keys["string"]]
    for key in columns:
        if any(key not in file.schema_arrow.names for file in files):
            raise _broken(root, f"its files have no column '{key}', which meta/info.json declares")
    episode_paths, episode_files = _open_parquet(root, "meta/episodes")
    episodes = pa.concat_tables([file.read() for file in episode_files], promote_options="default")
    videos = {key: _video_files(root, info, episodes, key) for key in keys["video"]}
    fingerprint = _fingerprint(root, [*paths, *episode_paths], [file for one in videos.values() for file in one])

    types = {key: _dtype(root, key, files[0].schema_arrow.field(key).type) for key in keys["number"]}
    fill = partial(_fill, root, files, types, keys["image"])
    names = [*types, *keys["image"], *map(_lengths, keys["image"])]
    shapes = {key: tuple(info["features"][key]["shape"]) for key in types}
    number_bytes = frames * sum(prod(shapes[key]) * dtype.itemsize for key, dtype in types.items())
    is_mapped = number_bytes + (_stored_bytes(files) if keys["image"] else 0) > memory_limit_bytes
    stored = mapped(names, fill, cache_folder() / fingerprint) if is_mapped else in_memory(names, fill)
    numbers = {key: _tensor(root, key, stored[key].view(dtype), frames, shapes[key]) for key, dtype in types.items()}

    start, end = _episode_bounds(root, info, episodes, numbers)
    cameras: dict[str, Camera] = {}
    first_frames = [0, *accumulate(file.metadata.num_rows for file in files)][:-1]
    for key in keys["image"]:
        cameras[key] = EncodedImages(stored[key], stored[_lengths(key)].view(torch.int64), paths, first_frames)
    for key in keys["video"]:
        file_start_s = episodes[f"videos/{key}/from_timestamp"].to_pylist()
        backend = pick_backend(video_backend)
        cameras[key] = VideoFrames(videos[key], file_start_s, start, numbers["timestamp"], backend)
    reopen = (read_columns, (root, video_backend, memory_limit_bytes)) if is_mapped else None
    texts = _texts(root, files, keys["string"], numbers)
    return Columns(root, info["fps"], numbers, texts, start, end, cameras, fingerprint, reopen)


def _kind(feature: Mapping[str, Any]) -> str:
    return feature["dtype"] if feature["dtype"] in KINDS else "number"


def _lengths(key: str) -> str:
    """The stream with the lengths of an image column's pictures."""
    return f"{key}/lengths"  # no key contains a slash


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
    return info


def _open_parquet(root: Path, folder: str) -> tuple[list[Path], list[pq.ParquetFile]]:
    paths = sorted((root / folder).glob("*/*.parquet"))
    if not paths:
        raise _unfinished(root, f"there is no parquet file under {folder}/")
    return paths, [_open(root, path) for path in paths]


def _open(root: Path, path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise _broken(root, f"{path.relative_to(root)} is missing") from None
    except pa.ArrowInvalid:
        raise _unfinished(root, f"{path.relative_to(root)} has no footer") from None


def _stored_bytes(files: Sequence[pq.ParquetFile]) -> int:
    return sum(file.metadata.row_group(group).total_byte_size for file in files for group in range(file.num_row_groups))


def _dtype(root: Path, key: str, kind: pa.DataType) -> torch.dtype:
    """What the numbers of an Arrow column become."""
    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_nested(kind):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.field(0).type
    if pa.types.is_boolean(kind):
        return torch.bool
    if pa.types.is_integer(kind):
        return torch.int64
    if not pa.types.is_floating(kind):
        raise _broken(root, f"column '{key}' holds {kind}, not numbers")
    return torch.float32


def _fill(
    root: Path,
    files: Sequence[pq.ParquetFile],
    types: Mapping[str, torch.dtype],
    images: Sequence[str],
    streams: Mapping[str, BinaryIO],
) -> None:
    """Writes every column as raw bytes, one group of rows after another, so that little is in memory at a time."""
    for file in files:
        for group in range(file.num_row_groups):
            try:
                table = file.read_row_group(group)
            except OSError as error:  # not to be mistaken for one of writing
                raise _unreadable(root, error) from error
            for key, dtype in types.items():
                for chunk in table[key].chunks:
                    streams[key].write(_flat(root, key, chunk, dtype).data)
            for key in images:
                for chunk in table[key].chunks:
                    content, lengths = _encoded(root, key, chunk)
                    streams[key].write(content.data)
                    streams[_lengths(key)].write(lengths.data)


def _flat(root: Path, key: str, array: pa.Array, dtype: torch.dtype) -> np.ndarray:
    """The numbers of nested lists, one after another; a missing one becomes NaN."""
    while not pa.types.is_primitive(array.type):
        array = array.storage if isinstance(array, pa.ExtensionArray) else array.flatten()
    if array.null_count:
        if not dtype.is_floating_point:
            raise _broken(root, f"column '{key}' lacks a value in {array.null_count} frames")
        array = array.cast(pa.float64()).fill_null(float("nan"))
    if dtype == torch.bool:
        return np.from_dlpack(array.cast(pa.uint8()))
    # Array.to_numpy would import pandas, which costs most of a second
    return np.from_dlpack(array).astype(np.float32 if dtype.is_floating_point else np.int64, copy=False)


def _encoded(root: Path, key: str, array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Pictures as struct<bytes, path> -> (their bytes, end to end; the length of each, int64)."""
    pictures = array.field("bytes") if pa.types.is_struct(array.type) else array
    if array.null_count or pictures.null_count:
        raise _broken(root, f"column '{key}' lacks the picture of a frame")
    _, offsets, content = pictures.cast(pa.large_binary()).buffers()
    ends = np.frombuffer(offsets, np.int64)[pictures.offset : pictures.offset + len(pictures) + 1]
    return np.frombuffer(content, np.uint8)[ends[0] : ends[-1]], np.diff(ends)


def _tensor(root: Path, key: str, flat: Tensor, frames: int, shape: tuple[int, ...]) -> Tensor:
    if flat.numel() != frames * prod(shape):
        raise _broken(root, f"column '{key}' does not hold {prod(shape)} numbers in each of its {frames} frames")
    return flat.reshape(frames, *(() if shape == (1,) else shape))


def _texts(
    root: Path, files: Sequence[pq.ParquetFile], keys: Sequence[str], numbers: Mapping[str, Tensor]
) -> dict[str, list[str]]:
    texts = {key: [text for file in files for text in file.read([key])[key].to_pylist()] for key in keys}
    for name in ("task", "subtask"):
        path = root / f"meta/{name}s.parquet"
        if f"{name}_index" in numbers and (name == "task" or path.exists()):
            names = _names(_open(root, path).read(), f"{name}_index")
            texts[name] = [names[number] for number in numbers[f"{name}_index"].tolist()]
    return texts


def _names(table: pa.Table, index: str) -> list[str]:
    """The texts that a `*_index` column counts: the one other column of its table."""
    (column,) = (name for name in table.column_names if name != index)
    return table[column].to_pylist()


def _video_files(root: Path, info: Mapping[str, Any], episodes: pa.Table, key: str) -> list[Path]:
    """The file of each episode."""
    places = (episodes[f"videos/{key}/{part}"].to_pylist() for part in ("chunk_index", "file_index"))
    return [
        root / info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
        for chunk, file in zip(*places, strict=True)
    ]


def _episode_bounds(
    root: Path, info: Mapping[str, Any], episodes: pa.Table, numbers: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Start and end of each episode, once they agree with what the frames say of themselves."""
    episode, start, end = (
        torch.tensor(episodes[name].to_pylist()) for name in ("episode_index", "dataset_from_index", "dataset_to_index")
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


def _fingerprint(root: Path, parquet: Sequence[Path], videos: Sequence[Path]) -> str:
    """Of what the set says of itself, of every parquet footer (sizes and extremes of columns), and of video sizes."""
    digest = hashlib.sha256((root / "meta/info.json").read_bytes())
    for path in parquet:
        with open(path, "rb") as file:
            file.seek(-8, 2)  # a file ends with its footer, the footer's length, and a magic word, of 4 bytes each
            footer_bytes = int.from_bytes(file.read(4), "little")
            file.seek(-8 - footer_bytes, 2)
            digest.update(f"{path.relative_to(root)}".encode() + file.read(footer_bytes))
    for path in sorted({path for path in videos if path.exists()}):
        digest.update(f"{path.relative_to(root)} {path.stat().st_size}".encode())
    return digest.hexdigest()[:32]


def _broken(root: Path, why: str, hint: str = "record or download it again") -> ConfigError:
    return ConfigError(Problem(f"the data set at {root} is broken: {why}", hint=hint))


def _unreadable(root: Path, error: Exception) -> ConfigError:
    why = " ".join(f"{error}".split())[:160]
    return _broken(root, f"it cannot be read ({type(error).__name__}: {why})")


def _unfinished(root: Path, why: str) -> ConfigError:
    return _broken(
        root,
        f"{why}; the recording was not finalized",
        "call finalize() on the LeRobotDataset when recording ends, and record this one again",
    )
