"""A budget of patches for a whole dataset: the most mass, the exact threshold, the same for later images."""

from __future__ import annotations

import itertools
import json
import math
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.select import selection
from patchsieve.ranker.select.budget import Budget, find_budget


def some_scores(seed: int, images: int, positions: int) -> np.ndarray:
    """Scores of images that differ in how peaked they are, float64 `[N, L]`."""
    random = np.random.default_rng(seed)
    return random.normal(0, 1, (images, positions)) * random.uniform(0.1, 4, (images, 1))


def found(scores: np.ndarray, ratio: float, *, temperature: float = 1.0, pieces: int = 3, **bounds) -> Budget:
    """The budget of scores given in several pieces."""
    masses = selection.log_masses(scores, temperature)
    return find_budget(lambda: np.array_split(masses, pieces), ratio, **bounds)


@pytest.mark.parametrize("bounds", [{}, {"floor": 2}, {"ceiling": 3}, {"floor": 2, "ceiling": 3}])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.75, 0.9, 1.0])
def test_no_other_choice_holds_more_mass(ratio: float, bounds: dict) -> None:
    low, high = bounds.get("floor", 1), bounds.get("ceiling", 4)
    rows = [
        np.array(row, bool) for row in itertools.product((False, True), repeat=4) if low <= sum(row) <= high
    ]
    for seed in range(3):
        scores = some_scores(seed, 3, 4)
        share = np.exp(selection.log_masses(scores, 0.8))
        budget = found(scores, ratio, temperature=0.8, **bounds)
        assert (budget.images, budget.patches) == (3, 12)
        assert budget.allowed == max(3 * low, int(12 * ratio + 1e-6))
        possible = [np.array(rows_3) for rows_3 in itertools.product(rows, repeat=3)]
        best = max(share[keep].sum() for keep in possible if keep.sum() <= budget.allowed)
        keep = selection.budget(scores, budget.threshold, temperature=0.8, **bounds)
        assert keep.sum() == budget.kept == min(budget.allowed, 3 * high)
        assert share[keep].sum() == pytest.approx(best, rel=1e-12)
        assert selection.kept_mass(scores, keep, 0.8).sum() == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("temperature", [1e-3, 0.3, 1.0, 100.0, 1e6])
@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.4, 0.9])
def test_a_budget_is_met_to_the_patch(ratio: float, temperature: float) -> None:
    scores = some_scores(5, 300, 196)
    budget = found(scores, ratio, temperature=temperature, pieces=7)
    keep = selection.budget(scores, budget.threshold, temperature=temperature)
    assert keep.sum() == budget.kept == budget.allowed == int(300 * 196 * ratio + 1e-6)
    masses = selection.log_masses(scores, temperature)
    # All that stay, but for each image's first patch, are the highest of the dataset.
    others = np.sort(masses, axis=1)[:, :-1]
    dropped = np.sort(others.ravel())[: -(budget.kept - 300)]
    assert masses[~keep].max() == dropped.max()
    assert math.isfinite(budget.threshold)
    assert len(set(keep.sum(1))) > 1


def test_pieces_do_not_matter() -> None:
    scores = some_scores(6, 50, 49)
    assert len({found(scores, 0.4, pieces=pieces) for pieces in (1, 2, 50, 60)}) == 1


def test_pieces_of_other_grids() -> None:
    masses = [
        selection.log_masses(some_scores(seed, 10, side * side), 1.0) for seed, side in enumerate((7, 14))
    ]
    budget = find_budget(lambda: masses, 0.4)
    kept = sum(int(np.maximum((piece >= budget.threshold).sum(1), 1).sum()) for piece in masses)
    assert kept == budget.kept == budget.allowed == 980


def test_later_images_use_the_frozen_threshold() -> None:
    scores = some_scores(7, 60, 49)
    threshold = json.loads(json.dumps(found(scores[:40], 0.4).threshold))
    together = selection.budget(scores, threshold, temperature=1)
    assert np.array_equal(together[:40], selection.budget(scores[:40], threshold, temperature=1))
    assert np.array_equal(together[40:], selection.budget(scores[40:], threshold, temperature=1))
    assert together[40:].any(axis=1).all()


