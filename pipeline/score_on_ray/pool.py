"""The actors of a run as Ray knows them: asked for, called, replaced, killed."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayTaskError

from patchsieve.pipeline.cluster.private_api import node_of_actor
from patchsieve.pipeline.cluster.slots import ActorSize
from patchsieve.pipeline.errors import last_line
from patchsieve.pipeline.output.machine import process_space, process_start
from patchsieve.pipeline.score.messages import ActorInfo, Progress
from patchsieve.pipeline.score_on_ray.actor import new_actor
from patchsieve.pipeline.score_on_ray.policy import Gone

_END_S = 0.5
"""Seconds that a killed actor's process is given to end."""


@dataclasses.dataclass
class PooledActor:
    """One actor and what the driver knows of it.

    `device`: its name, once the teacher is loaded; `parked`: it only holds a place that is taken out; `ready_at`: when
    it was configured; `moved_at`: when it was last seen to make progress; `bytes_done`: of shards that it has ended;
    `draining`: its node will end.
    """

    name: str
    handle: Any
    info: ActorInfo | None = None
    device: str = ""
    parked: bool = False
    configured: bool = False
    progress: Progress = dataclasses.field(default_factory=Progress)
    ready_at: float = 0.0
    moved_at: float = 0.0
    bytes_done: int = 0
    draining: bool = False

    @property
    def node(self) -> str:
        """Host that it runs on, as people know it; empty before it has started."""
        return self.info.place.host if self.info is not None else ""

    @property
    def node_id(self) -> str:
        """Id of that node; empty before it has started."""
        return self.info.place.node_id if self.info is not None else ""

    @property
    def bytes_per_s(self) -> float:
        """Bytes of shards that its teacher gets through in a second of work; 0 while that is not known."""
        return self.progress.bytes_read / self.progress.teacher_s if self.progress.teacher_s else 0.0


@dataclasses.dataclass(frozen=True)
class Call:
    """A call under way: what it is, on which actor, and for `score` the shard's index."""

    kind: str
    actor: str
    shard: int = -1


@dataclasses.dataclass(frozen=True)
class CallResult:
    """The end of a call: its value or its error."""

    call: Call
    value: Any = None
    error: Exception | None = None


class ActorPool:
    """Actors by name and the calls that run on them."""

    def __init__(self, teacher: Any, size: ActorSize, *, not_on: str = "") -> None:
        """`teacher`: object reference to a TeacherFile; `not_on`: id of a node that takes no actor."""
        self._teacher = teacher
        self._size = size
        self._not_on = not_on
        self._calls: dict[Any, Call] = {}
        self._names = itertools.count(1)
        self.actors: dict[str, PooledActor] = {}

    def spawn(self) -> None:
        """Ask for one more actor; its first answer is to `info`."""
        handle = new_actor(self._teacher, cpus=self._size.cpus, gpus=self._size.gpus, not_on=self._not_on)
        actor = PooledActor(name=f"actor-{next(self._names)}", handle=handle)
        self.actors[actor.name] = actor
        self.call("info", actor)

    def call(self, kind: str, actor: PooledActor, *arguments: Any, shard: int = -1) -> None:
        """Start the actor's method `kind`."""
        reference = getattr(actor.handle, kind).remote(*arguments)
        self._calls[reference] = Call(kind, actor.name, shard)

    def calling(self, kind: str, actor: PooledActor) -> bool:
        """Whether such a call is under way on this actor."""
        return any(call.kind == kind and call.actor == actor.name for call in self._calls.values())

    def wait(self, timeout_s: float) -> list[CallResult]:
        """Answers that arrive before the time is over; returns early with the first ones."""
        if not self._calls:
            time.sleep(timeout_s)
            return []
        pending = list(self._calls)
        ready, _ = ray.wait(pending, num_returns=1, timeout=timeout_s)
        if ready and len(pending) > 1:
            ready, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
        return [self._answer(reference) for reference in ready]

    def _answer(self, reference: Any) -> CallResult:
        call = self._calls.pop(reference)
        try:
            return CallResult(call, value=ray.get(reference))
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            return CallResult(call, error=cause)
        except Exception as error:
            return CallResult(call, error=error)

    def remove(self, actor: PooledActor) -> None:
        """Kill an actor, dead or alive, and forget its calls."""
        self.actors.pop(actor.name, None)
        self._calls = {reference: call for reference, call in self._calls.items() if call.actor != actor.name}
        ray.kill(actor.handle, no_restart=True)

    def remove_all(self) -> None:
        """Kill every actor; those of this machine have ended, and write nothing more, when it returns."""
        actors = list(self.actors.values())
        for actor in actors:
            self.remove(actor)
        here = [
            actor.info.pid for actor in actors if actor.info and actor.info.process_space == process_space()
        ]
        deadline = time.monotonic() + _END_S
        while any(process_start(pid) is not None for pid in here) and time.monotonic() < deadline:
            time.sleep(0.01)


def why_gone(error: Exception, actor: PooledActor) -> Gone | None:
    """Whether an error means that the actor is no more, and whose fault that is."""
    if isinstance(error, OutOfMemoryError):
        return Gone.DIED
    if not isinstance(error, RayActorError):
        return None
    if isinstance(error, ActorUnavailableError) or error.preempted:
        return Gone.LOST
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    # One that has not answered yet died with the node at which it waited for its turn.
    node = actor.node_id if actor.info is not None else node_of_actor(actor.handle)
    return Gone.DIED if node in {*alive, ""} else Gone.LOST


def init_failure(error: Exception) -> str | None:
    """The reason why a constructor failed; None for other errors."""
    if not (isinstance(error, RayActorError) and error.actor_init_failed):
        return None
    return last_line(error)
