"""Windows and regions: against the rules written out rectangle by rectangle and patch by patch."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.select import regions, selection

HUGE = np.finfo(np.float64).max
Place = tuple[int, int]


def some_scores(seed: int, images: int, grid: int) -> np.ndarray:
    """Whole numbers, float64 `[N, L]`, so that there are ties; every other image is nearly flat."""
    scores = np.random.default_rng(seed).integers(-9, 10, (images, grid**2)).astype(np.float64)
    scores[::2] //= 8
    return scores


def rectangle(top: int, left: int, height: int, width: int) -> list[Place]:
    return list(itertools.product(range(top, top + height), range(left, left + width)))


def shapes_by_hand(count: int, grid: int) -> list[tuple[int, int]]:
    """The largest rectangles that `count` patches fill, at most twice as long as wide, the highest first."""
    fits = [
        (height, width)
        for height, width in itertools.product(range(1, grid + 1), repeat=2)
        if height * width <= count and height <= 2 * width and width <= 2 * height
    ]
    area = max(height * width for height, width in fits)
    return sorted((shape for shape in fits if math.prod(shape) == area), reverse=True)


def beside(kept: set[Place], grid: int) -> set[Place]:
    """Patches that share a side with a kept one."""
    found = {(y + dy, x + dx) for y, x in kept for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1))}
    return {(y, x) for y, x in found - kept if 0 <= y < grid and 0 <= x < grid}


def grow_by_hand(kept: set[Place], scores: np.ndarray, count: int, compactness: float) -> None:
    """Always the best patch beside the kept ones; `scores`: whole numbers `[G, G]` from 0 on."""
    grid = len(scores)
    mean = scores.sum() // grid**2
    weight = round(compactness * int(np.abs(scores - mean).sum() // grid**2))
    while len(kept) < count:

        def worth(place: Place) -> int:
            around = [
                (place[0] + dy, place[1] + dx)
                for dy, dx in itertools.product((-1, 0, 1), repeat=2)
                if dy or dx
            ]
            inside = [(y, x) for y, x in around if 0 <= y < grid and 0 <= x < grid]
            return int(scores[place]) + weight * len(kept.intersection(inside)) // max(1, len(inside))

        kept.add(max(sorted(beside(kept, grid)), key=worth))


def windows_by_hand(scores: np.ndarray, count: int, windows: int) -> set[Place]:
    """The rule, one window after the other, for one image."""
    grid, kept = len(scores), set[Place]()
    for _ in range(windows):
        places = [
            rectangle(top, left, height, width)
            for height, width in shapes_by_hand(count // windows, grid)
            for top in range(grid - height + 1)
            for left in range(grid - width + 1)
        ]
        free = [place for place in places if not kept.intersection(place)]
        kept.update(max(free, key=lambda place: sum(scores[at] for at in place), default=[]))
    return kept


def whole(scores_L: np.ndarray, grid: int) -> np.ndarray:
    """Scores `[G, G]` from 0 on, of 40 bits as the rule has them."""
    above = scores_L - scores_L.min()
    bits = int(above.max()).bit_length()
    return above.astype(np.int64).reshape(grid, grid) << (40 - bits)


def kept_of(mask_L: np.ndarray, grid: int) -> set[Place]:
    return {divmod(int(at), grid) for at in np.flatnonzero(mask_L)}


def connected(kept: set[Place], grid: int) -> bool:
    reached = {min(kept)}
    while more := beside(reached, grid) & kept:
        reached |= more
    return reached == kept


@pytest.mark.parametrize(
    ("count", "shapes"),
    [
        *[
            (49, [(7, 7)]),
            (98, [(14, 7), (7, 14)]),
            (147, [(12, 12)]),
            (196, [(14, 14)]),
            (195, [(14, 13), (13, 14)]),
        ],
        *[
            (1, [(1, 1)]),
            (3, [(2, 1), (1, 2)]),
            (13, [(4, 3), (3, 4)]),
            (24, [(6, 4), (4, 6)]),
            (78, [(11, 7), (7, 11)]),
        ],
    ],
)
def test_shapes_of_windows(count: int, shapes: list[tuple[int, int]]) -> None:
    assert regions.window_shapes(count, 14) == shapes


@pytest.mark.parametrize("grid", [1, 2, 5, 14])
def test_shapes_are_the_rule_and_what_they_lack_has_room(grid: int) -> None:
    for count in range(1, grid**2 + 1):
        assert regions.window_shapes(count, grid) == shapes_by_hand(count, grid)


@pytest.mark.parametrize("windows", [1, 2, 3])
@pytest.mark.parametrize("count", [3, 4, 7, 12, 18, 24, 25])
def test_windows_are_the_best_of_all_places(count: int, windows: int) -> None:
    scores = some_scores(count, 12, 5)
    keep = regions.window(scores, count, windows=windows)
    assert keep.sum(1).tolist() == [count] * 12
    for scores_L, mask_L in zip(scores, keep, strict=True):
        marks = whole(scores_L, 5)
        expected = windows_by_hand(marks, count, windows)
        grow_by_hand(expected, marks, count, 0)
        assert kept_of(mask_L, 5) == expected


@pytest.mark.parametrize("compactness", [0.0, 0.7, 4.0, 1000.0])
@pytest.mark.parametrize("count", [1, 5, 18, 36])
def test_regions_grow_as_the_rule_says(count: int, compactness: float) -> None:
    scores = some_scores(count, 12, 6)
    keep = regions.region(scores, count, compactness=compactness)
    assert keep.sum(1).tolist() == [count] * 12
    for scores_L, mask_L in zip(scores, keep, strict=True):
        marks, core = whole(scores_L, 6), max(1, count // 4)
        expected = windows_by_hand(marks, core, 1)
        grow_by_hand(expected, marks, core, 0)
        grow_by_hand(expected, marks, count, compactness)
        assert kept_of(mask_L, 6) == expected
        assert connected(expected, 6)


def test_every_count_is_met_by_one_piece() -> None:
    scores = np.random.default_rng(0).normal(size=(66, 196)).astype(np.float32)
    counts = np.arange(1, 197, 3)
    for keep in (regions.window(scores, counts), regions.region(scores, counts)):
        assert keep.sum(1).tolist() == counts.tolist()
        assert all(connected(kept_of(mask_L, 14), 14) for mask_L in keep)


def test_masks_of_an_image_do_not_depend_on_others() -> None:
    scores = np.random.default_rng(1).normal(size=(9, 196)).astype(np.float32)
    counts = np.arange(20, 200, 20)
    for choose in (regions.window, regions.region):
        together = choose(scores, counts)
        alone = [choose(row[None], int(count))[0] for row, count in zip(scores, counts, strict=True)]
        assert np.array_equal(together, alone)
        assert choose(scores[:0], 4).shape == (0, 196)


def test_more_compactness_gives_more_neighbours() -> None:
    scores = np.random.default_rng(2).normal(size=(20, 196))

    def enclosed(keep_NL: np.ndarray) -> float:
        keep = keep_NL.reshape(-1, 14, 14)
        return float((keep[:, 1:] & keep[:, :-1]).sum() + (keep[:, :, 1:] & keep[:, :, :-1]).sum())

    found = [enclosed(regions.region(scores, 49, compactness=weight)) for weight in (0, 2, 4, 100)]
    assert found == sorted(found)
    assert found[-1] > 1.2 * found[0]
    assert found[-1] < enclosed(regions.window(scores, 49)) * 1.05, "nothing of 49 is rounder than a square"


def test_ties_go_to_the_first_place() -> None:
    for value in (0.0, -0.0, 5e-324, HUGE, -HUGE):
        flat = np.full((1, 25), value)
        assert kept_of(regions.window(flat, 4)[0], 5) == set(rectangle(0, 0, 2, 2))
        assert kept_of(regions.window(flat, 8, windows=2)[0], 5) == set(rectangle(0, 0, 2, 4))
        assert kept_of(regions.window(flat, 5)[0], 5) == {*rectangle(0, 0, 2, 2), (0, 2)}
    # Two windows of one sum, whatever the order of adding: 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1.
    scores = np.zeros((1, 7, 7))
    scores[0, 0, :3], scores[0, 5, :3] = (0.1, 0.2, 0.3), (0.3, 0.2, 0.1)
    for upside_down in (False, True):
        rows = scores[:, ::-1] if upside_down else scores
        (mask_L,) = regions.window(rows.reshape(1, 49), 6)
        assert kept_of(mask_L, 7) == set(rectangle(0, 0, 2, 3))


def test_scores_of_any_size() -> None:
    scores = np.zeros((3, 25))
    scores[0, 12], scores[0, 13] = HUGE, -HUGE
    scores[1, [16, 17, 21, 22]] = 1e-300
    scores[2, [16, 17, 21, 22]] = -1e-300
    for choose in (regions.window, regions.region):
        keep = choose(scores, 4)
        assert keep.sum(1).tolist() == [4] * 3
        assert keep[0, 12]
        assert not keep[0, 13]
        assert keep[1, [16, 17, 21, 22]].all()
        assert not keep[2, [16, 17, 21, 22]].any()


def test_windows_without_room_are_completed() -> None:
    """The first window of 2 x 2 in the middle of 3 x 3 patches leaves no room for the second."""
    scores = np.array([[9, 9, 5, 9, 9, 1, 1, 2, 3]])
    keep = regions.window(scores, 8, windows=2)
    assert np.flatnonzero(~keep[0]).tolist() == [6]


@pytest.mark.parametrize("windows", [0, -1, 5])
def test_windows_that_cannot_be(windows: int) -> None:
    with pytest.raises(UserError, match=f"{windows} windows for 4 patches"):
        regions.window(np.zeros((2, 9)), np.array([9, 4]), windows=windows)


@pytest.mark.parametrize("compactness", [-0.1, 1001.0, math.nan, math.inf])
def test_compactness_without_a_meaning(compactness: float) -> None:
    with pytest.raises(UserError, match="compactness is"):
        regions.region(np.zeros((1, 9)), 4, compactness=compactness)


def test_arrays_that_do_not_fit() -> None:
    for choose in (regions.window, regions.region):
        with pytest.raises(ValueError, match="8 patches fill no square grid"):
            choose(np.zeros((1, 8)), 4)
        with pytest.raises(ValueError, match="counts must be from 1 to 9"):
            choose(np.zeros((1, 9)), 10)
        with pytest.raises(ValueError, match="not all finite"):
            choose(np.full((1, 9), math.nan), 4)


def test_a_budget_tells_each_image_its_count() -> None:
    scores = np.random.default_rng(3).normal(size=(30, 196)) * np.arange(1, 31)[:, None] / 10
    numbers = {"temperature": 1.0, "floor": 5, "ceiling": 90}
    counts = selection.budget_counts(scores, -5.0, **numbers)
    assert len(set(counts.tolist())) > 5
    assert np.array_equal(selection.budget(scores, -5.0, **numbers).sum(1), counts)
    assert np.array_equal(regions.window(scores, counts).sum(1), counts)
