"""How well two sets of scores agree within images, and how sure that is.

Agreement is measured per row of two `[N, V]` arrays, one row an image, and gives float64 `[N]`. A position
where either array is NaN is left out of its row; a row in which nothing can be said (fewer than two
positions, or all scores equal on one side) gives NaN, and `bootstrap` leaves such images out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.randomness import KeyedRandom

Scores = NDArray[np.float32]
"""Scores of patches, whoever gives them: a ranker, its teacher, a baseline."""

Array = NDArray[np.float64]

RESAMPLES = 10_000
_BLOCK = 2**20
"""Random indices that are held at once."""


def average_ranks(values_NV: NDArray[Any]) -> Array:
    """Ranks from 1 on within each row, float64 `[N, V]`; equal values share their mean rank, NaN stays NaN."""
    values_NV = np.asarray(values_NV, dtype=np.float64)
    if values_NV.ndim != 2:
        raise ValueError(f"ranks need an array [N, V], not {list(values_NV.shape)}")
    rows, columns = values_NV.shape
    if values_NV.size == 0:
        return values_NV.copy()
    order_NV = values_NV.argsort(axis=1, kind="stable")  # NaN last
    sorted_NV = np.take_along_axis(values_NV, order_NV, axis=1)
    starts_NV = np.ones((rows, columns), dtype=np.bool_)
    starts_NV[:, 1:] = sorted_NV[:, 1:] != sorted_NV[:, :-1]
    group = starts_NV.reshape(-1).cumsum() - 1  # runs of equal values; every row begins one
    places = np.tile(np.arange(1, columns + 1, dtype=np.float64), rows)
    mean_place = np.bincount(group, weights=places) / np.bincount(group)
    ranks_NV = np.empty((rows, columns))
    np.put_along_axis(ranks_NV, order_NV, mean_place[group].reshape(rows, columns), axis=1)
    ranks_NV[np.isnan(values_NV)] = np.nan
    return ranks_NV


def spearman(a_NV: NDArray[Any], b_NV: NDArray[Any]) -> Array:
    """Spearman's rank correlation per row, -1 to 1: Pearson's of the average ranks."""
    a_NV, b_NV, known_NV = _paired(a_NV, b_NV)
    count_N1 = known_NV.sum(axis=1, keepdims=True)
    centred = []
    for values_NV in (a_NV, b_NV):
        # Known ranks sum to n (n + 1) / 2 with or without ties.
        ranks_NV = average_ranks(values_NV) - (count_N1 + 1) / 2
        centred.append(np.where(known_NV, ranks_NV, 0.0))
    x_NV, y_NV = centred
    scale_N = np.sqrt((x_NV**2).sum(axis=1) * (y_NV**2).sum(axis=1))
    return _ratio((x_NV * y_NV).sum(axis=1), scale_N)


def kendall_tau(a_NV: NDArray[Any], b_NV: NDArray[Any]) -> Array:
    """Kendall's tau-b per row, -1 to 1: ties lower the value only as far as the other side tells them apart."""
    a_NV, b_NV, known_NV = _paired(a_NV, b_NV)
    agreement = np.zeros(len(a_NV))
    scale = np.zeros(len(a_NV))
    # One row at a time: V * V signs, and no N * V * V array.
    for row, known_V in enumerate(known_NV):
        a_VV, b_VV = _signs(a_NV[row, known_V]), _signs(b_NV[row, known_V])
        agreement[row] = (a_VV * b_VV).sum(dtype=np.int64)
        scale[row] = math.sqrt(np.count_nonzero(a_VV) * np.count_nonzero(b_VV))
    return _ratio(agreement, scale)


def topk_overlap(a_NV: NDArray[Any], b_NV: NDArray[Any], k: int) -> Array:
    """Share of the k highest of one side that are among the k highest of the other, per row, 0 to 1.

    Where equal values meet the border, the expected share under a random choice among them, on both sides
    apart: scores that are all equal overlap with anything by k / V. NaN for a row of fewer than k positions.
    """
    if k < 1:
        raise ValueError(f"k is {k}, must be at least 1")
    a_NV, b_NV, known_NV = _paired(a_NV, b_NV)
    if known_NV.shape[1] < k:
        return np.full(len(a_NV), np.nan)
    chance_NV = _topk_chance(a_NV, known_NV, k) * _topk_chance(b_NV, known_NV, k)
    return np.where(known_NV.sum(axis=1) >= k, chance_NV.sum(axis=1) / k, np.nan)


def spearman_brown(correlation: float | Array, factor: float = 2.0) -> Array:
    """Reliability of a measurement `factor` times as long as the two halves that correlate like this.

    Float64, shaped as given (Spearman 1910, Brown 1910). A correlation below 0 shows no reliability that
    could grow and is given back as it is.
    """
    correlation = np.asarray(correlation, dtype=np.float64)
    grown = np.maximum(correlation, 0.0)
    return np.where(correlation < 0, correlation, factor * grown / (1 + (factor - 1) * grown))


