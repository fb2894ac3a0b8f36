"""The pages for users are run: files are built, Python and commands give what is shown, errors are real."""

import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_constructor import ConfigError, build_model, config, construct, expressions, interpolation, lowering, source
from model_constructor.block import FILE_KEYS
from model_constructor.names import OPS, TAKEN, TAKEN_BY_MODELS, TYPES
from model_constructor.tools.cli import main

ROOT = Path(__file__).parents[1]
DIALECT = ROOT / "docs/dialect.md"
PAGES = (ROOT / "README.md", DIALECT)
FENCE = re.compile(
    r"(?:^<!-- the rest of the file\n(?P<rest>.*?)^-->\n)?^```(?P<language>[\w ]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Fenced:
    language: str
    text: str
    rest: str | None  # of a fragment of a model file: what makes it whole


def fenced(page: Path) -> list[Fenced]:
    return [Fenced(found["language"], found["text"], found["rest"]) for found in FENCE.finditer(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_everything_on_a_page_runs_in_its_order_and_gives_what_is_shown(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for registry in (TYPES, OPS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    Path("experiment_models").symlink_to(ROOT / "experiment_models")
    scope: dict[str, Any] = {}
    blocks = [block for block in fenced(page) if block.language in ("yaml", "python", "console", "text")]
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        shown = after.text if after and after.language == "text" else ""
        if block.language == "yaml":
            name, error = built(block)
            assert error == (shown if shown.startswith(f"{name}:") else "")
        elif block.language == "python":
            failure = run(block.text, scope)
            printed = capsys.readouterr().out
            said = re.findall(r"^print\(.*\)  # (\S.*)$", block.text, re.MULTILINE)
            assert [line for line in said if line not in printed.splitlines()] == []
            assert_told(shown, failure or printed)
        elif block.language == "console":
            for command, output in commands(block.text):
                main(command)
                real = capsys.readouterr()
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


def run(code: str, scope: dict[str, Any]) -> str:
    """The traceback with which the code ends, if it does."""
    try:
        exec(code, scope)
    except Exception as error:
        return "".join(traceback.format_exception(error))
    return ""


def assert_told(shown: str, real: str) -> None:
    """Every stretch of `shown`, which leaves out what stands at `...`, is in `real`, in this order."""
    for stretch in filter(None, shown.split("  ...\n")):
        assert stretch in real
        real = real.partition(stretch)[2]


def commands(text: str) -> Iterator[tuple[list[str], str]]:
    for part in re.split(r"^\$ model-constructor ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command.split(), output


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


def section(title: str) -> str:
    return DIALECT.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


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
        construct.MAX_REPEAT,
        construct.MAX_MODULES,
        lowering.MAX_FUNCTIONS,
    ]
