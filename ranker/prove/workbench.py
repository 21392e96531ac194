"""From an arm to what it leaves of images: its numbers, found on train images alone, its keep masks, its views.

Shape suffixes: N images, L patches of an image, P values of a patch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.ranker.baselines.baselines import BaselineSources, make_baseline
from patchsieve.ranker.learning.agreement import Scores
from patchsieve.ranker.prove.arms import FEWER, FULL, JPEG, QUADTREE, RESIZE, SCORED, THUMBNAIL, Arm
from patchsieve.ranker.prove.photos import LabelledPhotos
from patchsieve.ranker.prove.quadtree import quadtree
from patchsieve.ranker.prove.views import (
    Canvas,
    View,
    jpeg_view,
    kept_view,
    quadtree_view,
    resized_view,
    whole_view,
)
from patchsieve.ranker.select import regions, selection
from patchsieve.ranker.select.budget import find_budget
from patchsieve.ranker.select.patch_scorer import PatchScorer
from patchsieve.ranker.select.selection import Mask, keep_count
from patchsieve.ranker.select.selector import Amount, Selector

Numbers = dict[str, float]
"""What an arm needs to know beside its ratio, by name."""

_RANKER = "ranker"
_HALVINGS = 20
_SAMPLE = 512
"""Images that the JPEG quality is found on."""


class Workbench:
    """Makes the views of every arm; scores of images are made once for each split."""

    def __init__(self, canvas: Canvas, scorer: PatchScorer, sources: BaselineSources) -> None:
        self.canvas = canvas
        self._scorer, self._sources = scorer, sources
        self._scores: dict[tuple[str, str], Scores] = {}
        self._masks: dict[tuple[str, str], Mask] = {}

    @property
    def positions(self) -> int:
        """Patches of an image, L."""
        return self.canvas.grid**2

    def scores(self, name: str, photos: LabelledPhotos) -> Scores:
        """Scores of all patches by the ranker or a baseline, float32 `[N, L]`."""
        key = (name, photos.split)
        if key not in self._scores:
            self._scores[key] = self._score(name, photos)
        return self._scores[key]

    def _score(self, name: str, photos: LabelledPhotos) -> Scores:
        if name != _RANKER:
            baseline = make_baseline(name, self._sources)
            # One after the other: a teacher's attention is read by a hook, which other threads would call too.
            return np.stack([baseline(*image) for image in zip(photos.patches, photos.keys, strict=True)])
        size = self._scorer.batch_size
        parts = [
            self._scorer.score(list(photos.patches[start : start + size]), photos.keys[start : start + size])
            for start in range(0, len(photos), size)
        ]
        return np.concatenate(parts)

    def numbers(
        self, arm: Arm, train: LabelledPhotos, *, nbytes: float = math.nan, whole: float = math.nan
    ) -> Numbers:
        """What of an arm is found on the train images.

        `nbytes`: of an image, on average, that a control of bytes is to come down to; `whole`: of a whole one.
        """
        fine = _ratio(arm) - self._coarse(arm) / self.positions
        if arm.way == "nucleus":
            return {"mass": self._nucleus_mass(train, fine)}
        if arm.way == "budget":
            masses_NL = selection.log_masses(self.scores(_RANKER, train), self._temperature)
            return {"threshold": find_budget(lambda: [masses_NL], fine).threshold}
        if arm.way == JPEG:
            return {"quality": self._jpeg_quality(arm, train, nbytes)}
        if arm.way == FEWER:
            return {"images": max(2, min(len(train), round(len(train) * nbytes / whole)))}
        return {}

    def masks(self, arm: Arm, photos: LabelledPhotos, numbers: Mapping[str, float]) -> Mask:
        """The patches that a selector or a scored control keeps, bool `[N, L]`."""
        if arm.role == "control":
            count = keep_count(self.positions, _ratio(arm)) - self._coarse(arm)
            return selection.topk(self.scores(SCORED[arm.way], photos), count)
        selector = dataclasses.replace(self._selector(arm), **_found(numbers))
        return selector.masks(self.scores(_RANKER, photos), list(photos.patches), photos.keys)

    def _selector(self, arm: Arm) -> Selector:
        """The selector of an arm with its defaults; nucleus still lacks its mass, a budget its threshold."""
        amounts: dict[str, Amount] = {"nucleus": "mass", "budget": "budget"}
        amount = amounts.get(arm.way, "count")
        selector = Selector(
            way=arm.way,
            amount=amount,
            positions=self.positions,
            temperature=None if amount == "count" else self._temperature,
            floor=None if amount == "count" else 1,
            windows=1 if arm.way == "window" else None,
            compactness=regions.DEFAULT_COMPACTNESS if arm.way == "region" else None,
            rule="ours" if arm.way == "cluster" else None,
            coarse=self._coarse(arm) or None,
        )
        return selector.at(_ratio(arm))

    def _coarse(self, arm: Arm) -> int:
        """Tokens of an arm's thumbnail."""
        return (arm.background // self.canvas.patch_size) ** 2

    def fewer(self, photos: LabelledPhotos, numbers: Mapping[str, float]) -> NDArray[np.bool_]:
        """The images that remain of fewer ones, bool `[N]`, drawn at random."""
        order = KeyedRandom(self._sources.seed, "", "prove fewer").permutation(len(photos))
        keep_N = np.zeros(len(photos), np.bool_)
        keep_N[order[: int(numbers["images"])]] = True
        return keep_N

    def views(
        self, arm: Arm, photos: LabelledPhotos, numbers: Mapping[str, float], rows: Sequence[int]
    ) -> list[View]:
        """What the arm leaves of some of the images."""
        with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="views") as pool:
            return list(pool.map(self._maker(arm, photos, numbers), rows))

    def _maker(self, arm: Arm, photos: LabelledPhotos, numbers: Mapping[str, float]) -> Callable[[int], View]:
        canvas, patches = self.canvas, photos.patches
        if arm.way == FULL:
            return lambda row: whole_view(patches[row], canvas)
        if arm.way == JPEG:
            return lambda row: jpeg_view(patches[row], int(numbers["quality"]), canvas)
        if arm.way == THUMBNAIL:
            return lambda row: resized_view(patches[row], arm.background // canvas.patch_size, canvas)
        count = keep_count(self.positions, _ratio(arm))
        if arm.way == RESIZE:
            side = max(1, round(math.sqrt(count)))
            return lambda row: resized_view(patches[row], side, canvas)
        if arm.way == QUADTREE:
            return lambda row: _quadtree(patches[row], count, canvas)
        keep_NL = self._kept(arm, photos, numbers)
        return lambda row: kept_view(patches[row], keep_NL[row], canvas, background=arm.background)

    def _kept(self, arm: Arm, photos: LabelledPhotos, numbers: Mapping[str, float]) -> Mask:
        key = (arm.id, photos.split)
        if key not in self._masks:
            self._masks[key] = self.masks(arm, photos, numbers)
        return self._masks[key]

    @property
    def _temperature(self) -> float:
        temperature = self._scorer.source.temperature
        assert temperature is not None, "a ranker has one"
        return temperature

    def _nucleus_mass(self, train: LabelledPhotos, keep: float) -> float:
        """The share of the softmax at which the mean count is that of the keep ratio, by halving."""
        scores_NL = self.scores(_RANKER, train)
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            kept = selection.nucleus(scores_NL, middle, temperature=self._temperature).mean()
            low, high = (middle, high) if kept < keep else (low, middle)
        return high

    def _jpeg_quality(self, arm: Arm, train: LabelledPhotos, nbytes: float) -> float:
        """The quality at which a JPEG comes nearest to these bytes, on the mean of a sample."""
        rows = _spread(len(train))

        def mean(quality: int) -> float:
            views = self.views(arm, train, {"quality": quality}, rows)
            return float(np.mean([view.nbytes for view in views]))

        low, high = 1, 100
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if mean(middle) <= nbytes else (low, middle)
        return min(low, high, key=lambda quality: abs(mean(quality) - nbytes))


def _ratio(arm: Arm) -> float:
    return 1.0 if arm.keep is None else arm.keep


def _found(numbers: Mapping[str, float]) -> dict[str, Any]:
    """What of a selector was found on train images."""
    return {name: numbers[name] for name in ("mass", "threshold") if name in numbers}


def _quadtree(patches_LP: Tensor, count: int, canvas: Canvas) -> View:
    blocks = quadtree(patches_LP.numpy(), canvas.grid, count)
    return quadtree_view(patches_LP, blocks, canvas)


def _spread(count: int) -> list[int]:
    """Up to `_SAMPLE` places among so many, evenly."""
    places: list[int] = np.linspace(0, count - 1, min(count, _SAMPLE)).round().astype(int).tolist()
    return places
