"""The pages for users are run: files are built, Python and commands give what is shown, errors are real."""

import importlib
import inspect
import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from experiment_training.components.dataloader import episodic_data, lerobot_data, point_reach
from experiment_training.components.dataloader.params import check_params
from model_constructor import ConfigError, build_model, config, expressions, interpolation, limits, source
from model_constructor.block import FILE_KEYS
from model_constructor.names import OPS, TAKEN, TAKEN_BY_MODELS, TYPES
from model_constructor.tools import cli
from trainer import evaluate, export, offline_trainer, registry
from trainer.config import ExperimentConfig, load_run_config
from trainer.data.image_transforms import TRANSFORMS
from trainer.data.normalization import MODES, normalization_modes
from trainer.registry.plugins import load_shipped_plugins

ROOT = Path(__file__).parents[1]
DIALECT, TRAINING, OWN_DATA = (ROOT / "docs" / name for name in ("dialect.md", "training.md", "own_data.md"))
PAGES = (ROOT / "README.md", DIALECT, TRAINING, OWN_DATA)
QUICK = PAGES[:2]  # those that train nothing
QUICKSTART = ROOT / "experiment_training/quickstart/pick_place.yaml"  # what a fragment of a train config is laid over
REGISTRIES = [getattr(registry, name) for name in registry.__all__]
DATA_PARAMS: dict[str, Mapping[str, Any]] = {
    "lerobot_dataset_factory": lerobot_data.PARAMS | {"datasets": lerobot_data.SETS},
    "episodic_dataset_factory": episodic_data.PARAMS,
    "point_reach": point_reach.PARAMS,
}
COMMANDS = {
    "model-constructor ": cli.main,
    "python trainer/offline_trainer.py ": offline_trainer.main,
    "python -m trainer.offline_trainer ": offline_trainer.main,
    "python -m trainer.evaluate ": evaluate.main,
    "python -m trainer.export ": export.main,
}
FENCE = re.compile(
    r"(?:^<!-- the rest of the file\n(?P<rest>.*?)^-->\n)?^```(?P<language>[\w ]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Fenced:
    language: str
    text: str
    rest: str | None  # of a fragment of a model file: what makes it whole


def fenced(page: Path, whole: bool) -> list[Fenced]:
    """The blocks of a page; those marked `slow` behind their language only if it is asked for whole."""
    return [
        Fenced(found["language"].removesuffix(" slow"), found["text"], found["rest"])
        for found in FENCE.finditer(page.read_text())
        if whole or not found["language"].endswith(" slow")
    ]


@pytest.mark.parametrize(
    "page, whole",
    [
        *(pytest.param(page, False, id=page.name, marks=() if page in QUICK else pytest.mark.slow) for page in PAGES),
        pytest.param(OWN_DATA, True, id="own_data.md, whole", marks=pytest.mark.slow),
    ],
)
def test_everything_on_a_page_runs_in_its_order_and_gives_what_is_shown(
    page: Path,
    whole: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", [*sys.path])
    if page == OWN_DATA:
        monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "home"))
        monkeypatch.syspath_prepend(ROOT / "tests/own_data")
        importlib.import_module("recordings").write_recordings(tmp_path)
    load_shipped_plugins()
    for each in (TYPES, OPS, *REGISTRIES):
        monkeypatch.setattr(each, "_entries", dict(each._entries))
    Path("pyproject.toml").touch()
    for folder in ("experiment_models", "experiment_training"):
        Path(folder).symlink_to(ROOT / folder)
    scope: dict[str, Any] = {}
    blocks = [block for block in fenced(page, whole) if block.language in ("yaml", "python", "console", "text")]
    for block in reversed(blocks):  # a reader has saved the files before the first command
        if name := re.match(r"# (\w+\.(?:py|yaml))\n", block.text):
            Path(name[1]).write_text(block.text)
            monkeypatch.delitem(
                sys.modules, Path(name[1]).stem, raising=False
            )  # a plugin that an earlier test imported
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        shown = after.text if after and after.language == "text" else ""
        if block.language == "yaml" and is_train_config(block.text):
            check_train_config(block.text)
        elif block.language == "yaml":
            name, error = built(block)
            assert error == (shown if shown.startswith(f"{name}:") else "")
        elif block.language == "python" and re.match(r"# \w+\.py\n", block.text):
            continue  # a plugin: the config that names it imports it
        elif block.language == "python":
            failure = run(block.text, scope)
            printed = capsys.readouterr().out
            said = re.findall(r"^print\(.*\)  # (\S.*)$", block.text, re.MULTILINE)
            assert [line for line in said if line not in printed.splitlines()] == []
            assert_told(shown, failure or printed)
        elif block.language == "console":
            for command, arguments, output in commands(block.text):
                command(arguments)
                real = capsys.readouterr()
                if re.search(r"  \.\.\.\n|…", output):
                    assert_told(output, real.out + real.err)
                else:
                    assert real.out + real.err == output


