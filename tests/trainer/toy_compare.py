"""Checkpoints compared: every tensor and plain value of every file, bit for bit."""

from pathlib import Path
from typing import Any

import torch

from trainer.metrics import read_metrics
from trainer.timing import is_measured


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


def assert_equal_checkpoints(one: Path, other: Path, but: tuple[str, ...] = ()) -> None:
    """Everything in both, except for the values named in `but`."""
    first, second = (
        {name: value for name, value in tensors_of(path).items() if name not in but} for path in (one, other)
    )
    assert first.keys() == second.keys()
    assert any(isinstance(value, torch.Tensor) for value in first.values())
    for name, value in first.items():
        same = same_bits(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, name


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Zeros of both signs differ, and numbers that are none may be equal."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    first, second = (tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in (one, other))
    return torch.equal(first, second)


def lines_of(run_dir: Path, until: int | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what depends on the machine's pace."""
    return [
        {name: value for name, value in line.items() if not is_measured(name)}
        for line in read_metrics(run_dir / "metrics.jsonl")
        if until is None or line["step"] <= until
    ]