def ceiling(reliability: float | Array) -> Array:
    """Highest correlation that anything can have with scores of this reliability: its square root, 0 below 0."""
    return np.sqrt(np.maximum(np.asarray(reliability, dtype=np.float64), 0.0))


@dataclass(frozen=True)
class Interval:
    """A statistic over `images` images, and its bootstrap interval from `low` to `high`."""

    value: float
    low: float
    high: float
    images: int


def bootstrap(
    columns: Sequence[NDArray[Any]],
    of_means: Callable[..., Array],
    *,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Percentile interval of a statistic over images, which are drawn anew with repetition.

    `columns`: values per image, `[N]` each and in one order of images; an image with NaN in any is left out of
    all. `of_means` gets one array per column, the means over each draw's images, and gives an array of that
    shape: a difference of two means is thus paired. The value is that of the images themselves. Numbers depend
    on the seed and on N alone. Without images everything is NaN; with one, the bounds are.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level {level} must lie between 0 and 1, resamples {resamples} above 0")
    if len({np.shape(column) for column in columns}) != 1 or np.ndim(columns[0]) != 1:
        raise ValueError(f"columns must share one shape [N], not {[np.shape(column) for column in columns]}")
    values_CN = np.stack([np.asarray(column, dtype=np.float64) for column in columns])
    values_CN = values_CN[:, ~np.isnan(values_CN).any(axis=0)]
    images = values_CN.shape[1]
    if images == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    # A quotient may meet a draw whose divisor is 0; infinity or NaN is then the honest bound.
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(of_means(*values_CN.mean(axis=1, keepdims=True))[0])
        if images == 1:
            return Interval(value, math.nan, math.nan, 1)
        drawn = np.asarray(of_means(*_resampled_means(values_CN, seed, resamples)))
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), images)


def mean_interval(values_N: NDArray[Any], *, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean over images and its bootstrap interval."""
    return bootstrap([values_N], lambda mean: mean, seed=seed, level=level)


def paired_difference(
    a_N: NDArray[Any], b_N: NDArray[Any], *, seed: int = 0, level: float = 0.95
) -> Interval:
    """Mean of `a - b` over images and its bootstrap interval; both belong to the same images, in one order."""
    return bootstrap([a_N, b_N], lambda a, b: a - b, seed=seed, level=level)


def _paired(a_NV: NDArray[Any], b_NV: NDArray[Any]) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Both as float64 with NaN where either has it, and where neither does, bool `[N, V]`."""
    a_NV, b_NV = np.asarray(a_NV, dtype=np.float64), np.asarray(b_NV, dtype=np.float64)
    if a_NV.shape != b_NV.shape or a_NV.ndim != 2:
        raise ValueError(f"scores must share one shape [N, V]: {list(a_NV.shape)} and {list(b_NV.shape)}")
    known_NV = ~(np.isnan(a_NV) | np.isnan(b_NV))
    return np.where(known_NV, a_NV, np.nan), np.where(known_NV, b_NV, np.nan), known_NV


def _ratio(part_N: Array, whole_N: Array) -> Array:
    """The quotient, kept within -1 to 1 of rounding; NaN where the divisor is 0."""
    ratio_N = np.full(len(part_N), np.nan)
    np.divide(part_N, whole_N, out=ratio_N, where=whole_N > 0)
    np.clip(ratio_N, -1.0, 1.0, out=ratio_N)
    return ratio_N


def _signs(values_V: Array) -> NDArray[np.int8]:
    """Whether one value is above (1), below (-1) or equal to (0) another, int8 `[V, V]`."""
    above_VV = (values_V[:, None] > values_V[None, :]).astype(np.int8)
    return above_VV - above_VV.T


def _topk_chance(values_NV: Array, known_NV: NDArray[np.bool_], k: int) -> Array:
    """Probability that a position is among the row's k highest, float64 `[N, V]`."""
    lowered_NV = np.where(known_NV, values_NV, -np.inf)
    border_N1 = np.partition(lowered_NV, -k, axis=1)[:, [-k]]
    above_NV, tied_NV = known_NV & (lowered_NV > border_N1), known_NV & (lowered_NV == border_N1)
    left_N1 = k - above_NV.sum(axis=1, keepdims=True)
    share_N1 = left_N1 / np.maximum(tied_NV.sum(axis=1, keepdims=True), 1)
    return np.where(above_NV, 1.0, np.where(tied_NV, share_N1, 0.0))


def _resampled_means(values_CN: Array, seed: int, resamples: int) -> Array:
    """Means of each column over `resamples` draws of N images with repetition, float64 `[C, resamples]`."""
    images = values_CN.shape[1]
    random = KeyedRandom(seed, "", "bootstrap", images)
    block = max(1, _BLOCK // images)
    means_CB = np.empty((len(values_CN), resamples))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn_BN = (random.uniform(count * images) * images).astype(np.int64).reshape(count, images)
        for column, values_N in enumerate(values_CN):
            means_CB[column, start : start + count] = values_N[drawn_BN].mean(axis=1)
    return means_CB
