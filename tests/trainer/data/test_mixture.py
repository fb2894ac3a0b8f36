"""A mixture of data sets: which frames it shows when, and what its batches hold."""

import time
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset

from model_constructor import ConfigError
from trainer.data.mixture import Mixture
from trainer.data.sampler import UpdateSampler
from trainer.data.seeded import stacks_items


class Rows(Dataset):
    """Frames that know their set and number; read one at a time, or with `__getitems__` a whole batch at once."""

    draws_nothing = True

    def __init__(self, name, size, **extra):
        self.name, self.size, self.extra = name, size, extra

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        state = torch.tensor([float(index), self.size])
        return {"observation.state": state, "index": torch.tensor(index), "task": f"{self.name} {index}", **self.extra}


class Columns(Rows):
    def __getitems__(self, indices):
        index = torch.tensor(indices)
        state = torch.stack([index.float(), torch.full((len(index),), float(self.size))], dim=1)
        return {"observation.state": state, "index": index, "task": [f"{self.name} {one}" for one in indices]}


def mixture(sizes=(5, 40, 15), weights=(1, 2, 5)):
    kinds = [Rows, Columns]
    return Mixture([kinds[number % 2](f"set{number}", size) for number, size in enumerate(sizes)], weights)


def stream(mixed, seed, epochs):
    """[(set, frame)] of whole epochs."""
    starts = np.concatenate([[0], np.cumsum(mixed.sizes)])
    order = np.concatenate([mixed.epoch_order(seed, epoch) for epoch in range(epochs)])
    sets = np.searchsorted(starts, order, side="right") - 1
    return list(zip(sets.tolist(), (order - starts[sets]).tolist(), strict=True))


def test_it_is_what_a_slow_loop_with_cursors_gives():
    """Epoch after epoch, one position after another, each set holding its own endless line of frames."""
    mixed, seed = mixture(), 3

    def line(number, size):
        together, block = 4096 // size, 0
        while True:
            generator = np.random.default_rng([seed, block, 1 + number])
            for permutation in generator.permuted([list(range(size))] * together, axis=1):
                yield from permutation.tolist()
            block += 1

    lines = [line(number, size) for number, size in enumerate((5, 40, 15))]
    counts, expected = np.random.default_rng([seed, 0, 0, 1]), []
    for epoch in range(40):
        picked = counts.multinomial(60, [1 / 8, 2 / 8, 5 / 8])
        picks = [number for number, count in enumerate(picked) for _ in range(count)]
        for number in np.random.default_rng([seed, epoch]).permutation(picks).tolist():
            expected.append((number, next(lines[number])))
    assert stream(mixed, seed, 40) == expected


def test_every_frame_of_a_set_is_seen_once_before_any_is_seen_twice_also_over_epochs():
    for number, size in enumerate((5, 40, 15)):
        seen = [frame for picked, frame in stream(mixture(), 0, 30) if picked == number]
        rounds = [seen[start : start + size] for start in range(0, len(seen), size)]
        assert all(sorted(one) == list(range(size)) for one in rounds[:-1]) and len(set(rounds[-1])) == len(rounds[-1])
        assert rounds[0] != rounds[1] != rounds[2]


def test_the_share_of_each_set_converges_to_its_weight_and_picks_are_independent():
    picks = np.array([number for number, _ in stream(mixture(), 1, 500)])  # 30,000 positions
    shares = np.array([1, 2, 5]) / 8
    deviation = np.sqrt(shares * (1 - shares) / len(picks))
    assert (np.abs([np.mean(picks == number) for number in range(3)] - shares) < 4 * deviation).all()
    pairs = np.mean((picks[:-1] == 2) & (picks[1:] == 2))
    assert abs(pairs - (5 / 8) ** 2) < 0.015
    in_an_epoch = (picks.reshape(500, 60) == 2).sum(axis=1)  # binomial: 60 x 5/8 x 3/8
    assert 0.8 < in_an_epoch.var() / (60 * 5 / 8 * 3 / 8) < 1.2


def test_epochs_and_seeds_differ_and_one_epoch_asked_alone_is_the_same():
    mixed = mixture()
    orders = {tuple(mixed.epoch_order(seed, epoch)) for seed in range(3) for epoch in range(5)}
    assert len(orders) == 15
    assert np.array_equal(mixture().epoch_order(2, 4), mixed.epoch_order(2, 4))


