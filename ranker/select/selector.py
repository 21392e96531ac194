"""From the settings of a selection to keep masks: which selection, with which numbers.

Shape suffixes: N images, L patches of an image, P values of a patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.ranker.baselines.density_peaks import assign_clusters, density_peaks
from patchsieve.ranker.select import selection
from patchsieve.ranker.select.selection import ClusterRule, Mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selector:
    """One way to select, with all its numbers; those that the way does not read are None.

    `way`: `topk`, `nucleus`, `cluster`, `random` or `budget`. `count`: patches that stay of each image. `target`: share
    of all patches in a budget, `threshold`: the log mass that its plan found.
    """

    way: str
    positions: int
    count: int | None = None
    mass: float | None = None
    temperature: float | None = None
    floor: int | None = None
    ceiling: int | None = None
    rule: ClusterRule | None = None
    seed: int | None = None
    target: float | None = None
    threshold: float | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """What can change a mask, by name."""
        return {f"select_{name}": value for name, value in _given(self) if name != "positions"}

    def masks(self, scores_NL: NDArray[np.float32], patches: Sequence[Tensor], keys: Sequence[str]) -> Mask:
        """Keep masks, bool `[N, L]`, of finite scores, the patches (uint8 `[L, P]` each) and the sample keys."""
        if self.way == "topk":
            return selection.topk(scores_NL, _known(self.count))
        if self.way == "random":
            return selection.random(keys, self.positions, _known(self.count), seed=_known(self.seed))
        if self.way == "cluster":
            return self._clusters(scores_NL, patches)
        bounds = {"floor": _known(self.floor), "ceiling": self.ceiling}
        heat = _known(self.temperature)
        if self.way == "nucleus":
            return selection.nucleus(scores_NL, _known(self.mass), temperature=heat, **bounds)
        return selection.budget(scores_NL, _known(self.threshold), temperature=heat, **bounds)

    def _clusters(self, scores_NL: NDArray[np.float32], patches: Sequence[Tensor]) -> Mask:
        found = [assign_clusters(density_peaks(one), _known(self.count)) for one in patches]
        centres, labels = zip(*found, strict=True)
        return selection.cluster(scores_NL, np.stack(labels), np.stack(centres), rule=_known(self.rule))


def _given(selector: Selector) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in dataclasses.asdict(selector).items() if value is not None]


def _known(value: Any) -> Any:
    assert value is not None, "this way of selecting was made without its number"
    return value
