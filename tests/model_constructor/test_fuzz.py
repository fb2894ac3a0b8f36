"""Of any file comes a model or a ConfigError with a place, in little time and memory: mutations of every valid file here.

A mutation is a character, a word, a line or a branch of the tree that another takes the place of, or two files in one.
"""

from __future__ import annotations

import copy
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_constructor import dump

CORPUS = Path(__file__).parent / "hostile"
MODELS = Path(__file__).parents[2] / "experiment_models"
sys.path.append(str(CORPUS))

from cell import Cell, Fate  # noqa: E402

VALID = [  # what builds in a tenth of a second, in folders that hold what it refers to
    *sorted((CORPUS / "seeds").glob("*.yaml")),
    *sorted((CORPUS.parent / "version1").glob("*.yaml")),
    *sorted((MODELS / "quickstart").glob("*/*.yaml")),
    MODELS / "zoo" / "transformer" / "visible.yaml",
]
WARM = [*VALID, *sorted((CORPUS / "warm").glob("*.yaml"))]
SMALL = 5_000  # characters of a file that is mutated
NUMBERS = "0 1 2 3 7 -1 0.5 1e9 1e-9 -0.0 99999 2147483647 9223372036854775808 1e400 .inf .nan 0x7f True".split()
TOKEN = re.compile(r"[A-Za-z_]\w*|\d+\.?\d*|[-+*/%@<>=&|~:,.()\[\]]+")
WORDS = (
    "relu softmax cat Linear LayerNorm MLP Param Buffer layer scale ReLU Sequential arange zeros ones einsum rearrange dropout sqrt max len sum "
    "float bool float32 inf pi None True False training index params each if else is not and or in lambda x h clock mask dim depth side hidden "
    "sizes B T layers towers left embed position causal s b y z hs a scan map weight bias shape ndim mT chunk mean to sort 0 1 2 3 -1 1e9 0.5 + "
    "- * ** / // % @ & | ~ == < >> << . , ( ) [ ] : :: () [0] [-9] int str any optional null"
).split()
PIECES = [
    "*", "&", ":", ": ", ",", "(", ")", "[", "]", "{", "}", "'", '"', "\n", "\n  ", " ", "  ", "\t", "-", "- ",
    "#", " #", "!", "!!int ", "|", ">", ">-\n", "%", "@", "`", "?", "? ", "<<: ", "$", "${x}", "~", "null",
    "true", "0", "-1", "1e9", "010",
    "9999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999",
    "1_", "e5", ".inf", "x", "T", "B", "dim", "self", "each(x)", "index", "_", "None", "lambda: 0", "x.__class__",
    "**params", "*x", "...", "\xe9", "\U0001f600", "\u2028", "\x85", "\ufeff", "\\x41", "\\", "->", ">>", " if ",
    " else ", "not ", " and ", " == ", "==", " is None", "@ x", "+", "/", "/ 0", "** 9 ** 9", "index", "layer()",
    "Param(2)", "Buffer(-1)", "Linear(3)", "modules", "graph", "outputs", "blocks", "inputs: any", "init:",
    "shape", "training", "softmax(x)", "len(x)", "sum([1])", ".weight", ".scan", ".map", "[0]", "[-9]",
    "['left']", "[x]", "(x)", "zip", "F", "torch",
]  # fmt: skip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")


def by_characters(text: str, dice: random.Random) -> str:
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        at = dice.randrange(len(text) + 1)
        to = min(len(text), at + dice.randrange(1, 12))
        match dice.randrange(5):
            case 0 | 1:
                text = text[:at] + dice.choice(PIECES) + text[at:]
            case 2:
                text = text[:at] + text[to:]
            case 3:
                text = text[:at] + dice.choice(PIECES) + text[to:]
            case 4:
                text = text[:to] + text[at:]
    return text


def by_words(text: str, dice: random.Random) -> str:
    """Another word here and there: what comes out is still YAML most of the time, so that the later stages see it."""
    for _ in range(dice.choice([1, 1, 2])):
        found = dice.choice([match for match in TOKEN.finditer(text) if match.start() > 17])
        new = dice.choice(dice.choice([WORDS, WORDS, NUMBERS, TOKEN.findall(text), TOKEN.findall(any_text(dice))]))
        text = text[: found.start()] + new + text[found.end() :]
    return text


