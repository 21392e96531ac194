"""What a run over shards has done so far: sums over its actors, of those that are gone too."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence

from patchsieve.pipeline.actor_pool import PooledActor
from patchsieve.pipeline.progress import Totals
from patchsieve.pipeline.queue_policy import QueuePolicy
from patchsieve.pipeline.shards import Shard


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
            starting=len(actors) - configured,
            images=int(counts["images"]),
            views=int(counts["views"]),
            faults=int(counts["faults"]),
            waited_share=counts["waited_s"] / whole if whole else 0.0,
            bytes_total=self._bytes,
            bytes_done=min(self._bytes, int(counts["bytes_read"])),
        )
