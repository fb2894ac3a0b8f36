"""Drawing: a picture -> SVG, by itself or for the page that folds and unfolds it.

Everything that a file says is text here, and escaped. Sizes are in pixels; a text is as wide as its characters, all
equal. What moves when a block is unfolded carries the numbers of its folded state, from which the page computes again.
"""

from __future__ import annotations

import html
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..errors import Place
from .layout import VIA_WIDTH, Layout, layered, stretched
from .picture import Edge, Frame, Member, Node
from .table import cut, short

CHARACTER, SMALL = 7.3, 6.7  # widths of a character of names, and of all else
PAD = 10.0  # inside a box
HEAD, LINE, ROW, PILL = 24.0, 15.0, 20.0, 24.0  # heights
LABEL = 20.0  # height of the shape below a box
WRAP, LINES, LONGEST = 46, 3, 46  # characters in a line of an expression; lines of it; characters of a shape or a type
NARROWEST, WIDEST_GAP, STEEPNESS = 26.0, 70.0, 0.12  # of the space between two layers, where lines bend
STRAIGHT, PORTS_APART = 2.0, 26.0  # a line that goes aside by less is straight; lines that arrive at one box
MARGIN = 12.0  # around a frame

IsOpen = Callable[[Member, int], bool]  # of a member with something inside, and how deep it lies
PlaceText = Callable[[Place], str]

STYLE = """
svg { background: #ffffff; font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
text { font-size: 11px; fill: #57606a; white-space: pre; }
.name { font-size: 12px; font-weight: 600; fill: #1f2328; }
.code { fill: #424a53; }
.kind { fill: #0a5dc2; }
.count { fill: #8a5a00; text-anchor: end; }
.shape { fill: #57606a; text-anchor: middle; }
.middle { text-anchor: middle; }
.box { fill: #f6f8fa; stroke: #b9c1ca; }
.input > .box { fill: #e6f4ea; stroke: #7fb996; }
.outputs > .box { fill: #f3ecfb; stroke: #b394d8; }
.member > .box { fill: #eef4fc; stroke: #a9c4e6; }
.ground { fill: #ffffff; stroke: #a9c4e6; }
.row { fill: transparent; }
.folds > .row { fill: #e3edf9; }
.folds > .own { font-weight: 600; }
.line { fill: none; stroke: #7d8894; stroke-width: 1.3px; }
.tip { fill: #7d8894; }
@media (prefers-color-scheme: dark) {
svg { background: #0d1117; }
text { fill: #9aa4ae; }
.name { fill: #e6edf3; }
.code { fill: #c3ccd5; }
.kind { fill: #79b8ff; }
.count { fill: #d9a441; }
.shape { fill: #9aa4ae; }
.box { fill: #171d25; stroke: #3d4650; }
.input > .box { fill: #12261a; stroke: #2f6a44; }
.outputs > .box { fill: #211a2e; stroke: #6b4f92; }
.member > .box { fill: #131d2b; stroke: #31517a; }
.ground { fill: #0d1117; stroke: #31517a; }
.folds > .row { fill: #1a2a40; }
.line { stroke: #75808c; }
.tip { fill: #75808c; }
}
"""


def draw(frame: Frame, caption: str, is_open: IsOpen, place_text: PlaceText, *, everything: bool = False) -> str:
    """The SVG of a picture with some blocks unfolded; `everything`: what is folded is in it, too, but not shown."""
    inner = _Drawing(is_open, place_text, everything).frame(frame, 0)
    width = max(inner.width, len(caption) * SMALL) + 2 * MARGIN
    height = inner.height + HEAD + 2 * MARGIN
    metrics = (LABEL, HEAD, ROW, MARGIN, PAD, VIA_WIDTH, NARROWEST, WIDEST_GAP, STEEPNESS, STRAIGHT)
    for_page = f' data-metrics="{" ".join(map(str, metrics))}" data-caption="{_n(len(caption) * SMALL)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" '
        f'height="{_n(height)}" role="{"group" if everything else "img"}" aria-label="{escaped(caption)}"'
        f"{for_page if everything else ''}>\n<style>{STYLE}</style>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'markerUnits="userSpaceOnUse" orient="auto"><path class="tip" d="M0,0.5 L8,4 L0,7.5 z"/></marker></defs>\n'
        f'<text x="{_n(MARGIN)}" y="{_n(MARGIN + 10)}">{escaped(caption)}</text>\n'
        f'<g class="whole" transform="translate({_n((width - inner.width) / 2)},{_n(MARGIN + HEAD)})">\n'
        f"{inner.markup}\n</g>\n</svg>\n"
    )


