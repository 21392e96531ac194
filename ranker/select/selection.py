"""Which patches of an image stay: boolean keep masks `[N, L]` from a ranker's scores `[N, L]`.

Pure functions of arrays. Scores are finite real numbers of any precision, higher = kept sooner, and are
comparable within one image only; what is compared across images is the log mass: the logarithm of a patch's
share in the softmax of its image's scores at the ranker's temperature. Everywhere, equal scores rank by lower
patch index, a count is at least 1 and exact, and arithmetic is in float64.

Shape suffixes: N images, L patches of an image, K clusters.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.randomness import KeyedRandom

ClusterRule = Literal["ours", "published"]
Numbers = NDArray[Any]
Mask = NDArray[np.bool_]
Counts = int | NDArray[np.int64]

CLUSTER_RATIO = 0.7
"""Published: the share of the kept patches that scores choose; clusters choose the rest."""
ROUNDING = 1e-9
"""Relative slack of a mass, so that rounding adds no patch: half of 196 equal scores are 98."""


def keep_count(positions: int, ratio: float) -> int:
    """Patches kept of `positions` at a keep ratio: rounded down, at least 1, so that 0.4 of 196 keeps 78.

    Rounds as the teacher's masks do (patches.visible_count). Raises `UserError` for a ratio outside (0, 1].
    """
    if not 0 < ratio <= 1:
        raise UserError(f"keep ratio is {ratio}, must be above 0 and at most 1")
    return max(1, int(positions * ratio + 1e-6))


def topk(scores_NL: Numbers, counts: Counts) -> Mask:
    """The highest scores of each image; `counts` is one number or int `[N]`, each from 1 to L.

    Raises `ValueError` for scores that are not finite, and for counts that do not fit them.
    """
    exact_NL = exact_scores(scores_NL)
    return _first(_descending(exact_NL), checked_counts(counts, exact_NL.shape))


def random(sample_keys: Sequence[str], positions: int, counts: Counts, *, seed: int) -> Mask:
    """Patches drawn at random for each of N sample keys, bool `[N, positions]`.

    A draw depends on seed and sample key alone, and a larger count of the same key keeps a smaller one's patches.
    """
    shape = (len(sample_keys), positions)
    order = [KeyedRandom(seed, key, "select").permutation(positions) for key in sample_keys]
    return _first(np.array(order, np.int64).reshape(shape), checked_counts(counts, shape))


def nucleus(
    scores_NL: Numbers, mass: float, *, temperature: float, floor: int = 1, ceiling: int | None = None
) -> Mask:
    """The smallest set of each image that holds a share `mass` of its softmax, of `floor` to `ceiling` patches.

    A mass of 1 keeps all patches, as no share is 0. Judged by what is left out, at most (1 - mass) up to ROUNDING,
    which stays accurate near 1. Without a ceiling all L may stay. Raises `UserError` for a mass outside
    (0, 1], a temperature not above 0, and bounds other than 1 <= floor <= ceiling <= L.
    """
    if not 0 < mass <= 1:
        raise UserError(f"softmax mass is {mass}, must be above 0 and at most 1")
    exact_NL = exact_scores(scores_NL)
    low, high = checked_bounds(floor, ceiling, exact_NL.shape[1])
    share_NL = np.exp(_shifted(np.sort(exact_NL, axis=1)[:, ::-1], temperature))
    left_out_NL = np.cumsum(share_NL[:, ::-1], axis=1)[:, ::-1]  # by keeping 0, 1, .. L - 1 patches
    allowed_N1 = (1 - mass) * left_out_NL[:, :1] * (1 + ROUNDING)
    counts_N = (
        (left_out_NL > allowed_N1).sum(axis=1) if mass < 1 else np.full(len(exact_NL), exact_NL.shape[1])
    )
    return _first(_descending(exact_NL), np.clip(counts_N, low, high))


def cluster(
    scores_NL: Numbers,
    labels_NL: Numbers,
    centres_NK: Numbers,
    *,
    rule: ClusterRule = "ours",
    ratio: float = CLUSTER_RATIO,
) -> Mask:
    """The paper's selection for diversity: K patches of each image, from its division into K clusters.

    `labels`: each patch's cluster, 0 .. K - 1. `centres`: each cluster's centre patch, which carries its label.
    floor(ratio * K) patches are kept by score, then, largest cluster first (equal sizes by cluster number), the
    centre of each cluster that holds no patch kept by score (`ours`), or whose centre is not kept yet
    (`published`: also of clusters that hold one). Enough such clusters always remain, so that exactly K are kept.
    Raises `UserError` for an unknown rule and a ratio outside [0, 1], `ValueError` for arrays that do not fit.
    """
    if rule not in get_args(ClusterRule):
        raise UserError(f"cluster rule is {rule!r}, must be one of {', '.join(get_args(ClusterRule))}")
    if not 0 <= ratio <= 1:
        raise UserError(f"cluster ratio is {ratio}, must be from 0 to 1")
    exact_NL = exact_scores(scores_NL)
    _check_clusters(exact_NL, labels_NL, centres_NK)
    clusters = centres_NK.shape[1]
    by_score = int(ratio * clusters + 1e-6)
    keep_NL = _first(_descending(exact_NL), np.full(len(exact_NL), by_score))
    for keep_L, labels_L, centres_K in zip(keep_NL, labels_NL, centres_NK, strict=True):
        largest_first = np.argsort(-np.bincount(labels_L, minlength=clusters), kind="stable")
        met_K = np.isin(np.arange(clusters), labels_L[keep_L]) if rule == "ours" else keep_L[centres_K]
        chosen = largest_first[~met_K[largest_first]][: clusters - by_score]
        keep_L[centres_K[chosen]] = True
    return keep_NL


def log_masses(scores_NL: Numbers, temperature: float) -> NDArray[np.float64]:
    """Logarithm of each patch's share in its image's softmax, at most 0 and always finite, float64 `[N, L]`.

    Logarithms, because at a low temperature most shares are too small for a float. Raises `UserError` for a
    temperature that is not a number above 0.
    """
    shifted_NL = _shifted(exact_scores(scores_NL), temperature)
    total_N1: NDArray[np.float64] = np.exp(shifted_NL).sum(axis=1, keepdims=True)
    return shifted_NL - np.log(total_N1)


def kept_mass(scores_NL: Numbers, keep_NL: Mask, temperature: float) -> NDArray[np.float64]:
    """The share of each image's softmax that a mask keeps, from 0 to 1, float64 `[N]`."""
    share_NL = np.exp(_shifted(exact_scores(scores_NL), temperature))
    kept_N: NDArray[np.float64] = np.where(keep_NL, share_NL, 0).sum(axis=1) / share_NL.sum(axis=1)
    return kept_N


