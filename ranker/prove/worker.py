"""One who fits and tests trials, in this process or in another: all of it is in what it is given and in the records."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from patchsieve.ranker.prove.arms import FULL, Arm, Trial
from patchsieve.ranker.prove.learners import Weights
from patchsieve.ranker.prove.measure import Cost, Fitted, Measurement, Tested
from patchsieve.ranker.prove.parts import Inputs, make_bench, make_learner
from patchsieve.ranker.prove.photos import LabelledPhotos, class_names, validation_split
from patchsieve.ranker.prove.records import Records


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitOrder:
    """A trial to fit. `equal`: what a control of bytes has to cost, and `whole` what whole images do."""

    trial: Trial
    equal: Cost | None = None
    whole: Cost | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TestSet:
    """The images to test on. `contents`: digest of them, which records keep."""

    __test__ = False

    photos: LabelledPhotos
    contents: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """What all workers of a measurement have in common, picklable."""

    inputs: Inputs
    train: LabelledPhotos
    folder: str
    identity: str
    run_id: str

    def records(self) -> Records:
        """The files of the measurement."""
        return Records(self.folder, self.identity, run_id=self.run_id)


class ProveWorker:
    """Fits trials to the train images and tests them, one at a time; what it did is in the records when it returns."""

    def __init__(self, job: Job, device: torch.device) -> None:
        config, train = job.inputs.config, job.train
        self._records = job.records()
        self._measurement = Measurement(
            train,
            validation_split(train, config.validation, config.seed),
            class_names(train),
            make_bench(job.inputs, device),
            make_learner(job.inputs, device),
        )
        self._full: dict[int | None, Weights] = {}

    def fit(self, order: FitOrder) -> tuple[Fitted, float]:
        """Fit one trial; returns it and the seconds that it took."""
        start = time.monotonic()
        fitted, weights = self._measurement.fit(order.trial, equal=order.equal, whole=order.whole)
        self._records.write_fitted(fitted, weights)
        return fitted, time.monotonic() - start

    def test(self, fitted: Fitted, test: TestSet) -> tuple[Tested, float]:
        """Test what was fitted; returns what it gets right and the seconds that took."""
        start = time.monotonic()
        seed = fitted.trial.seed
        if seed not in self._full:
            self._full = {seed: self._records.weights(Trial(Arm(FULL, "reference"), seed))}
        weights = self._records.weights(fitted.trial)
        tested = self._measurement.test(fitted, weights, self._full[seed], test.photos)
        self._records.write_tested(tested, test.contents)
        return tested, time.monotonic() - start


class Crew(Protocol):
    """Who does the work of a measurement. Answers come in any order, each when it is in the records."""

    def fit(self, orders: Sequence[FitOrder]) -> Iterator[tuple[Fitted, float]]:
        """Fit these trials, which do not depend on each other; seconds of each."""
        ...

    def test(self, fitted: Sequence[Fitted], test: TestSet) -> Iterator[tuple[Tested, float]]:
        """Test these trials; seconds of each."""
        ...


class Alone:
    """A crew of one worker in this process."""

    def __init__(self, worker: ProveWorker) -> None:
        self._worker = worker

    def fit(self, orders: Sequence[FitOrder]) -> Iterator[tuple[Fitted, float]]:
        """See `Crew`; in the order given."""
        return map(self._worker.fit, orders)

    def test(self, fitted: Sequence[Fitted], test: TestSet) -> Iterator[tuple[Tested, float]]:
        """See `Crew`; in the order given."""
        return (self._worker.test(one, test) for one in fitted)
