"""Paired bootstrap intervals over scenes, which share objects and backgrounds: both are drawn anew, crossed.

The weight of a scene in a draw is how often its object came times how often its background came (the pigeonhole
bootstrap of Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007), which is never too narrow.
Shape suffixes: N scenes, R draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.ranker.learning.agreement import Array, Interval

DRAWS = 4000


def crossed_bootstrap(
    columns: Sequence[NDArray[Any]],
    of_means: Callable[..., Array],
    objects: Sequence[str],
    backgrounds: Sequence[str],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> Interval:
    """95 % percentile interval of a statistic of the columns' means, `[N]` each, as `agreement.bootstrap` gives it."""
    values_CN = np.stack([np.asarray(column, np.float64) for column in columns])
    weights_RN = _times(objects, seed, "objects", draws) * _times(backgrounds, seed, "backgrounds", draws)
    weights_RN = weights_RN[weights_RN.sum(axis=1) > 0]
    means_CR = values_CN @ weights_RN.T / weights_RN.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(of_means(*values_CN.mean(axis=1, keepdims=True))[0])
        low, high = np.quantile(of_means(*means_CR), [0.025, 0.975])
    return Interval(value, float(low), float(high), values_CN.shape[1])


def _times(names: Sequence[str], seed: int, purpose: str, draws: int) -> Array:
    """How often the one of each scene came, float64 `[R, N]`."""
    distinct, of_scene_N = np.unique(list(names), return_inverse=True)
    count = len(distinct)
    drawn = (KeyedRandom(seed, "", f"scenes {purpose}", count).uniform(draws * count) * count).astype(
        np.int64
    )
    offset = np.repeat(np.arange(draws) * count, count)
    times = np.bincount(drawn + offset, minlength=draws * count).reshape(draws, count)
    return times[:, of_scene_N].astype(np.float64)
