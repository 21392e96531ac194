"""Intervals over images, over what they share and over seeds, against a bootstrap in plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from patchsieve.ranker.learning.agreement import mean_interval, paired_difference
from patchsieve.ranker.prove.intervals import crossed_bootstrap, difference, interval

IMAGES = 60


def right(seeds: int, share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((seeds, IMAGES)) < share


def test_of_one_seed_it_is_the_interval_over_images() -> None:
    one, other = right(1, 0.6, 1), right(1, 0.5, 2)
    assert interval(one, seed=3) == mean_interval(one[0], seed=3)
    found, expected = difference(one, other, seed=3), paired_difference(one[0], other[0], seed=3)
    assert (found.value, found.low, found.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )


def test_images_and_seeds_are_drawn_anew() -> None:
    # Seeds that differ by much: their spread is what makes the interval wide.
    one = np.concatenate([right(1, share, number) for number, share in enumerate((0.9, 0.5, 0.3))])
    other = right(3, 0.5, 9)
    found = difference(one, other, seed=0)
    random, drawn = np.random.default_rng(5), []
    for _ in range(1500):
        images, total = random.integers(0, IMAGES, IMAGES), 0
        for seed in random.integers(0, 3, 3):
            total += sum(int(one[seed, image]) - int(other[seed, image]) for image in images)
        drawn.append(total / (3 * IMAGES))
    drawn.sort()
    assert found.value == pytest.approx(one.mean() - other.mean())
    assert found.low == pytest.approx(drawn[37], abs=0.03)
    assert found.high == pytest.approx(drawn[-38], abs=0.03)
    assert found.images == IMAGES
    alike = interval(np.repeat(one[:1], 3, axis=0), seed=0)
    assert found.high - found.low > 2 * (alike.high - alike.low)
    assert found == difference(one, other, seed=0)


def test_what_images_share_is_drawn_anew_with_all_its_images() -> None:
    values = np.repeat([1.0, 0.0, 1.0, 0.0], 25)
    images, grounds = [str(number) for number in range(100)], [str(number // 25) for number in range(100)]
    apart = interval(values[None], seed=0)
    shared = interval(values[None], seed=0, groups=[images, grounds])
    assert apart.value == shared.value == 0.5
    assert shared.high - shared.low > 2 * (apart.high - apart.low)
    own = interval(values[None], seed=0, groups=[images])
    assert (own.low, own.high) == pytest.approx((apart.low, apart.high), abs=0.02)
    same = crossed_bootstrap([values, values], lambda a, b: a - b, [images, grounds])
    assert (same.low, same.high) == (0, 0)
