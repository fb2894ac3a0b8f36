"""Which episodes are held out: whole ones, the same for the same seed."""

import pytest

from model_constructor import ConfigError
from trainer.data.episodes import held_out

CHOSEN = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]


def test_nothing_is_held_out_unless_asked():
    assert held_out(CHOSEN, None) == []


def test_named_episodes_are_held_out_sorted_and_once():
    assert held_out(CHOSEN, {"episodes": [11, 3, 11], "seed": 0}) == [3, 11]


def test_a_fraction_is_fixed_by_the_seed_and_is_at_least_one_episode():
    first = held_out(CHOSEN, {"fraction": 0.3, "seed": 0})
    assert len(first) == 3 and set(first) < set(CHOSEN) and first == sorted(first)
    assert held_out(CHOSEN, {"fraction": 0.3, "seed": 0}) == first
    assert len({tuple(held_out(CHOSEN, {"fraction": 0.3, "seed": seed})) for seed in range(5)}) > 1
    assert len(held_out(CHOSEN, {"fraction": 0.01, "seed": 0})) == 1


def test_what_is_not_there_or_leaves_nothing_is_refused():
    with pytest.raises(ConfigError, match="validation episodes 4, 6 are not in the data set") as refused:
        held_out(CHOSEN, {"episodes": [6, 3, 4], "seed": 0})
    assert "the 10 episodes from 2 to 29" in str(refused.value)
    with pytest.raises(ConfigError, match="holds out all 10 episodes"):
        held_out(CHOSEN, {"fraction": 0.99, "seed": 0})
