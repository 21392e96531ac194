"""Intervals over test images, and over seeds where arms were trained with several.

Shape suffixes: S seeds, N images, R draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.ranker.learning.agreement import RESAMPLES, Interval, mean_interval

_BLOCK = 2**20
"""Values that are drawn at once."""


def interval(values_SN: NDArray[Any], *, seed: int) -> Interval:
    """The mean, and its 95 % percentile interval: images are drawn anew, and seeds, each with repetition.

    Every draw has the same images under each of its seeds, as all seeds are tested on the same ones. Of differences of
    two arms it is paired. With one seed, images alone; numbers depend on `seed` and on the shape.
    """
    if len(values_SN) == 1:
        return mean_interval(values_SN[0], seed=seed)
    values_SN = values_SN.astype(np.float64)
    seeds, images = values_SN.shape
    of_seeds, of_images = (
        KeyedRandom(seed, "", f"prove {what}", seeds, images) for what in ("seeds", "images")
    )
    block = max(1, _BLOCK // images)
    means_R = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, block):
        count = min(block, RESAMPLES - start)
        image_RN = (of_images.uniform(count * images) * images).astype(np.int64).reshape(count, images)
        seed_RS = (of_seeds.uniform(count * seeds) * seeds).astype(np.int64).reshape(count, seeds)
        means_RS = np.stack([values_N[image_RN].mean(axis=1) for values_N in values_SN], axis=1)
        means_R[start : start + count] = np.take_along_axis(means_RS, seed_RS, axis=1).mean(axis=1)
    low, high = np.quantile(means_R, [0.025, 0.975])
    return Interval(float(values_SN.mean()), float(low), float(high), images)


def difference(a_SN: NDArray[np.bool_], b_SN: NDArray[np.bool_], *, seed: int) -> Interval:
    """The mean of `a - b` and its interval, paired by image and seed."""
    return interval(a_SN.astype(np.float64) - b_SN, seed=seed)
