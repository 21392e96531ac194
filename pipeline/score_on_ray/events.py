"""What happens in a score run, told to whoever watches it: as metrics, as lines of the log, and summed up.

The sums are over all of a run's actors, of those that are gone too.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Collection, Sequence

from patchsieve.pipeline.cluster.metrics import RunMetrics
from patchsieve.pipeline.cluster.places import Place
from patchsieve.pipeline.runs.log import log_event
from patchsieve.pipeline.runs.progress import Totals
from patchsieve.pipeline.score.messages import Progress, ShardResult
from patchsieve.pipeline.score_on_ray.policy import Failure, Gone, QueuePolicy
from patchsieve.pipeline.score_on_ray.pool import PooledActor
from patchsieve.pipeline.shards.specs import Shard

OUTCOMES = {Gone.DIED: "died", Gone.BROKE: "died", Gone.LOST: "lost", Gone.RETIRED: "given back"}
"""Attempts that ended with their actor; others are `done` and `failed`, which end a shard, and `error`."""


class QueueEvents:
    """Tells of one run; what it knows of shards is their names."""

    def __init__(self, run_id: str) -> None:
        self._metrics = RunMetrics("score", run_id)
        self._last: tuple[int, ...] = ()

    def actor_ready(self, actor: PooledActor, batch_size: int) -> None:
        """An actor takes shards from now on; `batch_size` in views."""
        self._metrics.set("patchsieve_batch_size", batch_size, host=actor.node, actor=actor.name)
        fields = {"device": actor.device, "batch_size": batch_size}
        log_event("actor ready", {**_where(actor), **fields})

    def progressed(self, actor: PooledActor, now: Progress) -> None:
        """An actor tells new totals; `actor` still has those of before."""
        before = actor.progress
        for name, value in {
            "images": now.images - before.images,
            "views": now.views - before.views,
            "read_bytes": now.bytes_read - before.bytes_read,
            "worked_seconds": now.teacher_s - before.teacher_s,
            "waited_seconds": now.waited_s - before.waited_s,
        }.items():
            self._metrics.count(f"patchsieve_{name}", value, host=actor.node)
        if now.gpu_bytes:
            labels = {"host": actor.node, "actor": actor.name}
            self._metrics.set("patchsieve_gpu_memory_bytes", now.gpu_bytes, **labels)

    def shard_ended(self, shard: Shard, actor: PooledActor, result: ShardResult) -> None:
        """An actor came to the end of a shard, with a table or, for good, without."""
        self._metrics.errors(result.faults)
        if result.failed is None:
            self._metrics.count("patchsieve_shards", 1, outcome="done")
            self._metrics.observe("patchsieve_shard_seconds", result.seconds, host=actor.node)
            times = {"seconds": round(result.seconds, 3), "waited_s": round(result.waited_s, 3)}
            counts = {"images": result.images, "rows": result.rows, "faults": result.faults}
            log_event("shard done", {"shard": shard.name, **_where(actor), **times, **counts})

    def attempt_failed(self, shard: Shard, actor: PooledActor, reason: str) -> None:
        """A shard gave an error; it may be tried again."""
        self._metrics.count("patchsieve_shards", 1, outcome="error")
        fields = {"shard": shard.name, **_where(actor), "reason": reason}
        log_event("attempt failed", fields, level=logging.WARNING)

    def shard_failed(self, shard: Shard, failure: Failure) -> None:
        """A shard was given up."""
        self._metrics.count("patchsieve_shards", 1, outcome="failed")
        fields = {"shard": shard.name, "attempts": failure.attempts, "reason": failure.reason}
        log_event("shard failed", fields, level=logging.ERROR)

    def node_draining(self, actor: PooledActor, seconds_left: float | None) -> None:
        """An actor's node will end."""
        left = None if seconds_left is None else round(seconds_left, 1)
        log_event("node draining", {**_where(actor), "seconds_left": left}, level=logging.WARNING)

    def given_back(self, shard: Shard, actor: PooledActor) -> None:
        """A shard that an actor had not begun goes back, because its node will end."""
        self._metrics.count("patchsieve_shards", 1, outcome=OUTCOMES[Gone.RETIRED])
        log_event("shard given back", {"shard": shard.name, **_where(actor)})

    def actor_gone(self, actor: PooledActor, why: Gone, reason: str, held: Collection[Shard]) -> None:
        """An actor is no more; the shards that it held are tried again."""
        self._metrics.count("patchsieve_shards", len(held), outcome=OUTCOMES[why])
        level = logging.INFO if why is Gone.RETIRED else logging.WARNING
        fields = {"why": why.name.lower(), "reason": reason, "shards": [shard.name for shard in held]}
        log_event("actor gone", {**_where(actor), **fields}, level=level)

    def taken_out(self, place: Place, reason: str) -> None:
        """A device ended so many actors that no more shards go there."""
        log_event("device taken out", {**place.fields, "reason": reason}, level=logging.ERROR)

    def totals(self, totals: Totals, *, draining: int, parked: int) -> None:
        """The counts of now; of the actors, `draining` are on nodes that will end, `parked` hold what is taken out."""
        states = {
            "ready": totals.actors - draining,
            "starting": totals.starting,
            "draining": draining,
            "parked": parked,
        }
        left = totals.shards - totals.done - totals.failed
        if (now := (left, *states.values())) == self._last:
            return
        self._last = now
        self._metrics.set("patchsieve_shards_left", left)
        for state, count in states.items():
            self._metrics.set("patchsieve_actors", count, state=state)


def _where(actor: PooledActor) -> dict[str, str]:
    return {"actor": actor.name, "node": actor.node, "node_id": actor.node_id}


class Tally:
    """Counts of one run."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = len(shards)
        self._bytes = sum(shard.size or 0 for shard in shards)
        self._past = Counter[str]()

    def keep(self, actor: PooledActor) -> None:
        """Keep what an actor has done that is no more."""
        self._past.update(dataclasses.asdict(actor.progress))

    def totals(self, policy: QueuePolicy, actors: Collection[PooledActor]) -> Totals:
        """Counts of now. `actors`: those that there are."""
        counts = Counter(self._past)
        for actor in actors:
            counts.update(dataclasses.asdict(actor.progress))
        configured = sum(actor.configured for actor in actors)
        whole = counts["waited_s"] + counts["teacher_s"]
        return Totals(
            shards=self._shards,
            done=policy.finished,
            failed=len(policy.failures),
            actors=configured,
            starting=len(actors) - configured - sum(actor.parked for actor in actors),
            images=int(counts["images"]),
            views=int(counts["views"]),
            faults=int(counts["faults"]),
            waited_share=counts["waited_s"] / whole if whole else 0.0,
            bytes_total=self._bytes,
            bytes_done=min(self._bytes, int(counts["bytes_read"])),
            taken_out=tuple(map(str, policy.places.out)),
        )
