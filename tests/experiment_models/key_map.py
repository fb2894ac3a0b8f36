"""Tensors of a reference under our names: what the proofs of the zoo need beside `load_weights`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from model_constructor.key_map import KeyMap, KeySource
from model_constructor.weights import load_weights

read_key_map = KeyMap.read


def load_foreign(model: nn.Module, state_dict: Mapping[str, Tensor], keys: KeySource) -> None:
    """Load the weights of a reference into a model. Raises ConfigError unless every tensor finds its place."""
    load_weights(model, state_dict, keys)


def translate(ours: Iterable[str], theirs: Mapping[str, Tensor], keys: KeySource) -> dict[str, Tensor]:
    """Tensors of a reference (its state dict, its gradients) under our names."""
    key_map = KeyMap.read(keys)
    sources = {name: key_map.look_up(name) for name in ours}
    return {name: source.taken_from(theirs[source.name]) for name, source in sources.items()}
