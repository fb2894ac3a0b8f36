"""Unread keys: what a config writes and the chosen components cannot read -> problems, each at its key.

A key at the value that asks for nothing (null, or `accumulate: 1`) is no error: it takes back what a base file asks.
"""

from collections.abc import Iterator
from typing import Any

from model_constructor.errors import Problem
from trainer.config.messages import dotted
from trainer.registry import TRAINER_REGISTRY
from trainer.templates import ComponentTrainer

Key = tuple[str, ...]

ASKS_NOTHING: dict[Key, tuple[Any, ...]] = {
    ("train", "accumulate"): (1, None),
    ("train", "clip_grad_norm"): (None,),
    ("train", "ema"): (None,),
    ("train", "on_nonfinite"): (),
    ("train", "validate_every"): (None,),
    ("train", "keep_best"): (False, None),
    ("train", "evaluation"): (None,),
    ("train", "evaluate_every"): (None,),
    ("data", "validation"): (None,),
}
"""What steers the step of a ComponentTrainer, its validation and its policy; a plain trainer has none of them."""

VALIDATION = "data.validation holds no episodes out", "add data.validation: {fraction: 0.1}"
NEEDS: dict[Key, tuple[Key, str, str]] = {  # a key -> the key without which nothing reads it, and what to say
    ("train", "validate_every"): (("data", "validation"), *VALIDATION),
    ("train", "keep_best"): (("data", "validation"), *VALIDATION),
    ("train", "evaluate_every"): (
        ("train", "evaluation"),
        "train.evaluation names nothing to evaluate",
        "add train.evaluation: {type: ...}",
    ),
    ("train", "allow_missing"): (
        ("train", "load_dir"),
        "it speaks of train.load_dir, which is not given",
        "add train.load_dir, or remove the key",
    ),
}


def check_unread(source: Any) -> list[Problem]:
    data = source.data
    return [*_unneeded(source, data), *_not_for_the_trainer(source, data)]


def is_component_trainer(name: str) -> bool:
    component = TRAINER_REGISTRY.get(name)
    return isinstance(component, type) and issubclass(component, ComponentTrainer)


def mapping_at(data: Any, key: Key) -> dict[str, Any]:
    """The mapping at `key`, or an empty one: what is not a mapping there is the schema's problem."""
    found = _value(data, key)
    return found if isinstance(found, dict) else {}


def _unneeded(source: Any, data: Any) -> Iterator[Problem]:
    for key, (needed, why, hint) in NEEDS.items():
        if _value(data, key) and not _value(data, needed):
            yield Problem(f"{dotted(key)} would have no effect: {why}", source.key_place(key), hint)
    train = mapping_at(data, ("train",))
    if train.get("keep_every") is not None and train.get("keep_last", 0) is None:
        message = "train.keep_every would have no effect: with keep_last: null every checkpoint is kept"
        yield Problem(message, source.key_place(("train", "keep_every")), "remove one of the two")


def _not_for_the_trainer(source: Any, data: Any) -> Iterator[Problem]:
    name = _value(data, ("train", "trainer", "type"))
    if not isinstance(name, str) or not TRAINER_REGISTRY.has(name):
        return
    if not is_component_trainer(name):
        for key, nothing in ASKS_NOTHING.items():
            if key[1] in mapping_at(data, key[:1]) and _value(data, key) not in nothing:
                message = f"trainer '{name}' does its own step, so {dotted(key)} would have no effect"
                hint = "remove the key, or derive the trainer from ComponentTrainer"
                yield Problem(message, source.key_place(key), hint)
        return
    trainer: Any = TRAINER_REGISTRY.get(name)
    if trainer.predict is ComponentTrainer.predict:
        for key in (("train", "evaluation"), ("train", "evaluate_every")):
            if _value(data, key):
                message = f"trainer '{name}' has no `predict`, so {dotted(key)} has no policy to look at"
                yield Problem(message, source.key_place(key), "remove the key, or write the trainer's `predict`")


def _value(data: Any, key: Key) -> Any:
    for part in key:
        data = data.get(part) if isinstance(data, dict) else None
    return data
