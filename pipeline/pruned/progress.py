"""How far the reading of a dataset is, exact to the sample, whoever read what: what a checkpoint keeps of it.

A sample has a place: the number that it was given out as in its shard. Which places have arrived is all that has to be
known to go on with any number of workers and ranks; who gave out the last one, to go on in the same order with as many.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from patchsieve.pipeline.errors import UserError

T = TypeVar("T")
STATE_VERSION = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Sample `number` of a shard, from 0 on; `total`: samples of the shard, with its last one alone, else 0.

    It was given out by `worker` of `workers` of `rank` of `ranks`.
    """

    shard: str
    number: int
    total: int
    reader: Reader


@dataclasses.dataclass(frozen=True, slots=True)
class Reader:
    """Who reads: worker `worker` of `workers` in the loader of rank `rank` of `ranks`."""

    rank: int = 0
    ranks: int = 1
    worker: int = 0
    workers: int = 1

    @property
    def topology(self) -> tuple[int, int]:
        """How many ranks, and workers of each."""
        return self.ranks, self.workers


class WithPlaces(Generic[T]):
    """A collate that gives, beside what another one makes of the samples, their places: for `PrunedDataset.advance`."""

    def __init__(self, collate: Callable[[list[Any]], T]) -> None:
        self._collate = collate

    def __call__(self, samples: Sequence[Any]) -> tuple[T, list[Place]]:
        """(what the collate makes, places)."""
        return self._collate(list(samples)), [sample.place for sample in samples]


