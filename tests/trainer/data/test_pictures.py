"""Images and videos of a LeRobot set: the pixels are those of LeRobotDataset, and what cannot be read has a name."""

import io
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from model_constructor import ConfigError
from trainer.data import images, video
from trainer.data.cameras import UnreadableFrame, map_in_threads
from trainer.data.columns import ColumnDataset
from trainer.data.lerobot_files import read_columns
from trainer.data.seeded import SeededReader

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
CHUNK = {"action": range(4), "observation.state": [0]}
REQUESTS = [
    ({}, None),
    ({**CHUNK, "observation.state": [-1, 0], FRONT: [-4, -2, 0], WRIST: [0]}, None),
    ({**CHUNK, FRONT: [-1, 0, 7], WRIST: [-1, 0]}, [2, 0]),
]


def opened(root, windows, episodes=None):
    return ColumnDataset(read_columns(root, "pyav"), windows, episodes)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        if key in (FRONT, WRIST):
            assert ours[key].dtype == torch.uint8
            # lerobot leaves a window of one step out of a video's shape, and out of nothing else
            assert ours[key].shape == expected.shape or ours[key].shape[-4:] == (1, *expected.shape[-3:])
            assert torch.equal(ours[key].float().div(255).reshape(expected.shape), expected), key
        else:
            assert torch.equal(ours[key], expected) if isinstance(expected, torch.Tensor) else ours[key] == expected


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key, value in other.items():
        assert torch.equal(one[key], value) if isinstance(value, torch.Tensor) else one[key] == value, key


