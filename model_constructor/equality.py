"""Equality: whether two values, perhaps of tensors in lists and mappings, are the same to the bit."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def equal(one: Any, other: Any) -> bool:
    """A NaN equals a NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bool(same_entries(one, other).all())
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def same_entries(one: Tensor, other: Tensor) -> Tensor:
    """Of two tensors of one shape; bool."""
    return (one == other) | (one != one) & (other != other)
