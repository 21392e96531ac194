"""The driver's loop: hands shards to actors until every shard is committed or given up.

Decisions are `QueuePolicy`'s, calls are `ActorPool`'s; here is what happens when an answer comes, when none comes
(the watchdog), when nodes join, when they are drained, and when devices fail.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from patchsieve.pipeline.cluster.nodes import ClusterView
from patchsieve.pipeline.cluster.slots import count_slots, wanted_actors
from patchsieve.pipeline.errors import DeviceError, PatchsieveError, UserError, first_line
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.row_config import Precision, RowConfig
from patchsieve.pipeline.runs.progress import Totals
from patchsieve.pipeline.score.messages import ActorInfo, Progress, ShardResult
from patchsieve.pipeline.score_on_ray.events import QueueEvents, Tally
from patchsieve.pipeline.score_on_ray.patience import Patience
from patchsieve.pipeline.score_on_ray.policy import Gone, QueuePolicy, may_finish
from patchsieve.pipeline.score_on_ray.pool import ActorPool, CallResult, PooledActor, init_failure, why_gone
from patchsieve.pipeline.score_on_ray.start import ActorStart, QueueOptions
from patchsieve.pipeline.shards.specs import Shard

TICK_S = 0.5
POLL_S = 1.0
MOST_START_FAILURES = 5


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
        """`rows` None: `resolve` is called once with the precision that the first ready actor measured.

        `devices` are the names of those at work so far; `taken_out` the places whose devices failed, and how.
        """
        self._shards, self._output, self._options = shards, output, options
        self._show, self._clock = show, clock
        self._policy = QueuePolicy([shard.size or 0 for shard in shards])
        self._pool = ActorPool(teacher, options.size, not_on=options.not_on)
        self._events, self._tally = QueueEvents(run_id), Tally(shards)
        self._view = ClusterView(not_on=options.not_on)
        self._start = ActorStart(
            self._pool,
            self._view,
            options,
            out=out,
            run_id=run_id,
            first=shards[0],
            rows=rows,
            resolve=resolve,
        )
        self._ever_ready = False
        self._start_failures = 0
        self._patience = Patience(options.size, options.start_timeout_s, self._view, now=clock())
        self._looked_at = self._polled_at = 0.0
        self._recorded: set[int] = set()
        self.results: dict[str, ShardResult] = {}
        self.devices: set[str] = set()
        self.taken_out: dict[str, str] = {}

    def run(self) -> None:
        """Return when every shard has a result or a failure.

        Raises UserError where an actor proved that the run cannot work, PatchsieveError where none comes up.
        """
        try:
            while not self._policy.ended:
                self._look()
                # First: actors of nodes that will end are not those that others are counted beside.
                self._leave_drained_nodes()
                self._grow()
                for answer in self._pool.wait(TICK_S):
                    self._receive(answer)
                self._hand_out()
                self._watch()
                self._tell()
        finally:
            for actor in self._pool.actors.values():
                self._tally.keep(actor)
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
        totals = self._tally.totals(self._policy, self._pool.actors.values())
        return dataclasses.replace(totals, waits_for=self._patience.waits_for)

    def _tell(self) -> None:
        totals = self.totals()
        actors = self._pool.actors.values()
        draining = sum(actor.draining and actor.configured for actor in actors)
        self._events.totals(totals, draining=draining, parked=self._parked())
        self._show(totals)

    def _look(self) -> None:
        if not self._view.nodes or self._clock() - self._looked_at >= POLL_S:
            self._looked_at = self._clock()
            self._view.look()

    def _grow(self) -> None:
        unfinished = self._policy.waiting + self._policy.held
        wanted = wanted_actors(
            slots=self._slots(), unfinished=unfinished, max_actors=self._options.max_actors
        )
        staying = [actor for actor in self._pool.actors.values() if not (actor.draining or actor.parked)]
        for _ in range(len(staying), wanted):
            self._pool.spawn()
        idle = [actor for actor in staying if not self._holds(actor)]
        # Those that are ready already are kept longest.
        idle.sort(key=lambda actor: actor.configured)
        # At the end there are fewer shards than actors: what the others occupy may be used by somebody else.
        reason = (
            "no shard is left for it"
            if unfinished < len(staying)
            else "the cluster has no room for it any more"
        )
        for actor in idle[: max(0, len(staying) - wanted)]:
            self._lose(actor, Gone.RETIRED, PatchsieveError(reason))

    def _slots(self) -> int:
        """Actors that the nodes hold but for those that hold what is taken out."""
        return count_slots(list(self._view.nodes.values()), self._options.size) - self._parked()

    def _parked(self) -> int:
        return sum(actor.parked and actor.node_id in self._view.nodes for actor in self._pool.actors.values())

    def _holds(self, actor: PooledActor) -> bool:
        return actor.configured and bool(self._policy.holding(actor.name))

    def _receive(self, answer: CallResult) -> None:
        actor = self._pool.actors.get(answer.call.actor)
        if actor is None:
            return
        if answer.error is not None:
            self._receive_error(answer, actor, answer.error)
        elif answer.call.kind == "info":
            self._receive_info(actor, answer.value)
        elif answer.call.kind == "load":
            self._start.receive_device(answer, actor)
        elif answer.call.kind == "choose_precision":
            self._start.receive_precision(answer)
        elif answer.call.kind == "configure":
            actor.configured, self._ever_ready, self._start_failures = True, True, 0
            actor.ready_at = actor.moved_at = self._clock()
            assert actor.info is not None
            self.devices.add(actor.device)
            self._policy.add_actor(actor.name, actor.info.place)
            self._events.actor_ready(actor, answer.value)
        elif answer.call.kind == "progress":
            if answer.value.moved != actor.progress.moved:
                actor.moved_at = self._clock()
            self._note_progress(actor, answer.value)
        else:
            self._receive_result(answer, actor)

    def _receive_info(self, actor: PooledActor, info: ActorInfo) -> None:
        actor.info = info
        if info.place in self._policy.places.out:
            # Ray would give the device to the next one: this one holds it, does not touch it, and gets no shard.
            actor.parked = True
        else:
            self._start.receive_info(actor)

    def _note_progress(self, actor: PooledActor, now: Progress) -> None:
        before = actor.progress
        # Two answers may arrive in another order than they were made in.
        if (
            now.moved >= before.moved
            and now.waited_s >= before.waited_s
            and now.teacher_s >= before.teacher_s
        ):
            self._events.progressed(actor, now)
            actor.progress = now

    def _receive_result(self, answer: CallResult, actor: PooledActor) -> None:
        shard, result = self._shards[answer.call.shard], answer.value
        actor.moved_at = self._clock()
        self._note_progress(actor, result.progress)
        actor.bytes_done += shard.size or 0
        if answer.call.shard not in self._policy.holding(actor.name):
            return  # It went back when the actor's node began to drain: another one's result counts.
        self._events.shard_ended(shard, actor, result)
        self.results[shard.id] = result
        if result.failed is None:
            self._policy.finish(actor.name, answer.call.shard)
            return
        self._policy.give_up(actor.name, answer.call.shard, result.failed)
        self._record_failures()

    def _receive_error(self, answer: CallResult, actor: PooledActor, error: Exception) -> None:
        gone = why_gone(error, actor)
        if gone is not None:
            self._lose(actor, gone, error)
        elif isinstance(error, DeviceError):
            self._lose(actor, Gone.BROKE, error)
        elif answer.call.kind == "score":
            if answer.call.shard not in self._policy.holding(actor.name):
                return
            self._events.attempt_failed(self._shards[answer.call.shard], actor, str(error))
            self._policy.fail(actor.name, answer.call.shard, str(error), self._clock())
            self._record_failures()
        elif answer.call.kind == "progress":
            raise PatchsieveError(f"an actor cannot tell its progress: {error}") from error
        elif isinstance(error, UserError):
            raise error
        elif answer.call.kind == "load":
            raise PatchsieveError(f"an actor could not start: {type(error).__name__}: {error}") from error
        else:
            self._lose(actor, Gone.DIED, error)

    def _lose(self, actor: PooledActor, why: Gone, error: Exception) -> None:
        reason = init_failure(error)
        if reason is not None:
            raise PatchsieveError(f"an actor could not start: {reason}")
        self._tally.keep(actor)
        self._pool.remove(actor)
        if actor.draining and why in (Gone.DIED, Gone.BROKE):
            why = Gone.LOST  # Its node ends, whatever the shard does.
        held = [self._shards[index] for index in self._policy.holding(actor.name)] if actor.configured else []
        self._events.actor_gone(actor, why, first_line(error), held)
        told = f"{why.value}: {first_line(error)}"
        if actor.configured:
            self._policy.actor_gone(actor.name, why, self._clock(), told)
            self._record_failures()
        else:
            self._lose_unready(actor, why, told, error)
        for place, fault in self._policy.places.out.items():
            if str(place) not in self.taken_out:
                self.taken_out[str(place)] = fault
                self._events.taken_out(place, fault)

    def _lose_unready(self, actor: PooledActor, why: Gone, told: str, error: Exception) -> None:
        self._start.lost(actor)
        if why not in (Gone.DIED, Gone.BROKE):
            return
        if actor.info is not None and actor.info.place.gpus:
            self._policy.start_failed(actor.info.place, told)
            return
        self._start_failures += 1
        if self._start_failures >= MOST_START_FAILURES:
            raise PatchsieveError(f"{self._start_failures} actors in a row did not start; the last: {error}")

    def _leave_drained_nodes(self) -> None:
        """Let actors go whose nodes will end, before that; what they have begun they finish if there is time."""
        for actor in list(self._pool.actors.values()) if self._view.draining else ():
            if actor.node_id not in self._view.draining:
                continue
            seconds_left = self._view.draining[actor.node_id]
            if not actor.draining:
                actor.draining = True
                self._events.node_draining(actor, seconds_left)
                for index in self._policy.drain(actor.name) if actor.configured else ():
                    self._events.given_back(self._shards[index], actor)
            if not self._holds(actor) or not self._in_time(actor, seconds_left):
                self._lose(actor, Gone.RETIRED, PatchsieveError("its node is drained"))

    def _in_time(self, actor: PooledActor, seconds_left: float | None) -> bool:
        (index,) = self._policy.holding(actor.name)
        read = actor.progress.bytes_read
        left = (self._shards[index].size or 0) - max(0, read - actor.bytes_done)
        speed = read / max(self._clock() - actor.ready_at, 1e-9)
        return may_finish(seconds_left=seconds_left, left_bytes=left, bytes_per_s=speed)

    def _hand_out(self) -> None:
        now = self._clock()
        takers = [actor for actor in self._pool.actors.values() if actor.configured]
        for actor in takers:
            if not self._holds(actor):
                actor.moved_at = now
        # First a shard for everyone, then a second one, then more of the small ones.
        while takers:
            takers = [actor for actor in takers if self._hand_to(actor, now)]

    def _hand_to(self, actor: PooledActor, now: float) -> bool:
        index = self._policy.assign(actor.name, now, bytes_per_s=actor.bytes_per_s)
        if index is not None:
            self._pool.call("score", actor, self._shards[index], shard=index)
        return index is not None

    def _watch(self) -> None:
        now = self._clock()
        actors = self._pool.actors.values()
        ready = any(actor.configured for actor in actors)
        if ready:
            self._patience.worked(now)
        elif not self._parked():
            self._patience.look(now, placed=any(actor.info is not None for actor in actors))
        late = self._patience.late(now)
        idle = not ready and self._parked() and self._slots() <= 0
        if idle and (late or not self._view.may_grow()):
            told = "; ".join(f"{place}: {fault}" for place, fault in self.taken_out.items())
            raise PatchsieveError(f"no device is left to work on: {told}")
        if not self._ever_ready and late:
            raise self._patience.complain()
        if now - self._polled_at < POLL_S:
            return
        self._polled_at = now
        for actor in list(self._pool.actors.values()):
            if not actor.configured:
                continue
            if now - actor.moved_at > self._options.stall_timeout_s and self._policy.holding(actor.name):
                stalled = PatchsieveError(f"no progress for {self._options.stall_timeout_s:.0f} s")
                self._lose(actor, Gone.DIED, stalled)
            elif not self._pool.calling("progress", actor):
                self._pool.call("progress", actor)

    def _record_failures(self) -> None:
        for index in self._policy.failures.keys() - self._recorded:
            failure = self._policy.failures[index]
            self._output.record_failed(self._shards[index], failure.attempts, failure.reason)
            self._events.shard_failed(self._shards[index], failure)
            self._recorded.add(index)
