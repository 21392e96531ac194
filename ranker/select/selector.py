"""From the settings of a selection to keep masks: which selection, with which numbers.

Shape suffixes: N images, L patches of an image, P values of a patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.baselines.density_peaks import assign_clusters, density_peaks
from patchsieve.ranker.select import regions, selection
from patchsieve.ranker.select.selection import ClusterRule, Counts, Mask

Amount = Literal["count", "mass", "budget"]
Scores = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selector:
    """One way to select, with all its numbers; those that the way does not read are None.

    `way`: a name of WAYS; `amount`: what decides how much stays, see `at`. `count`: patches that stay of each image.
    `target`: share of all patches in a budget, `threshold`: the log mass that its plan found; in place of `count` they
    give each image its own. `coarse`: patches' worth of each image's thumbnail, which is none of those numbers.
    """

    way: str
    amount: Amount
    positions: int
    count: int | None = None
    mass: float | None = None
    temperature: float | None = None
    floor: int | None = None
    ceiling: int | None = None
    windows: int | None = None
    compactness: float | None = None
    rule: ClusterRule | None = None
    seed: int | None = None
    coarse: int | None = None
    target: float | None = None
    threshold: float | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """What can change a mask, by name."""
        derived = ("amount", "positions")
        return {f"select_{name}": value for name, value in _given(self) if name not in derived}

    def at(self, ratio: float) -> Selector:
        """The same selection for another ratio: the share of the softmax that nucleus keeps, or of the patches of each
        image, or of all in a budget, from which its thumbnail is paid first.

        Raises UserError for a ratio outside (0, 1], and where it leaves too few patches.
        """
        if self.amount == "mass":
            return dataclasses.replace(self, mass=ratio)
        coarse, windows = self.coarse or 0, self.windows or 1
        count = selection.keep_count(self.positions, ratio) - coarse
        if count < 1:
            raise UserError(
                f"the thumbnail takes {coarse} of the {count + coarse} patches that may stay of an image: "
                "ask for a smaller --background, or keep more"
            )
        least = count if self.floor is None else self.floor
        if windows > least:
            more = "keep more" if self.amount == "count" else f"add --floor {windows} or more"
            raise UserError(
                f"--windows {windows} are more than the {least} patches that may stay of an image: "
                f"ask for fewer, or {more}"
            )
        if self.amount == "count":
            return dataclasses.replace(self, count=count)
        return dataclasses.replace(self, target=ratio - coarse / self.positions, threshold=None)

    @property
    def heat(self) -> dict[str, Any]:
        """Temperature and bounds, for selections that weigh patches by a softmax."""
        return {
            "temperature": _known(self.temperature),
            "floor": _known(self.floor),
            "ceiling": self.ceiling,
        }

    def masks(self, scores_NL: Scores, patches: Sequence[Tensor], keys: Sequence[str]) -> Mask:
        """Keep masks, bool `[N, L]`, of finite scores, the patches (uint8 `[L, P]` each) and the sample keys."""
        return WAYS[self.way](self, scores_NL, patches, keys)

    def counts(self, scores_NL: Scores) -> Counts:
        """Patches that stay of each image: one number for all, or int64 `[N]` in a budget."""
        if self.target is None:
            return int(_known(self.count))
        return selection.budget_counts(scores_NL, _known(self.threshold), **self.heat)


def _clusters(selector: Selector, scores_NL: Scores, patches: Sequence[Tensor]) -> Mask:
    found = [assign_clusters(density_peaks(one), _known(selector.count)) for one in patches]
    centres, labels = zip(*found, strict=True)
    return selection.cluster(scores_NL, np.stack(labels), np.stack(centres), rule=_known(selector.rule))


WAYS: dict[str, Callable[[Selector, Scores, Sequence[Tensor], Sequence[str]], Mask]] = {
    "topk": lambda its, scores, _, __: selection.topk(scores, its.counts(scores)),
    "window": lambda its, scores, _, __: regions.window(
        scores, its.counts(scores), windows=_known(its.windows)
    ),
    "region": lambda its, scores, _, __: regions.region(
        scores, its.counts(scores), compactness=_known(its.compactness)
    ),
    "nucleus": lambda its, scores, _, __: selection.nucleus(scores, _known(its.mass), **its.heat),
    "cluster": lambda its, scores, patches, _: _clusters(its, scores, patches),
    "random": lambda its, scores, _, keys: selection.random(
        keys, its.positions, its.counts(scores), seed=_known(its.seed)
    ),
    "budget": lambda its, scores, _, __: selection.budget(scores, _known(its.threshold), **its.heat),
}
"""Every way to select, by name: those of `prune --select`, and `budget`, the highest scores of a whole dataset."""


def _given(selector: Selector) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in dataclasses.asdict(selector).items() if value is not None]


def _known(value: Any) -> Any:
    assert value is not None, "this way of selecting was made without its number"
    return value