def test_the_sampler_follows_it_from_any_start_on_any_number_of_processes():
    mixed = mixture()
    whole = [index for epoch in range(3) for index in mixed.epoch_order(0, epoch)]

    def seen(start, count, **place):
        sampler = UpdateSampler(len(mixed), 3, 0, start, epoch_order=mixed.epoch_order, **place)
        return list(islice(sampler, count))

    assert [index for update in seen(7, 40) for index in update] == whole[21 : 21 + 120]
    ranks = [seen(3, 20, rank=rank, processes=2) for rank in range(2)]
    assert [index for pair in zip(*ranks, strict=True) for part in pair for index in part] == whole[18 : 18 + 120]


def test_a_batch_holds_the_rows_in_the_order_asked_for_whatever_set_they_are_of():
    mixed = mixture()
    indices = np.random.default_rng(0).permutation(60).tolist()
    batch = mixed.__getitems__(indices)
    for row, index in enumerate(indices):
        number = 0 if index < 5 else 1 if index < 45 else 2
        frame = index - (0, 5, 45)[number]
        expected = mixed.datasets[number][frame]
        item = mixed[index]
        for one in ({key: values[row] for key, values in batch.items()}, item):
            assert one["task"] == expected["task"] == f"set{number} {frame}"
            assert torch.equal(one["observation.state"], expected["observation.state"])
            assert one["index"] == frame and one["dataset_index"] == number
    assert list(batch) == list(item)


def test_the_ten_thousandth_epoch_of_a_large_mixture_takes_no_longer_than_a_blink():
    mixed = Mixture([Rows("large", 1_000_000), Rows("small", 7)], [3, 1])  # the small one 36,000 times an epoch
    mixed.epoch_order(0, 0)
    began = time.perf_counter()
    early = mixed.epoch_order(0, 1)
    middle = time.perf_counter()
    late = mixed.epoch_order(0, 10_000)
    assert len(early) == len(late) == 1_000_007
    assert time.perf_counter() - middle < 3 * (middle - began) + 0.5


def test_a_mixture_says_of_itself_what_its_sets_say():
    quiet, loud = Rows("quiet", 2), Rows("loud", 2)
    loud.draws_nothing, loud.needs_spawn = False, True
    assert Mixture([quiet, Subset(quiet, [0])], [1, 1]).draws_nothing
    mixed = Mixture([quiet, Subset(loud, [1])], [1, 1])
    assert not mixed.draws_nothing and mixed.needs_spawn
    stacked, silent = Columns("stacked", 2), Columns("silent", 2)
    stacked.stacks_items = True
    assert stacks_items(Mixture([stacked, Subset(stacked, [0])], [1, 1]))
    assert not stacks_items(Mixture([stacked, Subset(silent, [1])], [1, 1]))


def test_keys_that_some_set_lacks_are_left_out():
    mixed = Mixture([Rows("a", 2, reward=torch.tensor(1.0)), Rows("b", 2)], [1, 1])
    assert set(mixed[0]) == {"observation.state", "index", "task", "dataset_index"}


def test_sets_that_do_not_fit_together_are_refused_all_at_once_by_name():
    first = Rows("a", 2, **{"action": torch.zeros(16, 2), "action_is_pad": torch.zeros(16, dtype=torch.bool)})
    second = Rows("b", 2, **{"action": torch.zeros(8, 2), "observation.image": torch.zeros(3, 4, 4, dtype=torch.uint8)})
    with pytest.raises(ConfigError) as refused:
        Mixture([first, second], [1, 1], ["push", "lift"])
    told = str(refused.value)
    assert "lift has no 'action_is_pad', which push has" in told
    assert "push has no 'observation.image', which lift has" in told
    assert "'action' is float32 [8, 2] in lift, and float32 [16, 2] in push" in told


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "2", True])
def test_a_weight_that_is_no_number_above_zero_is_refused(weight):
    with pytest.raises(ConfigError, match="the weight of lift is"):
        Mixture([Rows("a", 2), Rows("b", 2)], [1, weight], ["push", "lift"])


def test_an_empty_set_and_an_empty_mixture_are_refused():
    with pytest.raises(ConfigError, match="data set 1 of the mixture is empty"):
        Mixture([Rows("a", 2), Rows("b", 0)], [1, 1])
    with pytest.raises(ConfigError, match="at least one data set"):
        Mixture([], [])
