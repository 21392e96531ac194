"""From an actor's first answer to its work order: the first one ready chooses the precision, for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from patchsieve.pipeline.cluster.nodes import ClusterView
from patchsieve.pipeline.cluster.slots import ActorSize, decode_share
from patchsieve.pipeline.row_config import Precision, RowConfig
from patchsieve.pipeline.runs.log import LogFormat
from patchsieve.pipeline.score.messages import WorkOrder
from patchsieve.pipeline.score_on_ray.pool import ActorPool, CallResult, PooledActor
from patchsieve.pipeline.shards.specs import Shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueueOptions:
    """How a run uses its cluster; times in seconds.

    `decode_threads` None: as many as an actor's share of its node's CPUs; `not_on`: id of a node that takes no actor.
    """

    size: ActorSize
    max_actors: int | None
    unsorted: bool
    batch_size: int | None
    compile: bool
    decode_threads: int | None
    decode_pixels: int
    stall_timeout_s: float
    start_timeout_s: float
    not_on: str
    log_format: LogFormat


class ActorStart:
    """Gives each actor its work order, once the rows are known."""

    def __init__(
        self,
        pool: ActorPool,
        view: ClusterView,
        options: QueueOptions,
        *,
        out: str,
        run_id: str,
        first: Shard,
        rows: RowConfig | None,
        resolve: Callable[[Precision], RowConfig],
    ) -> None:
        """`first`: a shard that every actor must be able to read; `rows` and `resolve`: see `ShardQueue`."""
        self._pool, self._view, self._options = pool, view, options
        self._out, self._run_id, self._first = out, run_id, first
        self._rows, self._resolve = rows, resolve
        self._asked = ""

    def receive_info(self, actor: PooledActor) -> None:
        """An actor may load its teacher."""
        self._pool.call("load", actor)

    def receive_device(self, answer: CallResult, actor: PooledActor) -> None:
        """An actor has loaded its teacher."""
        actor.device = answer.value
        self._go_on(actor)

    def receive_precision(self, answer: CallResult) -> None:
        """The actor that was asked has chosen, for all of them."""
        self._rows = self._resolve(answer.value)
        for waiting in self._pool.actors.values():
            self._go_on(waiting)

    def lost(self, actor: PooledActor) -> None:
        """An actor is no more that had not begun to work: where it was the one that was asked, another one is."""
        if self._rows is None and actor.name == self._asked:
            self._asked = ""
            for waiting in self._pool.actors.values():
                self._go_on(waiting)

    def _go_on(self, actor: PooledActor) -> None:
        if not actor.device:
            return
        if self._rows is None:
            if not self._asked:
                self._asked = actor.name
                self._pool.call("choose_precision", actor)
            return
        order = WorkOrder(
            out=self._out,
            run_id=self._run_id,
            actor=actor.name,
            rows=self._rows,
            unsorted=self._options.unsorted,
            batch_size=self._options.batch_size,
            compile=self._options.compile,
            decode_threads=self._decode_threads(actor.node_id),
            decode_pixels=self._options.decode_pixels,
            log_format=self._options.log_format,
        )
        self._pool.call("configure", actor, order, self._first)

    def _decode_threads(self, node_id: str) -> int:
        size, node = self._options.size, self._view.nodes.get(node_id)
        if self._options.decode_threads is not None:
            return self._options.decode_threads
        return max(size.cpus, decode_share(node, size.gpus)) if node is not None else size.cpus
