"""Pictures: what they show is the graph, nothing covers anything, and the page does what the drawing says."""

from __future__ import annotations

import base64
import hashlib
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from model_constructor import GraphModel
from model_constructor.graph import build_graph
from model_constructor.shapes import infer_shapes
from model_constructor.tools import show
from model_constructor.tools.arguments import build_without_memory
from model_constructor.tools.cli import main
from model_constructor.tools.layout import GAP, VIA_WIDTH, layered, stretched
from model_constructor.tools.measure import Measured
from model_constructor.tools.picture import Frame, picture

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "experiment_models/zoo"
SVG = "{http://www.w3.org/2000/svg}"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

DECODER = """
params: {dim: 8, depth: 2, gated: true}
inputs:
  x: [B, T, 4]
  context: [B, S, dim]
  unread: {shape: [B], optional: true}
blocks:
  wave:
    params: {size: int}
    inputs: {position: [T]}
    graph: {angle: "position[:, None] * arange(size)"}
    outputs: angle.sin()
  layer:
    params: {dim: int}
    inputs: {h: [B, T, dim], context: [B, S, dim]}
    modules:
      attn: Attention(dim, heads=2)
      mlp: MLP(dim, hidden=4 * dim)
      gate: Linear(dim, 2 * dim)
    graph:
      scale, shift: gate(h).chunk(2, -1)
      a: attn(h * scale + shift, context)
    outputs: a + mlp(a)
modules:
  embed: Linear(4, dim)
  position: Param(1, 1, dim)
  layers: layer(**params) * depth
  scale: Linear(dim, dim)
graph:
  waves: wave(arange(T), size=dim)
  h: layers(embed(x) + position + waves, context)
  gate: scale(context).mean(1, keepdim=True) if gated else None
outputs: h * gate if gated else h
"""


def drawn(path: Path, *overrides: str) -> tuple[GraphModel, Frame]:
    return _drawn(path, overrides, path.read_text())


@cache
def _drawn(path: Path, overrides: tuple[str, ...], text: str) -> tuple[GraphModel, Frame]:
    model = build_without_memory(str(path), SimpleNamespace(overrides=list(overrides), allow_import=[]))
    return model, picture(model, infer_shapes(model._block, model.params), Measured({}, {}))


def svg(path: Path, *overrides: str, depth: int = 0) -> ElementTree.Element:
    return ElementTree.fromstring(show.svg(drawn(path, *overrides)[1], path, depth, "3 parameters"))


