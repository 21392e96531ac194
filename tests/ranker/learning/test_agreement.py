"""Agreement and intervals against loops over their definitions, and against scipy where it is installed."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from patchsieve.ranker.learning.agreement import (
    average_ranks,
    bootstrap,
    ceiling,
    kendall_tau,
    mean_interval,
    paired_difference,
    spearman,
    spearman_brown,
    topk_overlap,
)

Array = NDArray[np.float64]


def rows(seed: int, *, levels: int | None = None, count: int = 12, patches: int = 23) -> tuple[Array, Array]:
    """Two related arrays; with `levels` they hold that many values, so that most are tied."""
    random = np.random.default_rng(seed)
    a = random.normal(size=(count, patches))
    b = a + random.normal(size=(count, patches))
    if levels is None:
        return a, b
    return np.floor(a * levels / 4), np.floor(b * levels / 4)


def slow_ranks(values: list[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def slow_spearman(a: list[float], b: list[float]) -> float:
    return statistics.correlation(slow_ranks(a), slow_ranks(b))


def slow_tau(a: list[float], b: list[float]) -> float:
    agree = untied_a = untied_b = 0
    for i, j in itertools.combinations(range(len(a)), 2):
        x, y = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
        agree, untied_a, untied_b = agree + x * y, untied_a + abs(x), untied_b + abs(y)
    return agree / math.sqrt(untied_a * untied_b)


def slow_overlap(a: list[float], b: list[float], k: int) -> float:
    """Mean overlap over every choice of a top k that no other position outranks."""

    def tops(values: list[float]) -> list[set[int]]:
        subsets = [set(chosen) for chosen in itertools.combinations(range(len(values)), k)]
        best = sorted(values, reverse=True)[:k]
        return [s for s in subsets if sorted((values[i] for i in s), reverse=True) == best]

    shares = [len(x & y) / k for x in tops(a) for y in tops(b)]
    return statistics.fmean(shares)


@pytest.mark.parametrize("levels", [None, 2, 6])
def test_agreement_equals_the_loops(levels: int | None) -> None:
    a, b = rows(1, levels=levels)
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    assert average_ranks(a).tolist() == [slow_ranks(row) for row in a.tolist()]
    assert spearman(a, b) == pytest.approx([slow_spearman(x, y) for x, y in pairs], abs=1e-12)
    assert kendall_tau(a, b) == pytest.approx([slow_tau(x, y) for x, y in pairs], abs=1e-12)


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_overlap_equals_every_choice_among_ties(levels: int | None, k: int) -> None:
    a, b = rows(2, levels=levels, count=6, patches=8)
    expected = [slow_overlap(x, y, k) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert topk_overlap(a, b, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("levels", [None, 2, 6])
def test_agreement_equals_scipy(levels: int | None) -> None:
    stats: Any = pytest.importorskip("scipy.stats")
    a, b = rows(3, levels=levels, patches=196)
    for measure, theirs in ((spearman, stats.spearmanr), (kendall_tau, stats.kendalltau)):
        expected = [theirs(x, y).statistic for x, y in zip(a, b, strict=True)]
        assert measure(a, b) == pytest.approx(expected, abs=1e-12)


def test_unknown_positions_are_left_out_of_their_row() -> None:
    a, b = rows(4, levels=6)
    kept = np.random.default_rng(0).random(a.shape) < 0.7
    a_known, b_known = np.where(kept, a, np.nan), np.where(np.roll(kept, 3, axis=1), b, np.nan)
    both = kept & np.roll(kept, 3, axis=1)
    for row, known in enumerate(both):
        x, y = a[row, known][None], b[row, known][None]
        assert spearman(a_known, b_known)[row] == pytest.approx(spearman(x, y)[0])
        assert kendall_tau(a_known, b_known)[row] == pytest.approx(kendall_tau(x, y)[0])
        assert topk_overlap(a_known, b_known, 4)[row] == pytest.approx(topk_overlap(x, y, 4)[0])
    assert np.isnan(average_ranks(a_known)).tolist() == np.isnan(a_known).tolist()


def test_rows_that_say_nothing_are_nan() -> None:
    rising = np.arange(5.0)
    a = np.array([rising, np.ones(5), rising, np.full(5, np.nan), rising])
    b = np.array([rising, rising, np.ones(5), rising, [1.0, *[np.nan] * 4]])
    for measure in (spearman, kendall_tau):
        assert np.isnan(measure(a, b)).tolist() == [False, True, True, True, True]
    # Equal scores choose at random, and so do meet 2 / 5 of any choice.
    np.testing.assert_allclose(topk_overlap(a, b, 2), [1.0, 0.4, 0.4, np.nan, np.nan])
    assert np.isnan(topk_overlap(a, b, 6)).all()


def test_ends_of_the_scale() -> None:
    a, _ = rows(5)
    for measure in (spearman, kendall_tau):
        assert measure(a, np.exp(a)) == pytest.approx(np.ones(len(a)))
        assert measure(a, -a) == pytest.approx(-np.ones(len(a)))
    assert topk_overlap(a, np.exp(a), 5).tolist() == [1.0] * len(a)
    assert topk_overlap(a, -a, 11).tolist() == [0.0] * len(a)


def test_infinite_scores_have_ranks() -> None:
    a = np.array([[-np.inf, 0.0, 1.0, np.inf]])
    b = np.array([[1.0, 2.0, 3.0, 4.0]])
    assert spearman(a, b).tolist() == kendall_tau(a, b).tolist() == [1.0]
    assert topk_overlap(a, b, 4).tolist() == [1.0]


def test_no_images_and_no_patches() -> None:
    for shape, count in (((0, 5), 0), ((2, 0), 2)):
        nothing = np.zeros(shape)
        for values in (
            spearman(nothing, nothing),
            kendall_tau(nothing, nothing),
            topk_overlap(nothing, nothing, 1),
        ):
            assert values.shape == (count,)
            assert np.isnan(values).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape \[N, V\]"):
        spearman(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="k is 0"):
        topk_overlap(np.zeros((2, 3)), np.zeros((2, 3)), 0)
    with pytest.raises(ValueError, match=r"one shape \[N\]"):
        paired_difference(np.zeros(3), np.zeros(4))


def test_spearman_brown() -> None:
    assert spearman_brown(0.5) == pytest.approx(2 / 3)
    assert spearman_brown(np.array([0.0, 0.8, 1.0])) == pytest.approx([0.0, 1.6 / 1.8, 1.0])
    # Four halves of a half: doubling twice.
    assert spearman_brown(0.3, 4) == pytest.approx(spearman_brown(spearman_brown(0.3)))
    assert spearman_brown(0.3, 1) == pytest.approx(0.3)
    assert spearman_brown(-0.2) == -0.2
    assert ceiling(np.array([0.81, -0.1])).tolist() == pytest.approx([0.9, 0.0])


def test_reliability_of_known_noise() -> None:
    # Truth of variance 1, noise of variance 2 in a half and 1 in the mean of both.
    random = np.random.default_rng(6)
    truth = random.normal(size=(40, 2000))
    one, other = (truth + math.sqrt(2) * random.normal(size=truth.shape) for _ in range(2))
    rho = spearman_brown(spearman(one, other).mean())
    assert rho == pytest.approx(0.5, abs=0.03)
    assert ceiling(rho) == pytest.approx(spearman(truth, one + other).mean(), abs=0.03)


def test_interval_of_a_mean() -> None:
    values = np.random.default_rng(7).normal(3.0, 2.0, size=400)
    interval = mean_interval(values, seed=1)
    error = values.std() / math.sqrt(400)
    assert interval.value == pytest.approx(values.mean())
    assert interval.images == 400
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.05 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.05 * error)
    narrow = mean_interval(values, seed=1, level=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * error, rel=0.05)


def test_interval_of_three_images_is_that_of_every_draw() -> None:
    values = np.array([0.0, 1.0, 5.0])
    means = sorted(sum(draw) / 3 for draw in itertools.product(values, repeat=3))
    # Levels that fall inside a step of the 27 equally likely draws, away from its edges.
    interval = mean_interval(values, level=1 - 2 * 2.5 / 27)
    assert (interval.low, interval.high) == pytest.approx((means[2], means[-3]))


def test_pairing_removes_what_images_share() -> None:
    random = np.random.default_rng(8)
    images = random.normal(scale=5.0, size=200)
    a = images + 0.2 + 0.1 * random.normal(size=200)
    interval = paired_difference(a, images)
    assert 0.15 < interval.low < interval.value < interval.high < 0.25
    alone = mean_interval(a - images)
    assert (interval.low, interval.high) == pytest.approx((alone.low, alone.high))


def test_the_seed_decides_the_interval() -> None:
    values = np.random.default_rng(9).normal(size=50)
    assert mean_interval(values, seed=3) == mean_interval(values.copy(), seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_blocks_of_draws_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(10).normal(size=50)
    whole = mean_interval(values)
    monkeypatch.setattr("patchsieve.ranker.learning.agreement._BLOCK", 170)
    assert mean_interval(values) == whole


def test_statistic_of_several_means() -> None:
    random = np.random.default_rng(11)
    half = random.uniform(0.4, 0.7, size=300)
    agreement = 0.8 * half
    interval = bootstrap([agreement, half], lambda a, h: a / ceiling(spearman_brown(h)))
    assert interval.value == pytest.approx(agreement.mean() / math.sqrt(2 * half.mean() / (1 + half.mean())))
    assert interval.low < interval.value < interval.high
    # The same images are drawn for both: their quotient does not vary at all.
    exact = bootstrap([agreement, half], lambda a, h: a / h)
    assert exact.high - exact.low == pytest.approx(0.0, abs=1e-12)


def test_images_without_a_value_are_left_out_of_every_column() -> None:
    a, b = np.array([1.0, np.nan, 3.0, 4.0]), np.array([0.5, 9.0, np.nan, 2.0])
    interval = paired_difference(a, b)
    assert interval == paired_difference(a[[0, 3]], b[[0, 3]])
    assert interval.images == 2


def test_few_images() -> None:
    one = mean_interval(np.array([0.5, np.nan]))
    assert (one.value, one.images) == (0.5, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    none = mean_interval(np.array([]))
    assert none.images == 0
    assert math.isnan(none.value)


def test_levels_without_a_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="level 95"):
        mean_interval(np.zeros(3), level=95)