@pytest.mark.parametrize(("windows", "episodes"), REQUESTS)
@pytest.mark.parametrize("name", ["image", "av1", "h264"])
def test_every_item_equals_that_of_lerobot(picture_sets, picture_oracle, name, windows, episodes):
    ours, theirs = opened(picture_sets[name], windows, episodes), picture_oracle(name, windows, episodes)
    assert len(ours) == len(theirs)
    for index in range(len(theirs)):
        assert_same(ours[index], theirs[index])


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", ["image", "av1", "h264"])
def test_a_batch_equals_the_stacked_items_of_lerobot(picture_sets, picture_oracle, name, threads, monkeypatch):
    windows, indices = {**CHUNK, FRONT: [-1, 0]}, [14, 0, 6, 5, 0, 9, 3, 12]
    monkeypatch.setattr(images, "WORTH_THREADS", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = opened(picture_sets[name], windows).__getitems__(indices)
    finally:
        torch.set_num_threads(before)
    theirs = picture_oracle(name, windows)
    assert_same(ours, default_collate([theirs[index] for index in indices]))


@pytest.mark.parametrize("name", ["image", "av1", "h264"])
def test_batches_read_together_are_those_read_one_by_one_and_aligned(picture_sets, name):
    reader = SeededReader(opened(picture_sets[name], {FRONT: [-1, 0], "action": [0, 1, 2]}), 0)
    batches = [[3, 4, 4], [0], [14, 1, 7]]
    assert_equal(*reader.read_together(batches[:1]), reader.__getitems__(batches[0]))
    for together, alone in zip(reader.read_together(batches), map(reader.__getitems__, batches), strict=True):
        assert alone.keys() > {FRONT, "action", "action_is_pad", "task"}
        assert_equal(together, alone)
        assert all(value.data_ptr() % 64 == 0 for value in together.values() if isinstance(value, torch.Tensor))


def test_windows_keep_their_time_dimension_also_when_they_have_one_step(picture_sets):
    batch = opened(picture_sets["av1"], {FRONT: [0]}).__getitems__([0, 1])
    assert batch[FRONT].shape == (2, 1, 3, 64, 96) and batch[f"{FRONT}_is_pad"].tolist() == [[False], [False]]
    assert batch[WRIST].shape == (2, 3, 72, 80)


def test_a_frame_that_a_batch_needs_several_times_is_decoded_once(picture_sets, monkeypatch):
    decoded = []
    decode = images.EncodedImages._decode
    monkeypatch.setattr(
        images.EncodedImages, "_decode", lambda self, frame: decoded.append(frame) or decode(self, frame)
    )
    opened(picture_sets["image"], {FRONT: [-1, 0]}).__getitems__([3, 4, 4, 0])
    assert sorted(decoded) == [0, 0, 2, 3, 3, 4, 4]  # front: 0, 2, 3, 4; wrist: 0, 3, 4


@pytest.mark.parametrize("name", ["image", "av1"])
def test_statistics_and_all_else_at_start_decode_nothing(picture_sets, name, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a picture was opened")

    monkeypatch.setattr(Image, "open", fail)
    monkeypatch.setattr(video, "PyavFile", fail)
    dataset = opened(picture_sets[name], {**CHUNK, FRONT: [0]})
    assert dataset.statistics().keys() == {"action", "observation.state"}


def test_map_in_threads_keeps_the_order_and_uses_as_many_threads_as_torch_may():
    before = torch.get_num_threads()
    meeting = threading.Barrier(3, timeout=10)  # passed only by three threads at once

    def square(number):
        meeting.wait()
        return number**2

    torch.set_num_threads(3)
    try:
        assert map_in_threads(square, range(3)) == [0, 1, 4]
        torch.set_num_threads(1)
        here = threading.get_ident()
        assert map_in_threads(lambda _: threading.get_ident(), range(3)) == [here] * 3
    finally:
        torch.set_num_threads(before)


def test_a_picture_that_says_it_lies_on_its_side_is_turned():
    pixels, side = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8), Image.Exif()
    side[0x0112] = 6  # orientation: to be turned clockwise by 90 degrees
    encoded = [io.BytesIO(), io.BytesIO()]
    Image.fromarray(pixels).save(encoded[0], "PNG")
    Image.fromarray(pixels).save(encoded[1], "PNG", exif=side)
    content = [np.frombuffer(one.getvalue(), np.uint8) for one in encoded]
    lengths = torch.tensor([len(one) for one in content])
    camera = images.EncodedImages(torch.from_numpy(np.concatenate(content)), lengths, [Path("camera.parquet")], [0])
    assert np.array_equal(camera.read([0])[0].permute(1, 2, 0), pixels)
    assert np.array_equal(camera.read([1])[0].permute(1, 2, 0), np.rot90(pixels, -1))


@pytest.mark.parametrize("where", ["the thread that asks", "another"])
def test_map_in_threads_raises_what_any_of_its_threads_meets(where):
    asking, before = threading.get_ident(), torch.get_num_threads()
    meeting = threading.Barrier(2, timeout=10)

    def fail(_):
        meeting.wait()  # each of the two has an item
        if (threading.get_ident() == asking) == (where == "the thread that asks"):
            raise OSError(where)

    torch.set_num_threads(2)
    try:
        with pytest.raises(OSError, match=where):
            map_in_threads(fail, range(2))
    finally:
        torch.set_num_threads(before)


def test_few_pictures_are_decoded_by_the_thread_that_asks_and_many_by_several(picture_sets, monkeypatch):
    dataset, threads = opened(picture_sets["image"], {}), []
    camera = dataset.columns.cameras[FRONT]
    decode, before = camera._decode, torch.get_num_threads()
    monkeypatch.setattr(camera, "_decode", lambda frame: threads.append(threading.get_ident()) or decode(frame))
    torch.set_num_threads(2)
    try:
        read = camera.read(range(6))
        assert set(threads) == {threading.get_ident()}
        monkeypatch.setattr(images, "WORTH_THREADS", int(camera.length_F[:6].sum()))
        started = []
        start = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", lambda self: started.append(self) or start(self))
        assert torch.equal(camera.read(range(6)), read)
        assert len(started) == 1, "the thread that asks decodes, too"
        camera.read(range(5))
        assert len(started) == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("name", ["image", "h264"])
def test_workers_read_what_the_main_process_reads_also_after_it_has_decoded(picture_sets, name, method):
    dataset = opened(picture_sets[name], {FRONT: [-1, 0]})
    here = dataset.__getitems__(range(15))  # its files are open now
    there = list(DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context=method, collate_fn=dict))
    for key in (FRONT, WRIST, "observation.state"):
        assert torch.equal(torch.cat([batch[key] for batch in there]), here[key])


