"""Layout: vertices of a directed acyclic graph -> layers from top to bottom, the lines straight and with few crossings.

The steps of Sugiyama, Tagawa and Toda (1981): vertices are given layers, a line over several layers passes each between
two vertices, the order in a layer follows the barycentres of its neighbours. Positions are the least squares of Gansner
et al. (1993, section 4), solved a layer at a time by pooling adjacent violators. All of it is deterministic.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

GAP = 26.0  # between neighbours in a layer
VIA_WIDTH = 8.0  # of the place that a passing line takes
SWEEPS = 12  # for the order, in each direction
SETTLING = (12, 120)  # sweeps for the positions: with the neighbours on one side, with those on both
# How much a line resists to be slanted: long lines are straight, and bend where they leave and arrive.
STRAIGHT, BEND = 100.0, 0.1


@dataclass(frozen=True, slots=True)
class Layout:
    """Of each vertex its layer, counted from the top, and the x of its centre; of each edge the points between."""

    layers: tuple[int, ...]
    centres: tuple[float, ...]
    vias: tuple[tuple[tuple[int, float], ...], ...]  # for each edge: (layer, x) of each layer that it passes


def layered(widths: Sequence[float], edges: Sequence[tuple[int, int]]) -> Layout:
    """Where vertices of these widths stand; no two of a layer are closer than GAP. x begins at 0.

    edges: pairs of positions in `widths`, source first, that form no cycle.
    """
    layer = _layers(len(widths), edges)
    sizes = list(widths)
    rank = list(layer)
    chains: list[list[int]] = []  # of each edge: its source, the vertices where it passes, its target
    for source, target in edges:
        passing = range(len(sizes), len(sizes) + layer[target] - layer[source] - 1)
        chains.append([source, *passing, target])
        rank += range(layer[source] + 1, layer[target])
        sizes += [VIA_WIDTH] * len(passing)
    steps = {pair for chain in chains for pair in itertools.pairwise(chain)}
    above: list[list[int]] = [[] for _ in sizes]
    below: list[list[int]] = [[] for _ in sizes]
    for upper, lower in sorted(steps):
        above[lower].append(upper)
        below[upper].append(lower)
    rows: list[list[int]] = [[] for _ in range(max(rank, default=-1) + 1)]
    for vertex, number in enumerate(rank):
        rows[number].append(vertex)
    _order(rows, above, below)
    x = _positions(rows, above, below, sizes, len(widths))
    _straighten([chain[1:-1] for chain in chains], rows, rank, sizes, x)
    left = min((x[vertex] - sizes[vertex] / 2 for vertex in range(len(sizes))), default=0.0)
    x = [round(centre - left, 1) for centre in x]
    vias = tuple(tuple((rank[vertex], x[vertex]) for vertex in chain[1:-1]) for chain in chains)
    return Layout(tuple(layer), tuple(x[: len(widths)]), vias)


def stretched(layout: Layout, before: Sequence[float], after: Sequence[float]) -> Callable[[float], float]:
    """Where an x goes when vertices become wider, such that what was apart stays apart and what was straight, straight.

    The page does the same when a block is unfolded.
    """
    wider = [
        (centre - old / 2, centre + old / 2, new / old - 1)
        for centre, old, new in zip(layout.centres, before, after, strict=True)
        if new > old
    ]
    ends = sorted({end for left, right, _ in wider for end in (left, right)})
    pieces = [
        (left, right, max((more for a, b, more in wider if a <= left and right <= b), default=0.0))
        for left, right in itertools.pairwise(ends)
    ]
    return lambda x: x + sum(more * (min(x, right) - left) for left, right, more in pieces if x > left)


def _layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Each vertex below all that it reads, and then where the edges are short."""
    sources: list[list[int]] = [[] for _ in range(count)]
    targets: list[list[int]] = [[] for _ in range(count)]
    for source, target in edges:
        sources[target].append(source)
        targets[source].append(target)
    order = _topological(sources, targets)
    layer = [0] * count
    for vertex in order:
        layer[vertex] = max((layer[source] + 1 for source in sources[vertex]), default=0)
    for vertex in reversed(order):  # what is read by more than it reads stands right above its first reader
        if len(targets[vertex]) > len(sources[vertex]):
            layer[vertex] = min(layer[target] for target in targets[vertex]) - 1
    top = min(layer, default=0)
    return [number - top for number in layer]


