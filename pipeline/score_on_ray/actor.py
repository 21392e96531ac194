"""The Ray actor around `ScoringWorker`.

What the worker is made of, torch and all, is imported where the actor runs: the driver, which only asks for actors,
starts seconds sooner without it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import ray

from patchsieve.pipeline.cluster.nodes import keep_off, this_place
from patchsieve.pipeline.output.machine import process_space
from patchsieve.pipeline.score.messages import ActorInfo, Progress, ShardResult, WorkOrder
from patchsieve.pipeline.score_on_ray.policy import MOST_SLOTS
from patchsieve.pipeline.shards.specs import Shard

if TYPE_CHECKING:
    from patchsieve.pipeline.score.worker import ScoringWorker
    from patchsieve.pipeline.teacher.checkpoint import TeacherFile


class ScoringActor:
    """A worker on the node and the devices that Ray chose.

    It tells where it is before it touches a device: a GPU that ends its process has then been named.
    """

    _worker: ScoringWorker

    def __init__(self, teacher: TeacherFile) -> None:
        self._teacher = teacher

    @ray.method(concurrency_group="control")
    def info(self) -> ActorInfo:
        """Where it runs."""
        return ActorInfo(place=this_place(), process_space=process_space(), pid=os.getpid())

    @ray.method(concurrency_group="control")
    def load(self) -> str:
        """Load the teacher; returns the device's name. See `ScoringWorker`."""
        from patchsieve.pipeline.score.worker import ScoringWorker

        self._worker = ScoringWorker(self._teacher, this_place())
        return self._worker.device_name

    @ray.method(concurrency_group="control")
    def choose_precision(self) -> str:
        """See `ScoringWorker.choose_precision`."""
        return self._worker.choose_precision()

    @ray.method(concurrency_group="control")
    def configure(self, order: WorkOrder, first_shard: Shard) -> int:
        """See `ScoringWorker.configure`."""
        return self._worker.configure(order, first_shard)

    @ray.method(concurrency_group="score")
    def score(self, shard: Shard) -> ShardResult:
        """See `ScoringWorker.score`."""
        return self._worker.score(shard)

    @ray.method(concurrency_group="control")
    def progress(self) -> Progress | None:
        """See `ScoringWorker.progress`."""
        return self._worker.progress()


# As many shards at once as an actor may hold; questions are answered meanwhile.
ACTOR_OPTIONS = {
    "max_restarts": 0,
    "max_task_retries": 0,
    "concurrency_groups": {"score": MOST_SLOTS, "control": 2},
}
_remote: Any = ray.remote  # untyped in Ray's stubs: concurrency groups
_RemoteScoringActor = _remote(**ACTOR_OPTIONS)(ScoringActor)


def new_actor(teacher: Any, *, cpus: float, gpus: float, not_on: str = "") -> Any:
    """Ask Ray for an actor; `teacher`: an object reference to a TeacherFile; `not_on`: id of a node to keep off."""
    options = _RemoteScoringActor.options(
        num_cpus=cpus,
        num_gpus=gpus,
        scheduling_strategy="SPREAD",
        label_selector=keep_off(not_on),
    )
    return options.remote(teacher)
