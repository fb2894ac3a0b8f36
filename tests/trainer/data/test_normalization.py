"""Normalisation: what each mode does, the way back, near-constant dimensions, and the files of statistics."""

import json
import pickle
import re
import warnings

import numpy as np
import pytest
import torch

from model_constructor import ConfigError, load_config
from trainer.data.normalization import (
    KeyMode,
    Normalizer,
    load_stats,
    normalization_modes,
    read_stats,
    save_stats,
    write_stats_pickle,
)

VALUES = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32) * [1e-3, 1, 50, 2] + [3, 0, -700, 1e3]
VALUES = VALUES.astype(np.float32)


def statistics(values):
    values = values.astype(np.float64)
    return {
        "mean": values.mean(0),
        "std": values.std(0),
        "min": values.min(0),
        "max": values.max(0),
        "q01": np.quantile(values, 0.01, axis=0),
        "q99": np.quantile(values, 0.99, axis=0),
        "count": np.array([len(values)]),
    }


STATS = {"observation.state": statistics(VALUES), "action": statistics(VALUES[:, 1:2])}


def normalizer(stats=STATS, **modes):
    floor = {} if modes.get("mode") == "identity" else {"floor": 0.0}
    return Normalizer(stats, normalization_modes({"observation.state": {**floor, **modes}}, stats))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("mean_std", lambda x: (x - x.mean(0)) / x.std(0)),
        ("min_max", lambda x: 2 * (x - x.min(0)) / (x.max(0) - x.min(0)) - 1),
        (
            "quantile",
            lambda x: 2 * (x - np.quantile(x, 0.01, axis=0)) / np.subtract(*np.quantile(x, [0.99, 0.01], axis=0)) - 1,
        ),
        ("identity", lambda x: x),
    ],
)
def test_a_mode_does_what_its_name_says_and_undoes_it(mode, expected):
    batch = {"observation.state": torch.from_numpy(VALUES), "task": ["reach"] * 500}
    module = normalizer(mode=mode)
    normalized = module.normalize(batch)
    state = normalized["observation.state"]
    assert state.dtype == torch.float32 and normalized["task"] == batch["task"]
    exact = expected(VALUES.astype(np.float64))
    resolution = np.finfo(np.float32).eps * np.abs(VALUES).max(0) * np.abs(exact).max(0) / np.abs(VALUES).std(0)
    assert (np.abs(state.numpy() - exact) <= 8 * resolution + 1e-6 * np.abs(exact)).all()
    returned = module.denormalize("observation.state", state).numpy()
    assert (np.abs(returned - VALUES) <= 1e-6 * np.abs(VALUES).max(0)).all()
    assert torch.equal(batch["observation.state"], torch.from_numpy(VALUES))  # the given batch is left alone


def test_windows_of_any_shape_and_features_of_one_number_are_normalised():
    module = normalizer()
    batch = {"observation.state": torch.randn(8, 3, 4), "action": torch.randn(8, 16)}
    normalized = module.normalize(batch)
    for key, tensor in batch.items():
        mean, std = (torch.from_numpy(STATS[key][name]).float() for name in ("mean", "std"))
        torch.testing.assert_close(normalized[key], (tensor - mean) / std)


def test_skipped_dimensions_stay_as_they_are():
    state = normalizer(skip=[0, 3]).normalize({"observation.state": torch.from_numpy(VALUES)})["observation.state"]
    assert torch.equal(state[:, [0, 3]], torch.from_numpy(VALUES[:, [0, 3]]))
    assert abs(float(state[:, 1].std()) - 1) < 0.01


def test_a_skipped_dimension_is_no_measure_of_the_others():
    values = VALUES.copy()
    values[:, 3] = np.linspace(0, 1e9, len(values))  # a clock
    stats = {"observation.state": statistics(values)}
    modes = normalization_modes({"observation.state": {"skip": [3]}}, stats)
    state = Normalizer(stats, modes).normalize({"observation.state": torch.from_numpy(values)})["observation.state"]
    assert abs(float(state[:, 1].std()) - 1) < 0.01
    assert torch.equal(state[:, 3], torch.from_numpy(values[:, 3]).float())


@pytest.mark.fault("F17", "near-constant dimensions are named and not blown up")
def test_near_constant_dimensions_are_centred_not_blown_up_and_named_in_one_warning():
    values = VALUES.copy()
    values[:, 1] = 0.25
    stats = {"observation.state": statistics(values), "action": statistics(np.full((9, 2), 7.0))}
    with pytest.warns(UserWarning) as caught:
        module = Normalizer(stats, normalization_modes({}, stats))
    assert len(caught) == 1
    assert str(caught[0].message).endswith("observation.state[0, 1], action[0, 1]")
    state = module.normalize({"observation.state": torch.from_numpy(values)})["observation.state"]
    assert float(state[:, 0].abs().max()) < 5e-3  # spread 1e-3, below 1e-4 of the largest (50)
    assert float(state[:, 1].abs().max()) == 0
    assert abs(float(state[:, 2].std()) - 1) < 0.01


