"""load_config: plain data that still knows where each value was set, and overrides from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_constructor import ConfigError, load_config

TEXT = """\
train:
  loss: {type: mse, weight: 1}
  steps: 3
  milestones: [10, {at: 20}]
name: first
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(TEXT)
    return path


def test_data_is_plain_python(file: Path):
    data = {"loss": {"type": "mse", "weight": 1}, "steps": 3, "milestones": [10, {"at": 20}]}
    assert load_config(file).data == {"train": data, "name": "first"}
    assert load_config(file).path == file


@pytest.mark.parametrize(
    ("path", "line", "column", "text"),
    [
        (("train", "loss", "type"), 2, 16, "mse"),
        (("train", "steps"), 3, 10, "3"),
        (("train", "milestones", 1, "at"), 4, 25, "20"),
        (("name",), 5, 7, "first"),
        (("train", "loss", "typ"), 2, 9, "{type: mse, weight: 1}"),  # the nearest ancestor that stands there
        (("nothing", "at", "all"), 1, 1, "train:"),
    ],
)
def test_the_place_of_a_value(file: Path, path: tuple, line: int, column: int, text: str):
    place = load_config(file).place(path)
    assert (place.file, place.line, place.column) == (str(file), line, column)
    assert place.text[place.column - 1 :].startswith(text)


def test_the_place_of_a_key(file: Path):
    config = load_config(file)
    place = config.key_place(("train", "loss", "weight"))
    assert (place.line, place.column, place.length) == (2, 21, len("weight"))
    assert config.key_place(("train", "los")).line == 2  # the mapping under 'train'


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.steps=20", ("train", "steps"), 20),
        ("train.lr=3e-4", ("train", "lr"), 3e-4),
        ("train.loss.type=l1", ("train", "loss", "type"), "l1"),
        ("train.milestones.1.at=[1, 2]", ("train", "milestones", 1, "at"), [1, 2]),
        ("eval.every=2", ("eval", "every"), 2),  # mappings on the way are made
        ("name=", ("name",), None),
        ("name=a=b", ("name",), "a=b"),
        ("train.loss={type: l1}", ("train", "loss"), {"type": "l1"}),
        ("train.flag=true", ("train", "flag"), True),
        ("train.flag=on", ("train", "flag"), "on"),
        ('name="3"', ("name",), "3"),
    ],
)
def test_an_override_sets_one_value_read_as_yaml(file: Path, override: str, path: tuple, value: object):
    data: object = load_config(file, [override]).data
    for key in path:
        data = data[key]  # type: ignore[index]
    assert data == value
    assert type(data) is type(value)


def test_an_override_leaves_everything_else_and_the_file_alone(file: Path):
    data = load_config(file, ["train.steps=20"]).data
    assert data["train"]["loss"] == {"type": "mse", "weight": 1}
    assert file.read_text() == TEXT


def test_later_overrides_win(file: Path):
    assert load_config(file, ["name=a", "name=b"]).data["name"] == "b"


def test_an_override_is_its_values_place(file: Path):
    place = load_config(file, ["train.steps=20"]).place(("train", "steps"))
    assert place.text == "train.steps=20"
    assert place.text[place.column - 1 :] == "20"


@pytest.mark.parametrize(
    "override",
    [
        "train.steps",
        "=3",
        "a..b=3",
        ".a=3",
        "train.milestones.7=1",
        "train.milestones.x=1",
        "train.steps.x=1",
        "a=1: 2: 3",
        "a=!!python/name:os.system x",
        "a=[1, 2",
        "a='",
        "a=#",
        "a=&x *x",
        "a=010",
        "train.milestones.²=1",
    ],
)
def test_a_bad_override_is_a_config_error(file: Path, override: str):
    with pytest.raises(ConfigError):
        load_config(file, [override])


def test_all_bad_overrides_are_told_together(file: Path):
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["train.steps", "train.steps.x=1"])
    assert len(caught.value.problems) == 2


def test_a_missing_file_names_the_files_that_are_there(file: Path):
    with pytest.raises(ConfigError, match=r"no such file[\s\S]*train\.yaml"):
        load_config(file.with_name("trian.yaml"))


@pytest.mark.parametrize("text", ["", "# only a comment\n", "- a\n- b\n", "just text\n", "a: 1\na: 2\n", "\ta: 1\n"])
def test_a_file_that_holds_no_clean_mapping_is_a_config_error(file: Path, text: str):
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_config(file)


def test_a_folder_is_no_file(tmp_path: Path):
    with pytest.raises(ConfigError, match="folder"):
        load_config(tmp_path)


def test_bytes_that_are_not_utf8_are_a_config_error(file: Path):
    file.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(ConfigError, match="byte 6 is not UTF-8"):
        load_config(file)
