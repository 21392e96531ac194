"""One image as it is shown: its pixels as far as they are known, its scores, and what would stay of it.

Shape suffixes: N images, L patches of an image (G x G), S side of the crop in pixels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.pictures.sheet import Pixels
from patchsieve.ranker.learning.agreement import Scores, spearman
from patchsieve.ranker.select.selection import keep_count

Mask = NDArray[np.bool_]
Origin = Literal["table", "pruned", "shards"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pictured:
    """One image, or one view of it.

    `origin`: what it was read from, `path`: which one. `pixels`: uint8 `[S, S, 3]`, gray where nothing is known.
    `shown`: bool `[L]`, patches whose pixels there are. `teacher`, `ranker`: float32 `[L]`, NaN where there is no
    score, None without such scores. `halves`: the teacher's from either half of the views, float32 `[2, L]`, where each
    patch has at least two scores. `whole`: whether the scores are of the whole grid, or of what was visible in a view.
    """

    origin: Origin
    path: str
    key: str
    shard: str
    detail: str
    pixels: Pixels
    shown: Mask
    teacher: Scores | None = None
    ranker: Scores | None = None
    halves: Scores | None = None
    mean_score: float | None = None
    whole: bool = True

    @property
    def grid(self) -> int:
        """Patches along a side, G."""
        return math.isqrt(len(self.shown))

    @property
    def deciding(self) -> Scores | None:
        """The scores that say what stays: the ranker's where there are any."""
        return self.teacher if self.ranker is None else self.ranker

    @property
    def counted(self) -> int:
        """Patches that a keep ratio is a share of: all, or those that a view shows."""
        if self.whole or self.deciding is None:
            return len(self.shown)
        return int((~np.isnan(self.deciding)).sum())

    def agreement(self) -> float:
        """Spearman of ranker and teacher, NaN where they cannot be compared."""
        if self.teacher is None or self.ranker is None:
            return math.nan
        return float(spearman(self.teacher[None], self.ranker[None])[0])

    def overlap(self, ratio: float) -> float:
        """Share of the patches that the ranker keeps which the teacher's scores keep too; NaN without both."""
        if self.teacher is None or self.ranker is None:
            return math.nan
        count = keep_count(self.counted, ratio)
        return float((ranks(self.teacher) < count)[ranks(self.ranker) < count].mean())

    def margin(self, ratio: float) -> float:
        """How far scores just above the cut lie from those just below it, in deviations of the scores; NaN without."""
        if self.deciding is None:
            return math.nan
        known = np.sort(self.deciding[~np.isnan(self.deciding)].astype(np.float64))[::-1]
        count, near = keep_count(self.counted, ratio), max(1, len(known) // 8)
        deviation = known.std() if known.size else 0.0
        if not 0 < count < len(known) or not deviation:
            return math.nan
        above, below = known[max(0, count - near) : count], known[count : count + near]
        return float((above.mean() - below.mean()) / deviation)

    def kept(self, ratio: float) -> Mask:
        """The patches that stay at a keep ratio, bool `[L]`; of a pruned image never more than are there."""
        if self.deciding is None:
            return self.shown
        keep: Mask = ranks(self.deciding) < keep_count(self.counted, ratio)
        return keep & ~np.isnan(self.deciding)


def ranks(scores_L: Scores) -> NDArray[np.int64]:
    """Place of each patch from 0 on, highest score first, equal ones by index as in `selection.topk`; NaN last."""
    order = np.argsort(-scores_L.astype(np.float64), kind="stable")
    placed = np.empty(len(order), np.int64)
    placed[order] = np.arange(len(order))
    return placed
