"""Hostile files: what was published against other systems, and what this dialect might invite, is refused in its place.

Each file of the corpus says in its first line what it is, and in its second how it is refused. All are built in a cell,
a process in which an audit hook sees every file, import, socket and process that Python is asked for.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CORPUS = Path(__file__).parent / "hostile"
sys.path.append(str(CORPUS))

from cell import BYTES, SECONDS, Cell, Fate  # noqa: E402

FILES = sorted(CORPUS.glob("*.yaml"))
WARM = [*sorted((CORPUS.parent / "version1").glob("*.yaml")), *sorted((CORPUS / "warm").glob("*.yaml"))]
PLACE = re.compile(r"(.*\.yaml):[1-9][0-9]*:[1-9][0-9]*")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")


@pytest.fixture(scope="module")
def cell() -> Iterator[Cell]:
    cell = Cell(*WARM)
    yield cell
    cell.close()


@pytest.fixture
def fate(cell: Cell, tmp_path: Path) -> Callable[..., Fate]:
    """What becomes of a text, in version 2 if it does not say."""

    def fate(text: str | bytes, name: str = "model.yaml") -> Fate:
        raw = text if isinstance(text, bytes) else f"schema_version: 2\n{text}".encode()
        (tmp_path / name).write_bytes(raw)
        return cell.build(tmp_path / name)

    return fate


def assert_refused(fate: Fate, message: str = "") -> None:
    assert fate.kind == "refused", fate
    assert message in fate.message
    assert all(place and PLACE.fullmatch(place) for place in fate.places), fate.places
    assert fate.seen == []
    assert fate.seconds < SECONDS, fate
    assert fate.grew < BYTES, fate
    assert "allocate" not in fate.message  # so it was not the machine that refused


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_hostile_file_is_refused_at_its_place(cell: Cell, file: Path):
    what, expected = file.read_text(encoding="utf-8").split("\n")[:2]
    assert what.startswith("# ")
    fate = cell.build(file)
    if expected == "# model":  # it asks for nothing that a model may not do; only, for much
        assert fate.kind == "model" and fate.harmless, fate
    else:
        assert_refused(fate, expected.removeprefix("# refused: "))
    assert not list(Path.cwd().glob("canary*")) and not list(CORPUS.glob("canary*"))


@pytest.mark.parametrize(
    "text", [b"schema_version: 2\na: \xe9\n", b"schema_version: 2\na: \0\n", b"\xff\xfeo\0u\0t\0", b"\xed\xa0\x80"]
)
def test_bytes_that_are_no_text_are_refused_where_they_stand(fate: Callable, text: bytes):
    assert_refused(fate(text))


@pytest.mark.parametrize("line", ["defaults: [pipe.yaml]\n", "blocks: {b: pipe.yaml}\ninputs: {x: any}\noutputs: x\n"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "zero", "loop", "dangling"])
def test_a_path_that_leads_to_no_file_is_refused_and_not_waited_for(
    fate: Callable, tmp_path: Path, line: str, kind: str
):
    path = tmp_path / "pipe.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"zero": "/dev/zero", "loop": path, "dangling": tmp_path / "absent"}[kind])
    assert_refused(fate(line), "pipe.yaml")


def test_what_a_file_quotes_of_another_is_a_line_of_it(fate: Callable, tmp_path: Path):
    (tmp_path / "secret.txt").write_text("first: secret\nsecond secret\n" * 100)
    (tmp_path / "secret.yaml").symlink_to("secret.txt")
    told = fate("defaults: [secret.yaml]\n")
    assert_refused(told)
    assert told.message.count("secret\n") <= 1


def test_files_that_start_from_each_other_many_times_over_are_refused(fate: Callable, tmp_path: Path):
    for level in range(1, 30):
        text = f"schema_version: 2\ndefaults: [level{level - 1}.yaml, level{level - 1}.yaml]\n"
        (tmp_path / f"level{level}.yaml").write_text(text)
    (tmp_path / "level0.yaml").write_text("schema_version: 2\nparams: {a: 1}\n")
    assert_refused(fate("defaults: [level29.yaml]\n"), "more than 200 files are read")


def test_an_import_from_the_environment_is_as_forbidden_as_any(fate: Callable):
    text = "imports: ['${env:NO_SUCH_VARIABLE_HERE,antigravity}']\ninputs: {x: any}\noutputs: x\n"
    assert_refused(fate(text), "is not allowed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("__import__('os').system('true')", "os.system"),
        ("open('canary', 'w')", "open"),
        ("__import__('subprocess').run(['true'])", "subprocess.Popen"),
        ("__import__('socket').socket()", "socket.__new__"),
        ("open('/etc/passwd')", "open"),
        ("eval('1')", "compile"),
        ("__import__('torch').set_default_dtype(__import__('torch').float64)", "dtype changed"),
    ],
)
def test_the_cell_sees_what_a_file_could_do(tmp_path: Path, text: str, seen: str):
    """The oracle itself: a registered op that misbehaves when it is called at build time is caught."""
    (tmp_path / "act.py").write_text(f"def act():\n    {text}\n")
    (tmp_path / "model.yaml").write_text("schema_version: 2\ninputs: {x: any}\noutputs: x\n")
    cell = Cell(*WARM, misbehave=tmp_path / "act.py")
    try:
        fate = cell.build(tmp_path / "model.yaml")
    finally:
        cell.close()
    assert any(seen in entry for entry in fate.seen), fate


BACKBONES = [
    "TimmBackbone('hf-hub:somebody/model')",
    "TimmBackbone('hf_hub:somebody/model')",
    "TimmBackbone('local-dir:/etc')",
    "TimmBackbone('/etc/passwd')",
    "TimmBackbone('resnet18', output=[10 ** 9])",
    "HuggingFaceBackbone('/etc')",
    "HuggingFaceBackbone({'model_type': 'os.system'})",
    "HuggingFaceBackbone({'model_type': 'dinov2', 'auto_map': {'AutoModel': 'somebody/code--model.Model'}})",
    "HuggingFaceBackbone({'model_type': 'dinov2', 'trust_remote_code': True})",
    "HuggingFaceBackbone({'model_type': 'dinov2', 'attn_implementation': 'somebody/kernel'})",
    "HuggingFaceBackbone({'model_type': 'dinov2', 'num_hidden_layers': 10 ** 9})",
    "HuggingFaceBackbone({'model_type': 'detr', 'backbone': 'somebody/model', 'use_pretrained_backbone': True})",
]


@pytest.mark.slow
def test_a_backbone_fetches_no_code_and_no_pickle(tmp_path: Path):
    warm = tmp_path / "warm.yaml"
    timm = "TimmBackbone('resnet10t')"
    transformers = "HuggingFaceBackbone({'model_type': 'dinov2', 'hidden_size': 6, 'num_attention_heads': 1, 'num_hidden_layers': 1})"
    text = 'schema_version: 2\ninputs: {x: any}\nmodules:\n  m: "%s"\noutputs: m(x)\n'
    warm.write_text(text % f"{timm} >> {transformers}")
    cell = Cell(*WARM, warm)
    for number, backbone in enumerate(BACKBONES):
        path = tmp_path / f"model{number}.yaml"
        path.write_text(text % backbone)
        fate = cell.build(path)
        assert_refused(fate)
    cell.close()