def spoil_picture(root, key, row, content):
    (path,) = (root / "data").glob("*/*.parquet")
    table = pq.read_table(path)
    pictures = table[key].to_pylist()
    pictures[row] = content and {"bytes": content, "path": None}
    column = pa.array(pictures, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(table.set_column(table.column_names.index(key), key, column), path)
    return path


def test_an_image_that_cannot_be_decoded_names_camera_episode_frame_and_file(picture_sets, tmp_path):
    root = shutil.copytree(picture_sets["image"], tmp_path / "set")
    path = spoil_picture(root, WRIST, 9, b"no picture")  # frame 2 of episode 2, behind episodes of 5 and 2 frames
    dataset = opened(root, {})
    with pytest.raises(UnreadableFrame, match=f"'{WRIST}' of episode 2, frame 2 .*{path}.*UnidentifiedImage") as error:
        dataset.__getitems__([0, 9, 14])
    assert type(error.value.__cause__).__name__ == "UnidentifiedImageError"
    assert dataset.__getitems__([0, 8, 14])[WRIST].shape == (3, 3, 72, 80)  # all others can be read
    with pytest.raises(UnreadableFrame, match="episode 2, frame 2"):  # a worker says the same
        list(DataLoader(dataset, batch_size=5, num_workers=1, collate_fn=dict))


def test_a_picture_of_another_size_is_named(picture_sets, tmp_path):
    root = shutil.copytree(picture_sets["image"], tmp_path / "set")
    small = tmp_path / "small.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(small)
    spoil_picture(root, FRONT, 3, small.read_bytes())
    with pytest.raises(
        UnreadableFrame, match=r"episode 0, frame 3 .*it is \[3, 8, 8\], the frames before it are \[3, 64, 96\]"
    ):
        opened(root, {}).__getitems__([0, 3])


def test_pictures_of_sixteen_bits_are_refused_by_name(picture_sets, tmp_path):
    root = shutil.copytree(picture_sets["image"], tmp_path / "set")
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((64, 96), 1000, np.uint16)).save(deep)
    spoil_picture(root, FRONT, 3, deep.read_bytes())
    with pytest.raises(UnreadableFrame, match=r"episode 0, frame 3 .*8 bits per channel"):
        opened(root, {})[3]


def test_a_missing_picture_is_told_when_the_set_is_read(picture_sets, tmp_path):
    root = shutil.copytree(picture_sets["image"], tmp_path / "set")
    spoil_picture(root, FRONT, 3, None)
    with pytest.raises(ConfigError, match=f"column '{FRONT}' lacks the picture of a frame"):
        read_columns(root)


def test_a_missing_video_file_is_told_at_start_unless_no_chosen_episode_is_in_it(picture_sets, tmp_path):
    root = shutil.copytree(picture_sets["h264"], tmp_path / "set")
    first, *_ = sorted((root / "videos" / WRIST).glob("*/*.mp4"))
    first.unlink()
    with pytest.raises(ConfigError, match=re.escape(f"has no file {first}, which holds '{WRIST}'")):
        opened(root, {})
    assert opened(root, {}, episodes=[1, 2])[0][WRIST].shape == (3, 72, 80)


def test_a_video_that_is_cut_off_names_the_frame_that_is_not_there(picture_sets, tmp_path):
    root = shutil.copytree(picture_sets["h264"], tmp_path / "set")
    first, *_, last = sorted((root / "videos" / FRONT).glob("*/*.mp4"))
    shutil.copy(first, last)  # 5 frames where there should be 8
    dataset = opened(root, {})
    with pytest.raises(UnreadableFrame, match=f"'{FRONT}' of episode 2, frame 6 .*{last}.*no frame at 0.2000 s"):
        dataset.__getitems__([8, 13])
    last.write_bytes(b"no video")
    with pytest.raises(UnreadableFrame, match=f"'{FRONT}' of episode 2, frame 1 .*InvalidDataError"):
        opened(root, {}).__getitems__([8, 2])