def size(frame: Frame, is_open: IsOpen) -> tuple[float, float]:
    """Width and height of a picture, in pixels."""
    drawn = _Drawing(is_open, lambda place: "", everything=False).frame(frame, 0)
    return drawn.width, drawn.height


def escaped(text: str) -> str:
    """Text for markup and attributes; characters that XML has no place for become U+FFFD."""
    return html.escape(re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))


@dataclass(frozen=True, slots=True)
class _Drawn:
    markup: str
    width: float
    height: float


class _Box:
    """What a node measures while all in it is folded."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.is_pill = node.role == "input"
        self.lines = _wrapped(node.expression) if node.role in ("node", "outputs") else []
        self.head = 4.0 if node.role == "member" else PILL if self.is_pill else HEAD
        self.count = short(node.parameters) if node.parameters and node.role != "member" else ""
        self.shape = cut(node.shape, LONGEST)

    @cached_property
    def names_width(self) -> float:
        return max((len(member.name) for member in self.node.members), default=0) * SMALL

    @cached_property
    def width(self) -> float:
        head = 0.0 if self.node.role == "member" else len(self.node.key) * CHARACTER
        counts = max((len(short(m.parameters)) for m in self.node.members), default=0) * SMALL
        kinds = max((len(cut(m.kind, LONGEST)) for m in self.node.members), default=0) * SMALL
        rows = 14 + self.names_width + 12 + kinds + 16 + counts if self.node.members else 0.0
        code = max((len(line) for line in self.lines), default=0) * SMALL
        return round(2 * PAD + max(head + (18 + len(self.count) * SMALL if self.count else 0), code, rows, 34), 1)

    @property
    def footprint(self) -> float:
        return max(self.width, len(self.shape) * SMALL)

    @property
    def rows_at(self) -> float:
        return self.head + len(self.lines) * LINE + (4 if self.lines else 0)

    @property
    def height(self) -> float:
        if self.is_pill:
            return PILL
        return self.rows_at + len(self.node.members) * ROW + (4 if self.node.members else 2)


class _Drawing:
    def __init__(self, is_open: IsOpen, place_text: PlaceText, everything: bool) -> None:
        self.is_open, self.place_text, self.everything = is_open, place_text, everything

    def frame(self, frame: Frame, depth: int) -> _Drawn:
        boxes = [_Box(node) for node in frame.nodes]
        before = [box.footprint for box in boxes]
        layout = layered(before, [(edge.source, edge.target) for edge in frame.edges])
        drawn = [self._node(box, depth) for box in boxes]
        after = [max(box.footprint, one.width) for box, one in zip(boxes, drawn, strict=True)]
        x_of = stretched(layout, before, after)
        ports = _ports(layout, frame.edges, [box.width for box in boxes])
        heights = [0.0] * (max(layout.layers, default=-1) + 1)
        for layer, one in zip(layout.layers, drawn, strict=True):
            heights[layer] = max(heights[layer], one.height + LABEL)
        lines = [
            [
                (layout.layers[edge.source], x_of(layout.centres[edge.source])),
                *((layer, x_of(x)) for layer, x in via),
                (layout.layers[edge.target], x_of(layout.centres[edge.target]) + port),
            ]
            for edge, port, via in zip(frame.edges, ports, layout.vias, strict=True)
        ]
        tops = _tops(lines, heights)
        parts = ['<g class="frame">']
        for edge, port, via, line in zip(frame.edges, ports, layout.vias, lines, strict=True):
            (first, x), *passing, (last, end_x) = line
            start = drawn[edge.source].height + (LABEL if boxes[edge.source].shape else 0)
            points = [(x, tops[first] + start), (x, tops[first] + heights[first])]
            for layer, x in passing:
                points += [(x, tops[layer]), (x, tops[layer] + heights[layer])]
            parts.append(_edge(edge, frame.nodes[edge.target].key, port, via, [*points, (end_x, tops[last])]))
        for box, one, layer, centre in zip(boxes, drawn, layout.layers, layout.centres, strict=True):
            x = x_of(centre) - one.width / 2
            focus = ' tabindex="0" role="group"' if self.everything and box.node.role != "member" else ""
            parts.append(
                f'<g class="node {box.node.role}" data-layer="{layer}" data-x="{_n(centre)}" data-w="{_n(box.width)}" '
                f'data-f="{_n(box.footprint)}" data-h="{_n(box.height)}" data-rows="{_n(box.rows_at)}"{focus} '
                f'transform="translate({_n(x)},{_n(tops[layer])})">{one.markup}</g>'
            )
        parts.append("</g>")
        ends = [x_of(centre) + width / 2 for centre, width in zip(layout.centres, after, strict=True)]
        right = max([*ends, *(x + VIA_WIDTH / 2 for line in lines for _, x in line[1:-1])], default=0.0)
        return _Drawn("\n".join(parts), right, tops[-1] + heights[-1] if heights else 0.0)

    def _node(self, box: _Box, depth: int) -> _Drawn:
        node = box.node
        insides: list[tuple[Member, _Drawn | None, bool]] = []
        for member in node.members:
            shown = member.inside is not None and self.is_open(member, depth)
            inside = None
            if member.inside is not None and (shown or self.everything):
                inside = self.frame(member.inside, depth + 1)
            insides.append((member, inside, shown))
        unfolded = [inside for _, inside, shown in insides if inside is not None and shown]
        width = max([box.width, *(inside.width + 2 * MARGIN + 2 * 6 for inside in unfolded)])
        height = box.height + sum(inside.height + 2 * MARGIN for inside in unfolded)
        parts = [f"<title>{escaped(self._node_title(node))}</title>"]
        radius = PILL / 2 if box.is_pill else 6
        parts.append(f'<rect class="box full" width="{_n(width)}" height="{_n(height)}" rx="{_n(radius)}"/>')
        if box.is_pill:
            parts.append(f'<text class="name middle" x="{_n(width / 2)}" y="16">{escaped(node.key)}</text>')
        elif node.role != "member":
            parts.append(f'<text class="name" x="{_n(PAD)}" y="16.5">{escaped(node.key)}</text>')
        if box.count:
            parts.append(f'<text class="count right" x="{_n(width - PAD)}" y="16.5">{box.count}</text>')
        for number, line in enumerate(box.lines):
            y = HEAD + number * LINE + 10
            parts.append(f'<text class="code" x="{_n(PAD)}" y="{_n(y)}">{escaped(line)}</text>')
        y = box.rows_at
        for member, inside, shown in insides:
            parts.append(self._row(box, member, width, y, shown))
            y += ROW
            if inside is not None:
                hidden = "" if shown else ' style="display:none"'
                inner = max(inside.width + 2 * MARGIN, width - 12 if shown else 0)
                parts.append(
                    f'<g class="inside"{hidden} transform="translate(6,{_n(y)})">'
                    f'<rect class="ground" width="{_n(inner)}" height="{_n(inside.height + 2 * MARGIN - 4)}" rx="5"/>'
                    f'<g class="content" transform="translate({_n((inner - inside.width) / 2)},{_n(MARGIN)})">\n'
                    f"{inside.markup}</g></g>"
                )
                y += inside.height + 2 * MARGIN if shown else 0
        if box.shape:
            x, y = width / 2, height + 13
            parts.append(f'<text class="shape" x="{_n(x)}" y="{_n(y)}">{escaped(box.shape)}</text>')
        return _Drawn("".join(parts), width, height)

    def _row(self, box: _Box, member: Member, width: float, y: float, shown: bool) -> str:
        attributes, sign = ' tabindex="0"' if self.everything else "", ""
        if member.inside is not None:
            sign = "\u25be" if shown else "\u25b8"
            attributes += f' data-path="{escaped(member.path)}" data-block="{escaped(_block_name(member))}"'
            if self.everything:
                attributes += f' role="button" aria-expanded="{str(shown).lower()}"'
        kind_x = PAD + 14 + box.names_width + 12
        count = short(member.parameters) if member.parameters else ""
        return (
            f'<g class="member{" folds" if member.inside is not None else ""}"{attributes} '
            f'transform="translate(0,{_n(y)})"><title>{escaped(self._member_title(member))}</title>'
            f'<rect class="row full" x="4" y="1" width="{_n(width - 8)}" height="{_n(ROW - 2)}" rx="4"/>'
            + (f'<text class="sign" x="{_n(PAD)}" y="14">{sign}</text>' if sign else "")
            + f'<text class="own" x="{_n(PAD + 14)}" y="14">{escaped(member.name)}</text>'
            f'<text class="kind" x="{_n(kind_x)}" y="14">{escaped(cut(member.kind, LONGEST))}</text>'
            + (f'<text class="count right" x="{_n(width - PAD)}" y="14">{count}</text>' if count else "")
            + "</g>"
        )

    def _node_title(self, node: Node) -> str:
        lines = [f"{node.key}: {node.written}"]
        if node.expression not in ("", node.written):
            lines.append(f"with these params: {node.expression}")
        return "\n".join([*lines, *self._facts(node.shape, node.parameters, 0, node.place)])

    def _member_title(self, member: Member) -> str:
        lines = [f"{member.path}: {member.kind}", *([f"built as: {member.detail}"] if member.detail else [])]
        return "\n".join([*lines, *self._facts("", member.parameters, member.multiply_adds, member.place)])

    def _facts(self, shape: str, parameters: int, multiply_adds: int, place: Place | None) -> Iterator[str]:
        if shape:
            yield f"shape: {shape}"
        if parameters:
            yield f"parameters: {parameters:,}"
        if multiply_adds:
            yield f"multiply-adds: {multiply_adds:,}"
        if place is not None:
            yield f"line: {self.place_text(place)}"


def _edge(
    edge: Edge, reader: str, port: float, via: Sequence[tuple[int, float]], points: Sequence[tuple[float, float]]
) -> str:
    title = f"{', '.join(edge.names)} -> {reader}" + (f"\nshape: {edge.shape}" if edge.shape else "")
    passing = " ".join(f"{layer}:{_n(x)}" for layer, x in via)
    return (
        f'<g class="edge" data-ends="{edge.source} {edge.target}" data-port="{_n(port)}" data-via="{passing}">'
        f'<title>{escaped(title)}</title><path class="line" marker-end="url(#tip)" d="{_path(points)}"/></g>'
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Straight down beside boxes, and in a curve from one layer to the next."""
    (x, y), *rest = points
    parts = [f"M{_n(x)},{_n(y)}"]
    for next_x, next_y in rest:
        middle, end = _n((y + next_y) / 2), f"{_n(next_x)},{_n(next_y)}"
        parts.append(f"L{end}" if abs(next_x - x) < STRAIGHT else f"C{_n(x)},{middle} {_n(next_x)},{middle} {end}")
        x, y = next_x, next_y
    return " ".join(parts)


