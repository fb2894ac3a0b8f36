"""trainer: named components become a trained policy. Four public names; the heavy ones are imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.loop import TrainResult
    from trainer.policy import Policy, load_policy
    from trainer.training import train

_HOMES = {
    "Policy": "trainer.policy",
    "TrainResult": "trainer.loop",
    "load_policy": "trainer.policy",
    "train": "trainer.training",
}

__all__ = ["Policy", "TrainResult", "load_policy", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
