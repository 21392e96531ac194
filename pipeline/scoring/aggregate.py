"""From the scores of many masks to one score per patch of the grid.

Shape suffixes: K views of one crop, V visible patches of a view.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Aggregate = Literal["mean", "log", "zscore", "rank"]
"""Over the views that show a patch, the mean of what its score is worth in each of them.

`mean`: the score itself. `log`: its logarithm; one mask with few neighbours then weighs no more than others. `zscore`:
less the view's mean, over the view's deviation. `rank`: the share of the view's other patches that it beats, from 0
to 1, equal scores by half. The last two compare within a view alone, whatever the size of its scores.
"""


def dense_scores(
    visible_KV: NDArray[Any], score_KV: NDArray[np.float32], positions: int, aggregate: Aggregate = "log"
) -> NDArray[np.float32]:
    """One score per patch, float32 `[positions]`, NaN where a patch was never visible.

    `visible_KV`: patch indices of K views of one crop; `score_KV`: their pseudo-scores. With `log`, a score of 0
    counts as the smallest positive one given. Raises ValueError for an unknown aggregate.
    """
    values_KV = _worth(score_KV.astype(np.float64), aggregate)
    indices = visible_KV.reshape(-1).astype(np.int64)
    total = np.bincount(indices, weights=values_KV.reshape(-1), minlength=positions)
    count = np.bincount(indices, minlength=positions)
    mean = np.full(positions, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean.astype(np.float32)


def _worth(values_KV: NDArray[np.float64], aggregate: Aggregate) -> NDArray[np.float64]:
    """What each score counts, float64 `[K, V]`."""
    if aggregate == "mean":
        return values_KV
    if aggregate == "log":
        positive = values_KV[values_KV > 0]
        return np.log(np.maximum(values_KV, positive.min() if positive.size else 1.0))
    if aggregate == "zscore":
        centred_KV = values_KV - values_KV.mean(axis=1, keepdims=True)
        deviation_K1 = centred_KV.std(axis=1, keepdims=True)
        # Equal scores may leave rounding behind, which is no order.
        flat_K1 = deviation_K1 <= 1e-12 * np.abs(values_KV).max(axis=1, keepdims=True)
        return np.where(flat_K1, 0.0, centred_KV / np.where(flat_K1, 1.0, deviation_K1))
    if aggregate == "rank":
        return np.stack([_shares_beaten(values_V) for values_V in values_KV])
    raise ValueError(f"aggregate {aggregate!r} is none of {', '.join(get_args(Aggregate))}")


def _shares_beaten(values_V: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the other values that each is above, equal ones by half, float64 `[V]`."""
    ordered_V = np.sort(values_V)
    below_V, upto_V = (np.searchsorted(ordered_V, values_V, side=side) for side in ("left", "right"))
    # Itself is among those up to it.
    return (below_V + upto_V - 1) / 2 / max(1, len(values_V) - 1)
