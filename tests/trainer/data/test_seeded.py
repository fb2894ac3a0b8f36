"""What a data set draws is a function of (seed, epoch, position), and leaves training's own streams alone."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset

from trainer.config.schemas import DataConfig
from trainer.data.prefetch import DeviceBatches, build_loader
from trainer.data.sampler import UpdateSampler
from trainer.data.seeded import SeededReader, seed_streams

CPU = torch.device("cpu")


class Dice(Dataset):
    """Draws from all three global streams, as a plugin's augmentation might; dictionaries, one item at a time."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        drawn = [random.random(), *np.random.rand(index % 3 + 1)[:1], torch.rand(index % 2 + 1)[0].item()]
        return {"index": index, "drawn": torch.tensor(drawn, dtype=torch.float32)}


class Handful(Dice):
    """The same, a whole batch at once."""

    def __getitems__(self, indices):
        return {"index": torch.tensor(indices), "drawn": torch.rand(len(indices))}


class Quiet(Dice):
    draws_nothing = True


def data(workers=0):
    return DataConfig(datamodule={"type": "any"}, num_workers=workers)


def drawn(dataset, count, workers=0, seed=3, **place):
    """(index, what was drawn for it), update after update."""
    sampler = UpdateSampler(len(dataset), 2, seed=0, **place)
    with DeviceBatches(build_loader(dataset, sampler, data(workers), CPU, seed), CPU) as batches:
        return [
            list(zip(batch["index"].tolist(), batch["drawn"].tolist(), strict=True)) for batch in islice(batches, count)
        ]


def streams():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("dataset", [Dice(), Handful(), Subset(Dice(), range(12))])
def test_what_is_drawn_depends_neither_on_the_workers_nor_on_where_the_run_was_resumed(dataset):
    whole = drawn(dataset, 14)
    assert drawn(dataset, 14, workers=2) == whole
    assert drawn(dataset, 5, workers=2, start=9) == whole[9:]


def test_each_place_is_seeded_alone_with_the_seed_the_epoch_and_the_position():
    for number, update in enumerate(drawn(Dice(), 14)):
        for place, (index, values) in enumerate(update):
            epoch, first = divmod(number, 6)
            seed_streams(3, epoch, 2 * first + place)
            assert Dice()[index]["drawn"].tolist() == values


def test_two_processes_draw_for_each_place_what_one_process_draws():
    one = [pair for update in drawn(Dice(), 6) for pair in update]
    two = [drawn(Dice(), 3, rank=rank, processes=2) for rank in range(2)]
    assert [pair for updates in zip(*two, strict=True) for update in updates for pair in update] == one


def test_epochs_positions_and_seeds_draw_differently():
    values = [tuple(value) for seed in (3, 4) for update in drawn(Dice(), 12, seed=seed) for _, value in update]
    assert len(set(values)) == 48
    assert len({number for value in values for number in value}) == 3 * 48  # nor is one stream a copy of another


def test_numpy_and_torch_which_run_the_same_generator_do_not_draw_the_same_numbers():
    def whole_numbers():
        return np.random.randint(0, 2**31, 4, dtype=np.uint32).tolist(), torch.randint(2**31, (4,)).tolist()

    np.random.seed(7)
    torch.manual_seed(7)
    numpy_s, torch_s = whole_numbers()
    assert set(numpy_s) & set(torch_s)
    seed_streams(0, 0, 0)
    numpy_s, torch_s = whole_numbers()
    assert not set(numpy_s) & set(torch_s)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_s_own_streams_go_on_as_if_nothing_had_been_read(workers):
    before = streams()
    drawn(Dice(), 3, workers)
    drawn(Handful(), 3, workers)
    assert streams() == before


def test_the_streams_are_kept_also_when_a_read_fails():
    before = streams()
    with pytest.raises(IndexError):
        SeededReader(Failing(), 0).__getitems__([1, 7])
    assert streams() == before


def test_a_data_set_that_draws_nothing_is_not_seeded():
    torch.manual_seed(5)
    expected = torch.rand(1).item()
    torch.manual_seed(5)
    random.seed(0)
    SeededReader(Subset(Quiet(), [2]), 0).__getitems__([0])  # it lied: the draws come from the streams as they stand
    assert torch.rand(1).item() != expected


class Failing(Dice):
    def __getitem__(self, index):
        if index == 7:
            error = IndexError("no such frame")
            error.add_note("episode 3, frame 4")
            raise error
        return super().__getitem__(index)


class Odd(Exception):
    """Cannot be pickled: its constructor takes something else than its arguments."""

    def __init__(self, code, reason):
        super().__init__(f"{reason} ({code})")


class FailingOddly(Dice):
    def __getitem__(self, index):
        raise Odd(5, "the disk is gone")


def notes(caught):
    return "\n".join(caught.value.__notes__)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_of_a_data_set_keeps_its_type_and_notes_and_names_the_item(workers):
    with pytest.raises(IndexError) as caught:
        drawn(Failing(), 6, workers)
    assert str(caught.value) == "no such frame"
    assert caught.value.__notes__[0] == "episode 3, frame 4"
    assert "while reading item 7 of the data set" in notes(caught)
    assert ("in data worker 0 of 1" in notes(caught)) == (workers == 1)
    assert ("test_seeded.py" in notes(caught)) == (workers == 1)  # the worker's traceback, which pickling drops


def test_an_exception_that_cannot_travel_arrives_under_its_name():
    with pytest.raises(RuntimeError) as caught:
        drawn(FailingOddly(), 1, workers=1)
    assert str(caught.value) == "Odd: the disk is gone (5)"
    assert "while reading item" in notes(caught) and "raise Odd" in notes(caught)


class Ragged(Dice):
    def __getitem__(self, index):
        return {"index": index, "drawn": torch.zeros(index)}


def test_items_that_do_not_stack_are_named():
    with pytest.raises(RuntimeError, match="equal size") as caught:
        SeededReader(Ragged(), 0).__getitems__([1, 2])
    assert "while putting items 1, 2 of the data set into one batch" in notes(caught)
