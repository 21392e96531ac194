"""The teacher's scores of every patch of whole images, from many partitions of the grid, and how far they repeat.

Shape suffixes: I images, L grid positions, P values of a patch.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.row_config import Masks, Metric, Removal
from patchsieve.pipeline.scoring.aggregate import Aggregate
from patchsieve.pipeline.units import duration
from patchsieve.ranker.evaluate.images import EvaluationImages
from patchsieve.ranker.evaluate.partitions import (
    MaskChoice,
    PartitionScorer,
    PartitionScores,
    choose,
    half_agreement,
    mean_of,
)
from patchsieve.ranker.learning.agreement import Scores, ceiling, spearman, spearman_brown

PILOT_IMAGES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseMethod:
    """How dense scores were made.

    `source`: "scored", or the table read. `masks` and `aggregate` are the ones taken. `choice`: what was measured on
    `choice_images` images to choose them, None where nothing was left to choose. `same_noise`: whether that was done on
    the partitions that are measured, which makes the reliability look slightly better than it is.
    """

    source: str
    masks: Masks
    aggregate: Aggregate
    partitions: int
    views: int
    mask_ratio: float
    removal: Removal
    metric: Metric
    precision: str
    seed: int
    choice: MaskChoice | None = None
    choice_images: int = 0
    same_noise: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DenseTeacher:
    """I images with the teacher's score of every patch: what rankers are measured against.

    `keys`: sample keys; `patches`: uint8 `[I, L, P]`; `dense`: float32 `[I, L]`; `halves`: the same from either half
    of the partitions, float32 `[2, I, L]`; `teacher`: name and digest.
    """

    keys: tuple[str, ...]
    patches: Tensor
    dense: Scores
    halves: Scores
    teacher: Mapping[str, str]
    how: DenseMethod

    @functools.cached_property
    def half_agreement(self) -> NDArray[np.float64]:
        """Spearman of one half with the other, per image: float64 `[I]`."""
        return spearman(self.halves[0], self.halves[1])

    @property
    def rho(self) -> float:
        """Reliability of `dense`: the mean agreement of the halves, extrapolated once by Spearman-Brown."""
        return float(spearman_brown(mean_of(self.half_agreement)))

    @property
    def ceiling(self) -> float:
        """The highest Spearman that any ranker can have with `dense`."""
        return float(ceiling(self.rho))


def measure_dense(
    images: EvaluationImages,
    scorer: PartitionScorer,
    *,
    masks: Masks | None = None,
    aggregate: Aggregate | None = None,
    reliability: float = 0.8,
    max_partitions: int = 20,
    say: Callable[[str], None] = lambda line: None,
) -> DenseTeacher:
    """Score partitions, two at a time, until the dense scores are as reliable as asked or `max_partitions` is reached.

    `masks` and `aggregate` None: the ones by which one partition agrees best with another, tried on up to PILOT_IMAGES
    images with partitions of their own, so that the reliability measured afterwards is not better by that choice.
    `say` gets a line on what is being done.
    """
    kinds = get_args(Masks) if masks is None else (masks,)
    ways = get_args(Aggregate) if aggregate is None else (aggregate,)
    pilot: MaskChoice | None = None
    tried_on = 0
    if len(kinds) * len(ways) > 1:
        places = np.linspace(0, len(images) - 1, min(len(images), PILOT_IMAGES)).round().astype(int)
        some = images.take(places.tolist())
        tried_on = len(some)
        say(f"scoring    2 partitions of {tried_on} images with {' and '.join(kinds)} masks, to choose")
        tried = {kind: scorer.score(some, kind, first=max_partitions, count=2) for kind in kinds}
        pilot = choose(tried, ways)
    chosen, way = (pilot.masks, pilot.aggregate) if pilot else (kinds[0], ways[0])
    found: PartitionScores | None = None
    agreement, partitions = -1.0, 0
    began = time.monotonic()
    while partitions < max_partitions and not spearman_brown(agreement) >= reliability:
        left = (time.monotonic() - began) * (max_partitions - partitions) / partitions if partitions else None
        say(
            f"scoring    partitions {partitions + 1} and {partitions + 2} of {len(images)} images, {chosen} masks"
            + (f", at most {duration(left)} left" if left is not None else "")
        )
        more = scorer.score(images, chosen, first=partitions, count=2)
        found = more if found is None else found.followed_by(more)
        partitions += 2
        agreement = half_agreement(found, way)
    assert found is not None
    how = DenseMethod(
        source="scored",
        masks=chosen,
        aggregate=way,
        partitions=partitions,
        views=partitions * scorer.partition_views,
        mask_ratio=scorer.mask_ratio,
        removal=scorer.removal,
        metric=scorer.metric,
        precision=scorer.teacher.precision,
        seed=scorer.seed,
        choice=pilot,
        choice_images=tried_on,
    )
    file = scorer.teacher.file
    return make_dense(images, found, {"name": file.name, "digest": file.digest}, how)


def make_dense(
    images: EvaluationImages, scores: PartitionScores, teacher: Mapping[str, str], how: DenseMethod
) -> DenseTeacher:
    """Dense scores of images; UserError where their halves have no order in common with each other at all."""
    halves = scores.halves(how.aggregate)
    if np.isnan(spearman(halves[0], halves[1])).all():
        raise UserError(f"aggregate {how.aggregate} leaves no order among scores of metric {how.metric}")
    return DenseTeacher(
        keys=images.keys,
        patches=images.patches,
        dense=scores.dense(how.aggregate),
        halves=halves,
        teacher=teacher,
        how=how,
    )
