"""The column store: what it gives equals LeRobotDataset to the bit, and what is broken is said before training."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import default_collate

from model_constructor import ConfigError
from trainer.data.columns import ColumnDataset, frame_offsets
from trainer.data.lerobot_files import read_columns

CHUNK = {"action": range(16), "observation.state": [0]}
WINDOWS = [
    {},
    CHUNK,
    {"action": range(0, 6, 2), "observation.state": [-4, -2, 0]},
    {"action": range(-2, 3), "observation.gripper": [-1, 0], "observation.pose": [-1, 0], "observation.contact": [0]},
    {"action": range(3, 5), "observation.state": [-30, 30], "counter": [0, 1]},
]


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        if isinstance(expected, torch.Tensor):
            assert (ours[key].dtype, ours[key].shape) == (expected.dtype, expected.shape), key
            assert torch.equal(ours[key], expected), key
        else:
            assert ours[key] == expected, key


@pytest.mark.parametrize("episodes", [None, [3, 0], [2]])
@pytest.mark.parametrize("windows", WINDOWS)
def test_every_item_equals_that_of_lerobot(root, oracle, windows, episodes):
    theirs = oracle(windows, episodes)
    ours = ColumnDataset(read_columns(root), windows, episodes)
    assert len(ours) == len(theirs)
    for index in range(len(theirs)):
        assert_same(ours[index], theirs[index])


def test_a_batch_equals_the_stacked_items_of_lerobot(root, oracle):
    indices = [28, 0, 6, 7, 9, 10, -1, 0]
    theirs = oracle(CHUNK)
    ours = ColumnDataset(read_columns(root), CHUNK)
    assert_same(ours.__getitems__(indices), default_collate([theirs[index] for index in indices]))


def test_an_index_behind_the_end_is_an_index_error(root):
    dataset = ColumnDataset(read_columns(root), CHUNK, episodes=[1])
    with pytest.raises(IndexError):
        dataset[3]


@pytest.mark.parametrize("steps", [range(16), range(-3, 1)])
@pytest.mark.parametrize(("hz", "fps"), [(80, 80), (20, 80), (10, 30), (30, 30), (29.97, 30), (12.5, 50)])
def test_frame_offsets_are_those_of_lerobot(root, steps, hz, fps):
    from lerobot.datasets.utils import check_delta_timestamps, get_delta_indices

    seconds = {"action": [step / hz for step in steps]}
    if check_delta_timestamps(seconds, fps, 1e-4, raise_value_error=False):
        assert frame_offsets(steps, hz, fps) == get_delta_indices(seconds, fps)["action"]
    else:
        with pytest.raises(ConfigError, match=f"HZ {hz:g} does not fit a data set of {fps:g} fps"):
            frame_offsets(steps, hz, fps)


def test_a_rate_that_does_not_fit_names_some_that_do():
    with pytest.raises(ConfigError, match="80, 40, 20, 10"):
        frame_offsets(range(4), 30, 80)


def test_statistics_are_those_of_the_chosen_episodes_alone(root):
    chosen = [0, 2, 4]
    stats = ColumnDataset(read_columns(root), CHUNK, chosen).statistics()
    (path,) = (root / "data").glob("*/*.parquet")
    frames = pd.read_parquet(path, columns=["action", "observation.state", "episode_index"])
    frames = frames[frames["episode_index"].isin(chosen)]
    assert stats.keys() == {"action", "observation.state"}
    for key, found in stats.items():
        values = np.stack(frames[key].to_list()).astype(np.float64)
        expected = {
            "mean": values.sum(axis=0) / len(values),
            "std": np.sqrt(((values - values.mean(axis=0)) ** 2).sum(axis=0) / len(values)),
            "min": np.sort(values, axis=0)[0],
            "max": np.sort(values, axis=0)[-1],
            "q01": np.percentile(values, 1, axis=0),
            "q99": np.percentile(values, 99, axis=0),
            "count": [7 + 11 + 6],
        }
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)
        assert found["mean"].dtype == np.float64


def test_statistics_leave_out_what_is_not_a_float_and_keep_one_value_per_dimension(root):
    windows = {"observation.contact": [0], "observation.gripper": [0], "observation.pose": [0]}
    stats = ColumnDataset(read_columns(root), windows).statistics()
    assert {key: entry["std"].shape for key, entry in stats.items()} == {
        "observation.gripper": (1,),
        "observation.pose": (2, 3),
    }


def test_a_set_in_many_files_reads_like_one(root, copy):
    (path,) = (copy / "data").glob("*/*.parquet")
    table = pq.read_table(path)
    path.unlink()
    for number, rows in enumerate(((0, 10), (10, 11), (21, 8))):
        pq.write_table(table.slice(*rows), path.with_name(f"file-{number:03d}.parquet"))
    whole, parts = (ColumnDataset(read_columns(folder), CHUNK) for folder in (root, copy))
    assert_same(parts.__getitems__(range(29)), whole.__getitems__(range(29)))


def test_a_recording_that_was_not_finalized_is_told_from_any_other_damage(recording):
    with pytest.raises(ConfigError, match="the recording was not finalized") as error:
        read_columns(recording[1])
    assert "call finalize()" in str(error.value)


def edit_info(**changes):
    def edit(root):
        path = root / "meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def remove(pattern):
    return lambda root: [path.unlink() for path in root.glob(pattern)]


def cut_in_half(root):
    (path,) = root.glob("data/*/*.parquet")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite(pattern, edit):
    def change(root):
        (path,) = root.glob(pattern)
        pq.write_table(edit(pq.read_table(path)), path)

    return change


def overwrite_the_middle(root):
    (path,) = root.glob("data/*/*.parquet")
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 2000 + content[2004:])


def move_a_boundary(table):
    ends = table["dataset_to_index"].to_pylist()
    return table.set_column(
        table.column_names.index("dataset_to_index"), "dataset_to_index", pa.array([ends[0] - 1, *ends[1:]])
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("meta/info.json"), "meta/info.json is missing"),
        (lambda root: (root / "meta/info.json").write_text("{"), "meta/info.json cannot be read (JSONDecodeError"),
        (lambda root: (root / "meta/info.json").write_text("[]"), "meta/info.json cannot be read"),
        (edit_info(codebase_version="v2.1"), "convert_dataset_v21_to_v30"),
        (edit_info(total_frames=30), "its files hold 29 frames, meta/info.json says 30"),
        (edit_info(total_episodes=4), "it has 5 episodes, meta/info.json says 4"),
        (edit_info(fps=0), "its fps is 0"),
        (edit_info(fps="x"), "its fps is 'x'"),
        (edit_info(features={"action": {"shape": [4]}}), "gives the feature 'action' no dtype"),
        (edit_info(features={"action": {"dtype": "float32", "shape": "wide"}}), "it cannot be read (TypeError"),
        (overwrite_the_middle, "it cannot be read (OSError"),
        (edit_info(features={"extra": {"dtype": "float32", "shape": [2]}}), "no column 'extra'"),
        (edit_info(features={"action": {"dtype": "float32", "shape": [3]}}), "'action' does not hold 3 numbers"),
        (remove("data/*/*.parquet"), "there is no parquet file under data/"),
        (remove("meta/episodes/*/*.parquet"), "there is no parquet file under meta/episodes/"),
        (remove("meta/tasks.parquet"), "meta/tasks.parquet is missing"),
        (cut_in_half, "data/chunk-000/file-000.parquet has no footer"),
        (rewrite("data/*/*.parquet", lambda table: table.slice(0, 20)), "its files hold 20 frames"),
        (rewrite("meta/episodes/*/*.parquet", move_a_boundary), "are not those of the frames"),
    ],
)
def test_a_damaged_set_ends_in_one_message_and_stays_as_it_is(copy, damage, message):
    damage(copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        read_columns(copy)
    assert len(error.value.problems) == 1
    assert str(copy) in str(error.value)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_missing_folder_is_named_and_not_created(tmp_path):
    with pytest.raises(ConfigError, match=re.escape(f"there is no data set at {tmp_path / 'nowhere'}")):
        read_columns(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("windows", "episodes", "message"),
    [
        ({"observation.stat": [0]}, None, "did you mean 'observation.state'?"),
        ({"note": [0]}, None, "has no numbers or pictures 'note'"),
        (CHUNK, [0, 5, 7], "has no episode 5, 7\n    its episodes are 0 to 4"),
        (CHUNK, [-1], "has no episode -1"),
        (CHUNK, [], "no episode is chosen"),
    ],
)
def test_what_is_asked_for_and_not_there_is_named(root, windows, episodes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        ColumnDataset(read_columns(root), windows, episodes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
@pytest.mark.fault("F17", "a value that is no number")
def test_a_value_that_is_no_number_is_found_by_episode_and_frame(copy, value):
    def spoil(table):
        rows = table["observation.gripper"].to_pylist()
        rows[12] = value  # frame 2 of episode 2, behind episodes of 7 and 3 frames
        column = pa.array(rows, pa.float32())
        return table.set_column(table.column_names.index("observation.gripper"), "observation.gripper", column)

    rewrite("data/*/*.parquet", spoil)(copy)
    columns = read_columns(copy)
    with pytest.raises(
        ConfigError, match=r"'observation.gripper' is not finite in 1 frames, first in episode 2, frame 2"
    ):
        ColumnDataset(columns, CHUNK)
    assert len(ColumnDataset(columns, CHUNK, episodes=[0, 1, 3, 4])) == 18  # without that episode the set is sound
