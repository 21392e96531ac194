"""An image in patches of several sizes, large where it is flat: a quadtree split where entropy is highest.

After the idea of "Accelerating Vision Transformers with Adaptive Patch Sizes" (APT, arXiv 2510.18091), at a number of
tokens that is given instead of a threshold that is.

Shape suffixes: L grid positions, K blocks.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SIDES = (4, 2, 1)
"""Sides of blocks in patches, the largest first."""

_BINS, _LEVELS = 32, 256
_LUMA = np.array([299, 587, 114], np.int64)

Block = tuple[int, int, int]
"""Side, row and column of a block, in patches."""


def quadtree(patches_LP: NDArray[np.uint8], grid: int, count: int) -> list[Block]:
    """The blocks of an image of uint8 patches, by row and column: at most `count`, less than 3 below it.

    The largest blocks that fit begin it, smaller ones at the right and lower rim; the block of the highest entropy is
    split next, of equal ones the first. More than `count` where it begins with more.
    """
    histogram = _histograms(patches_LP).reshape(grid, grid, _BINS)
    blocks = list(_roots(grid))
    waiting = [(-_entropy(histogram, block), block) for block in blocks if block[0] > 1]
    heapq.heapify(waiting)
    leaves = {block for block in blocks if block[0] == 1}
    left = (count - len(blocks)) // 3
    while waiting and left > 0:
        _, (side, row, column) = heapq.heappop(waiting)
        half = side // 2
        for part in ((half, row + down, column + right) for down in (0, half) for right in (0, half)):
            if half > 1:
                heapq.heappush(waiting, (-_entropy(histogram, part), part))
            else:
                leaves.add(part)
        left -= 1
    return sorted([*leaves, *(block for _, block in waiting)], key=lambda block: block[1:])


def _roots(grid: int) -> Iterator[Block]:
    """Blocks that tile the grid: the largest from the top left on, and rims of smaller ones."""
    covered = 0
    for side in SIDES:
        reach = grid // side * side
        for row in range(0, reach, side):
            for column in range(0, reach, side):
                if row >= covered or column >= covered:
                    yield side, row, column
        covered = reach


def _histograms(patches_LP: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many pixels of each patch have which luminance, int64 `[L, bins]`."""
    pixels = patches_LP.reshape(len(patches_LP), -1, 3).astype(np.int64)
    level = pixels @ _LUMA // 1000 * _BINS // _LEVELS
    place = level + _BINS * np.arange(len(level))[:, None]
    return np.bincount(place.ravel(), minlength=_BINS * len(level)).reshape(-1, _BINS)


def _entropy(histogram: NDArray[np.int64], block: Block) -> float:
    """Bits of a block's luminance; 0 where it is flat."""
    side, row, column = block
    count = histogram[row : row + side, column : column + side].sum(axis=(0, 1))
    share = count[count > 0] / count.sum()
    return float(-(share * np.log2(share)).sum())
