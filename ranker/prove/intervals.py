"""Intervals over test images, over what several of them share, and over seeds where arms were trained with several.

Images that share an object or a background are not drawn apart: all values of each such group are drawn anew, crossed.
The weight of an image in a draw is how often its object came times how often its background came (the pigeonhole
bootstrap of Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007), which is never too narrow.

Shape suffixes: S seeds, N images, R draws, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.ranker.learning.agreement import RESAMPLES, Array, Interval, mean_interval

_BLOCK = 2**20
"""Values that are drawn at once."""

Groups = Sequence[Sequence[str]]
"""What images share: of each kind, such as object and background, the one of every image, `[N]`."""


def interval(values_SN: NDArray[Any], *, seed: int, groups: Groups = ()) -> Interval:
    """The mean, and its 95 % percentile interval: images are drawn anew, and seeds, each with repetition.

    With `groups` those are drawn instead of images. Every draw has the same images under each of its seeds, as all
    seeds are tested on the same ones. Of differences of two arms it is paired. Numbers depend on `seed`, on the shape
    and on `groups`.
    """
    seeds, images = values_SN.shape
    if seeds == 1 and not groups:
        return mean_interval(values_SN[0], seed=seed)
    of_seeds = KeyedRandom(seed, "", "prove seeds", seeds, images)

    def of_means(*means_SR: Array) -> Array:
        means_RS = np.stack(means_SR, axis=1)
        drawn_RS = (of_seeds.uniform(means_RS.size) * seeds).astype(np.int64).reshape(means_RS.shape)
        mean_R: Array = np.take_along_axis(means_RS, drawn_RS, axis=1).mean(axis=1)
        return mean_R

    own = [[str(image) for image in range(images)]]
    found = crossed_bootstrap(list(values_SN), of_means, groups or own, seed=seed)
    return Interval(float(values_SN.mean()), found.low, found.high, images)


def difference(
    a_SN: NDArray[np.bool_], b_SN: NDArray[np.bool_], *, seed: int, groups: Groups = ()
) -> Interval:
    """The mean of `a - b` and its interval, paired by image and seed."""
    return interval(a_SN.astype(np.float64) - b_SN, seed=seed, groups=groups)


def crossed_bootstrap(
    columns: Sequence[NDArray[Any]], of_means: Callable[..., Array], groups: Groups, *, seed: int = 0
) -> Interval:
    """95 % percentile interval of a statistic of the columns' means, `[N]` each, as `agreement.bootstrap` gives it."""
    values_CN = np.stack([np.asarray(column, np.float64) for column in columns])
    images = values_CN.shape[1]
    kinds = [np.unique(list(names), return_inverse=True)[1] for names in groups]
    streams = [KeyedRandom(seed, "", "crossed bootstrap", kind, images) for kind, _ in enumerate(kinds)]
    means, block = [], max(1, _BLOCK // images)
    for start in range(0, RESAMPLES, block):
        count = min(block, RESAMPLES - start)
        weights_RN = np.ones((count, images))
        for of_image_N, stream in zip(kinds, streams, strict=True):
            weights_RN *= _times(of_image_N, stream, count)
        weights_RN = weights_RN[weights_RN.sum(axis=1) > 0]
        means.append(values_CN @ weights_RN.T / weights_RN.sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(of_means(*values_CN.mean(axis=1, keepdims=True))[0])
        low, high = np.quantile(of_means(*np.concatenate(means, axis=1)), [0.025, 0.975])
    return Interval(value, float(low), float(high), images)


def _times(of_image_N: NDArray[np.intp], stream: KeyedRandom, draws: int) -> Array:
    """How often the group of each image came, float64 `[R, N]`."""
    count = int(of_image_N.max()) + 1
    drawn = (stream.uniform(draws * count) * count).astype(np.int64)
    offset = np.repeat(np.arange(draws) * count, count)
    times = np.bincount(drawn + offset, minlength=draws * count).reshape(draws, count)
    return times[:, of_image_N].astype(np.float64)
