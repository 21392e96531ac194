"""Which patches of an image stay, as regions: rectangles placed exactly, and connected shapes grown from them.

Pure functions of arrays, with counts that are exact. Scores become whole numbers first, so that sums have no rounding:
what is equal is a tie on every machine, and ties go to the first shape, then to the lowest patch index.

Shape suffixes: N images, L patches of an image, G patches along each side of it, T and U places of a rectangle.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.select.selection import Counts, Mask, Numbers, checked_counts, exact_scores

Whole = NDArray[np.int64]

LONGEST = 2
"""Longest side of a window, in times of the shortest."""
CORE = 4
"""A region grows from the best window of a fourth of its patches."""
DEFAULT_COMPACTNESS, MAX_COMPACTNESS = 4.0, 1000.0

_BITS = 40
"""Of a score over the lowest of its image; the scale is a power of two, so that sums that are equal stay so."""
_NEIGHBOURS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]
_SIDES = [(-1, 0), (0, -1), (0, 1), (1, 0)]


def window(scores_NL: Numbers, counts: Counts, *, windows: int = 1) -> Mask:
    """The rectangles with the highest sums of scores, that hold `counts` patches of each image together.

    `counts` as in `selection.topk`. Each of the `windows` rectangles is one of `window_shapes` for its share of the
    count, at the best of all places; a further one at the best of those where no patch is kept yet. What a count has
    beyond them, or finds no room for, is completed patch by patch: always the highest score of those beside a kept
    patch. Raises `UserError` for fewer than one window and for more windows than patches, `ValueError` as `topk` and
    for patches that fill no square grid.
    """
    marks_NGG, counts_N = _checked(scores_NL, counts)
    least = int(counts_N.min(initial=marks_NGG.shape[1] ** 2))
    if not 1 <= windows <= least:
        raise UserError(f"{windows} windows for {least} patches: must be from 1 to as many as patches")
    keep_NGG = np.zeros(marks_NGG.shape, np.bool_)
    for count in np.unique(counts_N):
        rows = np.flatnonzero(counts_N == count)
        kept = np.zeros((len(rows), *marks_NGG.shape[1:]), np.bool_)
        for _ in range(windows):
            _add_best_window(kept, marks_NGG[rows], int(count) // windows)
        keep_NGG[rows] = kept
    _grow(keep_NGG, marks_NGG, counts_N, compactness=0)
    return keep_NGG.reshape(np.shape(scores_NL))


def region(scores_NL: Numbers, counts: Counts, *, compactness: float = DEFAULT_COMPACTNESS) -> Mask:
    """One connected region of each image with `counts` patches, grown where scores are high.

    It begins as the window of a fourth of the patches (`window`), and always takes the patch beside it of the highest
    score, where being enclosed counts: a patch whose neighbours (up to 8) are all kept is worth `compactness` mean
    deviations of its image's scores more than one without any. 0 follows the scores alone, 100 gives discs. Errors as
    `topk`, and `UserError` for a compactness outside 0 to MAX_COMPACTNESS.
    """
    checked_compactness(compactness)
    marks_NGG, counts_N = _checked(scores_NL, counts)
    keep_NGG = window(scores_NL, np.maximum(1, counts_N // CORE)).reshape(marks_NGG.shape)
    _grow(keep_NGG, marks_NGG, counts_N, compactness=compactness)
    return keep_NGG.reshape(np.shape(scores_NL))


def checked_compactness(compactness: float) -> float:
    """The compactness; `UserError` outside 0 to MAX_COMPACTNESS."""
    if not 0 <= compactness <= MAX_COMPACTNESS:
        raise UserError(f"compactness is {compactness}, must be from 0 to {MAX_COMPACTNESS:g}")
    return compactness


def window_shapes(count: int, grid: int) -> list[tuple[int, int]]:
    """Heights and widths of the rectangles for `count` patches of a grid of `grid` x `grid`, the highest first.

    Those of the largest area that `count` allows, no side longer than twice the other: 49 of 14 x 14 patches are 7 x 7,
    98 are 14 x 7 or 7 x 14, and 147, which no rectangle has, 12 x 12 and three more patches.
    """
    fitting = [
        (height, width)
        for height in range(grid, 0, -1)
        for width in range(grid, 0, -1)
        if height * width <= count and max(height, width) <= LONGEST * min(height, width)
    ]
    largest = max(height * width for height, width in fitting)
    return [(height, width) for height, width in fitting if height * width == largest]


def _checked(scores_NL: Numbers, counts: Counts) -> tuple[Whole, Whole]:
    """Scores as whole numbers from 0 on, `[N, G, G]`, and counts `[N]`."""
    exact_NL = exact_scores(scores_NL)
    grid = math.isqrt(exact_NL.shape[1])
    if grid**2 != exact_NL.shape[1]:
        raise ValueError(f"{exact_NL.shape[1]} patches fill no square grid")
    half_NL = exact_NL / 2  # of which no difference is too large for a float
    above_NL = half_NL - half_NL.min(axis=1, keepdims=True)
    _, span_N1 = np.frexp(above_NL.max(axis=1, keepdims=True))
    marks_NL = np.rint(np.ldexp(above_NL, _BITS - span_N1)).astype(np.int64)
    return marks_NL.reshape(-1, grid, grid), checked_counts(counts, exact_NL.shape)


def _add_best_window(keep_NGG: Mask, marks_NGG: Whole, count: int) -> None:
    """Keep the best rectangle for `count` patches that holds none which is kept; nothing where there is no room."""
    images, grid = len(keep_NGG), keep_NGG.shape[1]
    scores, taken = _integral(marks_NGG), _integral(keep_NGG)
    best_N = np.full(images, -1, np.int64)
    box_N4 = np.zeros((images, 4), np.int64)
    for height, width in window_shapes(count, grid):
        sums_NTU = _sums(scores, height, width)
        sums_NTU[_sums(taken, height, width) > 0] = -1
        flat = sums_NTU.reshape(images, -1)
        at_N = flat.argmax(axis=1)
        found_N = flat[np.arange(images), at_N]
        better = found_N > best_N
        top_N, left_N = np.divmod(at_N, sums_NTU.shape[2])
        box_N4[better] = np.stack([top_N, top_N + height, left_N, left_N + width], axis=1)[better]
        best_N[better] = found_N[better]
    top, bottom, left, right = box_N4.T[:, :, None]
    line = np.arange(grid)
    inside_NGG = ((line >= top) & (line < bottom))[:, :, None] & ((line >= left) & (line < right))[:, None]
    keep_NGG |= inside_NGG


def _integral(values_NGG: NDArray[Any]) -> Whole:
    """Sums of all that lies above and left, `[N, G + 1, G + 1]`."""
    padded = np.pad(values_NGG.astype(np.int64), ((0, 0), (1, 0), (1, 0)))
    sums: Whole = padded.cumsum(axis=1).cumsum(axis=2)
    return sums


def _sums(integral: Whole, height: int, width: int) -> Whole:
    """Sums of every rectangle of a shape, by the place of its top left patch, `[N, T, U]`."""
    rows = integral[:, height:] - integral[:, :-height]
    sums: Whole = rows[:, :, width:] - rows[:, :, :-width]
    return sums


def _grow(keep_NGG: Mask, marks_NGG: Whole, counts_N: Whole, *, compactness: float) -> None:
    """Keep one patch after the other beside the kept ones of an image, until it has its count."""
    patches = keep_NGG.shape[1] ** 2
    mean_N11 = marks_NGG.sum(axis=(1, 2), keepdims=True) // patches
    deviation_N11 = np.abs(marks_NGG - mean_N11).sum(axis=(1, 2), keepdims=True) // patches
    weight_N11 = np.rint(compactness * deviation_N11).astype(np.int64)
    around = _around(np.ones(keep_NGG.shape[1:], np.bool_)[None], _NEIGHBOURS)
    for _ in range(int((counts_N - keep_NGG.sum(axis=(1, 2))).max(initial=0))):
        grows = np.flatnonzero(keep_NGG.sum(axis=(1, 2)) < counts_N)
        kept = keep_NGG[grows]
        worth = marks_NGG[grows] + weight_N11[grows] * _around(kept, _NEIGHBOURS) // np.maximum(1, around)
        worth[kept | (_around(kept, _SIDES) == 0)] = -1
        best = worth.reshape(len(grows), -1).argmax(axis=1)
        keep_NGG.reshape(len(keep_NGG), -1)[grows, best] = True


def _around(mask_NGG: Mask, steps: list[tuple[int, int]]) -> Whole:
    """How many patches at the given steps from each patch are in the mask, `[N, G, G]`."""
    grid = mask_NGG.shape[1]
    padded = np.pad(mask_NGG, ((0, 0), (1, 1), (1, 1)))
    found = np.zeros(mask_NGG.shape, np.int64)
    for row, column in steps:
        found += padded[:, 1 + row :, 1 + column :][:, :grid, :grid]
    return found
