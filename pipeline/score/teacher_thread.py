"""The one thread that gives a teacher its batches, one ahead, and what it was given them late for."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.compute.launch import Launched, Stamp
from patchsieve.pipeline.scoring.scorer import Scorer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of a batch, float32 `[N, V]`; seconds in which the teacher had nothing to do before, and worked on it."""

    scores: NDArray[np.float32]
    waited_s: float
    worked_s: float


class TeacherThread:
    """Gives batches to a scorer in the order in which they come.

    One thread for good: memory and helpers that a thread brings along would be made anew in every other one.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="teacher")
        self._free = Stamp(scorer.device)

    def submit(self, pixels_NLP: Tensor, visible_NV: Tensor, starts_NV: Tensor | None) -> Submitted:
        """Queue a batch (see `Scorer.launch`); a GPU gets it while it is still at the one before."""
        return Submitted(self._thread.submit(self._launch, pixels_NLP, visible_NV, starts_NV))

    def _launch(self, *batch: Tensor | None) -> tuple[Stamp, Launched]:
        before = self._free
        try:
            launched = self._scorer.launch(*batch)  # type: ignore[arg-type]
        except BaseException:
            # What broke down was work.
            self._free = Stamp(self._scorer.device)
            raise
        self._free = launched.ended
        return before, launched


class Submitted:
    """A batch that the teacher has or will have."""

    def __init__(self, launch: Future[tuple[Stamp, Launched]]) -> None:
        self._launch = launch

    def result(self) -> Scored:
        """Its scores, as soon as they are there; what the scorer raised."""
        free, launched = self._launch.result()
        scores = launched.result().numpy()
        return Scored(
            scores=scores,
            waited_s=free.seconds_until(launched.began),
            worked_s=launched.began.seconds_until(launched.ended),
        )
