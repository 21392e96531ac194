"""Dense teacher scores: partitions, halves and reliability against loops, the choice of masks, and how R grows."""

from __future__ import annotations

import math
import statistics
from typing import Any, get_args

import numpy as np
import pytest
import torch

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.masks import draw_visible
from patchsieve.pipeline.row_config import Masks
from patchsieve.pipeline.scoring.aggregate import Aggregate
from patchsieve.pipeline.scoring.api import Teacher, score_images
from patchsieve.ranker.evaluate.dense import measure_dense
from patchsieve.ranker.evaluate.images import EvaluationImages
from patchsieve.ranker.evaluate.partitions import PartitionScorer, PartitionScores, choose, half_agreement
from tests.helpers.evaluations import RATIO, VIEWS, evaluation_images, ranker_of, small_teacher
from tests.helpers.photos import photo_pixels
from tests.helpers.teachers import SMALL

POSITIONS = SMALL.positions


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return small_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, teacher: Teacher) -> EvaluationImages:
    return evaluation_images(5, ranker_of(tmp_path_factory.mktemp("ranker"), teacher))


class KnownNoise(PartitionScorer):
    """Gives each patch its image's own truth times noise, whose size depends on the masks alone."""

    def __init__(self, teacher: Teacher, noise: dict[Masks, float]) -> None:
        super().__init__(teacher, mask_ratio=RATIO, batch_size=4)
        self.noise = noise
        self.asked: list[tuple[Masks, int, int, int]] = []

    def score(self, images: EvaluationImages, masks: Masks, *, first: int, count: int) -> PartitionScores:
        self.asked.append((masks, len(images), first, count))
        shown = [self._shown(key, masks, first, count) for key in images.keys]
        worth = [self._worth(key, seen, masks, first) for key, seen in zip(images.keys, shown, strict=True)]
        return PartitionScores(
            visible=np.stack(shown), score=np.stack(worth), partition_views=VIEWS, positions=POSITIONS
        )

    def _shown(self, key: str, masks: Masks, first: int, count: int) -> np.ndarray:
        views = range(first * VIEWS, (first + count) * VIEWS)
        settings: dict[str, Any] = {"grid": SMALL.grid, "count": POSITIONS // VIEWS, "masks": masks}
        return np.stack([draw_visible(1, key, view, partition=True, **settings) for view in views])

    def _worth(self, key: str, seen: np.ndarray, masks: Masks, first: int) -> np.ndarray:
        truth = np.random.default_rng(list(key.encode())).normal(size=POSITIONS)
        noise = np.random.default_rng([first, *key.encode(), *masks.encode()]).normal(size=seen.shape)
        return np.exp(truth[seen] + self.noise[masks] * noise).astype(np.float32)


def slow_halves(scores: PartitionScores, image: int) -> list[list[float]]:
    """Mean logarithm of each patch in even and in odd partitions, by loops."""
    halves = []
    for half in (0, 1):
        found: list[list[float]] = [[] for _ in range(POSITIONS)]
        for view in range(scores.score.shape[1]):
            if (view // VIEWS) % 2 == half:
                for patch, score in zip(
                    scores.visible[image, view].tolist(), scores.score[image, view].tolist(), strict=True
                ):
                    found[patch].append(math.log(score))
        halves.append([statistics.fmean(values) for values in found])
    return halves


def slow_rank(values: list[float]) -> list[int]:
    order = sorted(range(len(values)), key=lambda place: values[place])
    return [order.index(place) for place in range(len(values))]


def test_reliability_equals_the_loops(teacher: Teacher, images: EvaluationImages) -> None:
    scorer = KnownNoise(teacher, {"uniform": 1.0, "spread": 1.0})
    dense = measure_dense(
        images, scorer, masks="uniform", aggregate="log", reliability=0.99, max_partitions=6
    )
    scores = scorer.score(images, "uniform", first=0, count=2)
    for first in (2, 4):
        scores = scores.followed_by(scorer.score(images, "uniform", first=first, count=2))
    agreement = []
    for image in range(len(images)):
        one, other = slow_halves(scores, image)
        np.testing.assert_allclose(dense.halves[:, image], [one, other], rtol=1e-5, atol=1e-6)
        agreement.append(statistics.correlation(slow_rank(one), slow_rank(other)))
    assert dense.half_agreement == pytest.approx(agreement, abs=1e-9)
    half = statistics.fmean(agreement)
    assert dense.rho == pytest.approx(2 * half / (1 + half))
    assert dense.ceiling == pytest.approx(math.sqrt(2 * half / (1 + half)))
    # Every patch is in each partition once, so that the whole is the mean of its halves.
    np.testing.assert_allclose(dense.dense, dense.halves.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_partitions_grow_until_the_scores_are_reliable(teacher: Teacher, images: EvaluationImages) -> None:
    noise: dict[Masks, float] = {"uniform": 1.5, "spread": 1.5}
    found = {}
    for reliability in (0.3, 0.7, 0.999):
        scorer = KnownNoise(teacher, noise)
        said: list[str] = []
        dense = measure_dense(
            images,
            scorer,
            masks="spread",
            aggregate="log",
            reliability=reliability,
            max_partitions=12,
            say=said.append,
        )
        assert [asked[2:] for asked in scorer.asked] == [(2 * n, 2) for n in range(dense.how.partitions // 2)]
        assert len(said) == len(scorer.asked)
        assert dense.how.views == dense.how.partitions * VIEWS
        found[reliability] = dense
    assert found[0.3].how.partitions < found[0.7].how.partitions < found[0.999].how.partitions == 12
    assert found[0.3].rho >= 0.3
    assert found[0.7].rho >= 0.7
    assert found[0.999].rho < 0.999


@pytest.mark.parametrize(("better", "worse"), [("uniform", "spread"), ("spread", "uniform")])
def test_masks_that_repeat_best_are_taken(
    better: Masks, worse: Masks, teacher: Teacher, images: EvaluationImages
) -> None:
    scorer = KnownNoise(teacher, {better: 0.4, worse: 2.0})
    dense = measure_dense(images, scorer, reliability=0.5, max_partitions=4)
    assert dense.how.masks == better
    choice = dense.how.choice
    assert choice is not None
    assert {kind: set(row) for kind, row in choice.table.items()} == {
        kind: set(get_args(Aggregate)) for kind in get_args(Masks)
    }
    best = max((value, way) for row in choice.table.values() for way, value in row.items())
    assert (choice.table[better][choice.aggregate], dense.how.aggregate) == (best[0], choice.aggregate)
    # Both are the same truth and noise: they agree as well as their noise lets them, within a little.
    assert choice.cross_agreement is not None
    assert choice.cross_ceiling is not None
    assert choice.cross_agreement == pytest.approx(choice.cross_ceiling, abs=0.2)
    # Tried on partitions of their own, which no reported score is made of.
    tried = [asked for asked in scorer.asked if asked[2] >= 4]
    assert tried == [("uniform", 5, 4, 2), ("spread", 5, 4, 2)]
    assert not dense.how.same_noise


def test_a_choice_of_aggregate_alone(teacher: Teacher, images: EvaluationImages) -> None:
    scorer = KnownNoise(teacher, {"uniform": 1.0, "spread": 1.0})
    scores = {"spread": scorer.score(images, "spread", first=0, count=4)}
    chosen = choose(scores, get_args(Aggregate))
    assert (chosen.cross_agreement, chosen.cross_ceiling) == (None, None)
    assert chosen.table["spread"]["rank"] == pytest.approx(half_agreement(scores["spread"], "rank"))
    assert chosen.table["spread"][chosen.aggregate] == max(chosen.table["spread"].values())


def test_scores_are_those_of_score_images(teacher: Teacher, images: EvaluationImages) -> None:
    scorer = PartitionScorer(teacher, mask_ratio=RATIO, removal="encoder", metric="l2", seed=3, batch_size=4)
    assert scorer.partition_views == VIEWS
    later = scorer.score(images, "spread", first=1, count=2)
    photos = [torch.from_numpy(photo_pixels(seed, 60, 70)).permute(2, 0, 1) for seed in range(5)]
    expected = score_images(
        photos,
        teacher,
        keys=images.keys,
        views=3 * VIEWS,
        mask_ratio=RATIO,
        removal="encoder",
        metric="l2",
        seed=3,
        batch_size=4,
    )
    for image, scores in enumerate(expected):
        np.testing.assert_array_equal(later.visible[image], scores.visible[VIEWS:])
        np.testing.assert_allclose(later.score[image], scores.score[VIEWS:], rtol=1e-5)
        # Each partition shows every patch.
        shown = later.visible[image].reshape(2, -1)
        assert [sorted(set(half)) for half in shown.tolist()] == [list(range(POSITIONS))] * 2


def test_scores_without_an_order_are_refused(teacher: Teacher, images: EvaluationImages) -> None:
    scorer = PartitionScorer(teacher, mask_ratio=RATIO, metric="psnr", batch_size=8)
    with pytest.raises(UserError, match="aggregate log leaves no order among scores of metric psnr"):
        measure_dense(images, scorer, masks="spread", aggregate="log", max_partitions=2)
    dense = measure_dense(images, scorer, masks="spread", max_partitions=2)
    assert dense.how.aggregate != "log"
