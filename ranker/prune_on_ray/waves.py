"""Shards through Ray Data: a row is a shard, actors rank and write them, and a shard that kills its actor fails alone.

Within a wave each shard is tried once: an actor that died comes back for others (Ray Data, by default, would give it
the same shard again for ever). What is left then goes into the next round, and is given up after three.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

from patchsieve.pipeline.cluster.capacity import Capacity
from patchsieve.pipeline.cluster.nodes import keep_off
from patchsieve.pipeline.cluster.places import Place
from patchsieve.pipeline.cluster.slots import per_place
from patchsieve.pipeline.errors import PatchsieveError, UserError, last_line
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.ranker.prune.ranking import PruneResult
from patchsieve.ranker.prune.request import PruneRequest
from patchsieve.ranker.prune_on_ray.capacity import capacity_of
from patchsieve.ranker.prune_on_ray.starts import Starts
from patchsieve.ranker.prune_on_ray.worker import PruneAnswer, PruneOrder, PruneWorker, Task

WAVE_SHARDS = 10_000
"""Rows of one Ray Data execution: blocks of one row have their cost."""
ROUNDS = 3
DIED = "its worker process died (a crash, out of memory, or a lost node)"


class PruneWaves:
    """One pass over shards. `results` and `failures` by shard id; `devices` that were seen; `actors` asked for.

    `taken_out`: places whose devices failed again and again, and how.
    """

    def __init__(
        self,
        request: PruneRequest,
        task: Task,
        *,
        run_id: str,
        ended: Callable[[Shard, PruneResult, str], None],
        give_up: Callable[[Shard, int, str], None],
        show: Callable[[PruneWaves], None],
    ) -> None:
        """`ended` gets a shard that was read to its end, its result and the worker's host; `give_up` one that gives no
        output, its attempts and why; each shard once. `show` is called after every answer.
        """
        self._request, self._task, self._run_id = request, task, run_id
        self._ended, self._give_up, self._show = ended, give_up, show
        self._index = {shard.id: index for index, shard in enumerate(request.shards)}
        self.results: dict[str, PruneResult] = {}
        self.failures: dict[str, str] = {}
        self.devices: set[str] = set()
        self.taken_out: dict[Place, str] = {}
        self.actors = 0

    def run(self, todo: Sequence[Shard]) -> None:
        """Work until every shard has a result or a failure.

        Raises UserError where an actor proved that the run cannot work, PatchsieveError where none comes up.
        """
        capacity = capacity_of(self._request.config)
        order = PruneOrder(
            request=ray.put(self._request),
            starts=ray.remote(Starts).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote(),
            task=self._task,
            run_id=self._run_id,
            threads=capacity.size.cpus,
        )
        try:
            self._rounds(list(todo), order, capacity)
        finally:
            # Workers that hold a GPU which is taken out end with it.
            ray.kill(order.starts, no_restart=True)

    def _rounds(self, left: list[Shard], order: PruneOrder, capacity: Capacity) -> None:
        attempt = 1
        while left:
            reasons: dict[str, str] = {}
            out = len(self.taken_out)
            for start in range(0, len(left), WAVE_SHARDS):
                self._wave(left[start : start + WAVE_SHARDS], order, capacity, reasons)
            left = [shard for shard in left if shard.id in reasons]
            if len(self.taken_out) > out:
                continue  # the next round is without those: this one was theirs
            if attempt == ROUNDS:
                for shard in left:
                    self._fail(shard, attempt, reasons[shard.id])
                    self._show(self)
                return
            attempt += 1

    def _wave(
        self,
        shards: Sequence[Shard],
        order: PruneOrder,
        capacity: Capacity,
        reasons: dict[str, str],
    ) -> None:
        """Try each of the shards once; `reasons` gets why another attempt is needed."""
        unheard = {shard.id: shard for shard in shards}
        size, slots = capacity.size, capacity.slots
        each = per_place(size)
        useful = min(self._request.config.max_actors or max(1, slots), len(shards))
        # Workers on GPUs that are taken out hold those, so that Ray gives others to the useful ones.
        most = useful + min(each * len(self.taken_out), max(0, slots - useful))
        least = max(1, min(slots, most))
        self.actors = useful
        places = max(slots, capacity.coming) // each if size.gpus else 0
        ray.get(order.starts.begin_wave.remote(workers=least, places=places))
        with _tolerant(), warnings.catch_warnings():
            # Ray 2.60 has no other way to bound an actor's retries; it warns of the one it has.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            rows = ray.data.from_items(
                [{"index": self._index[shard.id]} for shard in shards], override_num_blocks=len(shards)
            ).flat_map(
                PruneWorker,
                fn_constructor_args=(order,),
                compute=ray.data.ActorPoolStrategy(
                    min_size=least, max_size=most, max_tasks_in_flight_per_actor=1
                ),
                num_cpus=size.cpus,
                num_gpus=size.gpus,
                label_selector=keep_off(capacity.not_on),
                max_restarts=-1,
                max_task_retries=0,
            )
            try:
                for row in rows.iter_rows():
                    answer = PruneAnswer.from_row(row)
                    # Ray may run a task again whose answer it lost: the first one that arrives counts.
                    shard = unheard.pop(self._request.shards[answer.index].id, None)
                    if shard is not None:
                        self.taken_out, _ = ray.get(order.starts.told.remote())
                        self._receive(shard, answer, reasons)
                        self._show(self)
            except ray.exceptions.RayActorError as error:
                raise PatchsieveError(f"an actor could not start: {last_line(error)}") from error
            except ray.exceptions.RayTaskError as error:
                raise PatchsieveError(f"Ray Data failed: {last_line(error)}") from error
        self.taken_out, faults = ray.get(order.starts.told.remote())
        reasons.update({key: faults.get(self._index[key], DIED) for key in unheard})

    def _receive(self, shard: Shard, answer: PruneAnswer, reasons: dict[str, str]) -> None:
        if answer.unusable:
            raise PatchsieveError(answer.error)
        self.devices.add(answer.device)
        if answer.result is None:
            if answer.users:
                raise UserError(answer.error)
            reasons[shard.id] = answer.error
            return
        self.results[shard.id] = answer.result
        self._ended(shard, answer.result, answer.node)
        if answer.result.failed is not None:
            self._fail(shard, 1, answer.result.failed)

    def _fail(self, shard: Shard, attempts: int, reason: str) -> None:
        self.failures[shard.id] = reason
        self._give_up(shard, attempts, reason)


@contextlib.contextmanager
def _tolerant() -> Iterator[None]:
    """In the block, Ray Data goes on where an actor died, and leaves it to us to say so."""
    context: Any = ray.data.DataContext.get_current()
    kept = {name: getattr(context, name) for name in ("max_errored_blocks", "enable_progress_bars")}
    logger = logging.getLogger("ray.data")
    level = logger.level
    context.max_errored_blocks, context.enable_progress_bars = -1, False
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in kept.items():
            setattr(context, name, value)
