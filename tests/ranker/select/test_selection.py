"""Keep masks: exact counts, ties, extremes, and naive references on small images."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.select import selection

HUGE = np.finfo(np.float64).max


def some_scores(seed: int, images: int = 20, positions: int = 7) -> np.ndarray:
    """Scores float64 `[N, L]`, every other image with many ties."""
    scores = np.random.default_rng(seed).normal(0, 2, (images, positions))
    scores[::2] = np.round(scores[::2])
    return scores


def ranked(scores: np.ndarray) -> list[int]:
    """Patches by falling score, equal ones by index."""
    return sorted(range(len(scores)), key=lambda patch: (-float(scores[patch]), patch))


def shares(scores: np.ndarray, temperature: float) -> list[float]:
    """The softmax, one patch after the other."""
    powers = [math.exp((score - max(scores)) / temperature) for score in scores]
    return [power / math.fsum(powers) for power in powers]


@pytest.mark.parametrize(
    ("positions", "ratio", "kept"),
    [
        *[(196, 0.5, 98), (196, 0.25, 49), (196, 0.75, 147), (196, 0.4, 78), (256, 0.1, 25), (100, 0.29, 29)],
        *[(196, 1.0, 196), (196, 1e-9, 1), (196, 1 / 196, 1), (1, 0.5, 1), (3, 2 / 3, 2)],
    ],
)
def test_counts_round_down(positions: int, ratio: float, kept: int) -> None:
    assert selection.keep_count(positions, ratio) == kept


def test_counts_are_those_of_every_share() -> None:
    for positions in (1, 7, 196, 256):
        counts = [selection.keep_count(positions, kept / positions) for kept in range(1, positions + 1)]
        assert counts == list(range(1, positions + 1))


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.0001, math.nan, math.inf])
def test_ratios_without_a_meaning(ratio: float) -> None:
    with pytest.raises(UserError, match="keep ratio is"):
        selection.keep_count(196, ratio)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8, np.int64])
def test_topk_keeps_the_highest(dtype: type) -> None:
    scores = np.abs(some_scores(0)).astype(dtype)
    for count in range(1, 8):
        keep = selection.topk(scores, count)
        assert keep.dtype == np.bool_
        for row, kept in zip(scores, keep, strict=True):
            assert np.flatnonzero(kept).tolist() == sorted(ranked(row)[:count])


def test_topk_with_a_count_for_each_image() -> None:
    counts = np.arange(20) % 7 + 1
    keep = selection.topk(some_scores(1), counts)
    assert keep.sum(1).tolist() == counts.tolist()
    for row, kept, count in zip(some_scores(1), keep, counts, strict=True):
        assert np.array_equal(kept, selection.topk(row[None], int(count))[0])


def test_topk_of_equal_scores_is_the_first_patches() -> None:
    for value in (0.0, -0.0, 1e-300, HUGE, -HUGE):
        assert selection.topk(np.full((2, 9), value), 4).tolist() == [[True] * 4 + [False] * 5] * 2
    assert selection.topk(np.array([[0.0, -0.0, HUGE, -HUGE]]), 2).tolist() == [[True, False, True, False]]


def test_topk_of_no_images() -> None:
    assert selection.topk(np.zeros((0, 9)), 4).shape == (0, 9)


@pytest.mark.parametrize(
    "counts", [0, 10, -1, 2.0, np.array([1, 2, 3]), np.array([1, 10]), np.array([[1, 2]])]
)
def test_counts_that_do_not_fit(counts: object) -> None:
    with pytest.raises(ValueError, match="counts must be"):
        selection.topk(np.zeros((2, 9)), counts)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite(bad: float) -> None:
    scores = np.zeros((3, 9))
    scores[1, 4] = bad
    with pytest.raises(ValueError, match="image 1 of 3"):
        selection.topk(scores, 2)
    with pytest.raises(ValueError, match="image 1 of 3"):
        selection.nucleus(scores, 0.5, temperature=1)


@pytest.mark.parametrize("shape", [(9,), (2, 0), (2, 3, 3)])
def test_scores_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \[N, L\]"):
        selection.topk(np.zeros(shape), 1)


def test_random_depends_on_seed_and_key_alone() -> None:
    keys = [f"photo-{number}" for number in range(40)]
    keep = selection.random(keys, 49, 12, seed=3)
    assert keep.sum(1).tolist() == [12] * 40
    assert len({row.tobytes() for row in keep}) == 40
    assert np.array_equal(keep[5:6], selection.random(keys[5:6], 49, 12, seed=3))
    assert not np.array_equal(keep, selection.random(keys, 49, 12, seed=4))
    wider = selection.random(keys, 49, np.full(40, 30), seed=3)
    assert (wider >= keep).all()
    assert selection.random(keys, 49, 49, seed=3).all()
    assert selection.random([], 49, 12, seed=3).shape == (0, 49)


def test_random_prefers_no_patch() -> None:
    keys = [str(number) for number in range(4000)]
    share = selection.random(keys, 16, 4, seed=0).mean(0)
    # Binomial: a deviation of sqrt(0.25 * 0.75 / 4000) = 0.007, four of them.
    assert share == pytest.approx(np.full(16, 0.25), abs=0.028)


def test_random_is_pinned() -> None:
    keep = selection.random(["000001"], 16, 4, seed=0)
    assert np.flatnonzero(keep[0]).tolist() == [1, 4, 10, 14]


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 30.0])
@pytest.mark.parametrize("mass", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_nucleus_is_the_smallest_set(mass: float, temperature: float) -> None:
    scores = some_scores(2)
    keep = selection.nucleus(scores, mass, temperature=temperature)
    for row, kept in zip(scores, keep, strict=True):
        share = shares(row, temperature)
        enough = [
            size
            for size in range(1, 8)
            for chosen in itertools.combinations(share, size)
            if math.fsum(chosen) >= mass - 1e-12
        ]
        assert kept.sum() == min(enough)
        assert np.flatnonzero(kept).tolist() == sorted(ranked(row)[: min(enough)])


def test_nucleus_of_equal_scores_is_exact() -> None:
    for positions, mass in itertools.product((1, 3, 10, 100, 196), (0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.9, 0.95)):
        keep = selection.nucleus(np.full((1, positions), 3.3), mass, temperature=0.1)
        assert keep.sum() == math.ceil(Fraction(str(mass)) * positions)
        assert keep[0, : keep.sum()].all()


def test_nucleus_of_all_mass_is_all_patches() -> None:
    for scores in (np.zeros((1, 9)), np.arange(9)[None] * 1e6, np.array([[HUGE, -HUGE, 0.0]])):
        assert selection.nucleus(scores, 1.0, temperature=0.01).all()
    # Just below 1 what is left out decides, which 1 - mass holds to 16 digits.
    assert selection.nucleus(np.array([[0.0, -30.0, -31.0]]), 1 - 1e-13, temperature=1).sum() == 2


def test_nucleus_at_extreme_temperatures() -> None:
    scores = np.array([[1.0, 3.0, 3.0, 2.0], [HUGE, -HUGE, 0.0, HUGE], [5e-324, 0.0, 0.0, 0.0]])
    cold = selection.nucleus(scores, 0.9, temperature=5e-324)
    # The smallest float over itself is 1: shares of the last image are 0.475 and three times 0.175.
    assert cold.tolist() == [[False, True, True, False], [True, False, False, True], [True] * 4]
    hot = selection.nucleus(scores[[0, 2]], 0.6, temperature=HUGE)
    assert hot.sum(1).tolist() == [3, 3]
    assert hot[0].tolist() == [False, True, True, True]


def test_nucleus_within_bounds() -> None:
    scores = some_scores(3)
    free = selection.nucleus(scores, 0.8, temperature=1).sum(1)
    keep = selection.nucleus(scores, 0.8, temperature=1, floor=2, ceiling=4)
    assert keep.sum(1).tolist() == np.clip(free, 2, 4).tolist()
    assert set(free) > {1, 2}
    for row, kept in zip(scores, keep, strict=True):
        assert np.array_equal(kept, selection.topk(row[None], int(kept.sum()))[0])


@pytest.mark.parametrize(("floor", "ceiling"), [(0, 3), (4, 3), (1, 8), (8, None), (1, 0)])
def test_bounds_without_a_meaning(floor: int, ceiling: int | None) -> None:
    with pytest.raises(UserError, match="floor <= ceiling"):
        selection.nucleus(np.zeros((1, 7)), 0.5, temperature=1, floor=floor, ceiling=ceiling)


@pytest.mark.parametrize("mass", [0.0, 1.1, -1.0, math.nan])
def test_masses_without_a_meaning(mass: float) -> None:
    with pytest.raises(UserError, match="softmax mass is"):
        selection.nucleus(np.zeros((1, 7)), mass, temperature=1)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperatures_without_a_meaning(temperature: float) -> None:
    with pytest.raises(UserError, match="temperature is"):
        selection.log_masses(np.zeros((1, 7)), temperature)


def test_masses_are_those_of_the_softmax() -> None:
    scores = some_scores(4)
    for temperature in (0.3, 1.0, 8.0):
        masses = selection.log_masses(scores, temperature)
        expected = np.array([shares(row, temperature) for row in scores])
        np.testing.assert_allclose(np.exp(masses), expected, rtol=1e-12)
        keep = selection.topk(scores, 3)
        np.testing.assert_allclose(
            selection.kept_mass(scores, keep, temperature), (expected * keep).sum(1), rtol=1e-12
        )


def test_masses_stay_finite() -> None:
    scores = np.array([[HUGE, -HUGE, 0.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    for temperature in (5e-324, 1e-3, 1.0, HUGE):
        masses = selection.log_masses(scores, temperature)
        assert np.isfinite(masses).all()
        assert (masses <= 0).all()
        assert (selection.kept_mass(scores, np.ones((3, 3), bool), temperature) == 1).all()
