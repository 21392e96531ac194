"""From a prune configuration to keep masks: which selection, with which numbers.

Shape suffixes: N images, L patches of an image, P values of a patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker import selection
from patchsieve.ranker.clustering import assign_clusters, density_peaks
from patchsieve.ranker.prune_config import DEFAULT_KEEP, DEFAULT_MASS, PruneConfig
from patchsieve.ranker.selection import ClusterRule, Mask


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


def make_selector(config: PruneConfig, *, positions: int, temperature: float | None) -> Selector:
    """The selection of a configuration, for images of L = `positions`; a budget still lacks its threshold.

    `temperature`: the ranker's own, None where it has none. Raises UserError where one is needed, and for bounds that
    do not fit.
    """
    way = config.way
    if way in ("nucleus", "budget"):
        heat = temperature if config.temperature is None else config.temperature
        said = "--select nucleus" if way == "nucleus" else "--target-ratio"
        if heat is None:
            raise UserError(
                f"{said} weighs patches by a softmax, and {config.ranker} has no temperature: add --temperature"
            )
        if not heat > 0:
            raise UserError(f"--temperature is {heat}, must be above 0")
        floor, ceiling = selection.checked_bounds(
            1 if config.floor is None else config.floor, config.ceiling, positions
        )
        mass = None if way == "budget" else DEFAULT_MASS if config.mass is None else config.mass
        return Selector(
            way=way,
            positions=positions,
            mass=mass,
            temperature=heat,
            floor=floor,
            ceiling=ceiling,
            target=config.target_ratio,
        )
    count = selection.keep_count(positions, DEFAULT_KEEP if config.keep is None else config.keep)
    return Selector(
        way=way,
        positions=positions,
        count=count,
        rule=(config.cluster_rule or "ours") if way == "cluster" else None,
        seed=(config.seed or 0) if way == "random" else None,
    )


def _given(selector: Selector) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in dataclasses.asdict(selector).items() if value is not None]


def _known(value: Any) -> Any:
    assert value is not None, "this way of selecting was made without its number"
    return value
