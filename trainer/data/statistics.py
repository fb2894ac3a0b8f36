"""Statistics: columns of numbers -> what normalisation needs, in float64, one value per dimension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

QUANTILES = (0.01, 0.99)


def column_statistics(columns: Sequence[Tensor], shares: Sequence[float] = (1.0,)) -> dict[str, np.ndarray]:
    """Of the numbers [N, *D] of one set, or of several that are drawn in proportion to `shares`.

    A set counts by its share, whatever its length N: what is described is what training sees. `count` is frames.
    """
    share_K = np.asarray(shares, dtype=np.float64) / np.sum(shares)
    flat = [column.reshape(len(column), -1) for column in columns]
    entries = []
    for dimension in range(flat[0].shape[1]):  # one at a time: in float64, a large set has no room for all
        values = [column[:, dimension].double().numpy() for column in flat]
        mean_K, std_K = np.array([each.mean() for each in values]), np.array([each.std() for each in values])
        mean = share_K @ mean_K
        std = np.sqrt(share_K @ (std_K**2 + (mean_K - mean) ** 2))  # within the sets, and between them
        smallest, largest = min(each.min() for each in values), max(each.max() for each in values)
        entries.append((mean, std, smallest, largest, *_quantiles(values, share_K)))
    shape = tuple(columns[0].shape[1:]) or (1,)
    found = np.array(entries).T.reshape(6, *shape)
    stats = dict(zip(("mean", "std", "min", "max", "q01", "q99"), found, strict=True))
    return stats | {"count": np.array([sum(map(len, columns))])}


def _quantiles(values: Sequence[np.ndarray], share_K: np.ndarray) -> np.ndarray:
    if len(values) == 1:
        return np.quantile(values[0], QUANTILES)
    weights = np.repeat(share_K / [len(each) for each in values], [len(each) for each in values])
    return np.quantile(np.concatenate(values), QUANTILES, weights=weights, method="inverted_cdf")
