"""One score per patch from many masks, against sums by hand."""

from __future__ import annotations

import math
import statistics
from typing import get_args

import numpy as np
import pytest

from patchsieve.pipeline.scoring.aggregate import Aggregate, dense_scores

VISIBLE = np.array([[0, 2], [2, 3], [2, 0]], np.int16)
SCORE = np.array([[1.0, 8.0], [2.0, 5.0], [4.0, 9.0]], np.float32)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("mean", [5.0, math.nan, 14 / 3, 5.0]),
        ("log", [math.log(9) / 2, math.nan, math.log(8 * 2 * 4) / 3, math.log(5)]),
        ("zscore", [0.0, math.nan, -1 / 3, 1.0]),
        ("rank", [0.5, math.nan, 1 / 3, 1.0]),
    ],
)
def test_mean_over_the_views_that_show_a_patch(aggregate: Aggregate, expected: list[float]) -> None:
    dense = dense_scores(VISIBLE, SCORE, 4, aggregate)
    assert dense.dtype == np.float32
    np.testing.assert_allclose(dense, expected, rtol=1e-6)


def slow_worth(values: list[float], place: int, aggregate: str) -> float:
    """What one score of a view counts, by definition."""
    value = values[place]
    others = values[:place] + values[place + 1 :]
    if aggregate == "zscore":
        deviation = statistics.pstdev(values)
        return (value - statistics.fmean(values)) / deviation if deviation else 0.0
    if aggregate == "rank":
        return sum((value > other) + 0.5 * (value == other) for other in others) / len(others)
    return math.log(value) if aggregate == "log" else value


@pytest.mark.parametrize("aggregate", get_args(Aggregate))
@pytest.mark.parametrize("levels", [0, 3])
def test_every_aggregate_equals_the_loops(aggregate: Aggregate, levels: int) -> None:
    random = np.random.default_rng(1)
    visible = np.stack([random.permutation(12)[:5] for _ in range(9)]).astype(np.int16)
    drawn = random.integers(1, levels + 1, (9, 5)) if levels else random.gamma(1.0, size=(9, 5))
    score = drawn.astype(np.float32)
    expected: list[float] = []
    for patch in range(12):
        worth = [
            slow_worth(values, shown.index(patch), aggregate)
            for shown, values in zip(visible.tolist(), score.tolist(), strict=True)
            if patch in shown
        ]
        expected.append(statistics.fmean(worth) if worth else math.nan)
    np.testing.assert_allclose(dense_scores(visible, score, 12, aggregate), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("aggregate", ["zscore", "rank"])
def test_the_size_of_a_view_s_scores_does_not_matter(aggregate: Aggregate) -> None:
    scaled = SCORE * np.array([[1.0], [1000.0], [1e-6]], np.float32)
    np.testing.assert_allclose(
        dense_scores(VISIBLE, scaled, 4, aggregate), dense_scores(VISIBLE, SCORE, 4, aggregate), rtol=1e-5
    )


@pytest.mark.parametrize("aggregate", ["zscore", "rank"])
def test_equal_scores_of_a_view_have_no_order(aggregate: Aggregate) -> None:
    visible = np.arange(7, dtype=np.int16)[None]
    dense = dense_scores(visible, np.full((1, 7), 0.1, np.float32), 7, aggregate)
    np.testing.assert_array_equal(dense, np.full(7, 0.5 if aggregate == "rank" else 0.0, np.float32))


def test_a_score_of_zero_counts_as_the_smallest_other() -> None:
    score = np.array([[0.0, 8.0], [2.0, 0.5], [4.0, 9.0]], np.float32)
    dense = dense_scores(VISIBLE, score, 4)
    assert dense[0] == pytest.approx((math.log(0.5) + math.log(9)) / 2, rel=1e-6)
    assert np.isfinite(dense[[0, 2, 3]]).all()


def test_scores_that_are_all_zero() -> None:
    dense = dense_scores(VISIBLE, np.zeros_like(SCORE), 4)
    np.testing.assert_array_equal(dense, np.array([0, np.nan, 0, 0], np.float32))


def test_an_unknown_aggregate_is_refused() -> None:
    with pytest.raises(ValueError, match="'median' is none of mean, log"):
        dense_scores(VISIBLE, SCORE, 4, "median")
