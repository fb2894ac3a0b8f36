"""Model files written into a folder of the test's own, and what is wrong with them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model_constructor import ConfigError, GraphModel, Problem, build_model


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a model file; the line `schema_version: 2` comes first, so the text itself begins on line 2."""

    def write(text: str, name: str = "model.yaml") -> Path:
        path = tmp_path / name
        path.write_text("schema_version: 2\n" + textwrap.dedent(text), encoding="utf-8")
        return path

    return write


@pytest.fixture
def build(write: Callable[..., Path]) -> Callable[..., GraphModel]:
    def build(text: str, **arguments: Any) -> GraphModel:
        return build_model(write(text), **arguments)

    return build


@pytest.fixture
def problems(write: Callable[..., Path]) -> Callable[..., list[Problem]]:
    """The problems of a file that has to be refused."""

    def problems(text: str, **arguments: Any) -> list[Problem]:
        with pytest.raises(ConfigError) as caught:
            build_model(write(text), **arguments)
        return list(caught.value.problems)

    return problems
