"""What a Ray Data actor of prune does: a ranker on one device of one node, one shard at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from typing import Any, Literal

import ray
import torch

from patchsieve.pipeline.compute.device import device_name, keep_freed_memory, this_device
from patchsieve.pipeline.errors import PatchsieveError, UserError
from patchsieve.pipeline.output.access import prove_access
from patchsieve.pipeline.output.machine import library_versions
from patchsieve.pipeline.row_config import Precision
from patchsieve.pipeline.storage import remove_dead_scratch
from patchsieve.ranker.prune.ranking import PruneResult, ShardWork
from patchsieve.ranker.prune.request import PruneRequest
from patchsieve.ranker.prune.shard import ShardPruning
from patchsieve.ranker.prune.survey import ShardSurvey
from patchsieve.ranker.select.patch_scorer import PatchScorer, PatchSource, choose_source_precision

Task = Literal["prune", "survey"]

MOST_DEATHS = 3
"""Of workers while they start, one after the other: then no more are tried."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneOrder:
    """What every actor is told. `request`: object reference to a PruneRequest; `starts`: handle of a `Starts` actor;
    `threads`: that decode and encode.
    """

    request: Any
    starts: Any
    task: Task
    run_id: str
    threads: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneAnswer:
    """What came of one shard, `index` in the request: a result, or an error and whether the user has to act.

    `unusable`: the error is that of a worker which did not start, and says nothing of the shard; `node`: host that it
    came from.
    """

    index: int
    device: str
    result: PruneResult | None = None
    error: str = ""
    users: bool = False
    unusable: bool = False
    node: str = dataclasses.field(default_factory=platform.node)

    def to_row(self) -> dict[str, str]:
        """One string: a Ray Data block then has the same schema whatever happened."""
        return {"answer": json.dumps(dataclasses.asdict(self))}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> PruneAnswer:
        """What `to_row` gave."""
        values = json.loads(row["answer"])
        result = values.pop("result")
        return cls(**values, result=None if result is None else PruneResult(**result))


class Starts:
    """An actor that counts workers which die while they start: their own processes cannot tell it any more."""

    def __init__(self) -> None:
        self._starting: set[str] = set()
        self._deaths = 0

    def begin(self, worker: str) -> int:
        """A worker begins to start; returns how many died of it since the last one that came up."""
        self._deaths += worker in self._starting
        self._starting.add(worker)
        return self._deaths

    def end(self, worker: str) -> None:
        """A worker has started."""
        self._starting.discard(worker)
        self._deaths = 0


def probe_precision(source: PatchSource) -> Precision:
    """The precision for a run whose actors are as the one that this process could be."""
    keep_freed_memory()
    return choose_source_precision(source, this_device())


class PruneWorker:
    """Loads the ranker once, then takes rows that name a shard by its index in the request.

    One that cannot start answers so instead of raising: Ray Data waits for ever for an actor that came back from a
    death and then failed, and Ray itself starts one for ever whose process dies of starting.
    """

    def __init__(self, order: PruneOrder) -> None:
        self._order = order
        self._device = ""
        self._unusable = ""
        context = ray.get_runtime_context()
        self._node = f"node {platform.node()} ({context.get_node_id()[:8]})"
        deaths = ray.get(order.starts.begin.remote(context.get_actor_id()))
        if deaths >= MOST_DEATHS:
            self._unusable = f"its process died {deaths} times while it started (a crash, or out of memory)"
            return
        try:
            self._start()
        except Exception as error:
            self._unusable = _one_line(error)
        else:
            ray.get(order.starts.end.remote(context.get_actor_id()))

    def _start(self) -> None:
        keep_freed_memory()
        order = self._order
        self._request: PruneRequest = ray.get(order.request)
        device = this_device()
        self._device = device_name(device)
        config = self._request.config
        self._scorer = PatchScorer(self._request.source, device=device, batch_size=config.batch_size)
        remove_dead_scratch()
        self._proven = False
        work = ShardSurvey if order.task == "survey" else ShardPruning
        self._work: ShardWork = work(
            self._request,
            self._scorer,
            run_id=order.run_id,
            threads=order.threads,
            provenance=self._provenance(),
        )

    def __call__(self, row: dict[str, Any]) -> list[dict[str, str]]:
        """Work on one shard; errors are answers too, since an exception would cost its whole wave."""
        index = int(row["index"])
        if self._unusable:
            error = f"the ranker's actor on {self._node} cannot start: {self._unusable}"
            return [PruneAnswer(index=index, device=self._device, error=error, unusable=True).to_row()]
        shard = self._request.shards[index]
        try:
            if not self._proven:
                out, run_id = self._request.config.out, self._order.run_id
                prove_access(out, shard, run_id=run_id, here=self._node)
                self._proven = True
            result = self._work.run(shard)
        except Exception as error:
            users = isinstance(error, UserError)
            return [
                PruneAnswer(index=index, device=self._device, error=_one_line(error), users=users).to_row()
            ]
        return [PruneAnswer(index=index, device=self._device, result=result).to_row()]

    def _provenance(self) -> dict[str, Any]:
        return {
            "run_id": self._order.run_id,
            "node": platform.node(),
            "pid": os.getpid(),
            "device": self._device,
            "threads": torch.get_num_threads(),
            "batch_size": self._scorer.batch_size,
            "ranker": self._request.source.name,
            "versions": library_versions(),
        }


def _one_line(error: Exception) -> str:
    return str(error) if isinstance(error, PatchsieveError) else f"{type(error).__name__}: {error}"
