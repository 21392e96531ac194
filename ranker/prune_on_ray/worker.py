"""What a Ray Data actor of prune does: a ranker on one device of one node, one shard at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import signal
import time
from typing import Any, Literal, NoReturn

import ray
import torch

from patchsieve.pipeline.cluster.nodes import this_place
from patchsieve.pipeline.compute.device import device_name, keep_freed_memory
from patchsieve.pipeline.compute.gpu_faults import assigned_device, check_native, device_faults
from patchsieve.pipeline.errors import DeviceError, PatchsieveError, UserError
from patchsieve.pipeline.images.pixel_gate import GATE
from patchsieve.pipeline.output.access import prove_access
from patchsieve.pipeline.output.machine import library_versions
from patchsieve.pipeline.runs.watchdog import Watchdog
from patchsieve.pipeline.shown import show_warnings
from patchsieve.pipeline.storage import remove_dead_scratch
from patchsieve.ranker.prune.ranking import PruneResult, ShardWork
from patchsieve.ranker.prune.request import PruneRequest
from patchsieve.ranker.prune.shard import ShardPruning
from patchsieve.ranker.prune.survey import ShardSurvey
from patchsieve.ranker.prune_on_ray.starts import Leave
from patchsieve.ranker.select.patch_scorer import PatchScorer

Task = Literal["prune", "survey"]

TELL_S = 30.0
"""Seconds in which a worker that ends itself tries to say why."""

HOLD_S = 1.0
"""Seconds between two questions of a worker that holds a GPU which is taken out."""


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


class PruneWorker:
    """Loads the ranker once, then takes rows that name a shard by its index in the request.

    One that cannot start answers so instead of raising: Ray Data waits for ever for an actor that came back from a
    death and then failed, and Ray itself starts one for ever whose process dies of starting. One whose GPU or driver
    is at fault ends its process, which is of no more use: Ray starts it again, and `Starts` knows what to do there.
    """

    def __init__(self, order: PruneOrder) -> None:
        self._order = order
        self._device = ""
        self._unusable = self._passes_on = ""
        self._id, self._place = ray.get_runtime_context().get_actor_id(), this_place()
        leave: Leave = ray.get(order.starts.begin.remote(self._id, self._place))
        while leave.to == "hold":
            time.sleep(HOLD_S)
            leave = ray.get(order.starts.hold.remote())
        if leave.to == "pass":
            self._passes_on = leave.why
        elif leave.to == "complain":
            self._unusable = leave.why
        if leave.to != "start":
            return
        try:
            with device_faults(memory=True):
                self._start()
        except DeviceError as error:
            self._leave(error)
        except Exception as error:
            self._unusable = _one_line(error)
        else:
            ray.get(order.starts.end.remote(self._id))

    def _start(self) -> None:
        keep_freed_memory()
        show_warnings()
        order = self._order
        self._request: PruneRequest = ray.get(order.request)
        device = assigned_device(self._place.gpus)
        self._device = device_name(device)
        if self._request.source.precision is not None:
            check_native(self._request.source.precision, device)
        config = self._request.config
        GATE.limit = config.decode_pixels
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
        self._watchdog = Watchdog(config.stall_timeout, self._tell_stall)
        self._work.moved = self._watchdog.moved

    def __call__(self, row: dict[str, Any]) -> list[dict[str, str]]:
        """Work on one shard; errors are answers too, since an exception would cost its whole wave."""
        index = int(row["index"])
        if self._unusable:
            told = f"the ranker's actor on {self._place.node} cannot start: {self._unusable}"
            return [PruneAnswer(index=index, device=self._device, error=told, unusable=True).to_row()]
        if self._passes_on:
            return [PruneAnswer(index=index, device=self._device, error=self._passes_on).to_row()]
        shard = self._request.shards[index]
        try:
            if not self._proven:
                out, run_id = self._request.config.out, self._order.run_id
                prove_access(out, shard, run_id=run_id, here=self._place.node)
                self._proven = True
            self._index = index
            with device_faults(), self._watchdog.over():
                result = self._work.run(shard)
        except DeviceError as error:
            self._leave(error, index)
        except Exception as error:
            users = isinstance(error, UserError)
            return [
                PruneAnswer(index=index, device=self._device, error=_one_line(error), users=users).to_row()
            ]
        self._order.starts.worked.remote(self._id)
        return [PruneAnswer(index=index, device=self._device, result=result).to_row()]

    def _tell_stall(self, reason: str) -> None:
        """Say which shard, and which of its samples, nothing moves in."""
        keys = self._work.at_work
        told = f"{reason}, at work on {', '.join(keys)}" if keys else reason
        ray.get(self._order.starts.stalled.remote(self._index, told), timeout=TELL_S)

    def _leave(self, fault: DeviceError, index: int | None = None) -> NoReturn:
        """End this process; the shard in hand is tried again."""
        ray.get(self._order.starts.failed.remote(self._id, self._place, str(fault), index))
        signal.raise_signal(signal.SIGKILL)
        raise AssertionError("killed")

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
