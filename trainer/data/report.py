"""Report: what is wrong below one key of a config, gathered to be told together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from model_constructor.errors import Place, Problem


class Placed(Protocol):
    """What is asked of a config: the places of a value and of a key."""

    def place(self, path: Sequence[Any]) -> Place: ...
    def key_place(self, path: Sequence[Any]) -> Place: ...


class Report:
    """Gathers what is wrong below one key of a config; with `config`, each at its place."""

    def __init__(self, config: Placed | None, below: tuple[str, ...]) -> None:
        self._config, self._below = config, below
        self.problems: list[Problem] = []

    def value(self, message: str, hint: str, *path: str | int) -> None:
        place = self._config.place((*self._below, *path)) if self._config else None
        self.problems.append(Problem(message, place, hint))

    def key(self, message: str, hint: str, *path: str | int) -> None:
        place = self._config.key_place((*self._below, *path)) if self._config else None
        self.problems.append(Problem(message, place, hint))
