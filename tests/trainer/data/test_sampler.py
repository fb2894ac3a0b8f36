"""The sampler: a pure function of (seed, epoch, position)."""

import pickle
from itertools import islice

import numpy as np
import pytest
from torch.utils.data import DataLoader

from model_constructor import ConfigError
from trainer.data.sampler import UpdateSampler


def updates(sampler, count):
    return list(islice(iter(sampler), count))


def test_an_epoch_shows_every_item_at_most_once_and_drops_the_tail_that_fills_no_update():
    sampler = UpdateSampler(size=10, batch_size=3, seed=0)
    assert sampler.updates_per_epoch == 3
    seen = [index for update in updates(sampler, 3) for index in update]
    assert len(seen) == len(set(seen)) == 9
    assert set(seen) < set(range(10))


def test_over_many_epochs_every_item_is_seen_about_equally_often():
    counts = [0] * 10
    for update in updates(UpdateSampler(size=10, batch_size=3, seed=0), 3 * 400):
        for index in update:
            counts[index] += 1
    assert sum(counts) == 3 * 3 * 400
    assert all(300 < count <= 400 for count in counts)  # 360 expected; a dropped tail falls on any item


def test_epochs_and_seeds_differ():
    first, second = updates(UpdateSampler(64, 64, seed=0), 2)
    (other,) = updates(UpdateSampler(64, 64, seed=1), 1)
    assert sorted(first) == sorted(second) == sorted(other) == list(range(64))
    assert first != second and first != other


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 7, 300])
def test_a_start_in_the_middle_sees_what_an_uninterrupted_run_sees(start):
    whole = updates(UpdateSampler(10, 3, seed=5), start + 8)
    assert updates(UpdateSampler(10, 3, seed=5, start=start), 8) == whole[start:]


def test_each_iteration_begins_anew():
    sampler = UpdateSampler(10, 3, seed=5, start=2)
    assert updates(sampler, 5) == updates(sampler, 5)


def test_it_drives_a_data_loader_across_epochs():
    loader = DataLoader(range(10), batch_sampler=UpdateSampler(10, 4, seed=0), collate_fn=list)
    assert list(islice(loader, 5)) == updates(UpdateSampler(10, 4, seed=0), 5)


def global_order(size, seed, epoch):
    return np.random.default_rng([seed, epoch]).permutation(size).tolist()


@pytest.mark.parametrize("accumulate, processes", [(1, 1), (1, 2), (2, 1), (3, 2)])
def test_the_processes_together_take_the_next_positions_of_the_order_micro_batch_by_micro_batch(accumulate, processes):
    size, batch_size = 50, 3
    ranks = [
        updates(UpdateSampler(size, batch_size, seed=4, accumulate=accumulate, rank=rank, processes=processes), 7)
        for rank in range(processes)
    ]
    per_epoch = size // (batch_size * accumulate * processes)
    for number in range(7):
        epoch, update = divmod(number, per_epoch)
        remaining = global_order(size, 4, epoch)[update * batch_size * accumulate * processes :]
        for micro in range(accumulate):
            for rank in range(processes):
                expected, remaining = remaining[:batch_size], remaining[batch_size:]
                assert ranks[rank][number][micro * batch_size : (micro + 1) * batch_size] == expected


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1), (4, 2)])
def test_on_another_number_of_processes_the_same_global_order_continues(before, after):
    size, update_size, accumulate = 100, 24, 3

    def seen(processes, start, count):
        """Item indices of whole updates, in the order of their positions."""
        batch_size = update_size // accumulate // processes
        ranks = [
            updates(
                UpdateSampler(size, batch_size, 1, start, accumulate=accumulate, rank=rank, processes=processes), count
            )
            for rank in range(processes)
        ]
        return [
            sorted((place, index) for part in parts for place, index in zip(part.positions, part, strict=True))
            for parts in zip(*ranks, strict=True)
        ]

    assert seen(before, 0, 5) + seen(after, 5, 6) == seen(1, 0, 11)


def test_an_update_says_where_its_items_stand_also_in_a_worker():
    for number, update in enumerate(updates(UpdateSampler(10, 2, seed=6, accumulate=2), 5)):
        travelled = pickle.loads(pickle.dumps(update))
        assert travelled == update and travelled.epoch == update.epoch == number // 2
        assert [global_order(10, 6, update.epoch)[place] for place in travelled.positions] == update


def test_behind_is_the_same_order_at_another_start():
    sampler = UpdateSampler(60, 3, seed=5, accumulate=2, rank=1, processes=2)
    assert updates(sampler.behind(7), 4) == updates(sampler, 11)[7:]
    assert sampler.start == 0


def test_a_data_set_may_have_an_order_of_its_own():
    sampler = UpdateSampler(6, 2, seed=9, start=2, epoch_order=lambda seed, epoch: np.arange(6) + 100 * epoch + seed)
    assert updates(sampler, 2) == [[13, 14], [109, 110]]


def test_a_set_smaller_than_one_update_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match="has 31 frames, fewer than the 32 that one update takes"):
        UpdateSampler(31, 32, seed=0)
    assert UpdateSampler(32, 32, seed=0).updates_per_epoch == 1


def test_a_set_smaller_than_one_update_is_refused_with_every_factor_and_what_would_fit():
    with pytest.raises(ConfigError, match=r"the 64 \(batch_size 8 x accumulate 4 x processes 2\) that") as refused:
        UpdateSampler(63, 8, seed=0, accumulate=4, processes=2)
    assert "data.batch_size to 7 or less" in str(refused.value)
    with pytest.raises(ConfigError, match=r"fewer processes or a smaller train.accumulate"):
        UpdateSampler(7, 1, seed=0, accumulate=4, processes=2)