def budget(
    scores_NL: Numbers, threshold: float, *, temperature: float, floor: int = 1, ceiling: int | None = None
) -> Mask:
    """The patches of each image whose log mass is at least `threshold`, from `floor` to `ceiling` of them.

    With the temperature and bounds that `budget.find_budget` was given, these are the patches that it counted.
    """
    counts_N = budget_counts(scores_NL, threshold, temperature=temperature, floor=floor, ceiling=ceiling)
    return topk(scores_NL, counts_N)


def budget_counts(
    scores_NL: Numbers, threshold: float, *, temperature: float, floor: int = 1, ceiling: int | None = None
) -> NDArray[np.int64]:
    """How many patches `budget` keeps of each image, int64 `[N]`."""
    masses_NL = log_masses(scores_NL, temperature)
    low, high = checked_bounds(floor, ceiling, masses_NL.shape[1])
    counts_N: NDArray[np.int64] = np.clip((masses_NL >= threshold).sum(axis=1), low, high)
    return counts_N


def exact_scores(scores_NL: Numbers) -> NDArray[np.float64]:
    """The scores in float64; raises `ValueError` unless they are `[N, L]`, L at least 1, and all finite."""
    exact_NL = np.asarray(scores_NL, np.float64)
    if exact_NL.ndim != 2 or not exact_NL.shape[1]:
        raise ValueError(f"scores must be [N, L] with L at least 1, their shape is {list(exact_NL.shape)}")
    bad = np.flatnonzero(~np.isfinite(exact_NL).all(axis=1))
    if len(bad):
        raise ValueError(f"scores of image {bad[0]} of {len(exact_NL)} are not all finite")
    return exact_NL


def _descending(exact_NL: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices by falling score, equal scores by index."""
    return np.argsort(-exact_NL, axis=1, kind="stable")


def _shifted(exact_NL: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Scores over the temperature, less the image's largest: at most 0, and finite whatever their size."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError(f"temperature is {temperature}, must be a number above 0")
    with np.errstate(over="ignore"):
        shifted_NL = (exact_NL - exact_NL.max(axis=1, keepdims=True)) / temperature
    finite_NL: NDArray[np.float64] = np.maximum(shifted_NL, -sys.float_info.max)
    return finite_NL


def _first(order_NL: NDArray[np.int64], counts_N: NDArray[np.int64]) -> Mask:
    """The mask of the first `counts[n]` indices of each row."""
    keep_NL = np.zeros(order_NL.shape, np.bool_)
    np.put_along_axis(keep_NL, order_NL, np.arange(order_NL.shape[1]) < counts_N[:, None], axis=1)
    return keep_NL


def checked_counts(counts: Counts, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """One count for each image; raises `ValueError` unless each is a whole number of 1 .. L."""
    images, positions = shape
    given = np.asarray(counts)
    if given.dtype.kind not in "iu" or given.shape not in ((), (images,)):
        raise ValueError(f"counts must be whole numbers, one or {images}: {given.dtype} {list(given.shape)}")
    counts_N = np.broadcast_to(given.astype(np.int64), images)
    if ((counts_N < 1) | (counts_N > positions)).any():
        raise ValueError(
            f"counts must be from 1 to {positions}, they hold {counts_N.min()} .. {counts_N.max()}"
        )
    return counts_N


def checked_bounds(floor: int, ceiling: int | None, positions: int) -> tuple[int, int]:
    """Both bounds on the count; raises `UserError` for others than 1 <= floor <= ceiling <= L."""
    high = positions if ceiling is None else ceiling
    if not 1 <= floor <= high <= positions:
        raise UserError(
            f"kept patches are to be {floor} to {high} of {positions}: 1 <= floor <= ceiling <= all"
        )
    return floor, high


def _check_clusters(exact_NL: NDArray[np.float64], labels_NL: Numbers, centres_NK: Numbers) -> None:
    """Raise `ValueError` unless these are clusters of these images, each holding its own centre."""
    images, positions = exact_NL.shape
    fits = labels_NL.shape == exact_NL.shape and centres_NK.ndim == 2 and len(centres_NK) == images
    if not fits or not 1 <= centres_NK.shape[1] <= positions:
        raise ValueError(
            f"clusters do not fit scores {list(exact_NL.shape)}: labels {list(labels_NL.shape)}, "
            f"centres {list(centres_NK.shape)}"
        )
    clusters = centres_NK.shape[1]
    inside = ((labels_NL >= 0) & (labels_NL < clusters)).all()
    inside = inside and ((centres_NK >= 0) & (centres_NK < positions)).all()
    if not inside or (np.take_along_axis(labels_NL, centres_NK, axis=1) != np.arange(clusters)).any():
        raise ValueError(f"labels must be 0 .. {clusters - 1}, and each centre a patch of its own cluster")