def test_rounding_decides_no_patch() -> None:
    scores = some_scores(8, 200, 49)
    budget = found(scores, 0.4)
    noise = np.random.default_rng(0).uniform(-1, 1, scores.shape) * 1e-11
    keep = selection.budget(scores, budget.threshold, temperature=1)
    assert np.array_equal(keep, selection.budget(scores + noise, budget.threshold, temperature=1))
    masses = selection.log_masses(scores, 1)
    counted = [
        row.min() for row, kept in zip(masses, keep, strict=True) if kept.sum() > 1 for row in [row[kept]]
    ]
    assert min(counted) > budget.threshold


def test_equal_masses_stay_within_the_budget() -> None:
    # One patch of mass 0.4 and four of 0.15 in each image: 10 to keep beyond the first, 40 equal ones to choose from.
    scores = np.log(np.tile([0.15, 0.15, 0.4, 0.15, 0.15], (10, 1)))
    budget = found(scores, 0.4)
    assert (budget.allowed, budget.kept) == (20, 10)
    assert (
        selection.budget(scores, budget.threshold, temperature=1).tolist()
        == [[False, False, True] + [False] * 2] * 10
    )
    everything = found(scores, 1.0)
    assert everything.kept == 50
    assert selection.budget(scores, everything.threshold, temperature=1).all()


def test_one_order_for_all_images_gives_one_count() -> None:
    scores = np.tile(some_scores(9, 1, 49), (30, 1))
    budget = found(scores, 0.4)
    assert budget.allowed == 588
    assert budget.kept == 30 * 19
    assert selection.budget(scores, budget.threshold, temperature=1).sum(1).tolist() == [19] * 30


def test_masses_too_small_for_a_float_are_still_in_order() -> None:
    scores = some_scores(10, 20, 49)
    budget = found(scores, 0.4, temperature=1e-4)
    assert np.exp(budget.threshold) == 0
    assert budget.kept == budget.allowed == selection.budget(scores, budget.threshold, temperature=1e-4).sum()


def test_huge_scores() -> None:
    scores = np.tile(np.linspace(-1, 1, 9), (4, 1)) * np.finfo(float).max
    budget = found(scores, 0.5)
    assert budget.kept <= budget.allowed == 18
    assert selection.budget(scores, budget.threshold, temperature=1).sum() == budget.kept


def test_single_patches() -> None:
    assert found(np.zeros((4, 1)), 0.5) == Budget(
        threshold=-np.finfo(float).max, images=4, patches=4, allowed=4, kept=4
    )


def test_memory_is_bounded() -> None:
    piece = selection.log_masses(some_scores(0, 200, 196), 1.0)
    passes: list[int] = []

    def chunks() -> Iterator[np.ndarray]:
        passes.append(0)
        # 200 pieces, 63 MB together.
        yield from (piece - number * 1e-7 for number in range(200))

    tracemalloc.start()
    try:
        budget = find_budget(chunks, 0.4)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40e6
    assert len(passes) == 4
    assert budget.kept == budget.allowed == 200 * 200 * 196 * 2 // 5


def test_what_cannot_be_done() -> None:
    with pytest.raises(UserError, match="there are none"):
        find_budget(list, 0.4)
    for ratio in (0.0, 1.1, math.nan):
        with pytest.raises(UserError, match="keep ratio"):
            found(np.zeros((3, 9)), ratio)
    with pytest.raises(UserError, match="floor <= ceiling"):
        found(np.zeros((3, 9)), 0.5, floor=10)
    with pytest.raises(UserError, match="floor <= ceiling"):
        selection.budget(np.zeros((3, 9)), -1.0, temperature=1, ceiling=10)


@pytest.mark.parametrize("change", [1, 2, 3])
def test_masses_that_change_between_passes(change: int) -> None:
    passes = itertools.count()

    def chunks() -> list[np.ndarray]:
        changed = next(passes) >= change
        return [selection.log_masses(some_scores(0, 2 if changed else 40, 49), 1.0)]

    with pytest.raises(ValueError, match="changed between two passes"):
        find_budget(chunks, 0.4)
