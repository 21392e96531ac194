"""The driver's loop: hands shards to actors until every shard is committed or given up.

Decisions are `QueuePolicy`'s, calls are `ActorPool`'s; here is what happens when an answer comes, when none comes
(the watchdog), and when nodes join.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from patchrank.pipeline.actor_pool import (
    ActorPool,
    Answer,
    PooledActor,
    cluster_nodes,
    init_failure,
    why_gone,
)
from patchrank.pipeline.actor_slots import ActorSize, count_slots, wanted_actors
from patchrank.pipeline.config import Precision, RowConfig
from patchrank.pipeline.errors import PatchrankError, UserError
from patchrank.pipeline.output import OutputFolder
from patchrank.pipeline.progress import Totals
from patchrank.pipeline.queue_policy import Gone, QueuePolicy
from patchrank.pipeline.scoring_actor import ActorInfo, WorkOrder
from patchrank.pipeline.shard_scoring import ShardResult
from patchrank.pipeline.shards import Shard

TICK_S = 0.5
POLL_S = 1.0
MOST_START_FAILURES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueueOptions:
    """How a run uses its cluster; times in seconds."""

    size: ActorSize
    max_actors: int | None
    batch_size: int | None
    decode_threads: int
    stall_timeout_s: float
    start_timeout_s: float


class ShardQueue:
    """One run over a list of shards."""

    def __init__(
        self,
        shards: Sequence[Shard],
        teacher: Any,
        output: OutputFolder,
        options: QueueOptions,
        *,
        out: str,
        run_id: str,
        rows: RowConfig | None,
        resolve: Callable[[Precision], RowConfig],
        show: Callable[[Totals], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`rows` None: `resolve` is called once with the precision that the first ready actor measured."""
        self._shards, self._output, self._options = shards, output, options
        self._out, self._run_id, self._rows, self._resolve = out, run_id, rows, resolve
        self._show, self._clock = show, clock
        self._policy = QueuePolicy([shard.size or 0 for shard in shards])
        self._pool = ActorPool(teacher, options.size)
        self._ever_ready = False
        self._resolving = False
        self._start_failures = 0
        self._started_at = clock()
        self._polled_at = 0.0
        self._past = Counter[str]()
        self._recorded: set[int] = set()
        self._bytes_total = sum(shard.size or 0 for shard in shards)
        self.results: dict[str, ShardResult] = {}
        self.actors_seen: list[ActorInfo] = []

    def run(self) -> None:
        """Return when every shard has a result or a failure.

        Raises UserError where an actor proved that the run cannot work, PatchrankError where none comes up.
        """
        try:
            while not self._policy.ended:
                self._grow()
                for answer in self._pool.wait(TICK_S):
                    self._receive(answer)
                self._hand_out()
                self._watch()
                self._show(self.totals())
                if self._output.owner_lost:
                    raise PatchrankError(f"another run took over {self._out}; this one stops")
        finally:
            for actor in self._pool.actors.values():
                self._past.update(dataclasses.asdict(actor.progress))
            self._pool.remove_all()

    @property
    def failures(self) -> dict[str, str]:
        """Reason by shard id, of the shards given up."""
        return {self._shards[index].id: failure.reason for index, failure in self._policy.failures.items()}

    def unfinished(self) -> list[Shard]:
        """Shards neither committed nor given up."""
        return [self._shards[index] for index in self._policy.unfinished()]

    def totals(self) -> Totals:
        """Counts of now, of actors that are gone included."""
        counts = Counter(self._past)
        for actor in self._pool.actors.values():
            counts.update(dataclasses.asdict(actor.progress))
        configured = sum(actor.configured for actor in self._pool.actors.values())
        whole = counts["waited_s"] + counts["teacher_s"]
        return Totals(
            shards=len(self._shards),
            done=self._policy.finished,
            failed=len(self._policy.failures),
            actors=configured,
            starting=len(self._pool.actors) - configured,
            images=int(counts["images"]),
            views=int(counts["views"]),
            faults=int(counts["faults"]),
            waited_share=counts["waited_s"] / whole if whole else 0.0,
            bytes_total=self._bytes_total,
            bytes_done=min(self._bytes_total, int(counts["bytes_read"])),
        )

    def _grow(self) -> None:
        slots = count_slots(cluster_nodes(), self._options.size)
        unfinished = self._policy.waiting + self._policy.held
        wanted = wanted_actors(slots=slots, unfinished=unfinished, max_actors=self._options.max_actors)
        while len(self._pool.actors) < wanted:
            self._pool.spawn()
        idle = [actor for actor in self._pool.actors.values() if not self._holds(actor)]
        # Those that are ready already are kept longest.
        idle.sort(key=lambda actor: actor.configured)
        # At the end there are fewer shards than actors: what the others occupy may be used by somebody else.
        for actor in idle[: len(self._pool.actors) - wanted]:
            self._lose(actor, Gone.RETIRED, PatchrankError("no shard is left for it"))

    def _holds(self, actor: PooledActor) -> bool:
        return actor.configured and bool(self._policy.holding(actor.name))

    def _receive(self, answer: Answer) -> None:
        actor = self._pool.actors.get(answer.call.actor)
        if actor is None:
            return
        if answer.error is not None:
            self._receive_error(answer, actor, answer.error)
        elif answer.call.kind == "info":
            actor.info = answer.value
            self._configure_or_resolve(actor)
        elif answer.call.kind == "choose_precision":
            # A second answer comes where another actor was lost before this one's; the first counts.
            self._rows = self._rows or self._resolve(answer.value)
            for waiting in self._pool.actors.values():
                self._configure_or_resolve(waiting)
        elif answer.call.kind == "configure":
            actor.configured, actor.moved_at, self._ever_ready = True, self._clock(), True
            self._start_failures = 0
            assert actor.info is not None
            self.actors_seen.append(actor.info)
            self._policy.add_actor(actor.name)
        elif answer.call.kind == "progress":
            if answer.value.moved != actor.progress.moved:
                actor.moved_at = self._clock()
            actor.progress = answer.value
        else:
            self._receive_result(answer, actor)

    def _configure_or_resolve(self, actor: PooledActor) -> None:
        if actor.info is None or actor.configured:
            return
        if self._rows is not None:
            order = WorkOrder(
                out=self._out,
                run_id=self._run_id,
                rows=self._rows,
                batch_size=self._options.batch_size,
                decode_threads=self._options.decode_threads,
            )
            self._pool.call("configure", actor, order, self._shards[0])
        elif not self._resolving:
            self._resolving = True
            self._pool.call("choose_precision", actor)

    def _receive_result(self, answer: Answer, actor: PooledActor) -> None:
        shard, result = self._shards[answer.call.shard], answer.value
        actor.moved_at = self._clock()
        if result.progress.moved > actor.progress.moved:
            actor.progress = result.progress
        self.results[shard.id] = result
        if result.failed is None:
            self._policy.finish(actor.name, answer.call.shard)
            return
        self._policy.give_up(actor.name, answer.call.shard, result.failed)
        self._record_failures()

    def _receive_error(self, answer: Answer, actor: PooledActor, error: Exception) -> None:
        gone = why_gone(error, actor)
        if gone is not None:
            self._lose(actor, gone, error)
        elif answer.call.kind == "score":
            self._policy.fail(actor.name, answer.call.shard, str(error), self._clock())
            self._record_failures()
        elif answer.call.kind == "progress":
            raise PatchrankError(f"an actor cannot tell its progress: {error}") from error
        elif isinstance(error, UserError):
            raise error
        else:
            self._lose(actor, Gone.DIED, error)

    def _lose(self, actor: PooledActor, why: Gone, error: Exception) -> None:
        reason = init_failure(error)
        if reason is not None:
            raise PatchrankError(f"an actor could not start: {reason}")
        self._past.update(dataclasses.asdict(actor.progress))
        self._pool.remove(actor)
        if actor.configured:
            self._policy.actor_gone(actor.name, why, self._clock(), f"{why.value}: {_first_line(error)}")
            self._record_failures()
            return
        self._resolving = self._resolving and self._rows is not None
        self._start_failures += why is Gone.DIED
        if self._start_failures >= MOST_START_FAILURES:
            raise PatchrankError(f"{self._start_failures} actors in a row did not start; the last: {error}")

    def _hand_out(self) -> None:
        now = self._clock()
        # First a shard for everyone, then a second one.
        for _ in range(2):
            for actor in self._pool.actors.values():
                if not actor.configured:
                    continue
                if not self._holds(actor):
                    actor.moved_at = now
                index = self._policy.assign(actor.name, now)
                if index is not None:
                    self._pool.call("score", actor, self._shards[index], shard=index)

    def _watch(self) -> None:
        now = self._clock()
        if not self._ever_ready and now - self._started_at > self._options.start_timeout_s:
            size = self._options.size
            raise PatchrankError(
                f"no actor became ready in {self._options.start_timeout_s:.0f} s; each asks for {size.cpus} CPUs and "
                f"{size.gpus:g} GPUs, the nodes have {_inventory()}: add nodes or change --gpus-per-actor"
            )
        if now - self._polled_at < POLL_S:
            return
        self._polled_at = now
        for actor in list(self._pool.actors.values()):
            if not actor.configured:
                continue
            if now - actor.moved_at > self._options.stall_timeout_s and self._policy.holding(actor.name):
                stalled = PatchrankError(f"no progress for {self._options.stall_timeout_s:.0f} s")
                self._lose(actor, Gone.DIED, stalled)
            elif not self._pool.calling("progress", actor):
                self._pool.call("progress", actor)

    def _record_failures(self) -> None:
        for index in self._policy.failures.keys() - self._recorded:
            failure = self._policy.failures[index]
            self._output.record_failed(self._shards[index], failure.attempts, failure.reason)
            self._recorded.add(index)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _inventory() -> str:
    nodes = cluster_nodes()
    return ", ".join(f"{node.cpus:g} CPUs + {node.gpus:g} GPUs" for node in nodes) or "nothing"