class Progress:
    """Which samples of one epoch have arrived. `last`: who gave out the newest; None in what was merged."""

    def __init__(self, epoch: int = 0) -> None:
        self.epoch = epoch
        self.last: Reader | None = None
        # By shard: where the runs of arrived samples begin and end, in order, [begin, end, begin, end, ...].
        self._runs: dict[str, list[int]] = {}
        self._totals: dict[str, int] = {}
        # Shards that were finished when the others were dealt out to workers last.
        self._without: frozenset[str] = frozenset()
        # Those that were when states were merged, None where none were: all ranks deal the others out among them, and
        # none knows what another one has finished since.
        self._finished_before: frozenset[str] | None = None

    def add(self, place: Place) -> None:
        """A sample has arrived; twice is once."""
        self._without = self.without_for(place.reader)
        runs = self._runs.setdefault(place.shard, [])
        _add(runs, place.number, place.number + 1)
        if place.total:
            self._totals[place.shard] = place.total
        self.last = place.reader

    def keep_workers(self) -> None:
        """Have every worker stand where it stood: its loader knows itself whose batch is next."""
        if self.last is not None:
            self.last = dataclasses.replace(self.last, worker=self.last.workers - 1)

    def has(self, shard: str, number: int) -> bool:
        """Whether a sample has arrived."""
        return bisect.bisect_right(self._runs.get(shard, []), number) % 2 == 1

    def finished(self, shard: str) -> bool:
        """Whether all samples of a shard have arrived."""
        return shard in self._totals and self._runs.get(shard) == [0, self._totals[shard]]

    def without_for(self, reader: Reader) -> frozenset[str]:
        """Shards that were finished when those that such a reader reads were dealt out."""
        if self.last is not None and self.last.topology == reader.topology:
            return self._without
        return frozenset(filter(self.finished, self._totals))

    def state(self) -> dict[str, Any]:
        """Plain values, fit for a checkpoint."""
        return {
            "version": STATE_VERSION,
            "epoch": self.epoch,
            "arrived": {shard: list(runs) for shard, runs in self._runs.items()},
            "totals": dict(self._totals),
            "without": sorted(self._without),
            "last": None if self.last is None else dataclasses.astuple(self.last),
            "merged": None if self._finished_before is None else sorted(self._finished_before),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        """What `state` gave; UserError for anything else."""
        try:
            if state["version"] != STATE_VERSION:
                raise ValueError(f"version {state['version']}")
            made = cls(int(state["epoch"]))
            made._runs = {str(shard): list(map(int, runs)) for shard, runs in state["arrived"].items()}
            made._totals = {str(shard): int(total) for shard, total in state["totals"].items()}
            made._without = frozenset(map(str, state["without"]))
            made.last = None if state["last"] is None else Reader(*map(int, state["last"]))
            before = state["merged"]
            made._finished_before = None if before is None else frozenset(map(str, before))
            made._check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"this is no state of a PrunedDataset: {type(error).__name__}: {error}") from None
        return made

    def _check(self) -> None:
        """Raise ValueError for what no reading comes to: samples would be left out without a word."""
        if not 0 <= self.epoch < 2**63:
            raise ValueError(f"epoch {self.epoch}")
        for shard, runs in self._runs.items():
            if len(runs) % 2 or any(one >= other for one, other in itertools.pairwise([-1, *runs])):
                raise ValueError(f"samples {runs[:4]} of {shard} have arrived")
        left_out = self._without | (self._finished_before or frozenset())
        if strange := [shard for shard in left_out if not self.finished(shard)]:
            raise ValueError(f"{min(strange)} is left out and not finished")
        if (last := self.last) and not (0 <= last.rank < last.ranks and 0 <= last.worker < last.workers):
            raise ValueError(f"read by {dataclasses.astuple(last)}")

    def of_rank(self, reader: Reader, shards: Sequence[T], name: Callable[[T], str]) -> Sequence[T]:
        """The shards that all workers of the reader's rank read, from the beginning of the epoch, or the merging."""
        before = self._finished_before or frozenset()
        return [shard for shard in shards if name(shard) not in before][reader.rank :: reader.ranks]

    @property
    def shards(self) -> set[str]:
        """Names of all shards that it knows anything of."""
        return {*self._runs, *self._totals}


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The states of all ranks as one, which every rank takes, of whatever number. Raises UserError."""
    found = [Progress.from_state(state) for state in states]
    epochs = {progress.epoch for progress in found}
    if len(epochs) != 1:
        raise UserError(
            f"states of the epochs {sorted(epochs)}: merge those of one moment, of at least one rank"
        )
    whole = Progress(epochs.pop())
    for progress in found:
        whole._totals |= progress._totals
        for shard, runs in progress._runs.items():
            for begin, end in zip(runs[::2], runs[1::2], strict=True):
                _add(whole._runs.setdefault(shard, []), begin, end)
    whole._finished_before = frozenset(filter(whole.finished, whole._totals))
    return whole.state()


def _add(runs: list[int], begin: int, end: int) -> None:
    """Add [begin, end) to runs, which stay in order and apart."""
    first, last = bisect.bisect_left(runs, begin), bisect.bisect_right(runs, end)
    # A bound that falls into a run, or touches it, is that run's.
    runs[first:last] = ([] if first % 2 else [begin]) + ([] if last % 2 else [end])


def shares(reader: Reader, shards: Sequence[T], progress: Progress, name: Callable[[T], str]) -> list[T]:
    """The shards that a reader reads, in order; those that are finished are left out.

    Resumed with as many ranks and workers as before, shards stay where they were, and the workers' numbers are turned
    so that the batch that comes first is the one that would have come next. With others, what is not finished is dealt
    out anew. Raises UserError for the state of one rank of several where their number, or its own, has changed.
    """
    last = progress.last
    if last is not None and last.ranks > 1 and (last.rank, last.ranks) != (reader.rank, reader.ranks):
        raise UserError(
            f"this is the state of rank {last.rank} of {last.ranks}, and rank {reader.rank} of {reader.ranks} reads: "
            "merge the states of all ranks (merge_states)"
        )
    without = progress.without_for(reader)
    own = [shard for shard in progress.of_rank(reader, shards, name) if name(shard) not in without]
    own = own[turned(reader, progress).worker :: reader.workers]
    return [shard for shard in own if not progress.finished(name(shard))]


def turned(reader: Reader, progress: Progress) -> Reader:
    """The reader that stands in a loader's order where this one did before: see `shares`."""
    last = progress.last
    if last is None or last.topology != reader.topology:
        return reader
    return dataclasses.replace(reader, worker=(reader.worker + last.worker + 1) % reader.workers)
