"""One arm measured: its classifier from train images, and what that is worth on test images.

Shape suffixes: N images, D features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from patchsieve.ranker.prove.arms import FEWER, FULL, Arm
from patchsieve.ranker.prove.encoders import Encoder
from patchsieve.ranker.prove.photos import LabelledPhotos
from patchsieve.ranker.prove.probe import Penalty, Probe, choose_penalty, fit_probe
from patchsieve.ranker.prove.workbench import Numbers, Workbench

REGIMES = ("full-pruned", "pruned-pruned", "pruned-full")
"""What the classifier was fitted to, and what it is tested on."""

_CHUNK = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Of an image, on average: tokens, bytes of its files in a tar, floating-point operations of the encoder."""

    tokens: float
    nbytes: float
    flops: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What an encoder saw of images: `features` float32 `[N, D]`, and what that cost."""

    features: NDArray[np.float32]
    cost: Cost


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """An arm fitted to the train images."""

    arm: Arm
    numbers: Numbers
    penalty: Penalty
    cost: Cost
    probe: Probe


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ArmResult:
    """An arm on the test images: which ones it gets right by regime, bool `[N]`; `cost`: of the test images."""

    arm: Arm
    numbers: Numbers
    penalty: Penalty
    train_cost: Cost
    test_cost: Cost
    right: Mapping[str, NDArray[np.bool_]]

    def accuracy(self, regime: str) -> float | None:
        """Share of the test images that are right, None for a regime that the arm does not have."""
        return float(self.right[regime].mean()) if regime in self.right else None


class Measurement:
    """Arms on the images of one data set; what the encoder makes of whole images is kept."""

    def __init__(
        self,
        train: LabelledPhotos,
        chosen_on_N: NDArray[np.bool_],
        classes: list[str],
        bench: Workbench,
        encoder: Encoder,
    ) -> None:
        """`chosen_on`: the validation split of the train images, bool `[N]`."""
        self._train, self._chosen_on_N, self._classes = train, chosen_on_N, classes
        self._labels_N = train.labels(classes)
        self._bench, self._encoder = bench, encoder
        self._whole: dict[str, Seen] = {}

    def fit(self, arm: Arm, *, equal: Cost | None = None, whole: Cost | None = None) -> Fitted:
        """Choose the penalty on the validation split, then fit to all train images.

        `equal`: what a control of bytes has to cost, and `whole` what whole images do.
        """
        known = {} if equal is None or whole is None else {"nbytes": equal.nbytes, "whole": whole.nbytes}
        numbers = self._bench.numbers(arm, self._train, **known)
        seen = self.see(arm, self._train, numbers)
        kept_N = np.ones(len(self._train), np.bool_)
        cost = seen.cost
        if arm.way == FEWER:
            kept_N = self._bench.fewer(self._train, numbers)
            share = float(kept_N.mean())
            cost = Cost(tokens=cost.tokens * share, nbytes=cost.nbytes * share, flops=cost.flops * share)
        penalty, near = choose_penalty(
            seen.features,
            self._labels_N,
            fitted_N=kept_N & ~self._chosen_on_N,
            chosen_on_N=self._chosen_on_N,
            classes=len(self._classes),
        )
        probe = fit_probe(
            seen.features[kept_N],
            self._labels_N[kept_N],
            len(self._classes),
            penalty.value,
            start=near,
        )
        return Fitted(arm=arm, numbers=numbers, penalty=penalty, cost=cost, probe=probe)

    def test(self, fitted: Fitted, full: Fitted, test: LabelledPhotos) -> ArmResult:
        """What a fitted arm gets right; `full`: the arm of whole images."""
        labels_N = test.labels(self._classes)
        whole = self.see(full.arm, test, full.numbers)
        seen = self.see(fitted.arm, test, fitted.numbers)
        regimes = {
            "full-pruned": (full.probe, seen),
            "pruned-pruned": (fitted.probe, seen),
            "pruned-full": (fitted.probe, whole),
        }
        # Fewer images are whole ones, in training alone.
        named = ("pruned-full",) if fitted.arm.way == FEWER else REGIMES
        return ArmResult(
            arm=fitted.arm,
            numbers=fitted.numbers,
            penalty=fitted.penalty,
            train_cost=fitted.cost,
            test_cost=seen.cost,
            right={name: regimes[name][0].predict(regimes[name][1].features) == labels_N for name in named},
        )

    def see(self, arm: Arm, photos: LabelledPhotos, numbers: Numbers) -> Seen:
        """Features and costs of an arm's views."""
        if arm.way not in (FULL, FEWER):
            return self._look(arm, photos, numbers)
        if photos.split not in self._whole:
            self._whole[photos.split] = self._look(Arm(FULL, "reference"), photos, {})
        return self._whole[photos.split]

    def _look(self, arm: Arm, photos: LabelledPhotos, numbers: Numbers) -> Seen:
        features, tokens, nbytes, flops = [], 0, 0, 0.0
        for start in range(0, len(photos), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(photos)))
            views = self._bench.views(arm, photos, numbers, rows)
            features.append(self._encoder.features(views))
            for view in views:
                tokens += len(view.patches)
                nbytes += view.nbytes
                flops += self._encoder.flops(len(view.patches))
        cost = Cost(tokens=tokens / len(photos), nbytes=nbytes / len(photos), flops=flops / len(photos))
        return Seen(features=np.concatenate(features), cost=cost)
