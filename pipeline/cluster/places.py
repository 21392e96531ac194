"""GPUs that end one actor after another, and when they are taken out of a run: pure decisions."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection

DEATHS = 3
"""Actors in a row that end by a fault of their device before the place is taken out."""


@dataclasses.dataclass(frozen=True)
class Place:
    """What an actor was given: some GPUs of a node, by their ids, or none. As text a name for people."""

    host: str
    node_id: str
    gpus: tuple[str, ...]

    @property
    def node(self) -> str:
        """Its node, as people are told of it."""
        return f"node {self.host} ({self.node_id[:8]})"

    @property
    def fields(self) -> dict[str, object]:
        """What an event of the log tells of it."""
        return {"node": self.host, "node_id": self.node_id, "gpus": self.gpus}

    def __str__(self) -> str:
        return f"GPU {', '.join(self.gpus)} of {self.node}" if self.gpus else self.node


class Places:
    """What is known of the places of one run. `out`: those taken out, and the fault that ended the last actor there."""

    def __init__(self) -> None:
        self._rows: dict[Place, list[frozenset[int]]] = {}
        self._faults = Counter[Place]()
        self.out: dict[Place, str] = {}

    def faults(self, place: Place) -> int:
        """How many actors its device has ended so far."""
        return self._faults[place]

    def in_doubt(self, place: Place) -> bool:
        """Whether its device ended the last actor there, and none has worked since."""
        return bool(self._rows.get(place))

    def failed(self, place: Place, reason: str, held: Collection[int] = ()) -> tuple[frozenset[int], ...]:
        """A fault of its device ended an actor, which had these shards in hand.

        Returns what the actors of the row had in hand if that takes the place out now, else nothing. One shard that was
        in hand every time may be to blame instead: its attempts will tell.
        """
        row = self._rows.setdefault(place, [])
        row.append(frozenset(held))
        self._faults[place] += 1
        if place in self.out or len(row) < DEATHS or frozenset.intersection(*row):
            return ()
        self.out[place] = reason
        return tuple(row)

    def worked(self, place: Place, faults: int) -> None:
        """An actor finished a shard there that came up when there had been so many faults.

        It ends the row if it came up after the last one of them: where actors share a GPU, that an older one goes on
        working does not tell that a new one could.
        """
        if self.in_doubt(place) and self._faults[place] == faults:
            self._rows[place].clear()
