"""`model-constructor new`: a small complete model file whose comments say what each section is for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import ConfigError, Problem

START = """\
# A small transformer encoder that reads a sequence of observations: change it into your own.
# Look at it with `model-constructor check FILE`; build it with `model_constructor.build_model("FILE")`.
schema_version: 2

# Names with their defaults. Whoever builds the model may give others: params={"depth": 6}, or --set params.depth=6.
params: {observation_dim: 8, dim: 64, heads: 4, depth: 2, horizon: 16}

# The arguments of `forward`, in this order. A name that is no param, such as B, is a size that a run brings along.
inputs:
  observation: [B, horizon, observation_dim]
  mask: {shape: [B, horizon], dtype: bool, optional: true}    # True where a step counts; None if it is left out

# Parts that are used more than once. Each has the same keys as the file; `dim: int` is a param that its user gives.
blocks:
  layer:
    params: {dim: int, heads: int}
    inputs:
      h: [B, T, dim]
      mask: {shape: [B, T], dtype: bool, optional: true}
    modules:
      norm1: LayerNorm(dim)
      attn: Attention(dim, heads=heads)
      norm2: LayerNorm(dim)
      mlp: Linear(dim, 4 * dim) >> GELU() >> Linear(4 * dim, dim)    # one after the other, as nn.Sequential
    graph:
      a: h + attn(norm1(h), mask=mask)
    outputs: a + mlp(norm2(a))

# What holds weights: classes of torch.nn, blocks, and modules that torch lacks. The names are those in the state dict.
modules:
  embed: Linear(observation_dim, dim)
  position: Param(1, horizon, dim, init=trunc_normal(std=0.02))
  layers: layer(**params) * depth             # `depth` of them; **params hands on the params of the same names
  norm: LayerNorm(dim)
  head: Linear(_, 1)                          # _ is a size that follows from what the module is given

# Values by name, in any order: calls of modules, of torch's functions and methods, and operators.
graph:
  h: embed(observation) + position
  encoded: norm(layers(h, mask=mask))         # a list that is called hands each result to its next member

# What `forward` returns: an expression, or a list or mapping of them.
outputs: head(encoded).squeeze(-1)            # [B, horizon]

# First weights, where they are not to be as each class makes them.
init:
  head: zeros
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "new",
        help="write a small model file to start from",
        description="Write a small complete model file whose comments say what each section is for.",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    try:
        with given.file.open("x", encoding="utf-8") as file:
            file.write(START)
    except FileExistsError:
        hint = "choose another name, or remove it first"
        raise ConfigError(Problem(f"{given.file}: the file is there already.", hint=hint)) from None
    except OSError as error:
        raise ConfigError(Problem(f"{given.file} cannot be written: {error.strerror}.")) from error
    print(f"{given.file} is written. See what is in it: model-constructor check {given.file}")
    return 0
