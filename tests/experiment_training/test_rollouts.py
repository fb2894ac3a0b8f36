"""Rollouts: several episodes at once, seen through a camera, equal to one after the other."""

import numpy as np
import pytest
from wanderer import Strict, Wanderer

from experiment_training.components.evaluation.episode import (
    HELD_OUT_SEED,
    IMAGE,
    PROPRIO,
    STATE,
    make_environment,
    placements,
    run_episode,
)
from experiment_training.components.evaluation.metaworld import MetaWorldEvaluation
from experiment_training.components.evaluation.rollouts import Rollouts
from experiment_training.quickstart.record import TASK, Expert, Recording, record

BUTTON = "button-press-topdown-v3"


def test_episodes_are_those_of_one_environment_run_by_hand_whatever_was_run_before() -> None:
    episodes = list(Rollouts(TASK, HELD_OUT_SEED, 30, 24).run(Wanderer(), [3, 1], processes=1))
    for index, episode in zip([3, 1], episodes, strict=True):
        placement = placements(TASK, HELD_OUT_SEED)[index]
        alone = run_episode(make_environment(TASK), placement, Wanderer(), max_steps=30, linger=24, seed=index)
        assert np.array_equal(episode.actions, alone.actions)
        assert np.array_equal(episode.states, alone.states)


def test_noise_moves_what_is_executed_and_is_drawn_anew_for_each_placement() -> None:
    calm, noisy = (Rollouts(TASK, 0, 20, 0, noise=noise) for noise in (0.0, 0.5))
    (first,), (moved,) = (list(one.run(Wanderer(), [0], 1)) for one in (calm, noisy))
    (again, other) = noisy.run(Wanderer(), [0, 1], 1)
    assert np.array_equal(first.actions, moved.actions)
    assert np.abs(first.states[-1] - moved.states[-1]).max() > 1e-3
    assert np.array_equal(moved.states, again.states)
    assert not np.array_equal(again.actions, other.actions)


@pytest.mark.slow
def test_two_processes_give_the_episodes_of_one_in_the_same_order() -> None:
    rollouts = Rollouts(TASK, HELD_OUT_SEED, 40, 0, noise=0.1)
    for one, two in zip(*(rollouts.run(Wanderer(), range(4), processes) for processes in (1, 2)), strict=True):
        assert np.array_equal(one.states, two.states)
        assert np.array_equal(one.actions, two.actions)


@pytest.mark.slow
def test_who_sees_through_the_camera_is_told_of_the_hand_alone(tmp_path) -> None:
    (episode,) = Rollouts(BUTTON, HELD_OUT_SEED, 3, 0, image_size=64).run(Strict(), [0], processes=1)
    assert episode.images is not None
    assert (episode.images.shape, episode.images.dtype) == ((3, 64, 64, 3), np.uint8)
    red = (episode.images[0].astype(int) @ [1, -1, 0] > 80).any(axis=1)  # rows with the arm, or the button's head
    assert red[:32].any()
    assert episode.images[0].std() > 20
    assert not np.array_equal(episode.images[0], episode.images[2])  # the arm moves


@pytest.mark.slow
def test_a_recording_with_images_holds_what_the_camera_saw(tmp_path) -> None:
    from trainer.data.lerobot_files import read_columns

    recording = Recording(1, BUTTON, image_size=64)
    assert "1 episodes" in record(tmp_path / "demonstrations", recording, processes=2)
    columns = read_columns(tmp_path / "demonstrations", None)
    episodes = list(Rollouts(BUTTON, 0, 250, 10, 64, True, 0.1, 10).run(Expert(BUTTON), [0], 1))
    states = np.concatenate([episode.states for episode in episodes])
    assert np.array_equal(columns.numbers[STATE].numpy(), states[:, PROPRIO])
    frames = [0, 5, len(states) - 1]
    pictures = columns.cameras[IMAGE].read(frames).numpy().transpose(0, 2, 3, 1)
    seen = np.concatenate([episode.images for episode in episodes if episode.images is not None])
    assert np.array_equal(pictures, seen[frames])
    assert "reused" in record(tmp_path / "demonstrations", recording)


@pytest.mark.slow
def test_an_evaluation_by_camera_in_two_processes_counts_successes(tmp_path) -> None:
    evaluation = MetaWorldEvaluation(BUTTON, episodes=2, max_steps=4, image_size=32, processes=2, films=2)
    result = evaluation.evaluate(Strict(), tmp_path)
    assert result.summary == "success 0.0 % (0 of 2 held-out placements)"
    assert [file.stem for file in result.files] == ["rollout", "rollout_1"]
