"""A teacher on one device, from its file to scored shards: all that an actor does, without Ray."""

from __future__ import annotations

import dataclasses
import logging
import sys
import traceback

import torch

from patchsieve.pipeline.cluster.places import Place
from patchsieve.pipeline.compute.device import device_name, keep_freed_memory
from patchsieve.pipeline.compute.gpu_faults import assigned_device, check_native, device_faults
from patchsieve.pipeline.errors import InfrastructureError, PatchsieveError
from patchsieve.pipeline.images.pixel_gate import GATE
from patchsieve.pipeline.output.access import prove_access
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.output.machine import library_versions
from patchsieve.pipeline.row_config import Precision
from patchsieve.pipeline.runs.log import log_event, start_json_log
from patchsieve.pipeline.score.messages import Progress, ShardResult, WorkOrder
from patchsieve.pipeline.score.shard import ShardScoring, teacher_record
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.shown import show_warnings
from patchsieve.pipeline.storage import remove_dead_scratch
from patchsieve.pipeline.tables.schema import SCORES
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import TeacherFile
from patchsieve.pipeline.teacher.ready import choose_precision


class ScoringWorker:
    """Loads the teacher once, then scores the shards it is given, several at once (see `ShardScoring`).

    Every method raises DeviceError where the GPU or its driver is at fault, and until it is configured where memory of
    the GPU runs out too: the process is then of no more use.
    """

    @device_faults(memory=True)
    def __init__(self, teacher: TeacherFile, place: Place) -> None:
        """`place`: where it runs, as the cluster names it; its GPUs are those to use."""
        keep_freed_memory()
        show_warnings()
        self._file, self._place = teacher, place
        self._device = assigned_device(place.gpus)
        self._model = build_teacher(teacher, device=str(self._device))
        self.device_name = device_name(self._device)
        self._scoring: ShardScoring | None = None

    @device_faults(memory=True)
    def choose_precision(self) -> Precision:
        """The fastest safe precision on this device, by a short probe."""
        return choose_precision(self._model, self._device)

    @device_faults(memory=True)
    def configure(self, order: WorkOrder, first_shard: Shard) -> int:
        """Prove access to input and output, then get ready; returns the batch size in views.

        Raises UserError naming node and path where this node cannot read the shards or write to the output.
        """
        if order.log_format == "json":
            where = {"node": self._place.host, "node_id": self._place.node_id, "actor": order.actor}
            start_json_log(sys.stderr, job="score", run_id=order.run_id, **where)
        remove_dead_scratch()
        prove_access(order.out, first_shard, run_id=order.run_id, here=self._place.node)
        GATE.limit = order.decode_pixels
        rows = order.rows
        check_native(rows.precision, self._device)
        scorer = Scorer.for_rows(
            self._model, rows, device=self._device, batch_size=order.batch_size, compile=order.compile
        )
        provenance = {
            "run_id": order.run_id,
            "node": self._place.host,
            "device": self.device_name,
            "device_ids": list(self._place.gpus),
            "threads": torch.get_num_threads(),
            "batch_size": scorer.batch_size,
            "versions": library_versions(),
        }
        self._scoring = ShardScoring(
            scorer,
            teacher_record(self._file),
            rows,
            OutputFolder(order.out, SCORES, run_id=order.run_id),
            provenance=provenance,
            threads=order.decode_threads,
            unsorted=order.unsorted,
        )
        sizes = {"batch_size": scorer.batch_size, "decode_threads": order.decode_threads}
        log_event("actor ready", {"device": self.device_name, **sizes})
        return scorer.batch_size

    def score(self, shard: Shard) -> ShardResult:
        """Score one shard and commit its table."""
        assert self._scoring is not None
        log_event("shard begun", {"shard": shard.name, "bytes": shard.size})
        try:
            with device_faults():
                result = self._scoring.score(shard)
            log_event("shard ended", {"shard": shard.name, "failed": result.failed, "rows": result.rows})
            return result
        except PatchsieveError as error:
            log_event("attempt failed", {"shard": shard.name, "reason": str(error)}, level=logging.WARNING)
            raise
        except Exception as error:
            reason, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
            fields = {"shard": shard.name, "reason": reason, "trace": trace}
            log_event("attempt failed", fields, level=logging.ERROR)
            # Foreign exceptions need not survive pickling; the attempt counts all the same.
            raise InfrastructureError(reason) from error

    def progress(self) -> Progress | None:
        """Running totals; None before `configure`."""
        if self._scoring is None:
            return None
        held = torch.cuda.max_memory_reserved() if self._device.type == "cuda" else 0
        return dataclasses.replace(self._scoring.progress, gpu_bytes=held)