def of_class(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [child for child in element if name in child.get("class", "").split()]


def title(element: ElementTree.Element) -> list[str]:
    return element.findtext(f"{SVG}title", "").split("\n")


def name(node: ElementTree.Element) -> str:
    return title(node)[0].partition(": ")[0]


def fact(element: ElementTree.Element, key: str) -> str:
    return next((line.removeprefix(f"{key}: ") for line in title(element) if line.startswith(f"{key}: ")), "")


def frames(element: ElementTree.Element) -> Iterator[ElementTree.Element]:
    return (part for part in element.iter(f"{SVG}g") if part.get("class") == "frame")


def edges(frame: ElementTree.Element) -> list[tuple[str, str, str, str]]:
    """Names of the node that gives and the one that reads; the names of the values, and their shape."""
    nodes = [name(node) for node in of_class(frame, "node")]
    ends = [[nodes[int(i)] for i in edge.get("data-ends", "").split()] for edge in of_class(frame, "edge")]
    values = [title(edge)[0].split(" -> ")[0] for edge in of_class(frame, "edge")]
    return [(*pair, value, fact(edge, "shape")) for pair, value, edge in zip(ends, values, of_class(frame, "edge"), strict=True)]  # fmt: skip


def rows(element: ElementTree.Element) -> dict[str, ElementTree.Element]:
    """What the nodes call, by its path in the model."""
    members = (part for part in element.iter(f"{SVG}g") if part.get("class", "").split()[:1] == ["member"])
    return {name(member): member for member in members if member.find(f"{SVG}title") is not None}


# what is drawn


def test_every_node_is_drawn_with_its_expression_shape_and_parameters(write: Callable[..., Path]) -> None:
    picture = svg(write(DECODER))
    nodes = {name(node): node for node in of_class(next(frames(picture)), "node")}
    assert list(nodes) == ["x", "context", "waves", "h", "gate", "outputs"]
    assert title(nodes["h"]) == [
        "h: layers(embed(x) + position + waves, context)",
        "shape: [B, T, 8]",
        f"parameters: {4 * 8 + 8 + 8 + 2 * (4 * 72 + 2 * 256 + 32 + 8 + 8 * 16 + 16):,}",
        "line: model.yaml:32",
    ]
    texts = [text.text for text in nodes["h"].iter(f"{SVG}text")]
    assert {"h", "layers(embed(x) + position + waves, context)", "[B, T, 8]", "layer x 2", "Param [1, 1, 8]"} <= {
        *texts
    }


def test_edges_are_those_of_the_graph_with_the_shapes_of_the_table(write: Callable[..., Path]) -> None:
    frame = next(frames(svg(write(DECODER))))
    assert sorted(edges(frame)) == [
        ("context", "gate", "context", "[B, S, 8]"),
        ("context", "h", "context", "[B, S, 8]"),
        ("gate", "outputs", "gate", "[B, 1, 8]"),
        ("h", "outputs", "h", "[B, T, 8]"),
        ("waves", "h", "waves", "[T, 8]"),
        ("x", "h", "x", "[B, T, 4]"),
    ]


@pytest.mark.parametrize(
    "file, overrides",
    [("act/act.yaml", ()), pytest.param("diffusion_unet.yaml", ("params.obs_dim=7",), marks=pytest.mark.slow)],
)
def test_every_block_has_the_edges_of_its_graph(file: str, overrides: tuple[str, ...]) -> None:
    model, whole = drawn(ZOO / file, *overrides)
    modules = dict(model.named_modules())
    told = {(row.path, row.name, row.shape) for row in infer_shapes(model._block, model.params).rows}
    seen = 0
    for frame in whole.frames():
        module = modules.get(frame.path)
        if isinstance(module, GraphModel):
            seen += 1
            dag = build_graph(module._block, module.params).dag
            statements = {node.key for node in frame.nodes if node.role == "node"}
            assert statements == {*dag.nodes}
            pairs = [(frame.nodes[edge.source].key, frame.nodes[edge.target].key) for edge in frame.edges]
            assert {pair for pair in pairs if {*pair} <= statements} == {*dag.edges}
            for edge in frame.edges:
                if len(edge.names) == 1 and any(row[0] == frame.path for row in told):
                    assert (frame.path, *edge.names, edge.shape) in told
    assert seen > 5


def test_parameters_of_a_row_are_those_of_its_module() -> None:
    model, whole = drawn(ZOO / "act/act.yaml")
    modules = dict(model.named_modules(remove_duplicate=False))
    members = [member for frame in whole.frames() for node in frame.nodes for member in node.members]
    checked = [m for m in members if m.path in modules and m.name == m.path.split(".")[-1] and " x " not in m.kind]
    assert len(checked) > 40
    for member in checked:
        assert member.parameters == sum(p.numel() for p in modules[member.path].parameters()), member.path


def test_branches_that_params_decide_against_are_left_out(write: Callable[..., Path]) -> None:
    path = write(DECODER)
    gated, plain = svg(path), svg(path, "params.gated=false")
    codes = [[t.text for t in picture.iter(f"{SVG}text") if t.get("class") == "code"] for picture in (gated, plain)]
    assert "h * gate" in codes[0] and "scale(context).mean(1, keepdim=True)" in codes[0]
    assert codes[1][-1] == "h"
    assert [name(node) for node in of_class(next(frames(plain)), "node")] == ["x", "context", "waves", "h", "outputs"]
    assert "with these params: h" in title(of_class(next(frames(plain)), "node")[-1])


def test_equal_layers_are_one_and_alternating_ones_two(write: Callable[..., Path]) -> None:
    stack = svg(write(DECODER), "params.depth=30", depth=1)
    assert fact(rows(stack)["layers"], "layers") == "layer x 30"
    layer = list(frames(stack))[2]
    assert [name(node) for node in of_class(layer, "node")] == ["h", "context", "scale, shift", "a", "outputs"]
    text = (
        DECODER.replace("params: {dim: int}\n    inputs: {h", "params: {dim: int, odd: bool}\n    inputs: {h")
        .replace("layer(**params) * depth", "layer(odd=index % 2 == 1, **params) * 8")
        .replace("a + mlp(a)", "a + mlp(a) if odd else mlp(a)")
    )
    picture = svg(write(text), depth=1)
    assert {"0, 2, ..., 6", "1, 3, ..., 7", "layer x 4"} <= {text.text for text in picture.iter(f"{SVG}text")}


def test_members_of_different_shapes_stand_apart(write: Callable[..., Path]) -> None:
    halves = """
        inputs: {x: [B, 64, 4]}
        blocks:
          half:
            inputs: {x: [B, N, C]}
            modules: {mix: "Linear(4, 4)"}
            outputs: mix(x[:, ::2])
        modules: {halves: half() * 3}
        outputs: halves(x)
    """
    (chain,) = [f for f in frames(svg(write(halves), depth=1)) if of_class(f, "member")]
    assert [shape for *_, shape in edges(chain)] == ["[B, 32, 4]", "[B, 16, 4]"]


def test_members_of_unknown_shapes_do_not(write: Callable[..., Path]) -> None:
    text = """
        inputs: {x: [B, 4], m: {shape: [B, 4], optional: true}}
        blocks:
          layer:
            inputs: {x: [B, C]}
            modules: {mix: "Linear(4, 4)"}
            outputs: mix(x) if training else mix(x)[:1]
        modules: {layers: layer() * 3}
        outputs: layers(x)
    """
    assert fact(rows(svg(write(text), depth=1))["layers"], "layers") == "layer x 3"
    assert len(list(frames(svg(write(text), depth=1)))) == 2


def test_each_call_of_a_block_has_its_own_shapes(write: Callable[..., Path]) -> None:
    text = """
        inputs: {x: [B, T, S]}
        blocks: {double: {inputs: {n: [N]}, outputs: 2 * n}}
        graph: {rows: double(arange(T)), columns: double(arange(S))}
        outputs: x + rows[:, None] + columns
    """
    _, *inside = frames(svg(write(text), depth=1))
    assert [edges(frame) for frame in inside] == [[("n", "outputs", "n", f"[{size}] int64")] for size in "TS"]


def test_a_list_that_is_threaded_is_a_chain_and_one_that_is_mapped_is_not(write: Callable[..., Path]) -> None:
    text = """
        inputs: {x: [B, 4]}
        blocks: {expert: {params: {out: int}, inputs: {x: [B, 4]}, modules: {f: "Linear(4, out)"}, outputs: f(x)}}
        modules: {experts: expert(out=4 if index == 0 else 5) * 2}
        outputs: experts.map(x)
    """
    found = []
    for call in ("experts.map(x)", "experts.scan(x)", "experts(x)"):
        (experts,) = [
            f for f in frames(svg(write(text.replace("experts.map(x)", call)), depth=1)) if of_class(f, "member")
        ]
        found.append([edge[:2] for edge in edges(experts)])
    assert found == [[], [("0", "1")], [("0", "1")]]


# nothing covers anything


def boxes(frame: ElementTree.Element) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of the nodes in a frame, with the shapes below them."""
    found = []
    for node in of_class(frame, "node"):
        x, y = map(float, re.findall(r"-?[\d.]+", node.get("transform", "")))
        (box,) = of_class(node, "box")
        width, height = float(box.get("width", 0)), float(box.get("height", 0))
        found.append((x, y, x + width, y + height))
    return found


def curve(path: str) -> Iterator[tuple[float, float]]:
    """Points of a line, close to one another."""
    at = (0.0, 0.0)
    for letter, numbers in re.findall(r"([MLC])([^MLC]*)", path):
        values = [float(number) for number in re.findall(r"-?[\d.]+", numbers)]
        if letter == "M":
            at = (values[0], values[1])
            continue
        p = [at, *zip(values[::2], values[1::2], strict=True)]
        p = p if letter == "C" else [p[0], p[0], p[1], p[1]]
        for i in range(21):
            t = i / 20
            w = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
            yield tuple(sum(a * b[axis] for a, b in zip(w, p, strict=True)) for axis in (0, 1))
        at = p[-1]


def check_nothing_is_covered(picture: ElementTree.Element) -> int:
    width, height = float(picture.get("width", 0)), float(picture.get("height", 0))
    count = 0
    for frame in frames(picture):
        here = boxes(frame)
        count += len(here)
        for i, (left, top, right, bottom) in enumerate(here):
            assert left >= 0 and right <= width and bottom <= height
            for other in here[:i]:
                assert right < other[0] or other[2] < left or bottom < other[1] or other[3] < top
        for edge in of_class(frame, "edge"):
            for x, y in curve(of_class(edge, "line")[0].get("d", "")):
                inside = [b for b in here if b[0] + 0.1 < x < b[2] - 0.1 and b[1] + 0.1 < y < b[3] - 0.1]
                assert not inside, title(edge)
    for node in (part for part in picture.iter(f"{SVG}g") if part.get("class", "").startswith("node")):
        (box,) = of_class(node, "box")
        for inside in of_class(node, "inside"):
            (ground,) = of_class(inside, "ground")
            assert float(ground.get("width", 0)) < float(box.get("width", 0))
            assert max(b[2] for b in boxes(next(frames(inside)))) < float(ground.get("width", 0))
            assert max(b[3] for b in boxes(next(frames(inside)))) < float(ground.get("height", 0))
    return count


@pytest.mark.parametrize("depth", [0, 1, 2, 9])
def test_no_box_or_line_covers_a_box(write: Callable[..., Path], depth: int) -> None:
    assert check_nothing_is_covered(svg(write(DECODER), depth=depth)) == (6, 14, 14, 14)[min(depth, 3)]


ALL = sorted(p for p in ZOO.glob("**/*.yaml") if not p.name.endswith(".keys.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_no_box_or_line_covers_a_box_in_the_zoo(path: Path) -> None:
    small = {"diffusion_unet": ["params.obs_dim=7"]}.get(path.stem, [])
    try:
        _, whole = drawn(path, *small)
    except Exception as error:
        assert "needs the param" in str(error)  # a part of another file
        return
    for depth in (0, 1, 2, 9):
        check_nothing_is_covered(ElementTree.fromstring(show.svg(whole, path, depth, "3 parameters")))


@pytest.mark.parametrize("seed", range(20))
def test_a_layout_goes_downwards_and_keeps_what_it_lays_apart(seed: int) -> None:
    chance = random.Random(seed)
    count = chance.randint(2, 14)
    widths = [chance.uniform(20, 300) for _ in range(count)]
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count) if chance.random() < 0.25]
    layout = layered(widths, pairs)
    wider = [width * chance.choice([1, 1, 3]) for width in widths]
    for at, sizes in ((lambda x: x, widths), (stretched(layout, widths, wider), wider)):
        rows: dict[int, list[tuple[float, float]]] = {}
        for layer, centre, width in zip(layout.layers, layout.centres, sizes, strict=True):
            rows.setdefault(layer, []).append((at(centre) - width / 2, at(centre) + width / 2))
        for (source, target), via in zip(pairs, layout.vias, strict=True):
            assert [layer for layer, _ in via] == [*range(layout.layers[source] + 1, layout.layers[target])]
            for layer, x in via:
                rows.setdefault(layer, []).append((at(x) - VIA_WIDTH / 2, at(x) + VIA_WIDTH / 2))
        for row in rows.values():
            for (_, right), (left, _) in zip(sorted(row), sorted(row)[1:], strict=False):
                assert left - right > GAP - 0.2


def test_a_chain_is_straight_and_a_long_line_has_one_bend_at_each_end() -> None:
    layout = layered([100, 300, 50, 200], [(0, 1), (1, 2), (2, 3), (0, 3)])
    assert max(layout.centres) - min(layout.centres) < 2
    assert len({x for _, x in layout.vias[3]}) == 1


# files


def test_show_writes_both_files_and_says_which(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(DECODER), tmp_path / "pictures"
    assert main(["show", str(path), "-o", str(out), "--set", "params.depth=3", "--size", "T=3", "S=5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [str(out / "model.svg"), str(out / "model.html")]
    assert re.fullmatch(r"3,\d{3} parameters, [\d.]+k multiply-adds; 6 nodes, 14 with all blocks unfolded", lines[2])
    first = [(out / f"model.{kind}").read_bytes() for kind in ("svg", "html")]
    assert b"layer x 3" in first[0] and b"multiply-adds: " in first[0]
    assert main(["show", str(path), "-o", str(out), "--set", "params.depth=3", "--size", "T=3", "S=5"]) == 0
    assert [(out / f"model.{kind}").read_bytes() for kind in ("svg", "html")] == first


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    path = str(ZOO / "act/act.yaml")
    command = [sys.executable, "-m", "model_constructor", "show", path, "-o", str(tmp_path / "there")]
    subprocess.run(command, check=True, env={"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}, capture_output=True)
    main(["show", path, "-o", str(tmp_path / "here")])
    for kind in ("svg", "html"):
        assert (tmp_path / f"there/act.{kind}").read_bytes() == (tmp_path / f"here/act.{kind}").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["act/act.yaml --size H=480 W=640", "vit_tiny.yaml --set params.depth=30"], ids=("act", "vit_tiny")
)
def test_the_pictures_of_the_documentation_are_what_show_writes(tmp_path: Path, command: str) -> None:
    file, *rest = command.split()
    main(["show", str(ZOO / file), *rest, "-o", str(tmp_path)])
    name = f"{Path(file).stem}.svg"
    assert (tmp_path / name).read_bytes() == (ROOT / "docs/pictures" / name).read_bytes()


def test_depth_says_how_many_levels_are_unfolded(write: Callable[..., Path], tmp_path: Path) -> None:
    path = str(write(DECODER))
    counts = []
    for depth in (["--depth", "0"], ["--depth", "1"], []):
        main(["show", path, "-o", str(tmp_path), *depth])
        counts.append(len(list(frames(ElementTree.parse(tmp_path / "model.svg").getroot()))))
    assert counts == [1, 3, 3]
    _, act = drawn(ZOO / "act/act.yaml")
    assert show._depth(act) == 0  # unfolded, it is larger than a page


def test_what_is_wrong_is_said_as_by_check(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write("inputs: {x: [B, 4]}\noutputs: reluu(x)\n"))
    told = []
    for command in ("check", "show"):
        assert main([command, path]) == 1
        told.append(capsys.readouterr().err)
    assert told[0] == told[1] != ""
    assert not Path("model.svg").exists()


def test_a_folder_that_cannot_be_written_to_is_said(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(DECODER)
    assert main(["show", str(path), "-o", str(path)]) == 1
    assert capsys.readouterr().err == f"{path / 'model.svg'}: cannot be written: File exists.\n"


def test_an_expression_from_the_command_line_names_it(write: Callable[..., Path]) -> None:
    frame = next(frames(svg(write(DECODER), "graph.waves=wave(arange(T), size=8)")))
    assert [fact(node, "line") for node in of_class(frame, "node")][2:4] == [
        "--set graph.waves=wave(arange(T), size=8)",
        "model.yaml:32",
    ]


# the page


class Page(HTMLParser):
    """The tags of a page with their attributes, and what stands in its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)
            self.tags.append(("", {}))


