"""Video files: any frame in any order is the one that decoding from the beginning gives, whatever the codec."""

import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from model_constructor import ConfigError
from trainer.data import video
from trainer.data.video import PyavFile, pick_backend

FPS, FRAMES = 25, 60
CODECS = {
    "av1": ("libsvtav1", {"g": "20", "crf": "30", "preset": "12"}),
    "key frames alone": ("mpeg4", {"g": "1"}),
    "every second a key frame": ("libx264", {"g": "2"}),
    "bidirectional": ("libx264", {"g": "12", "bf": "3"}),
    "open groups": ("libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-pyramid=normal:log-level=none"}),
    "one key frame": ("libx264", {"g": "1000", "bf": "2"}),
    "hevc": ("libx265", {"g": "12", "x265-params": "log-level=none"}),
}


def encode(path, codec, options, rate=FPS, frames=FRAMES):
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (20, 28, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(frames):
            pixels = np.ascontiguousarray(texture[number : number + 64, 2 * number : 2 * number + 96])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())


def all_frames(path):
    """Decoded from the beginning to the end: [H, W, C] each."""
    with av.open(str(path)) as container:
        return [frame.to_rgb().to_ndarray() for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def video_of(tmp_path_factory):
    """name of a codec -> a file of 60 frames that all differ."""
    folder, paths = tmp_path_factory.mktemp("video"), {}

    def make(name):
        if name not in paths:
            paths[name] = folder / f"{len(paths)}.mp4"
            encode(paths[name], *CODECS[name])
        return paths[name]

    return make


@pytest.mark.parametrize("name", CODECS)
def test_any_frames_in_any_order_are_those_of_the_whole_film(video_of, name):
    whole = all_frames(video_of(name))
    assert len(whole) == FRAMES and len({frame.tobytes() for frame in whole}) == FRAMES
    file, chance = PyavFile(video_of(name)), random.Random(0)
    batches = [[FRAMES - 1], [0], [FRAMES - 1, 0], [3, 4, 5, 6], [6, 6]]
    batches += [chance.sample(range(FRAMES), 6) for _ in range(8)] + [sorted(chance.sample(range(FRAMES), 9))]
    for batch in batches:
        read = file.read([number / FPS for number in batch])
        for number, picture in zip(batch, read, strict=True):
            assert np.array_equal(picture, whole[number].transpose(2, 0, 1)), (batch, number)


def test_frames_that_are_near_are_decoded_once_and_in_one_go(video_of, monkeypatch):
    jumps = []
    jump = PyavFile._jump
    monkeypatch.setattr(PyavFile, "_jump", lambda self, *ticks: jumps.append(ticks) or jump(self, *ticks))
    file = PyavFile(video_of("one key frame"))
    file.read([40 / FPS])  # now it is known how long a group can be
    file.read([number / FPS for number in (3, 8, 20, 45)])
    file.read([number / FPS for number in (46, 50, 59)])
    assert len(jumps) == 2  # to 40, and back to 3


@pytest.mark.parametrize("shift_s", [-9e-5, 0.0, 9e-5])
def test_a_time_may_be_a_little_off(video_of, shift_s):
    (picture,) = PyavFile(video_of("bidirectional")).read([31 / FPS + shift_s])
    assert np.array_equal(picture, all_frames(video_of("bidirectional"))[31].transpose(2, 0, 1))


def test_hours_into_a_file_the_rounding_of_stored_times_does_not_matter(tmp_path):
    rate = Fraction(3, 400)
    encode(tmp_path / "slow.mp4", "mpeg4", {"g": "5"}, rate)
    whole = all_frames(tmp_path / "slow.mp4")
    stored = [np.float32(number / rate) for number in range(FRAMES)]  # up to 7867 s, where float32 has steps of 0.5 ms
    assert max(abs(float(second) - number / rate) for number, second in enumerate(stored)) > 1e-4
    for picture, frame in zip(PyavFile(tmp_path / "slow.mp4").read(stored), whole, strict=True):
        assert np.array_equal(picture, frame.transpose(2, 0, 1))


@pytest.mark.parametrize("second", [-0.02, 31 / FPS + 3e-4, 31.5 / FPS, FRAMES / FPS, 1000.0])
def test_a_time_without_a_frame_is_an_error_and_the_file_can_still_be_read(video_of, second):
    file = PyavFile(video_of("bidirectional"))
    with pytest.raises(ValueError, match=f"the video has no frame at {second:.4f} s"):
        file.read([second])
    assert len(file.read([31 / FPS])) == 1


def test_only_so_many_files_stay_open(video_of, monkeypatch):
    monkeypatch.setattr(video, "OPEN_FILES", 2)
    monkeypatch.setattr(video, "_open", {})
    for name in ("av1", "bidirectional", "av1", "hevc"):
        video._read("pyav", video_of(name), [0.0])
    assert [path for _, _, path in video._open] == [video_of("av1"), video_of("hevc")]
    open_before = set(map(id, video._open.values()))
    video._read("pyav", video_of("av1"), [0.2])
    assert set(map(id, video._open.values())) == open_before  # it was not opened anew


def test_a_file_whose_reading_failed_is_not_kept_open(video_of, monkeypatch):
    monkeypatch.setattr(video, "_open", {})
    with pytest.raises(ValueError, match="no frame at 77"):
        video._read("pyav", video_of("av1"), [77.0])
    assert not video._open


def test_another_process_does_not_touch_the_open_files_of_this_one(video_of, monkeypatch):
    monkeypatch.setattr(video, "_open", {})
    video._read("pyav", video_of("av1"), [0.0])
    (mine,) = video._open.values()
    monkeypatch.setattr(video.os, "getpid", lambda: -1)  # as after a fork
    monkeypatch.setattr(mine, "read", lambda seconds: pytest.fail("a decoder of the parent was used"))
    assert len(video._read("pyav", video_of("av1"), [0.0])) == 1


def test_torchcodec_is_used_where_it_loads_and_asking_for_it_elsewhere_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # it cannot be imported
    assert pick_backend(None) == pick_backend("pyav") == "pyav"
    with pytest.raises(ConfigError, match="torchcodec cannot be loaded"):
        pick_backend("torchcodec")
    monkeypatch.setitem(sys.modules, "torchcodec", type(sys)("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", type(sys)("torchcodec.decoders"))
    assert pick_backend(None) == pick_backend("torchcodec") == "torchcodec"


@pytest.fixture
def ffmpeg(tmp_path):
    """A folder with the FFmpeg that PyAV brings, under the names by which torchcodec looks for one."""
    libraries = Path(av.__file__).parents[1] / "av.libs"
    for path in libraries.glob("lib*-*.so.*"):
        name, _, version = path.name.partition(".so.")
        (tmp_path / f"{name.rpartition('-')[0]}.so.{version.partition('.')[0]}").symlink_to(path)
    if not list(tmp_path.iterdir()):
        pytest.skip("this PyAV brings no FFmpeg of its own")
    return tmp_path


@pytest.mark.slow
def test_torchcodec_reads_what_lerobot_reads_with_it_also_in_forked_workers(picture_sets, ffmpeg):
    script = """
import sys, torch
from pathlib import Path
from torch.utils.data import DataLoader
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from trainer.data.columns import ColumnDataset
from trainer.data.lerobot_files import read_columns
key = "observation.images.front"
for root in sys.argv[1:]:
    dataset = ColumnDataset(read_columns(Path(root)), {key: [-1, 0]})
    assert dataset.columns.cameras[key].backend == "torchcodec"
    peer = LeRobotDataset(
        "local/pictures", root=root, video_backend="torchcodec", delta_timestamps={key: [-1 / 30, 0]}
    )
    for index in range(len(dataset)):
        assert torch.equal(dataset[index][key].float() / 255, peer[index][key]), index
    here = dataset.__getitems__(range(len(dataset)))[key]
    there = DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context="fork", collate_fn=dict)
    assert torch.equal(torch.cat([batch[key] for batch in there]), here)
"""
    roots = [str(picture_sets[name]) for name in ("av1", "h264")]
    environment = {"LD_LIBRARY_PATH": str(ffmpeg), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(ffmpeg / "cache")}
    result = subprocess.run([sys.executable, "-c", script, *roots], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
