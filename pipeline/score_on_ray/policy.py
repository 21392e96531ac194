"""Which shard goes to which actor, how often it is tried, and who is to blame: pure decisions.

No clock, no Ray, no I/O: the caller says what happened and what time it is. The rules:

- Large shards first, so that the last ones to finish are small.
- An actor holds two shards: one is scored while the next is read and the one before commits. Of small shards it
  holds as many more as it scores in `AHEAD_S`, or committing them would take longer than scoring them.
  Towards the end an actor gets no second shard while another actor could take it at once.
- An error or the death of its own actor counts as an attempt of the shard; `max_attempts` of them fail it.
- When an actor dies with several shards in hand, nobody knows which one killed it: all become *suspects*
  and are tried alone on an actor, at no attempt; a death with one shard in hand is that shard's doing.
- Where a fault of the device ended it, the device may be to blame as well: suspects are tried at places that are not
  in doubt while there are any, and what a place that is taken out in the end (see `Places`) cost its shards is taken
  back.
- A lost node is nobody's fault; `max_losses` ends a shard that loses its node again and again.
- An actor whose node is drained gets no more shards. What waits behind its first shard goes back at once; the first
  may be finished if there is time for it (`may_finish`), or goes back too when the actor is retired.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum

from patchsieve.pipeline.cluster.places import Place, Places

SLOTS = 2
MOST_SLOTS = 8
"""Shards that an actor may hold, and how many small ones."""
AHEAD_S = 2.0
"""Seconds of work that an actor should hold; committing a table takes less, on object stores too."""

NOWHERE = Place("", "", ())

GIVE_BACK_S = 15.0
"""Seconds before the end of a drained node at which its actors are let go, whatever they are doing."""


def may_finish(*, seconds_left: float | None, left_bytes: int, bytes_per_s: float) -> bool:
    """Whether an actor on a drained node should go on with its shard: it must be done in time.

    `seconds_left`: until the node ends, None where nobody knows; `bytes_per_s`: the actor's speed so far, 0 if unknown.
    """
    if seconds_left is None:
        return True
    seconds = seconds_left - GIVE_BACK_S
    return seconds > 0 and (bytes_per_s <= 0 or left_bytes <= bytes_per_s * seconds)


class Gone(Enum):
    """Why an actor is no more."""

    DIED = "its actor died"
    """The process ended by itself, or the watchdog ended it: a shard in hand is to blame."""
    BROKE = "its device failed"
    """A fault of its GPU or the driver ended the process: a shard in hand is to blame, or the device."""
    LOST = "its node was lost"
    """Node failure or pre-emption: no shard is to blame."""
    RETIRED = "its actor was retired"
    """Stopped on purpose, or its node is drained; shards in hand go back at no cost."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a shard was given up, after how many attempts."""

    attempts: int
    reason: str


@dataclasses.dataclass
class _Shard:
    attempts: int = 0
    losses: int = 0
    suspect: bool = False


@dataclasses.dataclass(frozen=True)
class _Home:
    """Where an actor is, and how many faults of devices there had been there when it came up."""

    place: Place
    faults: int


