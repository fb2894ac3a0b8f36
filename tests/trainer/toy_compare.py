"""Checkpoints compared: every tensor and plain value of every file, bit for bit."""

from pathlib import Path
from typing import Any

import torch


def tensors_of(folder: Path) -> dict[str, Any]:
    """Every tensor and plain value of every file of a checkpoint, flattened by name; times left out."""
    flat: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}/{key}", inner)
        elif isinstance(value, list | tuple):
            for position, inner in enumerate(value):
                walk(f"{name}/{position}", inner)
        elif name != "training_state/seconds":
            flat[name] = value

    for path in sorted(folder.glob("*.pt")):
        walk(path.stem, torch.load(path, weights_only=True))
    return flat


def assert_equal_checkpoints(one: Path, other: Path) -> None:
    first, second = tensors_of(one), tensors_of(other)
    assert first.keys() == second.keys()
    assert any(isinstance(value, torch.Tensor) for value in first.values())
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, name
