"""The sampler: a pure function of (seed, epoch, position)."""

from itertools import islice

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


def test_a_set_smaller_than_one_update_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match="has 31 frames, fewer than the 32 that one update takes"):
        UpdateSampler(31, 32, seed=0)
    assert UpdateSampler(32, 32, seed=0).updates_per_epoch == 1