def built(block: Fenced) -> tuple[str, str]:
    """Build the file that a block shows, with 4 for each integer it asks for: its name, and what is wrong with it."""
    name = re.match(r"# (\S+\.yaml)\n", block.text)
    path = Path(name[1] if name else "fragment.yaml")
    path.write_text((block.rest or "") + block.text)
    declared = (yaml.safe_load(path.read_text()).get("params") or {}).items()
    try:
        build_model(path, params={key: 4 for key, value in declared if value == "int"})
    except ConfigError as error:
        return path.name, f"{error}\n"
    return path.name, ""


def is_train_config(text: str) -> bool:
    return set(yaml.safe_load(text)) <= ExperimentConfig.model_fields.keys()


def check_train_config(text: str) -> None:
    """A whole one, or a fragment over the quickstart's; what only a data set on disk could refuse is checked here."""
    name = re.match(r"# (\S+\.yaml)\n", text)
    path = Path(name[1] if name else "fragment.yaml")
    whole, own = yaml.safe_load(QUICKSTART.read_text()), yaml.safe_load(text)
    if "datamodule" in own.get("data", {}):
        del whole["data"]["datamodule"]
    Path("whole.yaml").write_text(yaml.safe_dump(whole))
    path.write_text(text if name else f"defaults: [whole.yaml]\n{text}")
    data = load_run_config(path).experiment.data
    if (rules := DATA_PARAMS.get(data.datamodule.type)) is not None:
        for params in (data.datamodule.params, *data.datamodule.params.get("datasets", [])):
            known = {**rules, "weight": lerobot_data.WEIGHT}
            check_params(data.datamodule.type, params, known, needed=())
    written = own.get("data", {}).get("normalization", {})
    images = {key: 3 for key in written if "images" in key}
    numbers = {key: dict.fromkeys(("mean", "std", "min", "max", "q01", "q99"), np.ones(14)) for key in written}
    normalization_modes(written, {key: one for key, one in numbers.items() if key not in images}, images=images)


def run(code: str, scope: dict[str, Any]) -> str:
    """The traceback with which the code ends, if it does."""
    try:
        exec(code, scope)
    except Exception as error:
        return "".join(traceback.format_exception(error))
    return ""


def assert_told(shown: str, real: str) -> None:
    """Every stretch of `shown`, which leaves out lines at `...` and parts of one at `…`, is in `real`, in this order."""
    for stretch in filter(None, re.split(r"  \.\.\.\n|…", shown)):
        assert stretch in real
        real = real.partition(stretch)[2]


def commands(text: str) -> Iterator[tuple[Any, list[str], str]]:
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        start = next(start for start in COMMANDS if line.startswith(start))
        yield COMMANDS[start], shlex.split(line.removeprefix(start)), output


def test_the_examples_of_components_have_the_protocols_of_old() -> None:
    assert_told("\n  ...\n".join([*OLD_PROTOCOLS, ""]), section("Your own components", OWN_DATA))


OLD_PROTOCOLS = [  # as those who wrote components before this repository know them
    '@DATASET_BUILDER_REGISTRY.register("my_dataset")\nclass MyDatasetFactory:',
    "    def build(self, opt_params, params) -> dict:",
    '@LOSS_BUILDER_REGISTRY.register("my_loss")\nclass MyLossFactory:\n    def build(self) -> nn.Module:',
    '@OPTIMIZER_BUILDER_REGISTRY.register("my_optim")\nclass MyOptimFactory:',
    "    def build(self, params) -> torch.optim.Optimizer:",
    '@TRAINER_REGISTRY.register("my_trainer")\nclass MyTrainer:',
    "    def __init__(self, models, optimizers, loss, device):",
    "    def train_step(self, data, **kwargs) -> dict:",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", prose)
    assert links
    for target, anchor in links:
        path = (page.parent / target) if target else page
        assert path.exists(), target
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], anchor


