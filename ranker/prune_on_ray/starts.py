"""Workers of a prune run that end with their process or their GPU, counted where the next one can ask.

Ray Data starts a worker again whose process ended, and Ray gives it the GPU that has become free: the same one. So a
worker on a GPU that is taken out never comes up: it holds the GPU, and Ray Data gives its shards to others.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Literal

from patchsieve.pipeline.cluster.places import Place, Places

MOST_DEATHS = 3
"""Of workers while they start, one after the other: then no more are tried."""

PATIENCE_S = 120.0
"""For how long one on a GPU that is taken out waits for the other workers of its wave to come up."""


@dataclasses.dataclass(frozen=True)
class Leave:
    """What a worker that comes up may do: `start`, `hold` its GPU and no more, `pass` its shards on to the next wave,
    which reaches other GPUs, or say `why` nobody can work.
    """

    to: Literal["start", "hold", "pass", "complain"]
    why: str = ""


class Starts:
    """An actor that workers tell how they fare; each is named by its id, and keeps that when it is started again."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """`now`: seconds."""
        self._now = now
        self._places = Places()
        self._starting: dict[str, Place] = {}
        self._ready: dict[str, tuple[Place, int]] = {}
        self._deaths = 0
        self.begin_wave(workers=0, places=0)
        self.reasons: dict[int, str] = {}

    def begin_wave(self, *, workers: int, places: int) -> None:
        """The workers that there were are no more. `workers`: asked for now; `places`: of the cluster's GPUs."""
        self._starting.clear()
        self._ready.clear()
        self._begun: set[str] = set()
        self._workers, self._devices = workers, places
        self._patience = self._now() + PATIENCE_S

    def begin(self, worker: str, place: Place) -> Leave:
        """A worker begins to start; one that was starting before has died of it."""
        self._begun.add(worker)
        self._ready.pop(worker, None)
        before = self._starting.pop(worker, None)
        if before is not None and before.gpus:
            self._places.failed(before, "its process died while it started")
        elif before is not None:
            self._deaths += 1
        if place in self._places.out:
            return self.hold()
        if self._deaths >= MOST_DEATHS:
            told = f"its process died {self._deaths} times while it started (a crash, or out of memory)"
            return Leave("complain", told)
        self._starting[worker] = place
        return Leave("start")

    def hold(self) -> Leave:
        """What a worker does whose GPU is taken out. It holds that while another one is at work, or may be soon."""
        to_come = len(self._begun) < self._workers and self._now() < self._patience
        if self._starting or self._ready or to_come:
            return Leave("hold")
        out = self._places.out
        told = "; ".join(f"{place}: {reason}" for place, reason in out.items())
        if len(out) < self._devices:
            return Leave("pass", f"every worker came up on a device that is taken out: {told}")
        return Leave("complain", f"no device is left to work on: {told}")

    def end(self, worker: str) -> None:
        """A worker has started."""
        place = self._starting.pop(worker)
        self._ready[worker] = place, self._places.faults(place)
        self._deaths = 0

    def worked(self, worker: str) -> None:
        """A worker came to the end of a shard."""
        self._places.worked(*self._ready[worker])

    def failed(self, worker: str, place: Place, reason: str, index: int | None = None) -> None:
        """A fault of its device ends a worker, which has the shard of this index in hand, or none yet."""
        self._starting.pop(worker, None)
        self._ready.pop(worker, None)
        self._places.failed(place, reason, () if index is None else (index,))
        if index is not None:
            self.reasons[index] = reason

    def stalled(self, index: int, reason: str) -> None:
        """A worker ends itself over the shard of this index."""
        self.reasons[index] = reason

    def told(self) -> tuple[dict[Place, str], dict[int, str]]:
        """The places taken out and how they failed; why shards have to be tried again that ended a worker."""
        return self._places.out, self.reasons
