"""The Ray actor around `ShardScoring`: a teacher on one device of one node."""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import sys
import traceback
from importlib.metadata import version
from typing import Any

import ray
import torch

from patchrank import __version__
from patchrank.pipeline.access import prove_access
from patchrank.pipeline.config import RowConfig
from patchrank.pipeline.errors import InfrastructureError, PatchrankError
from patchrank.pipeline.machine import process_space
from patchrank.pipeline.output import OutputFolder
from patchrank.pipeline.queue_policy import MOST_SLOTS
from patchrank.pipeline.run_log import LogFormat, log_event, start_json_log
from patchrank.pipeline.scoring import Scorer, choose_precision
from patchrank.pipeline.scratch import remove_dead_scratch
from patchrank.pipeline.shard_scoring import Progress, ShardResult, ShardScoring, teacher_record
from patchrank.pipeline.shards import Shard
from patchrank.pipeline.teacher.checkpoint import TeacherFile, build_teacher

NODE_ID_LABEL = "ray.io/node-id"  # Ray gives it to every node
VERSIONS_OF = ("torch", "torchvision", "timm", "pillow", "pyarrow", "ray", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorInfo:
    """Where an actor runs. `pid` means something within `process_space` only (see `machine`)."""

    node_id: str
    host: str
    process_space: str
    pid: int
    device: str
    device_ids: tuple[str, ...]
    threads: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkOrder:
    """What an actor of a run is told once its rows are resolved. `actor`: its name."""

    out: str
    run_id: str
    actor: str
    rows: RowConfig
    batch_size: int | None
    decode_threads: int
    log_format: LogFormat


def _device() -> torch.device:
    # Ray sets CUDA_VISIBLE_DEVICES for declared GPUs that need not exist: torch knows what is there.
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


class ScoringActor:
    """Loads the teacher once, then scores the shards it is given, several at once (see `ShardScoring`)."""

    def __init__(self, teacher: TeacherFile) -> None:
        self._file = teacher
        self._model = build_teacher(teacher, device=str(_device()))
        self._scoring: ShardScoring | None = None
        self._info = self._describe()

    def _describe(self) -> ActorInfo:
        context = ray.get_runtime_context()
        device = _device()
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
        return ActorInfo(
            node_id=context.get_node_id(),
            host=platform.node(),
            process_space=process_space(),
            pid=os.getpid(),
            device=f"{device.type} {name}",
            device_ids=tuple(context.get_accelerator_ids().get("GPU", ())),
            threads=torch.get_num_threads(),
        )

    @ray.method(concurrency_group="control")
    def info(self) -> ActorInfo:
        """Answers once the teacher is loaded."""
        return self._info

    @ray.method(concurrency_group="control")
    def choose_precision(self) -> str:
        """The fastest safe precision on this actor's device, by a short probe."""
        return choose_precision(self._model, _device())

    @ray.method(concurrency_group="control")
    def configure(self, order: WorkOrder, first_shard: Shard) -> int:
        """Prove access to input and output, then get ready; returns the batch size in views.

        Raises UserError naming node and path where this node cannot read the shards or write to the output.
        """
        if order.log_format == "json":
            where = {"node": self._info.host, "node_id": self._info.node_id, "actor": order.actor}
            start_json_log(sys.stderr, job="score", run_id=order.run_id, **where)
        remove_dead_scratch()
        here = f"node {self._info.host} ({self._info.node_id[:8]})"
        prove_access(order.out, first_shard, run_id=order.run_id, here=here)
        rows = order.rows
        scorer = Scorer(
            self._model,
            mask_ratio=rows.mask_ratio,
            removal=rows.removal,
            metric=rows.metric,
            precision=rows.precision,
            device=_device(),
            batch_size=order.batch_size,
            frozen_tokens=rows.frozen_tokens,
        )
        provenance = {
            "run_id": order.run_id,
            "node": self._info.host,
            "device": self._info.device,
            "device_ids": list(self._info.device_ids),
            "threads": self._info.threads,
            "batch_size": scorer.batch_size,
            "versions": {"patchrank": __version__} | {name: version(name) for name in VERSIONS_OF},
        }
        self._scoring = ShardScoring(
            scorer,
            teacher_record(self._file),
            rows,
            OutputFolder(order.out, run_id=order.run_id),
            provenance=provenance,
            threads=order.decode_threads,
        )
        sizes = {"batch_size": scorer.batch_size, "decode_threads": order.decode_threads}
        log_event("actor ready", {"device": self._info.device, **sizes})
        return scorer.batch_size

    @ray.method(concurrency_group="score")
    def score(self, shard: Shard) -> ShardResult:
        """Score one shard and commit its table."""
        assert self._scoring is not None
        log_event("shard begun", {"shard": shard.name, "bytes": shard.size})
        try:
            result = self._scoring.score(shard)
            log_event("shard ended", {"shard": shard.name, "failed": result.failed, "rows": result.rows})
            return result
        except PatchrankError as error:
            log_event("attempt failed", {"shard": shard.name, "reason": str(error)}, level=logging.WARNING)
            raise
        except Exception as error:
            reason, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
            told = {"shard": shard.name, "reason": reason, "trace": trace}
            log_event("attempt failed", told, level=logging.ERROR)
            # Foreign exceptions need not survive pickling; the attempt counts all the same.
            raise InfrastructureError(reason) from error

    @ray.method(concurrency_group="control")
    def progress(self) -> Progress | None:
        """Running totals; None before `configure`."""
        if self._scoring is None:
            return None
        held = torch.cuda.max_memory_reserved() if _device().type == "cuda" else 0
        return dataclasses.replace(self._scoring.progress, gpu_bytes=held)


# Untyped in Ray's stubs: concurrency groups. As many shards at once as an actor may hold; questions are answered
# meanwhile.
_remote: Any = ray.remote
_RemoteScoringActor = _remote(
    max_restarts=0, max_task_retries=0, concurrency_groups={"score": MOST_SLOTS, "control": 2}
)(ScoringActor)


def new_actor(teacher: Any, *, cpus: float, gpus: float, not_on: str = "") -> Any:
    """Ask Ray for an actor; `teacher`: an object reference to a TeacherFile; `not_on`: id of a node to keep off."""
    options = _RemoteScoringActor.options(
        num_cpus=cpus,
        num_gpus=gpus,
        scheduling_strategy="SPREAD",
        label_selector={NODE_ID_LABEL: f"!{not_on}"} if not_on else None,
    )
    return options.remote(teacher)
