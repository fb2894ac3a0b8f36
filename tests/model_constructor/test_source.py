"""YAML text -> values that know their places; the traps of YAML are refused at the door."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model_constructor import ConfigError
from model_constructor.source import read_file, read_text


def plain(text: str) -> object:
    return read_text(text, "m.yaml").plain


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("0", 0),
        ("0x1F", 31),
        ("1_000", 1000),
        ("3.5", 3.5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("3e-4", 3e-4),
        ("1E6", 1e6),
        ("1.5e+3", 1500.0),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        (".Inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("n", "n"),
        ('"3"', "3"),
        ("'true'", "true"),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("E10", "E10"),
        (".e5", ".e5"),
        (".", "."),
        ("-", [None]),
        ("+", "+"),
        ("_1", "_1"),
        ("1_", "1_"),
        ("1__0", "1__0"),
        ("0x_", "0x_"),
        ("1_.5", "1_.5"),
        ("1e", "1e"),
        ("x1", "x1"),
    ],
)
def test_a_scalar_is_read_as_a_person_reads_it(written: str, value: object):
    read = plain(f"a: {written}" if written != "-" else "a:\n- ")
    assert read == {"a": value}
    assert type(read["a"]) is type(value)  # type: ignore[index]


@pytest.mark.parametrize("written", [".nan", ".NaN", ".NAN"])
def test_not_a_number_is_a_float(written: str):
    value = plain(f"a: {written}")["a"]  # type: ignore[index]
    assert isinstance(value, float) and math.isnan(value)


TRAPS = [  # (text, line of the problem, what it points at, part of what is said)
    ("a: 1\nb: 2\na: 3\n", 3, "a", "twice"),
    ("m: {a: 1, a: 2}\n", 1, "a", "twice"),
    ('a: 1\n"a": 2\n', 2, '"a"', "twice"),
    ("a:\n\tb: 1\n", 2, "", "tab"),
    ("a: 010\n", 1, "010", "octal"),
    ("a: 0o17\n", 1, "0o17", "octal"),
    ("a: 12:30\n", 1, "12:30", "base-60"),
    ("a: 1:30:00\n", 1, "1:30:00", "base-60"),
    ("a: !!python/name:os.system x\n", 1, "", "tag"),
    ("a: !!int 3\n", 1, "", "tag"),
    ("a: !custom {b: 1}\n", 1, "", "tag"),
    ("a: &x {b: 1}\nc: {<<: *x}\n", 2, "<<", "merge key"),
    ("m: {l: Linear(2, 3)}\n", 1, "Linear(2", "comma"),
    ("m: [Linear(2, 3)]\n", 1, "Linear(2", "comma"),
    ("y: {a: x[:, None]}\n", 1, "", "comma"),
    ("y: a if b: c\n", 1, ":", "': '"),
    ("y: x[1: 2]\n", 1, ":", "': '"),
    ("y: {a: ${dim}}\n", 1, "${dim}", 'write it in quotes, as in "${dim}"'),
    ("y: [1, x-${4 * dim}]\n", 1, "${4 * dim}", 'write it in quotes, as in "${4 * dim}"'),
    ("y: {a: 1,\n  b: ${max(a, 2)}, c: 3}\n", 2, "${max(a, 2)}", "over several lines"),
    ("y: {a: ${env:N,8}}\n", 1, "${env:N,8}", "has to be quoted"),
    ("y: {a: f(x: 1)}\n", 1, "f(x:", "': '"),
    ("y: >= 3\n", 1, "", "cannot begin"),
    ("y: |x\n", 1, "", "cannot begin"),
    ("y: *x\n", 1, "", "alias"),
    ("y: @x\n", 1, "@", "cannot begin"),
    ("[a, b]: 1\n", 1, "", "plain name"),
    ("a: 1\n---\nb: 2\n", 2, "", "another document"),
    ("a: [1, 2\n", 2, "", "expected"),
    ("a: 'x\n", 2, "", "end of stream"),
]


@pytest.mark.parametrize(("text", "line", "marked", "said"), TRAPS)
def test_a_trap_of_yaml_is_refused_where_it_stands(text: str, line: int, marked: str, said: str):
    with pytest.raises(ConfigError) as caught:
        read_text(text, "m.yaml")
    problem = caught.value.problems[0]
    assert said in f"{problem.message} {problem.hint}"
    assert problem.place is not None and problem.place.file == "m.yaml"
    assert problem.place.line == line
    if marked:
        place = problem.place
        assert place.text[place.column - 1 : place.column - 1 + len(marked)] == marked


def test_all_traps_of_a_file_are_told_together_in_file_order():
    with pytest.raises(ConfigError) as caught:
        read_text("a: 010\nb: 12:30\na: {x: f(1, 2)}\n", "m.yaml")
    assert [problem.place.line for problem in caught.value.problems if problem.place][:3] == [1, 2, 3]


@pytest.mark.parametrize(
    ("written", "proposed"), [("010", "write 10"), ("-010", "write -10"), ("0o17", "write 15"), ("12:30", '"12:30"')]
)
def test_a_number_that_readers_disagree_about_comes_with_what_to_write(written: str, proposed: str):
    with pytest.raises(ConfigError) as caught:
        plain(f"a: {written}")
    assert proposed in caught.value.problems[0].hint


@pytest.mark.parametrize("text", ["", "   \n\n", "# nothing\n"])
def test_a_file_without_values_is_refused(text: str):
    with pytest.raises(ConfigError):
        read_text(text, "m.yaml")


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path):
    path = tmp_path / "m.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: >-\r\n  x\r\n  + y\r\n")
    tree = read_file(path)
    assert tree.plain == {"a": 1, "b": "x + y"}
    assert isinstance(tree.value, dict)
    line, column = tree.value["b"].positions()[4]
    assert (line, column) == (3, 4)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_a_line_is_where_the_reader_of_yaml_and_the_editor_agree(mark: str):
    """Characters that only some count as line ends move no later place (or are refused)."""
    try:
        tree = read_text(f"a: 1 # comment{mark}# more\nb: 2\nc: here\n", "m.yaml")
    except ConfigError as error:
        assert len(error.problems) == 1
        return
    assert isinstance(tree.value, dict)
    place = tree.value["c"].place
    assert place.text[place.column - 1 :] == "here"


SCALARS = [
    "x: alpha + beta\n",
    "x: 'alpha + beta'\n",
    'x: "alpha + beta"\n',
    "x:   alpha\n   + beta\n",
    "x: >-\n  alpha\n  + beta\n",
    "x: >\n\n  alpha\n\n  + beta\n",
    "x: |\n  alpha +\n    beta\n",
    "x: |2-\n    alpha + beta\n",
    'x: "é + alpha\n   + beta"\n',
    "x: é * alpha + ü / beta # beta\n",
    'x: "\\"😀\\" + alpha + beta"\n',
    "x: &anchor alpha + beta\n",
    "x: # beta\n  alpha + beta\n",
]


@pytest.mark.parametrize("text", SCALARS)
@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_every_character_of_a_scalar_knows_its_line_and_column(text: str, name: str):
    tree = read_text("# head\n" + text, "m.yaml")
    assert isinstance(tree.value, dict)
    node = tree.value["x"]
    start = node.text.index(name)
    line, column = node.positions()[start]
    assert node.source.lines[line][column : column + len(name)] == name
    assert len(node.positions()) == len(node.text) + 1


SHAPES = ["[", "{a: ", "- ", "? "]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("depth", [100, 2000])
def test_deep_nesting_is_refused(shape: str, depth: int):
    with pytest.raises(ConfigError):
        read_text(shape * depth, "m.yaml")


@pytest.mark.slow
def test_nesting_without_end_does_not_end_the_interpreter():
    code = (
        "from model_constructor import ConfigError\nfrom model_constructor.source import read_text\n"
        f"for shape in {SHAPES}:\n"
        "    try:\n        read_text(shape * 100_000, 'm.yaml')\n"
        "    except ConfigError:\n        print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["refused"] * len(SHAPES), done.stderr


def test_aliases_that_expand_without_bound_are_refused_quickly():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 10):
        bomb += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    began = time.monotonic()
    with pytest.raises(ConfigError, match="expands to more than"):
        read_text(bomb, "m.yaml")
    assert time.monotonic() - began < 10


def test_an_alias_of_itself_is_refused():
    with pytest.raises(ConfigError):
        read_text("a: &a [*a]\n", "m.yaml")


def test_a_plain_alias_repeats_its_value():
    assert plain("a: &v {x: 1}\nb: *v\n") == {"a": {"x": 1}, "b": {"x": 1}}


def test_a_file_that_is_too_large_is_refused(tmp_path: Path):
    path = tmp_path / "large.yaml"
    path.write_text("a: 1\n" + "# " * 2_100_000)
    with pytest.raises(ConfigError, match="bytes"):
        read_file(path)


def test_a_number_of_thousands_of_digits_is_refused():
    with pytest.raises(ConfigError):
        plain("a: " + "9" * 5000)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a device that never ends")
def test_a_device_that_never_ends_is_not_read():
    code = (
        "import resource\nfrom model_constructor import ConfigError\nfrom model_constructor.source import read_file\n"
        "used = 4096 * int(open('/proc/self/statm').read().split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)\n"
        "try:\n    read_file('/dev/zero')\nexcept ConfigError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "refused", done.stderr[-300:]


@pytest.mark.parametrize("text", ["a: \x00b", "a: \x07", "a: \x1b[0m"])
def test_characters_that_yaml_does_not_allow_are_refused(text: str):
    with pytest.raises(ConfigError):
        read_text(text, "m.yaml")


def test_a_value_stands_after_what_was_set_before():
    first, second, third = (read_text(f"{value}\n", "m.yaml") for value in (1, 2, 3))
    assert [node.plain for node in third.after(second.after(first)).earlier] == [1, 2]
    assert third.after(None) is third


@pytest.mark.parametrize("text", ["a: [x][0]\nb: 1\n", "a: 'k' in x\nb: 1\n"])
def test_an_expression_that_begins_with_a_bracket_or_quote_is_told_to_be_quoted(text: str):
    with pytest.raises(ConfigError) as caught:
        read_text(text, "model.yaml")
    (problem,) = caught.value.problems
    assert problem.place and problem.place.line == 1 and "whole expression in quotes" in problem.hint