HOSTILE = """
params: {text: "</title></svg><script>alert(1)</script>", pattern: "b t c -> b (t c)"}
inputs: {x: [B, T, 4]}                       # </code></li></ol><script>alert(2)</script> <!-- picture -->
graph:
  a: 'rearrange(x, "b t c -> b (t c)") if text != "<img src=x onerror=alert(3)>" else x'
  b: 'a if text != "\\u0007&amp;]]>" else a + 1'
outputs: {'"><script>alert(4)</script>': b}
"""


def test_what_a_file_says_stays_text(write: Callable[..., Path]) -> None:
    path = write(HOSTILE, '"><img src=x onerror=alert(5)>.yaml')
    _, whole = drawn(path)
    ElementTree.fromstring(show.svg(whole, path, 9, ""))
    page = Page(show.page(whole, path, 9, "summary"))
    plain = Page(show.page(drawn(write(DECODER))[1], write(DECODER), 9, "summary"))
    assert len(page.scripts) == 1 and page.scripts == plain.scripts
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags}
    names = {name for _, attributes in page.tags for name in attributes}
    assert names <= {name for _, attributes in plain.tags for name in attributes}


def test_a_page_asks_for_nothing_and_runs_only_its_own_script(write: Callable[..., Path]) -> None:
    path = write(DECODER)
    text = show.page(drawn(path)[1], path, 1, "summary")
    page = Page(text)
    for _, attributes in page.tags:
        assert not {"src", "srcset", "data", "action", "ping"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith("#")
    assert set(re.findall(r"https?:[^\s\"']*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", text)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_each_line_that_a_picture_names_is_on_the_page() -> None:
    path = ZOO / "act/act.yaml"
    text = show.page(drawn(path)[1], path, 0, "")
    lines = dict(re.findall(r'<li id="([^"]*)"><code>(.*)</code></li>', text))
    nodes = re.findall(r"<title>([a-z_][\w, ]*): [^<]*\nline: ([^<]*)</title>", text)
    assert len(nodes) > 60
    for key, line in nodes:
        assert key in lines[line] or key == "outputs", (key, line)
    assert {line.split(":")[0] for _, line in nodes} == {"act.yaml", "encoder.yaml", "decoder.yaml", "backbone.yaml", "../resnet18.yaml"}  # fmt: skip
    assert str(ZOO) not in text


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser")
@pytest.mark.slow
@pytest.mark.parametrize(
    "wanted, opened",
    [
        ("", ""),
        ("backbone,encoder.layers", "backbone encoder encoder.layers"),
        ("layer", "decoder decoder.layers encoder encoder.layers posterior posterior.encoder posterior.encoder.layers"),
    ],
)
def test_a_browser_unfolds_a_page_to_what_the_drawing_is(tmp_path: Path, wanted: str, opened: str) -> None:
    path = ZOO / "act/act.yaml"
    _, whole = drawn(path)
    page = tmp_path / "act.html"
    page.write_text(show.page(whole, path, 1, ""))
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run(
        [*command, "--dump-dom", f"{page.as_uri()}#expand={wanted}"], capture_output=True, text=True, timeout=120
    ).stdout
    svg_text = "<svg" + dom.split("<main>")[1].split("<svg", 1)[1].split("</svg>")[0] + "</svg>"
    browser = ElementTree.fromstring(svg_text)
    for parent in list(browser.iter()):
        for hidden in [child for child in parent if "none" in child.get("style", "")]:
            parent.remove(hidden)
    open_ = {row.get("data-path") for row in browser.iter() if row.get("aria-expanded") == "true"}
    assert sorted(map(str, open_)) == opened.split()
    expected = ElementTree.fromstring(show.draw(whole, "act.yaml: ", lambda member, _: member.path in open_, str))
    for kind in ("transform", "d", "width", "height", "viewBox"):
        assert numbers(browser, kind) == pytest.approx(numbers(expected, kind), abs=0.3), kind
    check_nothing_is_covered(browser)


def numbers(picture: ElementTree.Element, attribute: str) -> list[float]:
    values = (part.get(attribute, "") for part in picture.iter())
    return [float(number) for value in values for number in re.findall(r"-?\d+(?:\.\d+)?", value)]
