"""The LeRobot factory: params -> windows, held-out episodes, statistics; and what it says when something is missing."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from model_constructor import ConfigError
from trainer.data.sampler import UpdateSampler
from trainer.registry import DATASET_BUILDER_REGISTRY

os.environ.setdefault("HF_HUB_OFFLINE", "1")

FPS = 20
LENGTHS = (8, 12, 9, 10)


FEATURES = {
    "action": {"dtype": "float32", "shape": (2,), "names": None},
    "observation.state": {"dtype": "float32", "shape": (3,), "names": None},
    "observation.force": {"dtype": "float32", "shape": (1,), "names": None},
    "reward": {"dtype": "float32", "shape": (1,), "names": None},
}
CAMERA = "observation.images.top"


def record(root, lengths, task="reach", fps=FPS, seed=0, camera=False):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    seen = (
        {CAMERA: {"dtype": "image", "shape": (16, 24, 3), "names": ["height", "width", "channels"]}} if camera else {}
    )
    dataset = LeRobotDataset.create("local/demonstrations", fps, FEATURES | seen, root=root, use_videos=False)
    rng = np.random.default_rng(seed)
    for episode, length in enumerate(lengths):
        for _ in range(length):
            frame = {key: (rng.normal(size=f["shape"]) + episode).astype(np.float32) for key, f in FEATURES.items()}
            frame |= {key: rng.integers(0, 256, (16, 24, 3), dtype=np.uint8) for key in seen}
            dataset.add_frame({**frame, "task": task})
        dataset.save_episode()
    dataset.finalize()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project folder with data sets under runs/."""
    import datasets

    project = tmp_path_factory.mktemp("project")
    datasets.config.HF_DATASETS_CACHE = project / "cache"
    record(project / "runs/demonstrations", LENGTHS)
    record(project / "runs/more", (20, 30), task="push", seed=1)
    record(project / "runs/slow", (5, 5), fps=10)
    record(project / "runs/seen", (4, 3), camera=True)
    (project / "configs").mkdir()
    return project


@pytest.fixture
def build(project):
    """(validation, **params) -> the factory's bundle; `root` and `action_horizon` unless said."""

    def build(validation=None, **params):
        opt_params = {
            "local_rank": 0,
            "dist_enabled": False,
            "save_dir": project / "out",
            "project_root": project,
            "config_dir": project / "configs",
        }
        if validation is not None:
            opt_params["validation"] = {"seed": 0, **validation}
        params = {"root": "runs/demonstrations", "action_horizon": 4, "local_files_only": True, **params}
        given = {name: value for name, value in params.items() if value is not None}
        return DATASET_BUILDER_REGISTRY.get("lerobot_dataset_factory")().build(opt_params, given)

    return build


def episodes_of(dataset):
    return sorted(set(dataset.__getitems__(range(len(dataset)))["episode_index"].tolist()))


def test_items_equal_lerobots_for_the_same_windows(project, build):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    ours = build(obs_proprio_history=3, action_horizon=5, action_offset=-1, HZ=10)["dataset"]
    past = [-0.2, -0.1, 0.0]
    theirs = LeRobotDataset(
        "local/demonstrations",
        root=project / "runs/demonstrations",
        delta_timestamps={
            "observation.state": past,
            "observation.force": past,
            "action": [-0.1, 0.0, 0.1, 0.2, 0.3],
        },
    )
    assert len(ours) == len(theirs) == sum(LENGTHS)
    for index in range(len(theirs)):
        item, expected = ours[index], theirs[index]
        assert item.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(item[key], value) if isinstance(value, torch.Tensor) else item[key] == value, key


def test_without_options_the_observation_is_the_current_frame_and_the_action_begins_there(build):
    batch = build()["dataset"].__getitems__([0, 5, 7])
    assert batch["observation.state"].shape == (3, 1, 3)
    assert batch["action"].shape == (3, 4, 2)
    assert batch["action_is_pad"].tolist() == [[False] * 4, [False, False, False, True], [False, True, True, True]]


def test_a_data_loader_gets_batches_without_collating(build):
    dataset = build()["dataset"]
    loader = DataLoader(dataset, batch_sampler=UpdateSampler(len(dataset), 16, seed=0), collate_fn=lambda batch: batch)
    batch = next(iter(loader))
    assert batch["action"].shape == (16, 4, 2) and batch["task"] == ["reach"] * 16


def test_statistics_are_of_observations_and_actions_alone(build):
    bundle = build()
    assert bundle["norm_stats"].keys() == {"observation.state", "observation.force", "action"}
    assert "validation_dataset" not in bundle


