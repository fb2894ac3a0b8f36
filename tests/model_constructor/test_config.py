"""load_config: files laid over each other, overrides from outside, and every value's places and history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from model_constructor import Config, ConfigError, Problem, build_model, dump, load_config
from model_constructor import config as config_module

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


def problems_of(path: Path, overrides: Sequence[str] = (), **arguments: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, **arguments)
    return list(caught.value.problems)


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


@pytest.mark.parametrize(
    ("override", "marked", "said"),
    [
        ("train.steps=010", "010", "octal"),
        ("train.steps=12:30", "12:30", "base-60"),
        ("train.loss={a: 1, a: 2}", "a: 2", "twice"),
        ("train.loss={a:\t1,\n\tb: f(1, 2)}", "", "comma"),
        ("train.loss={l: Linear(2, 3)}", "Linear(2", "comma"),
        ("train.loss={l: ${name}}", "${name}", "has to be quoted"),
        ("train.loss=[${name}, 2]", "${name}", "has to be quoted"),
        ("name=a if b: c", "a if b: c", "': '"),
        ("name=- x", "- x", "'- '"),
        ("name=*x", "", "an expression cannot begin with '*'"),
        ("name=!!int 3", "", "tag"),
        ("name=${nam}", "nam}", "did you mean 'name'?"),
        ("train.steps=@x", "@x", "cannot begin"),
    ],
)
def test_the_traps_of_yaml_are_refused_in_an_override_under_a_caret(file: Path, override: str, marked: str, said: str):
    problem = problems_of(file, [override])[0]
    assert said in f"{problem.message} {problem.hint}"
    assert problem.place is not None and problem.place.file == "--set"
    assert problem.place.text[problem.place.column - 1 :].startswith(marked)


@pytest.mark.parametrize(
    ("written", "value"), [("on", "on"), ("no", "no"), ("3e-4", 3e-4), ("1E6", 1e6), ("~", None), ("0x10", 16)]
)
def test_an_override_is_read_as_a_person_reads_it(file: Path, written: str, value: object):
    assert load_config(file, [f"name={written}"]).data["name"] == value


def test_an_override_of_many_keys_is_refused(file: Path):
    assert "key.path=value" in problems_of(file, ["a." * 5000 + "b=1"])[0].message


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


# --- files that start from other files -------------------------------------------------------------------------------

Files = Callable[..., Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Write several files, each as text or as plain values, and give the path of the last."""

    def files(**contents: object) -> Path:
        path = tmp_path
        for name, content in contents.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(content if isinstance(content, str) else dump(content))
        return path

    return files


@pytest.mark.parametrize("entry", ["base.yaml", "{base: base.yaml}", "{any_label: base.yaml}", "./../{}/base.yaml"])
def test_a_file_starts_from_its_defaults_in_either_spelling(files: Files, entry: str, tmp_path: Path):
    entry = entry.replace("{}", tmp_path.name) if "./" in entry else entry
    path = files(base="a: 1\nb: {c: 2, d: 3}\n", main=f"defaults: [{entry}]\nb: {{d: 4, e: 5}}\n")
    assert load_config(path).data == {"a": 1, "b": {"c": 2, "d": 4, "e": 5}}


def test_a_path_is_relative_to_the_file_it_stands_in(files: Files):
    path = files(
        common="a: 1\n",
        deep__middle="defaults: [../common.yaml]\nb: 2\n",
        main="defaults: [deep/middle.yaml]\nc: 3\n",
    )
    assert load_config(path).data == {"a": 1, "b": 2, "c": 3}


def test_several_defaults_are_laid_over_each_other_in_order_and_the_file_over_all(files: Files):
    path = files(
        one="a: 1\nb: 1\nc: 1\nd: {x: 1}\n",
        two="b: 2\nc: 2\nd: {y: 2}\n",
        main="c: 3\ndefaults: [one.yaml, {two: two.yaml}]\n",
    )
    assert load_config(path).data == {"a": 1, "b": 2, "c": 3, "d": {"x": 1, "y": 2}}


