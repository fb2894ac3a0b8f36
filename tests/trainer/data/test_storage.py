"""Storage: large columns lie in files of the cache folder, are laid out once, and are the same numbers."""

import pickle
import re
import subprocess
import sys
import threading

import pytest
import torch

from model_constructor import ConfigError
from trainer.data import lerobot_files
from trainer.data.columns import ColumnDataset
from trainer.data.lerobot_files import read_columns
from trainer.data.storage import in_memory, mapped

CONTENT = {"a key/with a slash": b"\x01\x02\x03", "empty": b"", "one more": bytes(range(256)) * 40}


def fill(streams):
    for name, content in CONTENT.items():
        streams[name].write(content[:2])
        streams[name].write(content[2:])


def assert_content(tensors):
    assert {name: bytes(tensor.tolist()) for name, tensor in tensors.items()} == CONTENT
    assert all(tensor.dtype == torch.uint8 for tensor in tensors.values())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/policy-constructor/columns"


def test_streams_are_the_same_in_memory_and_mapped(tmp_path):
    assert_content(in_memory(list(CONTENT), fill))
    assert_content(mapped(list(CONTENT), fill, tmp_path / "deep/folder"))


def test_a_folder_is_laid_out_once_also_when_several_ask_at_the_same_time(tmp_path):
    filled, results = [], []

    def slow_fill(streams):
        filled.append(1)
        fill(streams)

    def ask():
        results.append(mapped(list(CONTENT), slow_fill, tmp_path / "folder"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(filled) == 1 and len(results) == 4
    for result in results:
        assert_content(result)


def test_a_layout_that_failed_leaves_nothing_to_be_taken_for_whole(tmp_path):
    def full(streams):
        streams["one more"].write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match=r"cannot be laid out in .*No space left on device.*\n.*XDG_CACHE_HOME"):
        mapped(list(CONTENT), full, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.lock"]
    assert_content(mapped(list(CONTENT), fill, tmp_path / "folder"))


def test_mapped_columns_equal_those_in_memory_and_the_set_is_read_once(picture_sets, cache, monkeypatch):
    windows = {"action": range(4), "observation.images.front": [-1, 0]}
    whole = ColumnDataset(read_columns(picture_sets["image"]), windows)
    assert not cache.exists()
    for _ in range(2):
        large = ColumnDataset(read_columns(picture_sets["image"], memory_limit_bytes=1000), windows)
        monkeypatch.setattr(lerobot_files, "_fill", lambda *_: pytest.fail("the set was read again"))
    ours, theirs = (dataset.__getitems__(range(15)) for dataset in (large, whole))
    for key, expected in theirs.items():
        assert torch.equal(ours[key], expected) if isinstance(expected, torch.Tensor) else ours[key] == expected, key
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [large.columns.fingerprint]
    assert large.fingerprint == whole.fingerprint


def test_mapped_columns_travel_to_another_process_by_name_alone(picture_sets, cache):
    columns = read_columns(picture_sets["image"], memory_limit_bytes=1000)
    assert len(pickle.dumps(columns)) < 1000
    again = pickle.loads(pickle.dumps(columns))
    assert torch.equal(again.numbers["action"], columns.numbers["action"])
    small = pickle.loads(pickle.dumps(read_columns(picture_sets["image"])))
    assert torch.equal(small.numbers["action"], columns.numbers["action"])


def test_a_set_that_changed_is_laid_out_again(copy, cache):
    before = read_columns(copy, memory_limit_bytes=1)
    path = copy / "meta/info.json"
    path.write_text(path.read_text().replace('"fps": 10', '"fps": 20'))
    after = read_columns(copy, memory_limit_bytes=1)
    assert before.fingerprint != after.fingerprint and after.fps == 20
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2


def test_a_damaged_set_is_told_as_such_also_while_it_is_laid_out(copy, cache):
    (path,) = copy.glob("data/*/*.parquet")
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 2000 + content[2004:])
    with pytest.raises(ConfigError, match=re.escape(f"the data set at {copy} is broken: it cannot be read")):
        read_columns(copy, memory_limit_bytes=1)


@pytest.mark.slow
def test_reading_a_large_set_keeps_it_out_of_memory(tmp_path, cache):
    """In a process of its own, since memory is measured: 120 MB of numbers in groups of 4 MB."""
    script = """
import json, re, sys
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
root = Path(sys.argv[1])
frames, width = 300_000, 100
features = {"action": {"dtype": "float32", "shape": [width]}}
features |= {key: {"dtype": "int64", "shape": [1]} for key in ("index", "episode_index", "frame_index", "task_index")}
for folder in ("data/chunk-000", "meta/episodes/chunk-000"):
    (root / folder).mkdir(parents=True)
info = {"codebase_version": "v3.0", "fps": 10, "total_frames": frames, "total_episodes": 1, "features": features}
(root / "meta/info.json").write_text(json.dumps(info))
tasks = pa.table({"task_index": [0], "__index_level_0__": ["go"]})
pq.write_table(tasks, root / "meta/tasks.parquet")
episodes = pa.table({"episode_index": [0], "dataset_from_index": [0], "dataset_to_index": [frames]})
pq.write_table(episodes, root / "meta/episodes/chunk-000/file-000.parquet")
writer = None
for first in range(0, frames, 10_000):
    index = np.arange(first, first + 10_000)
    zero = np.zeros(10_000, np.int64)
    action = pa.FixedSizeListArray.from_arrays(pa.array(np.random.default_rng(first).random(10_000 * width, np.float32)), width)
    columns = {"action": action, "index": index, "episode_index": zero, "frame_index": index, "task_index": zero}
    table = pa.table(columns)
    writer = writer or pq.ParquetWriter(root / "data/chunk-000/file-000.parquet", table.schema)
    writer.write_table(table)
writer.close()
from trainer.data.lerobot_files import read_columns
read_columns(root, memory_limit_bytes=10**9 if sys.argv[2] == "memory" else 10**6)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1000)
"""
    peaks_mb = {}
    for way in ("memory", "mapped"):
        result = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / way), way], capture_output=True, text=True, check=True
        )
        peaks_mb[way] = int(result.stdout.split()[-1])
    assert peaks_mb["mapped"] < peaks_mb["memory"] - 80
