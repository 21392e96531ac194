"""From the scores of many masks to one score per patch of the grid."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Aggregate = Literal["mean", "log"]
"""Mean of the scores, or mean of their logarithms: one mask with few neighbours then weighs no more than others."""


def dense_scores(
    visible_KV: NDArray[Any], score_KV: NDArray[np.float32], positions: int, aggregate: Aggregate = "log"
) -> NDArray[np.float32]:
    """One score per patch, float32 `[positions]`, NaN where a patch was never visible.

    `visible_KV`: patch indices of K views of one crop; `score_KV`: their pseudo-scores. With `log`, a score of 0
    counts as the smallest positive one given.
    """
    values = score_KV.astype(np.float64)
    if aggregate == "log":
        positive = values[values > 0]
        values = np.log(np.maximum(values, positive.min() if positive.size else 1.0))
    indices = visible_KV.reshape(-1).astype(np.int64)
    total = np.bincount(indices, weights=values.reshape(-1), minlength=positions)
    count = np.bincount(indices, minlength=positions)
    mean = np.full(positions, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean.astype(np.float32)