def test_lists_and_scalars_replace_and_null_is_a_value(files: Files):
    path = files(
        base={"l": [1, 2], "m": {"x": 1}, "s": 1, "n": 3, "k": None},
        main={"defaults": ["base.yaml"], "l": [3], "m": 4, "s": {"y": 2}, "n": None, "k": {"z": 1}},
    )
    assert load_config(path).data == {"l": [3], "m": 4, "s": {"y": 2}, "n": None, "k": {"z": 1}}


def merged(below: object, above: object) -> object:
    """The rule of merging, over plain values."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    keys = [*below, *(key for key in above if key not in below)]
    return {k: merged(below[k], above[k]) if k in below and k in above else above.get(k, below.get(k)) for k in keys}


def random_value(random: Random, depth: int) -> object:
    if depth and random.random() < 0.7:
        return {key: random_value(random, depth - 1) for key in random.sample("abcde", random.randint(0, 4))}
    return random.choice([1, 2.5, "text", True, None, [], [1, [2]], [{"a": 1}]])


@pytest.mark.parametrize("seed", range(30))
def test_mappings_merge_deeply_as_plain_values_would(files: Files, seed: int):
    random = Random(seed)
    layers = [{key: random_value(random, 3) for key in "abc"} for _ in range(3)]
    path = files(one=layers[0], two=layers[1], main={"defaults": ["one.yaml", "two.yaml"], **layers[2]})
    assert load_config(path).data == merged(merged(layers[0], layers[1]), layers[2])


def test_a_config_given_as_plain_values_starts_from_files_of_the_working_directory(files: Files, monkeypatch: Any):
    monkeypatch.chdir(files(base="a: 1\nb: [1, 2]\n").parent)
    config = load_config({"defaults": ["base.yaml"], "c": "${2 * a}"}, {"b": (3, "x")})
    assert config.data == {"a": 1, "b": [3, "x"], "c": 2}


def test_what_is_no_plain_value_is_a_config_error():
    for source, overrides in [({"a": object()}, {}), ({"a": 1}, {"a": object()})]:
        with pytest.raises(ConfigError, match="no plain value"):
            load_config(source, overrides)


def test_the_places_of_merged_values_are_those_of_the_files_that_set_them(files: Files):
    config = load_config(files(base="a: 1\nb: {c: 2}\n", main="defaults: [base.yaml]\nb:\n  d: 3\n"))
    places = {key: config.place(key) for key in [("a",), ("b", "c"), ("b", "d")]}
    assert {key: (Path(place.file).name, place.line) for key, place in places.items()} == {
        ("a",): ("base.yaml", 1),
        ("b", "c"): ("base.yaml", 2),
        ("b", "d"): ("main.yaml", 3),
    }
    assert Path(config.key_place(("b", "c")).file).name == "base.yaml"


WRONG_DEFAULTS = [  # (the file, what the caret is under, part of what is said)
    ("defaults: [no_such.yaml]\n", "no_such.yaml", "there is no such file"),
    ("defaults: [{a: no_such.yaml}]\n", "no_such.yaml", "there is no such file"),
    ("defaults: base.yaml\n", "base.yaml", "a list of files"),
    ("defaults: {a: base.yaml}\n", "{a:", "a list of files"),
    ("defaults:\n", "", "a list of files"),
    ("defaults: [3]\n", "3", "the path of a YAML file"),
    ("defaults: [{a: base.yaml, b: base.yaml}]\n", "{a:", "the path of a YAML file"),
    ("defaults: [base.txt]\n", "base.txt", "the path of a YAML file"),
    ('defaults: ["a\\0.yaml"]\n', '"a', "the path of a YAML file"),
    ("defaults: [main.yaml]\n", "main.yaml", "main.yaml -> main.yaml"),
    ("defaults: [knot/one.yaml]\n", "", "main.yaml -> knot/one.yaml -> knot/two.yaml -> main.yaml"),
    ("defaults: [listed.yaml]\n", "- a", "a mapping of keys"),
]


@pytest.mark.parametrize(("text", "marked", "said"), WRONG_DEFAULTS)
def test_what_is_wrong_with_defaults_is_told_where_it_stands(files: Files, text: str, marked: str, said: str):
    path = files(
        base="a: 1\n",
        listed="- a\n",
        knot__one="defaults: [two.yaml]\n",
        knot__two="defaults: [../main.yaml]\n",
        main=text,
    )
    (problem,) = problems_of(path)
    assert said in f"{problem.message} {problem.hint}"
    assert problem.place is not None
    assert problem.place.text[problem.place.column - 1 :].startswith(marked)


def test_what_is_wrong_in_several_files_of_a_chain_is_told_together_each_in_its_file(files: Files):
    found = problems_of(files(one="a: 010\n", two="b: [\n", main="defaults: [one.yaml, two.yaml, three.yaml]\n"))
    assert sorted(Path(problem.place.file).name for problem in found if problem.place) == [
        "main.yaml",
        "one.yaml",
        "two.yaml",
    ]


def test_files_that_multiply_are_refused_quickly(files: Files):
    contents = {f"f{i}": f"defaults: [f{i + 1}.yaml, f{i + 1}.yaml]\n" for i in range(40)}
    files(f40="a: 1\n", **contents)
    assert "more than 200 files" in problems_of(files(f0=contents["f0"]))[0].message


def test_files_that_hold_too_many_values_together_are_refused(files: Files, monkeypatch: Any):
    monkeypatch.setattr(config_module, "MAX_NODES", 100)
    files(base={"a": [0] * 60})
    assert load_config(files(one="defaults: [base.yaml]\n")).data == {"a": [0] * 60}
    assert "more than 100 values" in problems_of(files(two="defaults: [base.yaml, base.yaml]\n"))[0].message


def test_a_chain_without_end_is_refused(files: Files):
    contents = {f"f{i}": f"defaults: [f{i + 1}.yaml]\n" for i in range(200)}
    files(**contents)
    assert "60 deep" in problems_of(files(f0=contents["f0"]))[0].message


# --- lists that extend what stands below ------------------------------------------------------------------------------

BELOW = {"l": [{"name": "a", "x": {"p": 1}}, {"name": "b"}], "m": {"p": 1, "q": 2}}
MERGES = [  # (what the file says, what becomes of it)
    ({"l": {"_merge_": "append", "_value_": [3]}}, {"l": [*BELOW["l"], 3]}),
    ({"l": {"_merge_": "prepend", "_value_": [3, 4]}}, {"l": [3, 4, *BELOW["l"]]}),
    ({"l": {"_merge_": "replace", "_value_": [3]}}, {"l": [3]}),
    ({"m": {"_merge_": "replace", "_value_": {"r": 3}}}, {"m": {"r": 3}}),
    ({"new": {"_merge_": "append", "_value_": [3]}}, {"new": [3]}),
    ({"new": {"_merge_": "keyed", "_value_": [{"k": 1}], "key": "k"}}, {"new": [{"k": 1}]}),
    ({"m": {"r": {"_merge_": "append", "_value_": []}}}, {"m": {"p": 1, "q": 2, "r": []}}),
    (
        {"l": {"_merge_": "keyed", "_value_": [{"name": "c"}, {"name": "a", "x": {"q": 2}}], "key": "name"}},
        {"l": [{"name": "a", "x": {"p": 1, "q": 2}}, {"name": "b"}, {"name": "c"}]},
    ),
]


@pytest.mark.parametrize(("above", "expected"), MERGES)
def test_a_merge_says_how_a_value_extends_the_one_below(files: Files, above: dict, expected: dict):
    data = load_config(files(base=BELOW, main={"defaults": ["base.yaml"], **above})).data
    assert data == {**BELOW, **expected}
    overrides = {key: value for key, value in above.items() if key != "m" or "_merge_" in value}
    if overrides:  # and so it does from outside
        assert load_config(files(main=BELOW), overrides).data == {**BELOW, **expected}


def test_lists_grow_file_by_file(files: Files):
    grow = {word: {"_merge_": word, "_value_": [word]} for word in ("append", "prepend")}
    path = files(
        base={"l": [0]},
        middle={"defaults": ["base.yaml"], "l": grow["append"]},
        main={"defaults": ["middle.yaml"], "l": grow["prepend"]},
    )
    assert load_config(path).data == {"l": ["prepend", 0, "append"]}


WRONG_MERGES = [
    ("{_merge_: apend, _value_: []}", "apend", "did you mean 'append'?"),
    ("{_merge_: append}", "{_merge_", "needs the key '_value_'"),
    ("{_merge_: append, _value_: 3}", "3", "has to be a list"),
    ("{_merge_: append, _value_: [], values: 3}", "values", "did you mean '_value_'?"),
    ("{_merge_: append, _value_: [], key: a}", "key", "takes no 'key'"),
    ("{_merge_: keyed, _value_: []}", "keyed", "needs 'key'"),
    ("{_merge_: keyed, _value_: [3], key: name}", "3", "needs the key 'name'"),
    ("{_merge_: keyed, _value_: [{x: 1}], key: name}", "{x: 1}", "needs the key 'name'"),
    ("{_merge_: keyed, _value_: [{name: t}], key: name}", "{name: t}", "more than one entry"),
    ("{_merge_: [append], _value_: []}", "[append]", "no '_merge_' is called"),
]


@pytest.mark.parametrize(("text", "marked", "said"), WRONG_MERGES)
def test_a_merge_that_cannot_be_done_is_told_where_it_stands(files: Files, text: str, marked: str, said: str):
    (problem,) = problems_of(files(base="l: [{name: t}, {name: t}]\n", main=f"defaults: [base.yaml]\nl: {text}\n"))
    assert said in f"{problem.message} {problem.hint}"
    assert problem.place is not None
    assert problem.place.line == 2 and problem.place.text[problem.place.column - 1 :].startswith(marked)


def test_only_a_list_is_extended(files: Files):
    path = files(base="l: 3\n", main="defaults: [base.yaml]\nl: {_merge_: append, _value_: [1]}\n")
    (problem,) = problems_of(path)
    assert "no list" in problem.message and "base.yaml:1:4" in problem.hint


# --- model files ------------------------------------------------------------------------------------------------------

BASE = """\
schema_version: 2
params: {dim: 4, spare: 1}
inputs: {x: [B, dim], mask: {shape: [B], dtype: bool, optional: true}}
blocks:
  layer:
    params: {dim: int}
    inputs: {x: [B, dim]}
    modules: {a: "Linear(dim, dim)", b: "Linear(dim, dim)"}
    outputs: b(a(x))