def test_the_episodes_param_chooses(build):
    bundle = build(episodes=[2, 0])
    assert episodes_of(bundle["dataset"]) == [0, 2]
    assert bundle["norm_stats"]["action"]["count"] == [8 + 9]


@pytest.mark.parametrize("validation", [{"episodes": [1, 3]}, {"fraction": 0.5}, {"fraction": 0.01}])
def test_validation_holds_out_whole_episodes_and_their_statistics(build, validation):
    whole, bundle = build()["dataset"], build(validation)
    training, held_out = episodes_of(bundle["dataset"]), episodes_of(bundle["validation_dataset"])
    assert sorted(training + held_out) == [0, 1, 2, 3]
    assert len(held_out) == (1 if validation.get("fraction") == 0.01 else 2)
    assert len(bundle["dataset"]) + len(bundle["validation_dataset"]) == len(whole)
    frames = whole.__getitems__([i for i in range(len(whole)) if int(whole[i]["episode_index"]) in training])
    np.testing.assert_allclose(
        bundle["norm_stats"]["observation.state"]["mean"],
        frames["observation.state"][:, 0].double().mean(dim=0).numpy(),
        rtol=1e-12,
    )


def test_the_held_out_share_is_fixed_by_the_seed(build):
    def held_out(seed):
        return episodes_of(build({"fraction": 0.5, "seed": seed})["validation_dataset"])

    assert held_out(3) == held_out(3)
    assert len({tuple(held_out(seed)) for seed in range(8)}) > 1


def test_root_is_seen_from_the_config_first_then_from_the_project(project, build, tmp_path):
    in_project = build()["dataset"].columns.root
    assert in_project == project / "runs/demonstrations"
    assert len(build(root=str(in_project))["dataset"]) == sum(LENGTHS)
    (project / "configs/nearby").symlink_to(in_project)
    assert build(root="nearby")["dataset"].columns.root == project / "configs/nearby"


def test_without_root_the_set_lies_where_lerobot_keeps_it(project, build, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(project))
    dataset = build(root=None, repo_id="runs/demonstrations")["dataset"]
    assert dataset.columns.root == project / "runs/demonstrations"


