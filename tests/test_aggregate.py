"""One score per patch from many masks, against sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from patchrank.pipeline.aggregate import Aggregate, dense_scores

VISIBLE = np.array([[0, 2], [2, 3], [2, 0]], np.int16)
SCORE = np.array([[1.0, 8.0], [2.0, 5.0], [4.0, 9.0]], np.float32)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("mean", [5.0, math.nan, 14 / 3, 5.0]),
        ("log", [math.log(9) / 2, math.nan, math.log(8 * 2 * 4) / 3, math.log(5)]),
    ],
)
def test_mean_over_the_views_that_show_a_patch(aggregate: Aggregate, expected: list[float]) -> None:
    dense = dense_scores(VISIBLE, SCORE, 4, aggregate)
    assert dense.dtype == np.float32
    np.testing.assert_allclose(dense, expected, rtol=1e-6)


def test_a_score_of_zero_counts_as_the_smallest_other() -> None:
    score = np.array([[0.0, 8.0], [2.0, 0.5], [4.0, 9.0]], np.float32)
    dense = dense_scores(VISIBLE, score, 4)
    assert dense[0] == pytest.approx((math.log(0.5) + math.log(9)) / 2, rel=1e-6)
    assert np.isfinite(dense[[0, 2, 3]]).all()


def test_scores_that_are_all_zero() -> None:
    dense = dense_scores(VISIBLE, np.zeros_like(SCORE), 4)
    np.testing.assert_array_equal(dense, np.array([0, np.nan, 0, 0], np.float32))