def test_a_lower_floor_or_a_skip_takes_a_dimension_out_of_the_warning():
    values = VALUES.copy()
    values[:, 1] = 0.25
    stats = {"observation.state": statistics(values)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Normalizer(stats, normalization_modes({"observation.state": {"floor": 1e-6, "skip": [1]}}, stats))


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantile"])
@pytest.mark.parametrize("values", [[3.0] * 100, [0.0] * 100, [0.0] * 99 + [5.0], [1e-30, 0.0], [7e8, 7e8]])
@pytest.mark.fault("F17", "zero spread, equal quantiles")
def test_whatever_the_spread_numbers_stay_finite_and_come_back(mode, values):
    """Zero spread in every form: a constant, equal quantiles beside an outlier, and what float32 cannot tell apart."""
    values = np.array(values, dtype=np.float32)[:, None]
    stats = {"action": statistics(values)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = Normalizer(stats, normalization_modes({"action": mode}, stats))
    normalized = module.normalize({"action": torch.from_numpy(values)})["action"]
    assert normalized.isfinite().all()
    returned = module.denormalize("action", normalized).numpy()
    assert (np.abs(returned - values) <= 1e-6 * max(1.0, np.abs(values).max())).all()


@pytest.mark.fault("F17", "a value that is no number")
def test_a_value_that_is_no_number_is_not_hidden_and_touches_no_other():
    """The check of the gradients then stops the run, and names the episode and frame."""
    values = torch.from_numpy(VALUES[:3].copy())
    values[1, 2] = torch.nan
    normalized = normalizer().normalize({"observation.state": values})["observation.state"]
    assert normalized.isnan().nonzero().tolist() == [[1, 2]]


def test_the_statistics_travel_in_the_state_dict():
    module, other = normalizer(), normalizer(mode="min_max")
    other.load_state_dict(module.state_dict())
    batch = {"observation.state": torch.from_numpy(VALUES)}
    assert torch.equal(*(one.normalize(batch)["observation.state"] for one in (module, other)))


def test_keys_that_are_not_named_get_mean_std():
    modes = normalization_modes({"action": "quantile"}, STATS)
    assert modes == {"observation.state": KeyMode("mean_std"), "action": KeyMode("quantile")}
    assert normalization_modes(None, STATS) == {key: KeyMode() for key in STATS}


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("action: mean_sdt", "3:13", "did you mean 'mean_std'?"),
        ("actoin: identity", "3:5", "did you mean 'action'?"),
        ("action: {mode: zscore}", "3:20", "unknown normalization mode 'zscore'"),
        ("action: {skp: [0]}", "3:14", "did you mean 'skip'?"),
        ("action: {skip: [1]}", "3:20", "a list of dimensions from 0 to 0"),
        ("action: {skip: 0}", "3:20", "skip of 'action' is 0"),
        ("action: {floor: -1}", "3:21", "floor of 'action' is -1"),
        ("action: {mode: identity, skip: [0]}", "3:30", "skip of 'action' is not read: identity changes nothing"),
        ("action: imagenet", "3:13", "'action' is no image"),
        ("action: {mode: [mean_std]}", "3:20", "unknown normalization mode ['mean_std']"),
        ("action: {mode: min_max, mean: [0]}", "3:29", "mean of 'action' is read by mean_std alone"),
        ("action: {mean: [0, 0]}", "3:20", "a list of 1 numbers"),
        ("action: {std: [0]}", "3:19", "numbers above 0"),
        ("action: {std: [.nan]}", "3:19", "a list of 1 numbers"),
        ("action: 3", "3:13", "a mode (mean_std, min_max, quantile, identity, imagenet), or a mapping"),
    ],
)
def test_a_wrong_entry_is_explained_at_its_place(tmp_path, text, place, message):
    (tmp_path / "train.yaml").write_text(f"data:\n  normalization:\n    {text}\n")
    config = load_config(tmp_path / "train.yaml")
    value = config.data["data"]["normalization"]
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        normalization_modes(value, STATS, config)
    assert f"train.yaml:{place}" in str(error.value)
    with pytest.raises(ConfigError, match=re.escape(message)):
        normalization_modes(value, STATS)