def _topological(sources: list[list[int]], targets: list[list[int]]) -> list[int]:
    waiting = [len(found) for found in sources]
    order = [vertex for vertex, number in enumerate(waiting) if not number]
    for vertex in order:  # which grows
        for target in targets[vertex]:
            waiting[target] -= 1
            if not waiting[target]:
                order.append(target)
    assert len(order) == len(sources), "a cycle"
    return order


def _order(rows: list[list[int]], above: list[list[int]], below: list[list[int]]) -> None:
    """Sort each row by the barycentres of its neighbours, and keep the order with the fewest crossings."""
    best, fewest = [list(row) for row in rows], _crossings(rows, below)
    for sweep in range(2 * SWEEPS):
        neighbours, path = (above, rows) if sweep % 2 == 0 else (below, rows[::-1])
        for fixed, row in itertools.pairwise(path):
            at = {vertex: position for position, vertex in enumerate(fixed)}
            here = {vertex: position for position, vertex in enumerate(row)}
            centre = {
                vertex: sum(at[n] for n in neighbours[vertex]) / len(neighbours[vertex])
                if neighbours[vertex]
                else here[vertex]
                for vertex in row
            }
            row.sort(key=centre.__getitem__)
        crossings = _crossings(rows, below)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    rows[:] = best


def _crossings(rows: list[list[int]], below: list[list[int]]) -> int:
    total = 0
    for upper, lower in itertools.pairwise(rows):
        at = {vertex: position for position, vertex in enumerate(lower)}
        seen: list[int] = []
        for vertex in upper:
            ends = sorted(at[target] for target in below[vertex])
            total += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


def _positions(
    rows: list[list[int]], above: list[list[int]], below: list[list[int]], sizes: Sequence[float], real: int
) -> list[float]:
    """The centre of each vertex: close to its neighbours, and clear of those beside it."""
    x = [0.0] * len(sizes)
    for row in rows:
        for left, right in itertools.pairwise(row):
            x[right] = x[left] + (sizes[left] + sizes[right]) / 2 + GAP
        middle = (x[row[0]] + x[row[-1]]) / 2
        for vertex in row:
            x[vertex] -= middle
    one_sided, both_sided = SETTLING
    for sweep in range(one_sided + both_sided):
        down = sweep % 2 == 0
        for row in rows if down else rows[::-1]:
            sides = (above, below) if sweep >= one_sided else ((above,) if down else (below,))
            wanted: list[tuple[float, float]] = []  # of each vertex: a position, and its weight
            for vertex in row:
                near = [(x[n], _weight(vertex, n, real)) for side in sides for n in side[vertex]]
                weight = sum(w for _, w in near)
                wanted.append((sum(at * w for at, w in near) / weight, weight) if near else (x[vertex], BEND / 100))
            apart = [(sizes[a] + sizes[b]) / 2 + GAP for a, b in itertools.pairwise(row)]
            for vertex, at in zip(row, _spread(wanted, apart), strict=True):
                x[vertex] = at
    return x


def _straighten(
    lines: Sequence[Sequence[int]], rows: list[list[int]], rank: Sequence[int], sizes: Sequence[float], x: list[float]
) -> None:
    """The long middle of a line at one x, as near to where it is as its neighbours allow."""
    at = {vertex: position for row in rows for position, vertex in enumerate(row)}

    def room(vertex: int, side: int) -> float:
        row, position = rows[rank[vertex]], at[vertex] + side
        if not 0 <= position < len(row):
            return side * float("inf")
        return x[row[position]] - side * ((sizes[vertex] + sizes[row[position]]) / 2 + GAP)

    for line in sorted(lines, key=len, reverse=True):
        if len(line) > 1:
            lowest, highest = max(room(vertex, -1) for vertex in line), min(room(vertex, 1) for vertex in line)
            if lowest <= highest:
                middle = min(max(sum(x[vertex] for vertex in line) / len(line), lowest), highest)
                for vertex in line:
                    x[vertex] = middle


def _weight(one: int, other: int, real: int) -> float:
    """Lines between two vertices, and the long middles of lines, resist more than their ends."""
    return STRAIGHT if (one < real) == (other < real) else BEND


def _spread(wanted: Sequence[tuple[float, float]], apart: Sequence[float]) -> list[float]:
    """The positions nearest to those wanted, by weighted squares, that keep their order and distances."""
    offsets = list(itertools.accumulate(apart, initial=0.0))
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for (position, weight), offset in zip(wanted, offsets, strict=True):
        pools.append((position - offset, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, v, n), (b, w, m) = pools[-2:]
            pools[-2:] = [((a * v + b * w) / (v + w), v + w, n + m)]
    means = [mean for mean, _, members in pools for _ in range(members)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]