def _ports(layout: Layout, edges: Sequence[Edge], widths: Sequence[float]) -> list[float]:
    """Where each edge arrives, from the middle of its target: in the order that they come from."""
    ports = [0.0] * len(edges)
    arriving: dict[int, list[int]] = {}
    for number, edge in enumerate(edges):
        arriving.setdefault(edge.target, []).append(number)
    for target, numbers in arriving.items():
        last = [layout.vias[n][-1][1] if layout.vias[n] else layout.centres[edges[n].source] for n in numbers]
        ordered = sorted(zip(last, numbers, strict=True))
        apart = min(PORTS_APART, (widths[target] / 2 - 8) / max(len(numbers) - 1, 1))
        aside, straight = min((abs(x - layout.centres[target]), i) for i, (x, _) in enumerate(ordered))
        middle = straight if aside < apart / 2 else (len(numbers) - 1) / 2  # a line from right above stays straight
        for position, (_, number) in enumerate(ordered):
            ports[number] = round((position - middle) * apart, 1)
    return ports


def _tops(lines: Sequence[Sequence[tuple[int, float]]], heights: Sequence[float]) -> list[float]:
    """The y of each layer; the further a line has to go aside between two, the more space is there."""
    aside = [0.0] * len(heights)
    for line in lines:
        for (layer, x), (_, next_x) in itertools.pairwise(line):
            aside[layer] = max(aside[layer], abs(next_x - x))
    gaps = (min(max(NARROWEST, STEEPNESS * distance), WIDEST_GAP) for distance in aside)
    return list(itertools.accumulate((h + gap for h, gap in zip(heights, gaps, strict=True)), initial=0.0))[:-1]


def _block_name(member: Member) -> str:
    return member.kind.split(" x ")[0] if member.kind != "block" else member.name


def _wrapped(expression: str) -> list[str]:
    lines = textwrap.wrap(expression, WRAP, break_long_words=True, break_on_hyphens=False)
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], cut(" ".join(lines[LINES - 1 :]), WRAP)]


def _n(number: float) -> str:
    return f"{round(number, 1):g}" if abs(number) < 1e5 else f"{number:.1f}"
