"""HDF5 episodes: what `episodic_dataset_factory` makes of them; the oracle is h5py, one frame at a time."""

import io
import os
import pickle
from multiprocessing.reduction import ForkingPickler

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from experiment_training.components.dataloader.hdf5_episodes import decoded
from model_constructor import ConfigError
from trainer.config.schemas import DataConfig
from trainer.data.cameras import UnreadableFrame
from trainer.data.prefetch import DeviceBatches, build_loader
from trainer.registry import DATASET_BUILDER_REGISTRY

LENGTHS = (7, 4, 9)
CPU = torch.device("cpu")


def jpeg(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def write(path, length, seed=0, images="raw", action_size=3):
    rng = np.random.default_rng([seed, length])
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = True
        file["action"] = rng.normal(size=(length, action_size)).astype(np.float32)
        file["observations/qpos"] = rng.normal(size=(length, 4))  # float64, as some recorders write it
        file["observations/qvel"] = rng.normal(size=(length, 2)).astype(np.float32)
        for camera in ("top", "wrist"):
            pictures = rng.integers(0, 256, (length, 6, 8, 3), dtype=np.uint8)
            key = f"observations/images/{camera}"
            if images == "raw":
                file.create_dataset(key, data=pictures, chunks=(1, 6, 8, 3))
                continue
            encoded = [jpeg(picture) for picture in pictures]
            if images == "padded":
                size = max(map(len, encoded)) + 5
                file[key] = np.stack([np.pad(one, (0, size - len(one))) for one in encoded])
            else:
                file.create_dataset(key, (length,), h5py.vlen_dtype(np.uint8))
                for number, one in enumerate(encoded):
                    file[key][number] = one


@pytest.fixture(params=["raw", "padded", "variable"])
def folder(request, tmp_path):
    for number, length in enumerate(LENGTHS):
        write(tmp_path / f"episode_{number}.hdf5", length, images=request.param)
    return tmp_path


@pytest.fixture
def raw(tmp_path):
    for number, length in enumerate(LENGTHS):
        write(tmp_path / f"episode_{number}.hdf5", length)
    return tmp_path


def build(root, validation=None, **params):
    opt_params = {"config_dir": root.parent, "project_root": root.parent}
    if validation:
        opt_params["validation"] = validation
    factory = DATASET_BUILDER_REGISTRY.get("episodic_dataset_factory")()
    return factory.build(opt_params, {"root": str(root), "action_horizon": 5, **params})


def slow_item(folder, index, history=2, horizon=5, offset=0, stride=1, state_keys=("qpos",)):
    """Frame `index` of all episodes, read from its file step by step."""
    episode = 0
    while index >= LENGTHS[episode]:
        index, episode = index - LENGTHS[episode], episode + 1
    item = {"episode_index": episode, "frame_index": index}
    with h5py.File(folder / f"episode_{episode}.hdf5") as file:

        def window(offsets, read):
            steps = [index + offset * stride for offset in offsets]
            inside = [min(max(step, 0), LENGTHS[episode] - 1) for step in steps]
            return np.stack([read(step) for step in inside]), [a != b for a, b in zip(steps, inside, strict=True)]

        def picture(camera):
            stored = file[f"observations/images/{camera}"]
            return lambda step: np.moveaxis(stored[step] if stored.ndim == 4 else decoded(stored[step]), -1, 0)

        observed = range(1 - history, 1)
        sources = {
            "action": (range(offset, offset + horizon), lambda step: file["action"][step]),
            "observation.state": (
                observed,
                lambda step: np.concatenate([file[f"observations/{key}"][step] for key in state_keys]).astype(
                    np.float32
                ),
            ),
            "observation.images.top": (observed, picture("top")),
            "observation.images.wrist": (observed, picture("wrist")),
        }
        for key, (offsets, read) in sources.items():
            item[key], item[f"{key}_is_pad"] = window(offsets, read)
    return item


@pytest.mark.parametrize(
    "params, oracle",
    [
        ({}, {}),
        ({"state_keys": ["qvel", "qpos"]}, {"state_keys": ("qvel", "qpos")}),
        ({"action_offset": -1}, {"offset": -1}),
        ({"fps": 30, "HZ": 15}, {"stride": 2}),
    ],
)
def test_items_are_what_h5py_reads_frame_by_frame(folder, params, oracle):
    dataset = build(folder, obs_proprio_history=2, obs_images_history=2, task_name="insert", **params)["dataset"]
    assert len(dataset) == sum(LENGTHS)
    indices = torch.randperm(len(dataset)).tolist()
    batch = dataset.__getitems__(indices)
    for row, index in enumerate(indices):
        for key, expected in slow_item(folder, index, **oracle).items():
            assert torch.equal(batch[key][row], torch.as_tensor(expected)), (index, key)
    assert batch["task"] == ["insert"] * len(dataset)
    assert batch["observation.images.top"].dtype == torch.uint8
    assert batch["observation.images.top"].shape == (20, 2, 3, 6, 8) and batch["action"].dtype == torch.float32


def test_windows_keep_their_time_dimension_also_of_length_one(raw):
    item = build(raw)["dataset"][0]
    assert {key: list(item[key].shape) for key in ("action", "observation.state", "observation.images.wrist")} == {
        "action": [5, 3],
        "observation.state": [1, 4],
        "observation.images.wrist": [1, 3, 6, 8],
    }


def test_encoded_pictures_are_what_a_viewer_shows_in_its_colours():
    shown = np.zeros((16, 16, 3), np.uint8)
    shown[:8, :8, 0] = shown[8:, :, 2] = 200  # red above on the left, blue below
    found = decoded(np.pad(jpeg(shown), (0, 9)))
    assert found.shape == (16, 16, 3) and found.dtype == np.uint8
    for place in ((3, 3), (3, 12), (12, 3), (12, 12)):  # far from edges, where JPEG smears colours
        assert np.abs(found[place].astype(int) - shown[place]).max() < 20


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_open_files_of_their_own_also_after_this_process_has_read(raw, method):
    dataset = build(raw)["dataset"]
    expected = dataset.__getitems__(list(range(20)))  # the files are open here now
    dataset.needs_spawn = method == "spawn"
    data = DataConfig(datamodule={"type": "any"}, num_workers=2)
    order = [list(range(start, start + 4)) for start in range(0, 20, 4)]
    with DeviceBatches(build_loader(dataset, order, data, CPU, 0), CPU) as batches:
        seen = list(batches)
    for key in ("observation.images.top", "action", "episode_index"):
        assert torch.equal(torch.cat([batch[key] for batch in seen]), expected[key])


def open_episodes():
    """How many episode files this process holds open."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum("episode_" in os.readlink(link) for link in links if os.path.lexists(link))


def test_a_fork_does_not_keep_the_files_of_its_parent(raw):
    build(raw)["dataset"].__getitems__([0, 8])
    assert open_episodes() >= 2
    child = os.fork()
    if not child:
        try:
            os._exit(open_episodes())
        finally:
            os._exit(100)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_statistics_come_from_the_numbers_of_the_training_episodes_alone(raw):
    for file in raw.iterdir():
        with h5py.File(file, "a") as opened:
            del opened["observations/images/top"]  # no picture is there to be decoded
    bundle = build(raw, {"episodes": [1]}, cameras=[])
    with h5py.File(raw / "episode_0.hdf5") as first, h5py.File(raw / "episode_2.hdf5") as last:
        action = np.concatenate([first["action"][()], last["action"][()]]).astype(np.float64)
    assert set(bundle["norm_stats"]) == {"action", "observation.state"}
    np.testing.assert_allclose(bundle["norm_stats"]["action"]["mean"], action.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(bundle["norm_stats"]["action"]["q99"], np.quantile(action, 0.99, axis=0), rtol=1e-12)
    assert len(bundle["dataset"]) == 16 and len(bundle["validation_dataset"]) == 4
    assert set(bundle["validation_dataset"].__getitems__(range(4))["episode_index"].tolist()) == {1}


def test_episodes_are_numbered_in_natural_order_and_can_be_chosen_as_can_cameras(tmp_path):
    for number in (10, 2, 1):
        write(tmp_path / f"episode_{number}.hdf5", length=number + 1)
    dataset = build(tmp_path, episodes=[0, 2], cameras=["wrist"])["dataset"]
    assert len(dataset) == 2 + 11 and "observation.images.top" not in dataset[0]
    assert len(build(tmp_path / "episode_1*.hdf5")["dataset"]) == 2 + 11
    assert len(build(tmp_path)["dataset"]) == 2 + 3 + 11


def test_the_fingerprint_tells_other_content_and_another_choice(raw, tmp_path):
    same = build(raw)["fingerprint"]
    assert build(raw)["fingerprint"] == same
    assert build(raw, episodes=[0, 1])["fingerprint"] != same
    with h5py.File(raw / "episode_1.hdf5", "a") as file:
        file["action"][2, 0] += 1e-3
    assert build(raw)["fingerprint"] != same


def test_the_data_set_travels_to_other_processes_and_reads_on_where_it_stays(raw):
    dataset = build(raw)["dataset"]
    expected = dataset.__getitems__([5, 12])["observation.images.top"]
    travelled = pickle.loads(pickle.dumps(dataset))
    ForkingPickler.dumps(dataset)  # as for a spawned worker: torch moves every tensor to another place
    for one in (travelled, dataset):
        assert torch.equal(one.__getitems__([5, 12])["observation.images.top"], expected)


def refused(root, **params):
    with pytest.raises(ConfigError) as caught:
        build(root, **params)
    return str(caught.value)


def test_all_files_that_cannot_be_used_are_told_at_once(raw):
    (raw / "episode_3.hdf5").write_bytes(b"not HDF5")
    content = (raw / "episode_0.hdf5").read_bytes()
    (raw / "episode_4.hdf5").write_bytes(content[: len(content) // 2])
    with h5py.File(raw / "episode_1.hdf5", "a") as file:
        file.move("observations/qpos", "observations/pos")
        del file["observations/images/wrist"]
    told = refused(raw)
    assert "episode_3.hdf5 cannot be read as HDF5" in told and "episode_4.hdf5 cannot be read as HDF5" in told
    assert "episode_1.hdf5 has no data set 'observations/qpos'" in told and "observations/pos" in told
    assert "episode_1.hdf5 has no data set 'observations/images/wrist'" in told


def test_episodes_that_differ_in_their_widths_name_both(raw):
    write(raw / "episode_3.hdf5", 4, action_size=2)
    write(raw / "episode_4.hdf5", 4, images="padded")
    told = refused(raw)
    assert "'action' has 2 dimensions in" in told and "episode_3.hdf5, and 3 in" in told and "episode_0.hdf5" in told
    assert "'observations/images/top' is encoded in" in told and "[6, 8, 3] in" in told


def test_lengths_and_kinds_that_do_not_fit_are_told(raw):
    with h5py.File(raw / "episode_0.hdf5", "a") as file:
        del file["observations/images/top"], file["observations/qpos"], file["action"]
        file["observations/images/top"] = np.zeros((7, 6, 8, 3), np.float32)
        file["observations/qpos"] = np.zeros((6, 4))
        file["action"] = np.zeros(7)
    told = refused(raw)
    assert "'observations/images/top' of" in told and "is float32 [7, 6, 8, 3]" in told and "uint8 [T, H, W, C]" in told
    assert "'action' of" in told and "is float64 [7]" in told
    assert "does not hold the same frames of everything: 'action' 7, 'observations/qpos' 6" in told


def test_a_single_number_is_no_data_set_of_frames(raw):
    with h5py.File(raw / "episode_0.hdf5", "a") as file:
        del file["action"]
        file["action"] = 3.0
    assert "'action' of" in refused(raw) and "is float64 []" in refused(raw)


def test_a_value_that_is_not_finite_names_episode_and_frame(raw):
    with h5py.File(raw / "episode_1.hdf5", "a") as file:
        file["observations/qpos"][3, 0] = np.nan
    assert "'observation.state' is not finite in 1 frames, first in episode 1, frame 3" in refused(raw)


@pytest.mark.parametrize("root", ["nowhere", "", "*.hdf5"])
def test_no_episodes_at_the_root_is_told(tmp_path, root):
    assert "there are no episodes at" in refused(tmp_path / root)


def test_parameters_that_are_wrong_are_told_at_once(raw):
    told = refused(raw, camera=["top"], action_horizon=0, cameras="top", HZ=-1)
    assert "no parameter 'camera'" in told and "cameras" in told and "action_horizon is 0" in told
    assert "cameras is 'top'" in told and "HZ is -1" in told
    with pytest.raises(ConfigError, match="needs the parameter 'root'"):
        DATASET_BUILDER_REGISTRY.get("episodic_dataset_factory")().build({}, {"action_horizon": 1})
    assert "HZ 20 does not fit a data set of 50 fps" in refused(raw, HZ=20)


def test_a_picture_that_cannot_be_decoded_names_camera_episode_frame_and_file(tmp_path):
    write(tmp_path / "episode_0.hdf5", 5, images="padded")
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as file:
        file["observations/images/wrist"][3] = 0
    dataset = build(tmp_path)["dataset"]
    dataset[2]
    with pytest.raises(UnreadableFrame, match=r"'observation.images.wrist' of episode 0, frame 3 .*episode_0.hdf5"):
        dataset.__getitems__([1, 3, 4])


def test_an_encoded_picture_of_another_size_is_named(tmp_path):
    for number in range(2):
        write(tmp_path / f"episode_{number}.hdf5", 2, images="variable")
    with h5py.File(tmp_path / "episode_1.hdf5", "a") as file:
        file["observations/images/top"][1] = jpeg(np.zeros((4, 4, 3), np.uint8))
    dataset = build(tmp_path)["dataset"]
    with pytest.raises(UnreadableFrame, match=r"episode 1, frame 1 .*episode_1.hdf5 .*\[3, 4, 4\].*\[3, 6, 8\]"):
        dataset.__getitems__([0, 3])


def test_what_is_wrong_with_every_file_is_told_once(tmp_path):
    for number in range(3):
        write(tmp_path / f"episode_{number}.hdf5", 5)
    with pytest.raises(ConfigError) as caught:
        DATASET_BUILDER_REGISTRY.get("episodic_dataset_factory")().build(
            {"config_dir": tmp_path, "project_root": tmp_path},
            {"root": str(tmp_path), "action_horizon": 2, "state_keys": ["qpo"]},
        )
    (problem,) = caught.value.problems
    assert problem.message == (
        f"{tmp_path}/episode_0.hdf5 has no data set 'observations/qpo'; the same holds of 2 more files"
    )
    assert "observations/qpos" in problem.hint
