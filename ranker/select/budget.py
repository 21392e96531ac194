"""A budget of patches for a whole dataset: the one threshold on log masses that spends it best.

Patches are worth their share in their image's softmax, so the most mass within a budget is that of the largest
shares of the whole dataset. What each image then keeps depends on it and on the threshold alone.

Shape suffixes: N images, L patches of an image.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.select.selection import Numbers, checked_bounds, exact_scores, keep_count

LogMassChunks = Callable[[], Iterable[NDArray[np.float64]]]

DIGIT_BITS, DIGITS = 21, 3
"""A float64 without its sign has 63 bits; they are counted 21 at a time, in 16 MB of counters and as much of sums."""
CHANGED = "the log masses changed between two passes over them"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A threshold that spends a budget of patches, and what it keeps of the images it was found on."""

    threshold: float  # log mass, finite; frozen, it decides for images that come later too
    images: int
    patches: int
    allowed: int  # patches: the ratio of all, at least the floor of each image
    kept: int  # at most `allowed`; fewer if more than the rest have one and the same mass


def find_budget(chunks: LogMassChunks, ratio: float, *, floor: int = 1, ceiling: int | None = None) -> Budget:
    """The threshold at which `ratio` of all patches are kept, with the most softmax mass that this can hold.

    `chunks()` gives what `log_masses` gave for all images, in pieces `[n, L]`, each time the same; it is called
    4 times. Exact, and needs 32 MB beside one piece: the first mass that is too many is found by its bits, from
    the highest. The threshold lies midway between it and the next larger mass, so that rounding on another
    machine decides no patch. Raises `UserError` for a ratio outside (0, 1], for bounds other than
    1 <= floor <= ceiling <= L and where there are no images; `ValueError` if the pieces change between the calls.
    """
    images = patches = 0
    digits = np.zeros(1 << DIGIT_BITS, np.int64)
    for chunk_NL in chunks():
        images, patches = images + len(chunk_NL), patches + chunk_NL.size
        _count_digits(digits, _contested(chunk_NL, floor, ceiling), place=0, prefix=0)
    if not images:
        raise UserError("a budget needs images to spend it on, there are none")
    allowed, contested = max(images * floor, keep_count(patches, ratio)), int(digits.sum())
    spare = allowed - images * floor
    if spare >= contested:
        kept = images * floor + contested
        return Budget(
            threshold=-sys.float_info.max, images=images, patches=patches, allowed=allowed, kept=kept
        )
    prefix, ahead = 0, spare  # ahead: how many of those with this prefix the budget still pays for
    for place in range(DIGITS):
        if place:
            digits[:] = 0
            for chunk_NL in chunks():
                _count_digits(digits, _contested(chunk_NL, floor, ceiling), place=place, prefix=prefix)
        digit, ahead = _digit_at(digits, ahead)
        prefix = prefix << DIGIT_BITS | digit
    refused = float(np.array(prefix, np.uint64).view(np.float64))
    last, paid = 0.0, 0
    for chunk_NL in chunks():
        surprise = _contested(chunk_NL, floor, ceiling)
        below = surprise[surprise < refused]
        last, paid = max(last, below.max(initial=0.0)), paid + len(below)
    if paid != spare - ahead:
        raise ValueError(CHANGED)
    middle = last + (refused - last) / 2
    return Budget(
        threshold=-float(middle if middle < refused else last),
        images=images,
        patches=patches,
        allowed=allowed,
        kept=images * floor + paid,
    )


def _digit_at(counts: NDArray[np.int64], ahead: int) -> tuple[int, int]:
    """The digit of the value that has `ahead` others before it, and how many of those share the digit."""
    ends = counts.cumsum()
    if ahead >= ends[-1]:
        raise ValueError(CHANGED)
    digit = int(np.searchsorted(ends, ahead, side="right"))
    return digit, ahead - int(ends[digit] - counts[digit])


def _contested(masses_NL: Numbers, floor: int, ceiling: int | None) -> NDArray[np.float64]:
    """Log masses without their sign that a threshold decides on: those between the bounds of each image."""
    exact_NL = np.abs(exact_scores(masses_NL))
    low, high = checked_bounds(floor, ceiling, exact_NL.shape[1])
    return np.sort(exact_NL, axis=1)[:, low:high].ravel()


def _count_digits(counts: NDArray[np.int64], values: NDArray[np.float64], *, place: int, prefix: int) -> None:
    """Count the digit at a place of the values whose higher digits are `prefix`.

    Floats of one sign are in the order of their bits.
    """
    rest = DIGIT_BITS * (DIGITS - 1 - place)
    bits = values.view(np.uint64) >> np.uint64(rest)
    bits = bits[bits >> np.uint64(DIGIT_BITS) == prefix]
    np.add.at(counts, (bits & np.uint64((1 << DIGIT_BITS) - 1)).astype(np.int64), 1)