class QueuePolicy:
    """The state of one run's shards, which are named by their index in `sizes`.

    `sizes`: bytes of each shard, 0 where unknown. `retry_wait_s`: seconds before the second attempt of a shard, doubled
    before each later one.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        max_attempts: int = 3,
        max_losses: int = 10,
        retry_wait_s: float = 1.0,
    ) -> None:
        self._sizes = sizes
        self._max_attempts = max_attempts
        self._max_losses = max_losses
        self._retry_wait_s = retry_wait_s
        self._ready = [(-size, index) for index, size in enumerate(sizes)]
        heapq.heapify(self._ready)
        self._later: list[tuple[float, int]] = []
        self._suspects: deque[int] = deque()
        self._seen: dict[int, _Shard] = {}
        self._holding: dict[str, list[int]] = {}
        self._free_actors: set[str] = set()
        self._draining: set[str] = set()
        self._homes: dict[str, _Home] = {}
        self.places = Places()
        self.failures: dict[int, Failure] = {}
        self.finished = 0

    @property
    def waiting(self) -> int:
        """Shards that no actor holds and that are not ended."""
        return len(self._ready) + len(self._later) + len(self._suspects)

    @property
    def held(self) -> int:
        """Shards that some actor holds."""
        return sum(map(len, self._holding.values()))

    @property
    def ended(self) -> bool:
        """Whether every shard is finished or failed."""
        return self.finished + len(self.failures) == len(self._sizes)

    def holding(self, actor: str) -> tuple[int, ...]:
        """Shards that an actor holds, oldest first."""
        return tuple(self._holding[actor])

    def attempts(self, shard: int) -> int:
        """Attempts of a shard that count so far."""
        return self._seen[shard].attempts if shard in self._seen else 0

    def add_actor(self, actor: str, place: Place = NOWHERE) -> None:
        """An actor is ready to work at a place, which needs to be told where devices may fail."""
        assert actor not in self._holding
        self._holding[actor] = []
        self._homes[actor] = _Home(place, self.places.faults(place))
        self._free_actors.add(actor)

    def assign(self, actor: str, now: float, *, bytes_per_s: float = 0.0) -> int | None:
        """The next shard for this actor, which then holds it; None when it should get none now.

        `bytes_per_s`: of shards, which the actor's teacher gets through; 0 where that is not known yet.
        """
        held = self._holding[actor]
        if actor in self._draining:
            return None
        while self._later and self._later[0][0] <= now:
            self._push(heapq.heappop(self._later)[1])
        if self._has_enough(held, bytes_per_s) or any(self._is_suspect(shard) for shard in held):
            return None
        if self._suspects and not held and self._takes_suspects(actor):
            return self._give(actor, self._suspects.popleft())
        # A shard that waits behind another on this actor could be scored by a free one right away.
        others_free = len(self._free_actors - {actor}) if held else 0
        if len(self._ready) <= others_free:
            return None
        return self._give(actor, heapq.heappop(self._ready)[1])

    def finish(self, actor: str, shard: int) -> None:
        """The shard is committed."""
        self._drop(actor, shard)
        self._seen.pop(shard, None)
        self.finished += 1
        home = self._homes[actor]
        self.places.worked(home.place, home.faults)

    def give_up(self, actor: str, shard: int, reason: str) -> None:
        """The shard has failed for good: its content gives no table, nor would it next time."""
        self._drop(actor, shard)
        self._seen[shard].attempts += 1
        self._fail(shard, reason)

    def fail(self, actor: str, shard: int, reason: str, now: float) -> None:
        """An attempt ended in an error and the actor lives on."""
        self._drop(actor, shard)
        self._count_attempt(shard, reason, now)

    def drain(self, actor: str) -> tuple[int, ...]:
        """The actor's node will end: it gets no more shards; returns those that went back, all but its first."""
        self._draining.add(actor)
        self._free_actors.discard(actor)
        back = self.holding(actor)[1:]
        for shard in back:
            self._holding[actor].remove(shard)
            self._push(shard)
        return back

    def actor_gone(self, actor: str, why: Gone, now: float, reason: str = "") -> None:
        """An actor is no more; what it held is tried again, alone, or failed."""
        held = self._holding.pop(actor)
        place = self._homes.pop(actor).place
        self._draining.discard(actor)
        self._free_actors.discard(actor)
        for shard in held:
            state = self._seen[shard]
            if why is Gone.RETIRED:
                self._push(shard)
            elif why is Gone.LOST:
                state.losses += 1
                if state.losses >= self._max_losses:
                    self._fail(shard, f"{why.value} {state.losses} times")
                else:
                    self._push(shard)
            elif len(held) == 1:
                state.suspect = True
                self._count_attempt(shard, reason or why.value, now)
            else:
                state.suspect = True
                self._push(shard)
        if why is Gone.BROKE:
            self._blame(place, reason or why.value, held)

    def start_failed(self, place: Place, reason: str) -> None:
        """A place ended an actor before it was ready."""
        self._blame(place, reason, ())

    def next_time(self) -> float | None:
        """When the next shard that waits for its retry becomes ready; None when none waits."""
        return self._later[0][0] if self._later else None

    def unfinished(self) -> Iterable[int]:
        """Shards neither finished nor failed, in no particular order."""
        waiting = [index for _, index in self._ready] + [index for _, index in self._later]
        return [*waiting, *self._suspects, *(shard for held in self._holding.values() for shard in held)]

    def _blame(self, place: Place, reason: str, held: Sequence[int]) -> None:
        row = self.places.failed(place, reason, held)
        for shard in frozenset().union(*row):
            if shard not in self._seen:
                continue  # finished or failed meanwhile
            self._seen[shard].attempts -= sum(held == {shard} for held in row)
            self._seen[shard].suspect = False
            if shard in self._suspects:
                self._suspects.remove(shard)
                self._push(shard)

    def _takes_suspects(self, actor: str) -> bool:
        """Whether a suspect that ends this actor would tell of itself, as far as that can be had now."""
        if not self.places.in_doubt(self._homes[actor].place):
            return True
        staying = {home.place for name, home in self._homes.items() if name not in self._draining}
        return all(map(self.places.in_doubt, staying))

    def _has_enough(self, held: Sequence[int], bytes_per_s: float) -> bool:
        if len(held) < SLOTS:
            return False
        sizes = [self._sizes[shard] for shard in held]
        return len(held) >= MOST_SLOTS or min(sizes) == 0 or sum(sizes) >= bytes_per_s * AHEAD_S

    def _is_suspect(self, shard: int) -> bool:
        return shard in self._seen and self._seen[shard].suspect

    def _give(self, actor: str, shard: int) -> int:
        self._seen.setdefault(shard, _Shard())
        self._holding[actor].append(shard)
        self._free_actors.discard(actor)
        return shard

    def _drop(self, actor: str, shard: int) -> None:
        self._holding[actor].remove(shard)
        if not self._holding[actor] and actor not in self._draining:
            self._free_actors.add(actor)

    def _push(self, shard: int) -> None:
        if self._is_suspect(shard):
            self._suspects.append(shard)
        else:
            heapq.heappush(self._ready, (-self._sizes[shard], shard))

    def _count_attempt(self, shard: int, reason: str, now: float) -> None:
        state = self._seen[shard]
        state.attempts += 1
        if state.attempts >= self._max_attempts:
            self._fail(shard, reason)
        else:
            wait = self._retry_wait_s * 2 ** (state.attempts - 1)
            heapq.heappush(self._later, (now + wait, shard))

    def _fail(self, shard: int, reason: str) -> None:
        self.failures[shard] = Failure(attempts=self._seen.pop(shard).attempts, reason=reason)
