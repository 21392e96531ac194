"""Pseudo-scores of whole partitions of the grid, and which masks and aggregate make them repeat best.

A partition is a set of views of one crop that together show every patch. Even partitions make one half of the scores,
odd ones the other: how well the halves agree within images tells how reliable both together are.

Shape suffixes: I images, K views, V visible patches of a view, L grid positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.masks import draw_visible
from patchsieve.pipeline.row_config import Masks, Metric, Removal
from patchsieve.pipeline.runs.waiting import doing
from patchsieve.pipeline.scoring.aggregate import Aggregate, dense_scores
from patchsieve.pipeline.scoring.api import Teacher
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.ranker.evaluate.images import EvaluationImages
from patchsieve.ranker.learning.agreement import Scores, ceiling, spearman, spearman_brown

CHUNK_VIEWS = 256
"""Views whose pixels are gathered at once, at least one batch of the teacher's."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PartitionScores:
    """Pseudo-scores of whole partitions, in the order of views.

    `visible`: int16 `[I, K, V]`; `score`: float32 `[I, K, V]`; `partition_views`: of one, K is a multiple.
    """

    visible: NDArray[np.int16]
    score: Scores
    partition_views: int
    positions: int

    @property
    def partitions(self) -> int:
        """Partitions there are of each image."""
        return int(self.score.shape[1]) // self.partition_views

    def dense(self, aggregate: Aggregate, *, first: int = 0, step: int = 1) -> Scores:
        """One score per patch from partitions `first`, `first + step`, ...: float32 `[I, L]`."""
        number_K = np.arange(self.score.shape[1]) // self.partition_views
        used_K = (number_K >= first) & ((number_K - first) % step == 0)
        pairs = zip(self.visible[:, used_K], self.score[:, used_K], strict=True)
        return np.stack([dense_scores(*pair, self.positions, aggregate) for pair in pairs])

    def halves(self, aggregate: Aggregate) -> Scores:
        """Scores from the even and from the odd partitions, float32 `[2, I, L]`."""
        return np.stack([self.dense(aggregate, first=half, step=2) for half in (0, 1)])

    def followed_by(self, other: PartitionScores) -> PartitionScores:
        """These partitions and then the other ones, of the same images."""
        return dataclasses.replace(
            self,
            visible=np.concatenate([self.visible, other.visible], axis=1),
            score=np.concatenate([self.score, other.score], axis=1),
        )


class PartitionScorer:
    """A teacher that scores partitions of images by one setting of the rows."""

    def __init__(
        self,
        teacher: Teacher,
        *,
        mask_ratio: float = 0.9,
        removal: Removal = "decoder",
        metric: Metric = "l1",
        seed: int = 1,
        batch_size: int | None = None,
    ) -> None:
        """Raises UserError for settings that this teacher cannot do."""
        self.teacher = teacher
        self.mask_ratio, self.removal, self.metric, self.seed = mask_ratio, removal, metric, seed
        self._scorer = Scorer(
            teacher.model,
            mask_ratio=mask_ratio,
            removal=removal,
            metric=metric,
            precision=teacher.precision,
            device=teacher.device,
            batch_size=batch_size,
        )
        self.partition_views = -(-teacher.file.config.positions // self._scorer.visible)

    def score(self, images: EvaluationImages, masks: Masks, *, first: int, count: int) -> PartitionScores:
        """Partitions `first` to `first + count - 1` of every image; UserError where a score is not finite."""
        config, views = self.teacher.file.config, count * self.partition_views
        visible_IKV = np.stack(
            [
                draw_visible(
                    self.seed,
                    key,
                    view,
                    grid=config.grid,
                    count=self._scorer.visible,
                    masks=masks,
                    partition=True,
                )
                for key in images.keys
                for view in range(first * self.partition_views, first * self.partition_views + views)
            ]
        )
        image_of = torch.arange(len(images)).repeat_interleave(views)
        batch = self._scorer.batch_size
        # Whole batches, as only a last one is filled up.
        chunk = max(1, CHUNK_VIEWS // batch) * batch
        scores = []
        for start in range(0, len(image_of), chunk):
            rows = slice(start, start + chunk)
            with doing(f"scoring, {start:,} of {len(image_of):,} views done"):
                found = self._scorer.score(
                    images.patches[image_of[rows]], torch.from_numpy(visible_IKV[rows])
                )
            scores.append(found)
        score = torch.cat(scores).numpy()
        if not np.isfinite(score).all():
            bad = images.keys[int(np.argmin(np.isfinite(score).all(axis=1))) // views]
            raise UserError(
                f"the scores of {bad} are not finite in {self.teacher.precision}: add --precision fp32"
            )
        shape = (len(images), views, self._scorer.visible)
        return PartitionScores(
            visible=visible_IKV.reshape(shape),
            score=score.reshape(shape),
            partition_views=self.partition_views,
            positions=config.positions,
        )


def half_agreement(scores: PartitionScores, aggregate: Aggregate) -> float:
    """Mean over images of the Spearman of even with odd partitions; NaN where no image has an order."""
    return mean_of(spearman(*scores.halves(aggregate)))


def mean_of(values: NDArray[np.float64]) -> float:
    """The mean of those that are numbers, NaN where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskChoice:
    """The masks and aggregate taken, and what was measured to choose them (see `choose`)."""

    masks: Masks
    aggregate: Aggregate
    table: dict[str, dict[str, float]]
    cross_agreement: float | None
    cross_ceiling: float | None


def choose(tried: Mapping[Masks, PartitionScores], ways: Sequence[Aggregate]) -> MaskChoice:
    """The kind of masks and the way to aggregate by which halves agree best; the first of equals.

    Two kinds of masks measure slightly different things: how far tells their agreement with each other, each by its
    best way, beside the most that their unreliability leaves.
    """
    table = {kind: {way: half_agreement(scores, way) for way in ways} for kind, scores in tried.items()}

    def value(pair: tuple[Masks, Aggregate]) -> float:
        found = table[pair[0]][pair[1]]
        return -np.inf if np.isnan(found) else found

    best = {kind: max(((kind, way) for way in ways), key=value) for kind in tried}
    masks, aggregate = max(best.values(), key=value)
    cross: float | None = None
    most: float | None = None
    if len(tried) == 2:
        one, other = (scores.dense(best[kind][1]) for kind, scores in tried.items())
        cross = mean_of(spearman(one, other))
        most = float(np.prod([ceiling(spearman_brown(value(pair))) for pair in best.values()]))
    return MaskChoice(
        masks=masks,
        aggregate=aggregate,
        table={str(kind): {str(way): found for way, found in row.items()} for kind, row in table.items()},
        cross_agreement=cross,
        cross_ceiling=most,
    )
