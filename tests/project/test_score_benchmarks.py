"""What the benchmark of dropped images is made of."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.image_pruning import keeps, report

IMAGES = 50


def test_the_lowest_of_what_may_go_are_dropped() -> None:
    values = np.random.default_rng(1).permutation(IMAGES).astype(float)
    free = np.arange(IMAGES) % 5 != 0
    by = {"low score": values, "high score": -values}
    low, high = (keeps(rule, 0.25, free, by, 0) for rule in by)
    assert low.sum() == high.sum() == 30
    assert not (low & ~free).any()
    assert values[low].min() > values[free & ~low].max()
    assert values[high].max() < values[free & ~high].min()
    draws = [keeps("random", 0.25, free, by, seed) for seed in (0, 0, 1)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()
    assert {int(draw.sum()) for draw in draws} == {30}


def test_rules_are_compared_with_random_at_the_same_share() -> None:
    right = np.random.default_rng(2).random((3, IMAGES)) < 0.5
    better = right | (np.arange(IMAGES) < 10)
    by = {"low score": np.arange(IMAGES), "few bytes": -np.arange(IMAGES)}
    found = report(
        {("full", 0.0): better, ("low score", 0.2): better, ("random", 0.2): right},
        by,
        np.arange(2 * IMAGES).reshape(IMAGES, 2),
    )
    ahead = [arm["ahead_of_random"] for arm in found["arms"]]
    assert ahead[0] is ahead[2] is None
    assert ahead[1].value == pytest.approx(better.mean() - right.mean())
    assert found["score_with_bytes"] == pytest.approx(-1)
    assert found["score_of_two_views"] == pytest.approx(1)