modules:
  parts: {first: "layer(dim=dim)", second: "layer(dim=dim)"}
  head: Linear(dim, 2)
graph:
  h: parts.second(parts.first(x))
"""


def test_a_base_need_not_be_a_model_by_itself(files: Files):
    with pytest.raises(ConfigError, match="needs the key 'outputs'"):
        build_model(files(base=BASE))
    model = build_model(files(base=BASE, main="schema_version: 2\ndefaults: [base.yaml]\noutputs: head(h)\n"))
    assert model(torch.ones(3, 4)).shape == (3, 2)


def test_null_removes_an_entry_from_a_mapping_from_names(files: Files):
    main = """\
schema_version: 2
defaults: [base.yaml]
params: {spare: null}
inputs: {mask: null}
blocks:
  layer: {modules: {b: null}, outputs: a(x)}
modules: {parts: {second: null}, head: null}
graph: {h: null}
outputs: parts.first(x)
"""
    model = build_model(files(base=BASE, main=main))
    assert model.inputs == ("x",)
    assert list(model.state_dict()) == ["parts.first.a.weight", "parts.first.a.bias"]
    assert model.params == {"dim": 4, "spare": None}  # elsewhere null is a value


def test_what_was_removed_can_be_written_again(files: Files):
    path = files(
        base=BASE,
        middle="defaults: [base.yaml]\nmodules: {head: null}\n",
        main='schema_version: 2\ndefaults: [middle.yaml]\nmodules: {head: "Linear(dim, 7)"}\noutputs: head(h)\n',
    )
    assert build_model(path)(torch.ones(1, 4)).shape == (1, 7)


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("modules: {haed: null}", "null"),
        ("graph: {g: ~}", "~"),
        ("inputs: {y: null}", "null"),
        ("blocks: {layer: {modules: {c: null}}}", "null"),
        ("init: {head: null}", "null"),
        ("modules: {new: {a: null}}", "null"),
    ],
)
def test_a_null_that_removes_nothing_is_an_error(files: Files, text: str, marked: str):
    (problem,) = problems_of(files(base=BASE, main=f"defaults: [base.yaml]\n{text}\noutputs: head(h)\n"), model=True)
    assert "no such entry to remove" in problem.message
    assert problem.place is not None and problem.place.text[problem.place.column - 1 :].startswith(marked)


def test_a_null_that_removes_nothing_names_what_is_there(files: Files):
    (problem,) = problems_of(files(base=BASE, main="defaults: [base.yaml]\nmodules: {haed: null}\n"), model=True)
    assert "did you mean 'head'?" in problem.hint


def test_a_base_of_another_schema_version_is_refused_in_the_base(files: Files):
    path = files(base="schema_version: 1\n", main="schema_version: 2\ndefaults: [base.yaml]\noutputs: x\n")
    (problem,) = problems_of(path, model=True)
    assert problem.place is not None and Path(problem.place.file).name == "base.yaml"
    assert "schema_version 1" in problem.message and "of 2" in problem.message


LEAF = "schema_version: 2\nparams: {by: 2}\ninputs: {x: any}\noutputs: x * by\n"
USES_LEAF = "schema_version: 2\nblocks: {leaf: leaf.yaml}\n"


def test_the_path_of_a_block_is_relative_to_the_file_in_which_its_line_stands(files: Files):
    path = files(
        parts__leaf=LEAF,
        parts__base=USES_LEAF,
        main="schema_version: 2\ndefaults: [parts/base.yaml]\ninputs: {x: any}\noutputs: leaf(x)\n",
    )
    assert build_model(path)(torch.tensor(3)) == 6


def test_the_path_of_a_block_in_an_override_is_relative_to_the_main_file(files: Files):
    path = files(
        leaf=LEAF.replace("by: 2", "by: 5"),
        parts__leaf=LEAF,
        parts__base=USES_LEAF,
        main="schema_version: 2\ndefaults: [parts/base.yaml]\ninputs: {x: any}\noutputs: leaf(x)\n",
    )
    assert build_model(path, overrides=["blocks.leaf=leaf.yaml"])(torch.tensor(3)) == 15
    assert build_model(path, overrides=["blocks.leaf.params.by=7"])(torch.tensor(3)) == 21  # inside the block's file


def test_a_derived_file_changes_what_the_file_of_a_block_says(files: Files):
    path = files(
        parts__leaf=LEAF,
        base=USES_LEAF.replace("leaf.yaml", "parts/leaf.yaml") + "inputs: {x: any}\noutputs: leaf(x)\n",
        main="schema_version: 2\ndefaults: [base.yaml]\nblocks: {leaf: {params: {by: 7}}}\n",
    )
    assert build_model(path)(torch.tensor(3)) == 21
    assert told(load_config(path, model=True), "blocks.leaf.params.by") == [
        (2, "leaf.yaml:2", "file"),
        (7, "main.yaml:3", "file"),
    ]


def test_a_whole_block_replaces_the_file_of_another(files: Files):
    base = "schema_version: 2\nblocks: {leaf: gone.yaml}\ninputs: {x: any}\noutputs: leaf(x)\n"  # it is not read
    main = "schema_version: 2\ndefaults: [base.yaml]\nblocks: {leaf: {inputs: {x: any}, outputs: x * 5}}\n"
    assert build_model(files(base=base, main=main))(torch.tensor(3)) == 15


def test_a_block_of_the_older_dialect_is_replaced_whole_or_not_at_all(files: Files):
    old = "schema_version: 1\nmodel: {sequential: {inputs: [x], layers: [{_type_: nn.Linear, _args_: [2, 2]}]}}\n"
    base = "schema_version: 2\nblocks: {leaf: old.yaml}\ninputs: {x: any}\nmodules: {l: leaf()}\noutputs: l(x)\n"
    main = "schema_version: 2\ndefaults: [base.yaml]\nblocks: {leaf: {params: {by: 3}}}\n"
    (problem, *_) = problems_of(files(old=old, base=base, main=main), model=True)
    assert "of schema_version 1; only a whole block can replace it" in problem.message


def test_the_file_of_a_block_may_start_from_another(files: Files):
    path = files(
        leaf=LEAF,
        parts__more="schema_version: 2\ndefaults: [../leaf.yaml]\nparams: {by: 4}\n",
        main="schema_version: 2\nblocks: {leaf: parts/more.yaml}\ninputs: {x: any}\noutputs: leaf(x)\n",
    )
    assert build_model(path)(torch.tensor(3)) == 12


def test_block_files_that_multiply_are_refused_quickly(files: Files):
    contents = {
        f"f{i}": f"schema_version: 2\nblocks: {{a: f{i + 1}.yaml, b: f{i + 1}.yaml}}\noutputs: 1\n" for i in range(40)
    }
    files(f40=LEAF, **contents)
    assert "more than 200 files" in problems_of(files(f0=contents["f0"]), model=True)[0].message


def test_a_block_file_without_its_schema_version_is_refused(files: Files):
    path = files(leaf="inputs: {x: any}\noutputs: x\n", main=USES_LEAF + "outputs: leaf(1)\n")
    (problem,) = problems_of(path, model=True)
    assert "schema_version" in problem.message
    assert problem.place is not None and Path(problem.place.file).name == "leaf.yaml"


def test_overrides_change_a_model_file_from_outside(files: Files):
    text = BASE + "  s1, b1: h.chunk(2, -1)\noutputs: head(h) * (s1 + b1).sum()\ninit: {parts.first: zeros}\n"
    path = files(main=text)
    model = build_model(
        path,
        overrides=[
            "params.dim=6",
            "graph.s1, b1=h.unbind(-1)[:2]",
            "modules.head=Linear(dim, 3)",
            "inputs.mask=null",
            "init.parts.first=ones",
        ],
    )
    assert model.inputs == ("x",)
    assert model.params["dim"] == 6 and model.head.out_features == 3
    assert "unbind" in model.code and "chunk" not in model.code
    assert model.parts.first.a.weight.eq(1).all()  # the key with a dot in it was found


def test_overrides_may_be_a_mapping_of_plain_values(files: Files):
    path = files(main=BASE + "outputs: head(h)\n")
    model = build_model(path, overrides={"params.dim": 6, "inputs.mask": None, "modules.head": "Linear(dim, 3)"})
    assert model.inputs == ("x",) and model(torch.ones(1, 6)).shape == (1, 3)
    with pytest.raises(ConfigError, match="has no key 'extra'"):
        build_model(path, overrides={"extra": 1})


def test_params_of_the_caller_win_over_overrides(files: Files):
    path = files(main=BASE + "outputs: head(h)\n")
    assert build_model(path, params={"dim": 8}, overrides=["params.dim=6"]).params["dim"] == 8


def test_a_specification_is_one_file_that_builds_the_same(files: Files):
    path = files(parts__leaf=LEAF, base=BASE + "outputs: head(h)\n", main="defaults: [base.yaml]\nparams: {dim: 6}\n")
    model = build_model(path)
    again = build_model(model.spec)
    assert "defaults" not in model.spec
    assert again.spec == model.spec
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 6)
    assert torch.equal(again(x), model(x))


# --- the history of a value -------------------------------------------------------------------------------------------


def told(config: Config, path: str, **arguments: Any) -> list[tuple[object, str, str]]:
    """A history with the place as `file:line`, or the override as it was written."""
    shown = []
    for value, place, how in config.history(path, **arguments):
        where = (
            "" if place is None else place.text if place.file == "--set" else f"{Path(place.file).name}:{place.line}"
        )
        shown.append((value, where, how))
    return shown


def test_a_value_remembers_each_place_that_set_it(files: Files):
    path = files(
        common="train: {steps: 1}\n",
        base="defaults: [common.yaml]\n\ntrain: {steps: 2, seed: 3}\n",
        main="defaults: [base.yaml]\ntrain:\n  steps: 4\n",
    )
    config = load_config(path, ["train.steps=5", "train.steps=6"])
    assert told(config, "train.steps") == [
        (1, "common.yaml:1", "file"),
        (2, "base.yaml:3", "file"),
        (4, "main.yaml:3", "file"),
        (5, "train.steps=5", "override"),
        (6, "train.steps=6", "override"),
    ]
    assert told(config, "train.seed") == [(3, "base.yaml:3", "file")]
    assert told(config, "train")[0] == ({"steps": 1}, "common.yaml:1", "file")


def test_the_history_of_a_list_entry_and_of_a_key_with_dots(files: Files):
    path = files(
        base={"l": [{"n": "a", "x": 1}], "init": {"a.b": "zeros"}},
        main={"defaults": ["base.yaml"], "l": {"_merge_": "keyed", "_value_": [{"n": "a", "x": 2}], "key": "n"}},
    )
    config = load_config(path, ["init.a.b=ones"])
    assert [value for value, _, _ in told(config, "l.0.x")] == [1, 2]
    assert [value for value, _, _ in told(config, "init.a.b")] == ["zeros", "ones"]


def test_a_removed_entry_shows_as_removed_and_what_held_a_value_may_have_been_replaced(files: Files):
    path = files(base=BASE, main="schema_version: 2\ndefaults: [base.yaml]\nmodules: {parts: 3}\noutputs: h\n")
    config = load_config(path, ["modules.head=null"], model=True)
    assert told(config, "modules.head") == [
        ("Linear(dim, 2)", "base.yaml:12", "file"),
        (None, "modules.head=null", "removed"),
    ]
    assert told(config, "modules.parts.first") == [
        ("layer(dim=dim)", "base.yaml:11", "file"),
        (None, "main.yaml:3", "removed"),
    ]


def test_the_history_of_what_is_computed_shows_the_text_and_what_it_became(files: Files, monkeypatch: Any):
    monkeypatch.setenv("A_SEED", "7")
    config = load_config(files(main="seed: ${env:int:A_SEED}\na: 2\nb: ${3 * a}\n"), ["a=4"])
    assert told(config, "seed") == [
        ("${env:int:A_SEED}", "main.yaml:1", "file"),
        (7, "main.yaml:1", "environment A_SEED"),
    ]
    assert told(config, "b") == [("${3 * a}", "main.yaml:3", "file"), (12, "main.yaml:3", "computed")]


def test_the_history_of_a_param_includes_its_caller_and_reaches_into_blocks(files: Files):
    path = files(
        leaf="schema_version: 2\nparams: {dim: int, wide: '${2 * dim}', by: 3, half: '${by // 2}'}\noutputs: dim\n",
        main="schema_version: 2\nparams: {dim: 4, wide: '${2 * dim}'}\nblocks: {leaf: leaf.yaml}\noutputs: 1\n",
    )
    config = load_config(path, ["blocks.leaf.params.by=5"], model=True)
    written = ("${2 * dim}", "main.yaml:2", "file")
    assert told(config, "params.wide") == [written, (8, "main.yaml:2", "computed")]
    assert told(config, "params.wide", params={"dim": 5}) == [written, (10, "main.yaml:2", "computed")]
    assert told(config, "params.wide", params={"wide": 1}) == [written, (1, "", "params")]
    assert told(config, "params.dim", params={"dim": 5}) == [(4, "main.yaml:2", "file"), (5, "", "params")]
    assert told(config, "blocks.leaf.params.half")[-1] == (2, "leaf.yaml:2", "computed")
    assert told(config, "blocks.leaf.params.wide", params={"dim": 5}) == [("${2 * dim}", "leaf.yaml:2", "file")]
    assert [value for value, _, _ in told(config, "blocks.leaf.params.by")] == [3, 5]


def test_a_path_at_which_nothing_stood_is_an_error_with_the_nearest(files: Files):
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        load_config(files(main="train: {steps: 1}\n")).history("train.step")


def test_the_text_of_a_config_reads_as_its_data(files: Files):
    config = load_config(files(base="b: [1]\n", main="defaults: [base.yaml]\na: $${b}\nc: ${b}\nd: 1e-3\ne: 'on'\n"))
    assert config.data == {"b": [1], "a": "${b}", "c": [1], "d": 1e-3, "e": "on"}
    assert load_config(files(written=config.text)).data == config.data


def test_an_override_of_a_param_that_is_none_is_refused(tmp_path: Path):
    path = tmp_path / "model.yaml"
    path.write_text("schema_version: 2\nparams: {dim: 4}\ninputs: {x: [B, dim]}\noutputs: x * dim\n")
    with pytest.raises(ConfigError, match="there is no param 'dmi' to set"):
        load_config(path, ["params.dmi=64"], model=True)


DECLARED = (
    "schema_version: 2\nparams: {scale: int, n: 2, causal: false, wide: '${2 * n}', free: null}\noutputs: scale\n"
)


@pytest.mark.parametrize("derived", [False, True])
@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("scale", "0.5", "an integer"),
        ("scale", "null", "an integer"),
        ("n", "true", "an integer"),
        ("causal", "2", "true or false"),
    ],
)
def test_what_replaces_a_param_is_held_to_its_type(files: Files, name: str, value: str, wanted: str, derived: bool):
    text = f"schema_version: 2\ndefaults: [base.yaml]\nparams: {{{name}: {value}}}\n"
    path = files(base=DECLARED, main=text if derived else DECLARED)
    with pytest.raises(ConfigError, match=f"the param '{name}' of 'main' is .*; it has to be {wanted}") as caught:
        build_model(path, overrides=[] if derived else [f"params.{name}={value}"])
    (problem,) = caught.value.problems
    assert problem.place and problem.place.file == (str(path) if derived else "--set")
    assert "declared at" in problem.hint


def test_what_fits_the_type_of_a_param_replaces_it(files: Files):
    text = "schema_version: 2\ndefaults: [base.yaml]\nparams: {scale: 4, n: 1.5, wide: 3, free: text, causal: null}\n"
    path = files(base=DECLARED, main=text)
    params = {"scale": 5, "n": 1.5, "wide": 3, "free": "text", "causal": None}
    assert build_model(path, overrides=["params.scale=5"]).params == params
    with pytest.raises(ConfigError, match="has to be an integer"):  # as it was declared
        build_model(path, overrides=["params.scale=0.5"])
    with pytest.raises(ConfigError, match="has to be an integer"):
        build_model(path, params={"scale": 0.5})


@pytest.mark.parametrize("override", [None, "init.head=", "init.head= "])
def test_an_entry_of_which_nothing_is_written_is_not_removed(files: Files, override: str | None):
    base = (
        "schema_version: 2\ninputs: {x: any}\nmodules: {head: 'Linear(2, 2)'}\noutputs: head(x)\ninit: {head: zeros}\n"
    )
    main = "schema_version: 2\ndefaults: [base.yaml]\n" + ("" if override else "init:\n  head:\n")
    (problem,) = problems_of(files(base=base, main=main), [override] if override else [], model=True)
    assert problem.message == "nothing is written for 'head'." and problem.hint == "write null to remove it"
    for null in ("null", "~"):
        assert load_config(files(base=base), [f"init.head={null}"], model=True).data["init"] == {}