def test_all_wrong_entries_are_reported_at_once():
    with pytest.raises(ConfigError) as error:
        normalization_modes({"actoin": "identity", "action": {"mode": "x", "skip": [9], "floor": 2}}, STATS)
    assert len(error.value.problems) == 4


def test_means_and_deviations_can_be_given_instead_of_the_data_sets():
    module = normalizer(mean=[1, 2, 3, 4], std=[1, 2, 4, 8])
    state = module.normalize({"observation.state": torch.ones(2, 4)})["observation.state"]
    assert state.tolist() == [[0, -0.5, -0.5, -0.375]] * 2
    halfway = normalizer(mean=[0, 0, 0, 0]).normalize({"observation.state": torch.from_numpy(VALUES)})
    np.testing.assert_allclose(halfway["observation.state"], VALUES / VALUES.astype(np.float64).std(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("min_max", "min_max of 'action' needs min and max, which the data set does not give"),
        ("quantile", "it gives mean, std: choose mean_std or identity"),
    ],
)
@pytest.mark.fault("F17", "statistics that are missing or cannot be")
def test_a_mode_that_needs_a_missing_statistic_is_refused(tmp_path, value, message):
    (tmp_path / "train.yaml").write_text(f"data: {{normalization: {{action: {value}}}}}\n")
    config = load_config(tmp_path / "train.yaml")
    stats = {"action": {"mean": np.zeros(2), "std": np.ones(2)}}
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        normalization_modes(config.data["data"]["normalization"], stats, config)
    assert "train.yaml:1:32" in str(error.value)
    assert normalization_modes({}, stats) == {"action": KeyMode("mean_std")}


def test_the_default_mode_needs_its_statistics_too():
    stats = {"action": {"min": np.zeros(2), "max": np.ones(2)}}
    with pytest.raises(ConfigError, match="mean_std of 'action' needs mean and std"):
        normalization_modes(None, stats)
    given = normalization_modes({"action": {"mean": [0, 0], "std": [1, 2]}}, stats)
    assert given == {"action": KeyMode("mean_std", mean=(0.0, 0.0), std=(1.0, 2.0))}
    assert normalization_modes({"action": "identity"}, stats) == {"action": KeyMode("identity")}


def test_statistics_may_be_lists_arrays_or_tensors():
    given = {"action": {"mean": [1, 2.5], "std": torch.tensor([0.5, 2.0]), "min": 3.0, "count": np.array([500])}}
    with pytest.raises(ConfigError, match=re.escape("differ in shape: mean [2], std [2], min [1]")):
        read_stats(given)
    del given["action"]["min"]
    read = read_stats(given)["action"]
    assert {name: (value.tolist(), value.dtype.kind) for name, value in read.items()} == {
        "mean": ([1.0, 2.5], "f"),
        "std": ([0.5, 2.0], "f"),
        "count": ([500], "i"),
    }
    module = Normalizer(read_stats(given), normalization_modes({}, read_stats(given)))
    assert module.normalize({"action": torch.tensor([[1.5, 4.5]])})["action"].tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        ([1, 2], "norm_stats is no mapping"),
        ({"action": [1, 2]}, "norm_stats is no mapping"),
        ({"action": {"mean": ["high"], "std": [1]}}, "mean of 'action' is ['high']"),
        ({"action": {"mean": [[1, 2], [3]], "std": [1]}}, "mean of 'action' is [[1, 2], [3]]"),
        ({"action": {"mean": [0, np.nan], "std": [1, 1]}}, "mean of 'action' is not finite: [0.0, nan]"),
        ({"action": {"mean": [0], "std": [np.inf]}}, "std of 'action' is not finite: [inf]"),
        ({"action": {"mean": [0], "std": [-1]}}, "std of 'action' is below 0"),
        ({"action": {"min": [1], "max": [0]}}, "min of 'action' is above its max"),
    ],
)
@pytest.mark.fault("F17", "statistics that are missing or cannot be")
def test_statistics_that_cannot_be_are_refused(stats, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_stats(stats)


def test_the_files_of_statistics_hold_every_digit(tmp_path):
    save_stats(STATS, tmp_path / "dataset_stats.json")
    write_stats_pickle(STATS, tmp_path / "dataset_stats.pkl")
    assert json.loads((tmp_path / "dataset_stats.json").read_text())["action"]["count"] == [500]
    pickled = pickle.loads((tmp_path / "dataset_stats.pkl").read_bytes())
    for stats in (load_stats(tmp_path / "dataset_stats.json"), pickled):
        assert stats.keys() == STATS.keys()
        for key, entry in STATS.items():
            assert stats[key].keys() == entry.keys()
            assert all(np.array_equal(stats[key][name], value) for name, value in entry.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset_stats.json", "dataset_stats.pkl"]
