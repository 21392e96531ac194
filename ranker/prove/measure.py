"""One arm measured: what is learned from its train images, and what that is worth on test images.

Shape suffixes: N images, S seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from patchsieve.ranker.prove.arms import FEWER, FULL, Arm, Trial
from patchsieve.ranker.prove.learners import Learner, Seen, Weights
from patchsieve.ranker.prove.photos import LabelledPhotos
from patchsieve.ranker.prove.workbench import Numbers, Workbench

REGIMES = ("full-pruned", "pruned-pruned", "pruned-full")
"""What was learned from, and what it is tested on."""

_CHUNK = 256
_WHOLE = Arm(FULL, "reference")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Of an image, on average: tokens, bytes of its files in a tar, floating-point operations.

    Operations are those of a forward pass, and of train images that are learned by fine-tuning those of all its steps.
    """

    tokens: float
    nbytes: float
    flops: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """What came of a trial's training. `validation`: accuracy on the images to choose on; `penalty`: of a probe."""

    trial: Trial
    numbers: Numbers
    validation: float
    penalty: float | None
    cost: Cost


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tested:
    """A trial on the test images: which ones it gets right by regime, bool `[N]`; `cost`: of the test images."""

    fitted: Fitted
    cost: Cost
    right: Mapping[str, NDArray[np.bool_]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ArmResult:
    """An arm on the test images: which ones it gets right by regime, bool `[S, N]` for S seeds; `validation`: the mean.

    `train_cost` and `test_cost`: of the train and of the test images.
    """

    arm: Arm
    numbers: Numbers
    validation: float
    penalty: float | None
    train_cost: Cost
    test_cost: Cost
    right: Mapping[str, NDArray[np.bool_]]

    @classmethod
    def of(cls, trials: Sequence[Tested]) -> ArmResult:
        """The trials of one arm together, which cost the same."""
        first = trials[0]
        return cls(
            arm=first.fitted.trial.arm,
            numbers=first.fitted.numbers,
            validation=float(np.mean([one.fitted.validation for one in trials])),
            penalty=first.fitted.penalty,
            train_cost=first.fitted.cost,
            test_cost=first.cost,
            right={name: np.stack([one.right[name] for one in trials]) for name in first.right},
        )

    def accuracy(self, regime: str) -> float | None:
        """Share of the test images that are right, None for a regime that the arm does not have."""
        return float(self.right[regime].mean()) if regime in self.right else None


def regimes_of(arm: Arm) -> tuple[str, ...]:
    """What an arm is tested in: fewer images are whole ones, in training alone."""
    return ("pruned-full",) if arm.way == FEWER else REGIMES


class Measurement(Generic[Seen]):
    """Arms on the images of one data set, and one who learns from them; what it sees of whole images is kept."""

    def __init__(
        self,
        train: LabelledPhotos,
        chosen_on_N: NDArray[np.bool_],
        classes: list[str],
        bench: Workbench,
        learner: Learner[Seen],
    ) -> None:
        """`chosen_on`: the validation split of the train images, bool `[N]`."""
        self._train, self._chosen_on_N, self._classes = train, chosen_on_N, classes
        self._labels_N = train.labels(classes)
        self._bench, self._learner = bench, learner
        self._seen: dict[str, tuple[str, Seen, Cost]] = {}

    def fit(
        self, trial: Trial, *, equal: Cost | None = None, whole: Cost | None = None
    ) -> tuple[Fitted, Weights]:
        """Learn the train images, choosing on the validation split.

        `equal`: what a control of bytes has to cost, and `whole` what whole images do.
        """
        known = {} if equal is None or whole is None else {"nbytes": equal.nbytes, "whole": whole.nbytes}
        numbers = self._bench.numbers(trial.arm, self._train, **known)
        seen, cost = self.see(trial.arm, self._train, numbers)
        kept_N = np.ones(len(self._train), np.bool_)
        if trial.arm.way == FEWER:
            kept_N = self._bench.fewer(self._train, numbers)
            share = float(kept_N.mean())
            cost = Cost(tokens=cost.tokens * share, nbytes=cost.nbytes * share, flops=cost.flops * share)
        learned = self._learner.learn(
            seen,
            self._labels_N,
            kept_N=kept_N,
            chosen_on_N=self._chosen_on_N,
            classes=len(self._classes),
            seed=trial.seed,
        )
        if learned.flops is not None:
            cost = dataclasses.replace(cost, flops=learned.flops / len(self._train))
        fitted = Fitted(
            trial=trial,
            numbers=numbers,
            validation=learned.validation,
            penalty=learned.penalty,
            cost=cost,
        )
        return fitted, learned.weights

    def test(self, fitted: Fitted, weights: Weights, full: Weights, test: LabelledPhotos) -> Tested:
        """What a fitted trial gets right; `full`: what whole images taught, with the same seed."""
        arm, count = fitted.trial.arm, len(self._classes)
        labels_N = test.labels(self._classes)
        whole, _ = self.see(_WHOLE, test, {})
        seen, cost = self.see(arm, test, fitted.numbers)
        regimes = {
            "full-pruned": (full, seen),
            "pruned-pruned": (weights, seen),
            "pruned-full": (weights, whole),
        }
        return Tested(
            fitted=fitted,
            cost=cost,
            right={
                name: self._learner.predict(*regimes[name], count) == labels_N for name in regimes_of(arm)
            },
        )

    def see(self, arm: Arm, photos: LabelledPhotos, numbers: Numbers) -> tuple[Seen, Cost]:
        """What the learner sees of an arm's views, and their costs; kept of whole images, and of the last arm."""
        arm = _WHOLE if arm.way == FEWER else arm
        place = f"{photos.split} whole" if arm.way == FULL else "last"
        key = f"{photos.split} {arm.id}"
        if place not in self._seen or self._seen[place][0] != key:
            self._seen.pop(place, None)
            self._seen[place] = (key, *self._look(arm, photos, numbers))
        return self._seen[place][1:]

    def _look(self, arm: Arm, photos: LabelledPhotos, numbers: Numbers) -> tuple[Seen, Cost]:
        parts, tokens, nbytes, flops = [], 0, 0, 0.0
        for start in range(0, len(photos), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(photos)))
            views = self._bench.views(arm, photos, numbers, rows)
            parts.append(self._learner.see(views))
            for view in views:
                tokens += len(view.patches)
                nbytes += view.nbytes
                flops += self._learner.flops(len(view.patches))
        cost = Cost(tokens=tokens / len(photos), nbytes=nbytes / len(photos), flops=flops / len(photos))
        return self._learner.joined(parts), cost