def test_the_task_name_is_the_sets_own_unless_given(build):
    assert build()["task_name"] == "reach"
    assert build(task_name="pick")["task_name"] == "pick"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"action_horizont": 4}, "did you mean 'action_horizon'?"),
        ({"action_horizon": None}, "needs the parameter 'action_horizon'"),
        ({"root": None}, "needs 'repo_id' or 'root'"),
        ({"action_horizon": 0}, "action_horizon is 0\n    a whole number from 1"),
        ({"obs_proprio_history": 1.5}, "obs_proprio_history is 1.5"),
        ({"local_files_only": "yes"}, "local_files_only is 'yes'\n    true or false"),
        ({"episodes": 3}, "episodes is 3\n    a list of episode indices"),
        ({"episodes": []}, "episodes is []"),
        ({"episodes": [9]}, "has no episode 9\n    its episodes are 0 to 3"),
        ({"HZ": 15}, "HZ 15 does not fit a data set of 20 fps"),
        ({"HZ": 0}, "HZ is 0"),
        ({"video_backend": "ffmpeg"}, "video_backend is 'ffmpeg'\n    pyav or torchcodec"),
        ({"obs_images_history": 0}, "obs_images_history is 0"),
        ({"obs_images_history": 2}, "obs_images_history is given, and the data set at "),
        ({"video_backend": "pyav"}, "video_backend is given, and the data set at "),
        ({"root": "runs/nowhere"}, "there is no data set at "),
        ({"validation": {"episodes": [7]}}, "validation episodes 7 are not in the data set"),
        ({"validation": {"episodes": [0, 1, 2, 3]}}, "validation holds out all 4 episodes"),
    ],
)
def test_a_wrong_parameter_is_explained(build, params, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(**params)


def test_all_wrong_parameters_are_reported_at_once(build):
    with pytest.raises(ConfigError) as error:
        build(action_horizon=-1, HZ="fast", epsodes=[1])
    assert len(error.value.problems) == 3


@pytest.mark.parametrize("given", [{"root": "runs/elsewhere"}, {"root": None}], ids=["with root", "without"])
def test_the_hub_is_asked_unless_local_files_only(project, build, monkeypatch, given):
    asked = []

    class Hub:
        def __init__(self, repo_id, root):
            asked.append(repo_id)
            raise ConnectionError

    monkeypatch.setenv("HF_LEROBOT_HOME", str(project / "home"))
    monkeypatch.setattr("lerobot.datasets.lerobot_dataset.LeRobotDataset", Hub)
    with pytest.raises(ConfigError, match="there is no data set at ") as error:
        build(repo_id="some/set", **given)
    assert asked == [] and "could not be downloaded" not in str(error.value)
    for only in (False, None):  # not written, it is false
        with pytest.raises(ConfigError, match=r"'some/set' could not be downloaded \(ConnectionError\)"):
            build(repo_id="some/set", local_files_only=only, **given)
    assert asked == ["some/set"] * 2


def test_a_set_that_cannot_be_downloaded_is_named_and_leaves_no_folder(project, build):
    with pytest.raises(ConfigError, match="'local/absent' could not be downloaded"):
        build(root="runs/absent", repo_id="local/absent", local_files_only=False)
    assert not (project / "runs/absent").exists()


def test_a_download_stands_at_its_root_when_it_is_whole_and_goes_on_after_an_interruption(project, build, monkeypatch):
    whole, asked = project / "runs/whole", []

    class Hub:
        def __init__(self, repo_id, root):
            asked.append((repo_id, root.is_dir()))
            shutil.copytree(project / "runs/demonstrations", root, dirs_exist_ok=True)
            if len(asked) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr("lerobot.datasets.lerobot_dataset.LeRobotDataset", Hub)
    with pytest.raises(KeyboardInterrupt):
        build(root="runs/whole", repo_id="some/set", local_files_only=False)
    assert not whole.exists()
    for _ in range(2):
        assert len(build(root="runs/whole", repo_id="some/set", local_files_only=False)["dataset"])
    assert asked == [("some/set", False), ("some/set", True)] and whole.is_dir()


def test_cameras_are_windows_of_their_own_history(build):
    assert build(root="runs/seen")["dataset"].__getitems__([0, 5])[CAMERA].shape == (2, 1, 3, 16, 24)
    batch = build(root="runs/seen", obs_images_history=3, obs_proprio_history=2, HZ=10)["dataset"].__getitems__([3, 0])
    assert batch[CAMERA].shape == (2, 3, 3, 16, 24) and batch[CAMERA].dtype == torch.uint8
    assert batch[f"{CAMERA}_is_pad"].tolist() == [[True, False, False], [True, True, False]]
    assert batch["observation.state"].shape == (2, 2, 3)
    frames = build(root="runs/seen")["dataset"].__getitems__(range(4))[CAMERA][:, 0]
    assert torch.equal(batch[CAMERA][0], frames[[0, 1, 3]])  # at 10 steps per second every other frame


def test_norm_stats_hold_no_image(build):
    assert CAMERA not in build(root="runs/seen")["norm_stats"]


def test_the_fingerprint_is_that_of_the_content_and_of_the_chosen_episodes(build, project, tmp_path):
    def fingerprint(**params):
        return build(**params)["fingerprint"]

    copy = shutil.copytree(project / "runs/demonstrations", tmp_path / "copy")
    assert fingerprint() == fingerprint(root=str(copy)) == fingerprint(action_horizon=2, obs_proprio_history=2)
    others = [
        fingerprint(root="runs/more"),
        fingerprint(episodes=[0, 1, 2]),
        fingerprint(episodes=[0, 1, 3]),
        fingerprint(validation={"episodes": [1]}),
    ]
    (path,) = (copy / "data").glob("*/*.parquet")
    table = pq.read_table(path)
    rewards = table["reward"].to_pylist()
    rewards[0] += 1
    pq.write_table(
        table.set_column(table.column_names.index("reward"), "reward", pa.array(rewards, pa.float32())), path
    )
    others.append(fingerprint(root=str(copy)))
    path = copy / "meta/info.json"
    path.write_text(path.read_text().replace('"fps": 20', '"fps": 10'))
    others.append(fingerprint(root=str(copy)))
    assert len({fingerprint(), *others}) == 1 + len(others)


MIXED = [{"root": "runs/demonstrations", "weight": 3.5}, {"root": "runs/more", "task_name": "shove"}]


def test_a_list_of_data_sets_is_one_data_set_with_weights(build):
    bundle = build(root=None, datasets=MIXED, obs_proprio_history=2)
    dataset = bundle["dataset"]
    assert len(dataset) == sum(LENGTHS) + 50
    assert dataset.shares.tolist() == [3.5 / 4.5, 1 / 4.5]
    assert bundle["task_name"] == "reach, shove"
    batch = dataset.__getitems__([0, len(dataset) - 1])
    assert batch["observation.state"].shape == (2, 2, 3)
    assert torch.equal(
        batch["observation.state"][1],
        build(root="runs/more", obs_proprio_history=2)["dataset"][49]["observation.state"],
    )


def test_statistics_of_a_mixture_are_those_of_what_it_shows(build):
    """Against a long series of frames, drawn as the mixture draws them: each set in its share, all frames alike."""
    stats = build(root=None, datasets=MIXED)["norm_stats"]
    first, second = (
        build(root=entry["root"])["dataset"].columns.numbers["observation.state"].double().numpy() for entry in MIXED
    )
    # 39 and 50 frames, seven to two: repeated so often, each is there in proportion
    shown = np.concatenate([np.repeat(first, 7 * len(second), axis=0), np.repeat(second, 2 * len(first), axis=0)])
    expected = {
        "mean": shown.mean(axis=0),
        "std": shown.std(axis=0),
        "min": shown.min(axis=0),
        "max": shown.max(axis=0),
        "q01": np.quantile(shown, 0.01, axis=0, method="inverted_cdf"),
        "q99": np.quantile(shown, 0.99, axis=0, method="inverted_cdf"),
        "count": [len(first) + len(second)],
    }
    assert stats["observation.state"].keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(stats["observation.state"][name], value, rtol=1e-10, err_msg=name)


def test_a_mixture_holds_out_episodes_of_each_of_its_sets(build):
    bundle = build({"fraction": 0.5}, root=None, datasets=MIXED)
    assert len(bundle["dataset"]) + len(bundle["validation_dataset"]) == sum(LENGTHS) + 50
    assert {int(item["dataset_index"]) for item in bundle["validation_dataset"]} == {0, 1}
    assert bundle["norm_stats"]["action"]["count"] == [len(bundle["dataset"])]


def test_the_fingerprint_of_a_mixture_changes_with_its_sets_and_weights(build):
    def fingerprint(*entries):
        return build(root=None, datasets=list(entries))["fingerprint"]

    first, second = MIXED
    mixtures = [
        (first, second),
        (second, first),
        ({**first, "weight": 2}, second),
        (first, {**second, "episodes": [0]}),
    ]
    assert len({fingerprint(*entries) for entries in mixtures}) == len(mixtures)
    assert fingerprint(*MIXED) == fingerprint(*MIXED)


@pytest.mark.parametrize(
    ("datasets", "validation", "messages"),
    [
        ([], None, ["datasets is []\n    a list of data sets"]),
        ([{"root": "runs/more", "weight": 0}], None, ["datasets[0]: weight is 0\n    a number above 0"]),
        (
            [{"root": "runs/nowhere"}, {"rot": "runs/more"}],
            None,
            [
                "datasets[0]: there is no data set at",
                "datasets[1]: ",
                "did you mean 'root'?",
                "needs 'repo_id' or 'root'",
            ],
        ),
        ([{"root": "runs/more"}, {"root": "runs/slow"}], None, ["have 10, 20 steps per second", "give one HZ"]),
        ([{"root": "runs/more"}, {"root": "runs/seen"}], None, [f"runs/more has no '{CAMERA}', which runs/seen has"]),
        (MIXED, {"episodes": [0]}, ["data.validation names episodes"]),
    ],
)
def test_what_is_wrong_in_a_list_of_data_sets_names_the_set(build, datasets, validation, messages):
    with pytest.raises(ConfigError) as error:
        build(validation, root=None, datasets=datasets)
    for message in messages:
        assert message in str(error.value)


def test_one_hz_makes_sets_of_different_rates_alike(build):
    build(root=None, HZ=10, datasets=[{"root": "runs/more"}, {"root": "runs/slow"}])


def test_reading_and_registering_import_no_heavy_library(project):
    script = f"""
import sys, json, experiment_training.components
from trainer.registry import DATASET_BUILDER_REGISTRY
place = {{"project_root": {str(project)!r}, "config_dir": {str(project)!r}}}
factory = DATASET_BUILDER_REGISTRY.get("lerobot_dataset_factory")()
factory.build(place, {{"root": "runs/demonstrations", "action_horizon": 4}})["dataset"].__getitems__([0, 1])
heavy = "lerobot datasets pandas metaworld mujoco schedulefree matplotlib geomloss flow_matching".split()
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []
