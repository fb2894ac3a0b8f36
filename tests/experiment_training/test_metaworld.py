"""The closed-loop evaluation: what it counts, what it shows, and that it needs no OpenGL."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from experiment_training.components.evaluation import film, metaworld
from experiment_training.components.evaluation.episode import (
    GOAL,
    HELD_OUT_SEED,
    OBJECT,
    STATE,
    make_environment,
    placements,
    run_episode,
    simulator,
)
from experiment_training.components.evaluation.metaworld import MetaWorldEvaluation, wilson_interval
from experiment_training.quickstart.record import TASK, Expert
from model_constructor import ConfigError

PROJECT = Path(__file__).resolve().parents[2]


class Idle:
    """Acts, and moves nothing."""

    def reset(self, seed: int | None = None) -> None: ...

    def select_action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        assert observation[STATE].shape == (39,)
        assert observation[STATE].dtype == np.float32
        return np.zeros(4, dtype=np.float32)


class LateStarter(Expert):
    """Idle in its first episode, an expert from then on."""

    def __init__(self) -> None:
        super().__init__(TASK)
        self.episodes = 0

    def reset(self, seed: int | None = None) -> None:
        self.episodes += 1

    def select_action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        return super().select_action(observation) if self.episodes > 1 else np.zeros(4)


@pytest.fixture(scope="module")
def episode():
    return run_episode(
        make_environment(TASK), placements(TASK, HELD_OUT_SEED)[0], Expert(TASK), max_steps=250, linger=24
    )


def test_no_held_out_placement_was_demonstrated() -> None:
    demonstrated, held_out = (
        np.stack([pickle.loads(placement.data)["rand_vec"] for placement in placements(TASK, seed)])  # [50, 6]
        for seed in (0, HELD_OUT_SEED)
    )
    distance = np.linalg.norm(held_out[:, None] - demonstrated[None], axis=-1).min()
    print(f"nearest pair of a held-out and a demonstrated placement: {distance:.4f} m")
    assert distance > 0.01


def test_a_placement_says_where_object_and_goal_are(episode) -> None:
    expected = pickle.loads(placements(TASK, HELD_OUT_SEED)[0].data)["rand_vec"]
    np.testing.assert_allclose(episode.states[0, OBJECT][:2], expected[:2], atol=0.01)
    np.testing.assert_allclose(episode.states[0, GOAL], expected[3:], atol=1e-6)


def test_the_expert_succeeds_on_held_out_placements() -> None:
    result = MetaWorldEvaluation(episodes=8, films=0).evaluate(Expert(TASK), None)
    assert result.metrics["successes"] >= 7
    assert result.metrics["seconds_per_episode"] > 0
    assert result.files == []


def test_who_does_nothing_succeeds_nowhere(tmp_path: Path) -> None:
    result = MetaWorldEvaluation(episodes=3, max_steps=100, films=0).evaluate(Idle(), tmp_path)
    assert result.summary == "success 0.0 % (0 of 3 held-out placements)"
    assert result.metrics["success"] == result.metrics["success_low"] == 0
    assert list(tmp_path.iterdir()) == []


def test_successes_are_counted_and_a_successful_rollout_is_shown(monkeypatch, tmp_path: Path) -> None:
    shown = []
    monkeypatch.setattr(metaworld, "film_episode", lambda episode, folder, name: shown.append(episode) or folder / name)
    result = MetaWorldEvaluation(episodes=2).evaluate(LateStarter(), tmp_path)
    assert result.summary == "success 50.0 % (1 of 2 held-out placements)"
    assert (result.metrics["success"], result.metrics["successes"], result.metrics["episodes"]) == (0.5, 1, 2)
    assert [episode.success for episode in shown] == [True]
    assert result.files == [tmp_path / "rollout"]


def test_an_episode_does_not_depend_on_the_one_before(episode) -> None:
    environment = make_environment(TASK)
    for index in (1, 0):
        again = run_episode(environment, placements(TASK, HELD_OUT_SEED)[index], Expert(TASK), max_steps=250, linger=24)
    assert np.array_equal(again.states, episode.states)
    assert np.array_equal(again.actions, episode.actions)


def test_an_episode_goes_on_for_a_while_after_success(episode) -> None:
    longer = run_episode(
        make_environment(TASK), placements(TASK, HELD_OUT_SEED)[0], Expert(TASK), max_steps=250, linger=30
    )
    assert len(longer.states) == len(episode.states) + 6


def test_a_rollout_computes_in_one_thread_and_leaves_the_number_as_it_was() -> None:
    seen = []

    class Curious(Idle):
        def select_action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
            seen.append(torch.get_num_threads())
            return super().select_action(observation)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        MetaWorldEvaluation(episodes=1, max_steps=2, films=0).evaluate(Curious(), None)
        assert (seen, torch.get_num_threads()) == ([1, 1], 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("successes", "trials"), [(0, 30), (1, 30), (17, 30), (29, 30), (30, 30), (1, 1)])
def test_the_interval_is_wilsons(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"task": "pick-plaice-v3"}, "did you mean 'pick-place-v3'?"),
        ({"episodes": 51}, "episodes is 51\n    a whole number from 1 to 50"),
        ({"episodes": "all"}, "episodes is 'all'"),
        ({"max_steps": 501}, "max_steps is 501\n    a whole number from 1 to 500"),
        ({"seed": -1}, "seed is -1"),
        ({"image_size": 0}, "image_size is 0\n    a whole number from 1 to 1024"),
        ({"processes": 0, "films": -1}, "films is -1\n    a whole number from 0 to 50"),
    ],
)
def test_a_wrong_parameter_is_refused_at_once(params: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MetaWorldEvaluation(**params)
    assert message in str(caught.value)


@pytest.mark.slow
def test_the_rollout_is_an_animation(episode, tmp_path: Path) -> None:
    (tmp_path / "rollout.png").touch()  # of an evaluation without OpenGL, in the same folder
    file = film.film_episode(episode, tmp_path)
    if file.suffix != ".gif":
        pytest.skip("no OpenGL on this machine")
    assert list(tmp_path.iterdir()) == [file]
    assert file.stat().st_size < 2e6
    with Image.open(file) as animation:
        assert animation.size == (film.WIDTH, film.HEIGHT)
        assert animation.n_frames == min(len(episode.states), film.MAX_FRAMES)
        frames = []
        for index in (0, animation.n_frames // 2, animation.n_frames - 1):
            animation.seek(index)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    for first, second in ((0, 1), (1, 2)):  # the arm moves, the table does not
        moved = (np.abs(frames[first] - frames[second]).max(axis=-1) > 30).mean()
        assert 0.002 < moved < 0.5


def test_a_renderer_that_hangs_is_given_up(episode, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(film, "RENDER_LIMIT_S", 0.01)
    (tmp_path / "rollout.gif").touch()  # of an earlier evaluation
    file = film.film_episode(episode, tmp_path)
    assert list(tmp_path.iterdir()) == [file] == [tmp_path / "rollout.png"]
    assert "gave no answer" in capsys.readouterr().out


def test_with_opengl_switched_off_the_paths_are_drawn(episode, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    assert film.film_episode(episode, tmp_path) == tmp_path / "rollout.png"
    (why,) = capsys.readouterr().out.splitlines()
    assert why.startswith("no animation, for want of OpenGL (")


@pytest.mark.slow
def test_with_a_broken_opengl_an_evaluation_runs_and_draws_the_paths(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from experiment_training.components.evaluation.metaworld import MetaWorldEvaluation\n"
        "from experiment_training.quickstart.record import TASK, Expert\n"
        "print(MetaWorldEvaluation(episodes=1).evaluate(Expert(TASK), Path(sys.argv[1])).summary)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=PROJECT,
        env=os.environ | {"MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_FILENAMES": "/nowhere.json"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    why, summary = done.stdout.splitlines()
    assert why.startswith("no animation, for want of OpenGL (")
    assert why.endswith(f"in {tmp_path / 'rollout.png'}")
    assert summary == "success 100.0 % (1 of 1 held-out placements)"
    assert "Traceback" not in done.stderr
    with Image.open(tmp_path / "rollout.png") as plot:
        assert min(plot.size) > 200


def test_the_choice_of_opengl_is_left_as_it_was(monkeypatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    simulator()
    assert os.environ["MUJOCO_GL"] == "egl"
    monkeypatch.delenv("MUJOCO_GL")
    simulator()
    assert "MUJOCO_GL" not in os.environ
