"""What an error looks like: file:line:col, the line with a caret, what would have been right."""

from __future__ import annotations

import pickle

import pytest

from model_constructor import ConfigError, Place, Problem
from model_constructor.errors import nearest


def test_a_place_prints_as_file_line_column():
    assert str(Place("decoder.yaml", 41, 10)) == "decoder.yaml:41:10"


def test_a_problem_prints_what_where_and_what_would_have_been_right():
    place = Place("decoder.yaml", 41, 10, 3, "outputs: hed(norm(h))")
    problem = Problem("outputs: no value is called 'hed'.", place, "did you mean 'head'?")
    assert str(problem) == (
        "decoder.yaml:41:10  outputs: no value is called 'hed'.\n"
        "    outputs: hed(norm(h))\n"
        "             ^^^\n"
        "    did you mean 'head'?"
    )


def test_indentation_of_the_line_is_taken_off_and_the_caret_moves_with_it():
    place = Place("a.yaml", 2, 9, 1, "        x")
    assert place.excerpt() == "    x\n    ^"


def test_a_caret_never_runs_past_the_end_of_its_line():
    assert Place("a.yaml", 1, 3, 50, "a bc").excerpt() == "    a bc\n      ^^"


def test_a_problem_without_a_place_is_its_message():
    assert str(Problem("the file is empty.")) == "the file is empty."


def test_problems_are_told_in_file_order_and_once():
    late, early = Problem("b", Place("m.yaml", 9, 1)), Problem("a", Place("m.yaml", 2, 7))
    earlier = Problem("c", Place("m.yaml", 2, 3))
    error = ConfigError([late, early, late, earlier])
    assert [problem.message for problem in error.problems] == ["c", "a", "b"]
    assert str(error) == "m.yaml:2:3  c\nm.yaml:2:7  a\nm.yaml:9:1  b"


def test_one_problem_needs_no_list():
    problem = Problem("a")
    assert ConfigError(problem).problems == (problem,)


def test_an_error_crosses_process_boundaries_whole():
    error = ConfigError([Problem("a", Place("m.yaml", 1, 2, 3, "text"), "hint")])
    twin = pickle.loads(pickle.dumps(error))
    assert twin.problems == error.problems
    assert str(twin) == str(error)


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("hed", ["norm", "head"], "known here: head, norm   did you mean 'head'?"),
        ("linear", ["Linear", "LayerNorm"], "did you mean 'Linear'?"),
        ("zebra", ["head", "norm"], "known here: head, norm"),
        ("zebra", [], ""),
    ],
)
def test_nearest_names_what_is_known_and_what_was_meant(name: str, known: list[str], said: str):
    hint = nearest(name, known)
    assert said in hint
    assert ("did you mean" in hint) == ("did you mean" in said)


def test_of_many_names_the_nearest_ten_are_shown():
    known = [f"layer_{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    hint = nearest("layer_zz", known)
    assert "did you mean 'layer_z'?" in hint
    assert hint.count("layer_") == 11 and "..." in hint
