"""Evaluation: a policy -> numbers, one line that says them, and files to look at."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from trainer.policy import Policy


@dataclass(frozen=True)
class EvaluationResult:
    metrics: dict[str, float]
    summary: str  # one line, e.g. "success 96.7 % (29 of 30 held-out placements)"
    files: list[Path] = field(default_factory=list)  # written under `output_dir`, for people to open

    def numbers(self) -> dict[str, float]:
        """The metrics as plain numbers; those of numpy and torch become such."""
        plain: dict[str, Any] = {}
        for name, value in self.metrics.items():
            plain[name] = value.item() if hasattr(value, "item") else value
            if not isinstance(plain[name], int | float):
                raise TypeError(f"the evaluation gives '{name}' as {value!r}, and a metric is one number")
        return plain


class Evaluation(Protocol):
    """`train.evaluation.params` are the keywords of the constructor."""

    def evaluate(self, policy: "Policy", output_dir: Path | None) -> EvaluationResult: ...