def section(title: str, page: Path = DIALECT) -> str:
    return page.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_keys_are_those_of_a_file() -> None:
    told = re.findall(r"^\| `(\w+)` \|", section("The keys of a file"), re.MULTILINE)
    assert sorted(told) == sorted([*FILE_KEYS, "defaults"])


def test_the_taken_names_are_all_that_are_taken() -> None:
    told = section("The keys of a file").split("Taken are ")[1]
    dialect, models = (set(re.findall(r"`(\w+)`", part)) for part in told.split("every attribute of `nn.Module`"))
    assert dialect == TAKEN
    assert models - {"forward", "train", "half", "GraphModel"} == TAKEN_BY_MODELS


def test_the_limits_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| .* \| ([\d,; ]+) \|$", section("Untrusted files"), re.MULTILINE)
    told = [int(number.replace(",", "")) for row in rows for number in row.split("; ")]
    assert told == [
        source.MAX_BYTES,
        config.MAX_FILES,
        source.MAX_NODES,
        source.MAX_DEPTH,
        source.MAX_DIGITS,
        expressions.MAX_DEPTH,
        expressions.MAX_LIST,
        expressions.MAX_ELEMENTS,
        interpolation.MAX_SIZE,
        limits.TRUSTED.repeats,
        limits.TRUSTED.modules,
        limits.TRUSTED.functions,
    ]


# What the training page tells


def test_the_loop_is_quoted_whole() -> None:
    assert f"```python notest\n{(ROOT / 'trainer/loop.py').read_text()}```\n" in section("The loop", TRAINING)


def test_the_params_of_data_sets_are_all_that_they_take() -> None:
    for factory, params in DATA_PARAMS.items():
        told = section("Data", TRAINING).split(f"**`{factory}`**")[1].split("\n**`")[0].split("\n**A mixture")[0]
        assert set(re.findall(r"`(\w+)`", told)) >= params.keys(), factory


def test_the_image_transforms_have_the_params_and_defaults_that_are_told() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (`.*?) \|", section("Images", TRAINING), re.MULTILINE)
    told = {name: dict(re.findall(r"`(\w+)` (\[.*?\]|[\d.]+)", params)) for name, params in rows}
    assert told == {
        name: {key: str(field.default) for key, field in transform.model_fields.items()}
        for name, transform in TRANSFORMS.items()
    }


def test_the_modes_of_normalisation_are_those_of_the_code() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", section("Normalisation", TRAINING), re.MULTILINE)) == set(MODES)


@pytest.mark.parametrize("title", ["Losses", "Optimizers", "Trainers", "Evaluations"])
def test_the_components_that_ship_have_the_params_and_defaults_that_are_told(title: str) -> None:
    load_shipped_plugins()
    kind = next(each for each in REGISTRIES if title.lower().startswith(each.kind))
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section(title, TRAINING), re.MULTILINE))
    shipped = {name: kind.get(name) for name in kind.keys()}  # noqa: SIM118
    assert rows.keys() == {name for name, one in shipped.items() if one.__module__.startswith("experiment_training.")}
    for name, params in rows.items():
        taken = inspect.signature(shipped[name]).parameters
        own = {key: one.default for key, one in taken.items() if key not in ("models", "optimizers", "loss", "device")}
        told = dict(re.findall(r"`(\w+)` (\[.*?\]|[^,(]+)", params))
        assert told.keys() == own.keys(), name
        for key, default in own.items():
            if key not in WORDED:
                assert yaml.safe_load(told[key].strip()) == (
                    list(default) if isinstance(default, tuple) else default
                ) or (float(told[key]) == default), (name, key)


WORDED = {"peak_lr", "total_steps", "diameter", "execute_steps"}  # defaults that only words can tell
