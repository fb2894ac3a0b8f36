"""What runs is not refused: random expressions, against torch itself with random sizes."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from model_constructor import build_model
from model_constructor.names import torch_ops

SYMBOLS = ("B", "T", "S", "C")
SIZES = (1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 24, 49, 50, 60, 100, 101, 150, 1001)
# Without products of two inputs: some are refused on purpose, as [B, T, 512] @ [B, 256] is.
FORMS = """
{x} + {x} | {x} @ ones({n}, {n}) | cat([{x}, {x}], {d}) | stack([{x}, {x}], {d}) | {x}[:, {d}] | {x}[..., :{n}] | {x}[:, {n}:]
{x}.reshape({s}, {s}) | {x}.view({s}, {s}, {s}) | {x}.mT | {x}.split([{n}, {n}], {d})[0] | {x}.chunk({n}, {d})[1]
{x}.expand({s}, {s}) | linear({x}, ones({n}, {n})) | layer_norm({x}, [{n}]) | {x}.unflatten({d}, [{n}, {n}])
{x}.flatten(0, 1) | rearrange({x}, 'a (b c) -> b a c', c={n}) | conv1d({x}, ones({n}, {n}, {n}), stride=2)
{x}.unfold({d}, {n}, 2) | einsum('ab,bc->ac', {x}, {x}) | {x}[:, None] | pad({x}, [-1, 1])
"""


def expression(dice: random.Random, depth: int, names: list[str]) -> str:
    if depth == 0:
        return dice.choice(names)
    form = dice.choice(FORMS.replace("\n", " | ").strip(" |").split(" | "))
    sizes = ("B", "T", "-1", "T - 50", "T // 2", "B * T", "S + 1", "2 * C")
    filled = {"{d}": lambda: dice.choice("0 1 2 -1".split()), "{n}": lambda: dice.choice("1 2 3 4 6 8 100".split())}
    filled |= {"{s}": lambda: dice.choice(sizes), "{x}": lambda: f"({expression(dice, depth - 1, names)})"}
    for word, fill in filled.items():
        while word in form:
            form = form.replace(word, fill(), 1)
    return form


def sizes_that_run(text: str, inputs: dict[str, list[str]], dice: random.Random) -> dict[str, int] | None:
    """By trial, with torch alone."""
    ops = {name: function for name, (_, function) in torch_ops().items()}
    for _ in range(30):
        size = dice.choice(SIZES)
        at = {symbol: size if dice.random() < 0.4 else dice.choice(SIZES) for symbol in SYMBOLS}
        shapes = {name: [at[s] if s in SYMBOLS else int(s) for s in shape] for name, shape in inputs.items()}
        if max(map(math.prod, shapes.values())) > 10**6:
            continue
        try:
            with torch.device("meta"):
                eval(text, {**ops, **at, **{name: torch.empty(shape) for name, shape in shapes.items()}})
        except Exception:
            continue
        return at
    return None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_no_expression_that_runs_for_some_sizes_is_refused(seed: int, tmp_path: Path):
    dice = random.Random(seed)
    ran = 0
    for _ in range(150):
        inputs = {n: [dice.choice((*SYMBOLS, "1", "3", "8")) for _ in range(dice.randint(1, 4))] for n in ("x", "y")}
        inputs["all"] = list(SYMBOLS)  # so that each is bound
        text = expression(dice, dice.randint(1, 3), ["x", "y"])
        if sizes_that_run(text, inputs, dice):
            ran += 1
            lines = [f"  {name}: [{', '.join(shape)}]" for name, shape in inputs.items()]
            path = tmp_path / "model.yaml"
            path.write_text("\n".join(["schema_version: 2", "inputs:", *lines, f'outputs: "{text}"', ""]))
            build_model(path)
    assert ran > 25