def by_lines(text: str, dice: random.Random) -> str:
    lines = text.split("\n")
    i, j = dice.randrange(len(lines)), dice.randrange(len(lines))
    match dice.randrange(5):
        case 0:
            lines[i], lines[j] = lines[j], lines[i]
        case 1:
            lines.insert(i, lines[j])
        case 2:
            del lines[i]
        case 3:
            lines.insert(j, lines.pop(i))
        case 4:
            lines[i] = lines[i][2:] if dice.random() < 0.5 else "  " + lines[i]
    return "\n".join(lines)


def by_branches(text: str, dice: random.Random) -> str:
    """Another value in the tree, of this file or another, or none."""
    tree = yaml.safe_load(text)
    holders = list(containers(tree))
    holder = dice.choice(holders)
    key = dice.choice([*(holder if isinstance(holder, dict) else range(len(holder)))])
    match dice.randrange(4):
        case 0:
            del holder[key]
        case 1:
            holder[key] = dice.choice([None, True, 0, -1, 10**12, 0.5, "", "x", [], {}, ["x"], {"x": "any"}])
        case _:
            other = dice.choice([*holders, *containers(yaml.safe_load(any_text(dice)))])
            taken = copy.deepcopy(dice.choice(list(other.values() if isinstance(other, dict) else other)))
            if isinstance(holder, dict) and isinstance(other, dict) and dice.random() < 0.5:
                key = dice.choice(list(other))
            holder[key] = taken
    return dump(tree)


def by_crossing(text: str, dice: random.Random) -> str:
    """The first lines of one file and the last of another."""
    lines, others = text.split("\n"), any_text(dice).split("\n")
    return "\n".join([*lines[: dice.randrange(len(lines))], *others[dice.randrange(len(others)) :]])


# Words more often than the others, which leave few files for the later stages.
MUTATIONS: list[Callable[[str, random.Random], str]] = [
    *[by_words] * 6, by_characters, by_lines, by_lines, by_branches, by_branches, by_crossing,
]  # fmt: skip


def containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list) and value:
        yield value
        for entry in value.values() if isinstance(value, dict) else value:
            yield from containers(entry)


def any_text(dice: random.Random) -> str:
    return dice.choice(VALID).read_text(encoding="utf-8")


def folders(tmp_path: Path) -> dict[Path, Path]:
    """A copy of each folder of valid files, to write mutations into."""
    made: dict[Path, Path] = {}
    for number, folder in enumerate(dict.fromkeys(file.parent for file in VALID)):
        made[folder] = Path(shutil.copytree(folder, tmp_path / str(number)))
    return made


def is_allowed(fate: Fate) -> bool:
    return fate.kind in ("model", "refused") and all(fate.places) and fate.harmless


def mutate(count: int, seed: int, tmp_path: Path, cell: Cell) -> None:
    """Build mutations, and fail with every one that ends otherwise than it may."""
    dice = random.Random(seed)
    made = folders(tmp_path)
    fates: Counter[str] = Counter()
    wrong: list[str] = []
    for _ in range(count):
        file = dice.choice(VALID)
        text = file.read_text(encoding="utf-8")
        for _ in range(dice.choice([1, 1, 1, 2])):
            try:
                text = dice.choice(MUTATIONS)(text, dice)
            except (yaml.YAMLError, IndexError, AttributeError):  # it is no tree any more
                continue
        path = made[file.parent] / "mutated.yaml"
        path.write_bytes(text[:SMALL].encode("utf-8", "surrogatepass"))
        fate = cell.build(path)
        fates[fate.kind] += 1
        if not is_allowed(fate):
            wrong.append(f"{fate}\nof {file}:\n{text}")
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n\n".join(wrong[:10])
    assert min(fates["model"], fates["refused"]) > count / 20, fates


@pytest.mark.parametrize("file", VALID, ids=[f"{file.parent.name}-{file.stem}" for file in VALID])
def test_the_files_that_are_mutated_are_models(cell: Cell, file: Path):
    fate = cell.build(file)
    assert fate.kind == "model" and is_allowed(fate), fate


@pytest.fixture(scope="module")
def cell() -> Iterator[Cell]:
    cell = Cell(*WARM)
    yield cell
    cell.close()


def test_of_any_file_comes_a_model_or_an_error_with_its_place(tmp_path: Path, cell: Cell):
    mutate(100, 0, tmp_path, cell)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_of_any_of_many_files_comes_a_model_or_an_error_with_its_place(tmp_path: Path, seed: int):
    with closing(Cell(*WARM)) as cell:
        mutate(2500, seed, tmp_path, cell)
