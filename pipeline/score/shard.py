"""One shard, end to end: stream, decode on threads, score in batches, write the table, commit.

Runs without Ray. Several shards may be in hand at once (`ShardScoring.score` on as many threads): the second is read
and decoded while the first is scored, and scored while the first commits; the teacher serves one at a time, and no
batch holds views of two.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.images.patches import visible_count
from patchsieve.pipeline.output.faults import FaultLog, failure_reason
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.row_config import RowConfig, Store
from patchsieve.pipeline.score.decoders import Decoders
from patchsieve.pipeline.score.messages import Progress, ShardResult
from patchsieve.pipeline.score.teacher_thread import Scored, Submitted, TeacherThread
from patchsieve.pipeline.score.view_feed import ViewFeed, ViewsOf, views_here
from patchsieve.pipeline.scoring.batch import batch_of
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.scoring.views import View
from patchsieve.pipeline.shards.reader import Fault
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.storage import scratch_folder
from patchsieve.pipeline.tables.schema import Row, TeacherRecord, table_metadata, table_schema
from patchsieve.pipeline.tables.writer import TableWriter
from patchsieve.pipeline.teacher.checkpoint import TeacherFile

QUEUE_SECONDS = 0.5
"""Work that lies ready for the teacher: what the threads that prepare it may be late by."""

MOST_AHEAD = 16


def batches_ahead(seconds: float) -> int:
    """How many batches of so many seconds lie ready beside the one that the teacher is at."""
    return max(1, min(MOST_AHEAD, math.ceil(QUEUE_SECONDS / max(seconds, 1e-9))))


class ShardScoring:
    """Scores shards with one teacher into one output folder; `score` may run on several threads at once."""

    def __init__(
        self,
        scorer: Scorer,
        teacher: TeacherRecord,
        rows: RowConfig,
        output: OutputFolder,
        *,
        provenance: dict[str, Any],
        threads: int,
        processes: bool | None = None,
        unsorted: bool = False,
    ) -> None:
        """`provenance`: what tables record of the run without deciding anything. `threads`: decoders, which are
        processes where the teacher is on a GPU, or where `processes` says so. `unsorted`: as `ShardReader` has it.
        """
        self.progress = Progress()
        self._scorer = scorer
        self._teacher = teacher
        self._rows = rows
        self._output = output
        self._provenance = provenance
        self._unsorted = unsorted
        self._visible = visible_count(teacher.grid**2, rows.mask_ratio)
        self._turn = threading.Lock()
        self._decoders: Decoders | None = None
        self._views_of: ViewsOf = views_here(rows, teacher.patch_size)
        if scorer.device.type == "cuda" if processes is None else processes:
            self._decoders = Decoders(rows, teacher.patch_size, threads)
            self._pool, self._views_of = self._decoders.pool, self._decoders.views_of
        else:
            self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._thread = TeacherThread(scorer)
        images_per_batch = -(-scorer.batch_size // rows.views)
        # Two batches beyond what the teacher has, and enough to keep every decoder busy when images differ in size.
        self._ahead = 2 * images_per_batch + 2 * threads

    def close(self) -> None:
        """End what decodes; nothing may be scored any more."""
        if self._decoders is not None:
            self._decoders.close()
        else:
            self._pool.shutdown()

    def score(self, shard: Shard) -> ShardResult:
        """Score one shard and commit its table.

        Raises InfrastructureError where another attempt may help; then nothing was committed.
        """
        started = time.monotonic()
        feed = ViewFeed(shard, self._rows, self._views_of, self._pool, self._ahead, unsorted=self._unsorted)
        try:
            with scratch_folder() as scratch:
                result = self._score(shard, feed, scratch)
        finally:
            feed.close()
        return dataclasses.replace(result, seconds=time.monotonic() - started)

    def _score(self, shard: Shard, feed: ViewFeed, scratch: Path) -> ShardResult:
        table, errors = scratch / "table.parquet", scratch / "errors.parquet"
        patch_bytes = self._teacher.patch_size**2 * 3
        schema = table_schema(visible=self._visible, patch_bytes=patch_bytes, store=self._rows.store)
        with (
            FaultLog(errors, shard.name, run_id=self._output.run_id) as faults,
            TableWriter(table, schema) as writer,
        ):
            with self._turn:
                images_before = self.progress.images
                waited = self._fill(shard, feed, writer, faults)
                images = self.progress.images - images_before
            record = feed.record(faults.samples)
            writer.close(
                table_metadata(
                    config=self._rows,
                    teacher=self._teacher,
                    shard=record,
                    visible=self._visible,
                    errors=faults.summary,
                    provenance=self._provenance,
                )
            )
            written = faults.finish()
        failed = failure_reason(record, writer.rows, faults)
        if failed is None:
            self._output.commit(shard, table, written)
        elif written is not None:
            self._output.commit_errors(shard, written)
        return ShardResult(
            shard_id=shard.id,
            samples=record.samples,
            quarantined=record.quarantined,
            images=images,
            rows=writer.rows,
            faults=faults.reasons(),
            damaged=record.damaged,
            failed=failed,
            seconds=0.0,
            waited_s=waited,
            table_bytes=table.stat().st_size,
            progress=dataclasses.replace(self.progress),
        )

    def _fill(self, shard: Shard, feed: ViewFeed, writer: TableWriter, faults: FaultLog) -> float:
        """Score all views of the feed into the writer; returns the seconds that the teacher had no batch.

        They count from its last batch of the shard before: with nothing else in hand it waits for the commit. While it
        is at one batch, others lie ready for `QUEUE_SECONDS`, one at least.
        """
        waited, depth = 0.0, 1
        ahead: deque[tuple[list[View], Submitted]] = deque()
        for batch in self._batches(feed, faults):
            ahead.append((batch, self._submit(batch)))
            while len(ahead) > depth:
                scored = self._collect(shard, *ahead.popleft(), writer, faults)
                waited += scored.waited_s
                depth = batches_ahead(scored.worked_s)
        while ahead:
            waited += self._collect(shard, *ahead.popleft(), writer, faults).waited_s
        return waited

    def _batches(self, feed: ViewFeed, faults: FaultLog) -> Iterator[list[View]]:
        """Views in shard order, in lists of the batch size; only the last one may be shorter."""
        size = self._scorer.batch_size
        pending: list[View] = []
        position = 0
        for item in feed:
            self.progress.moved += 1
            self.progress.bytes_read += feed.position - position
            position = feed.position
            if isinstance(item, Fault):
                faults.add(item)
                self.progress.faults += 1
                continue
            self.progress.images += 1
            pending.extend(item)
            while len(pending) >= size:
                yield pending[:size]
                pending = pending[size:]
        if pending:
            yield pending

    def _submit(self, batch: list[View]) -> Submitted:
        return self._thread.submit(*batch_of(batch, self._rows))

    def _collect(
        self, shard: Shard, batch: list[View], submitted: Submitted, writer: TableWriter, faults: FaultLog
    ) -> Scored:
        """Write the rows of a batch."""
        scored = submitted.result()
        rows: list[Row] = []
        finite = np.logical_and.reduce(np.isfinite(scored.scores), axis=1)
        for view, score_V, is_finite in zip(batch, scored.scores, finite, strict=True):
            if is_finite:
                rows.append(_row(shard, view, score_V, self._rows.store))
            else:
                reason = f"the scores of view {view.view} are not finite in {self._rows.precision}"
                faults.add(Fault(view.sample_key, None, "score", reason))
                self.progress.faults += 1
        writer.add(rows)
        self.progress.views += len(batch)
        self.progress.waited_s += scored.waited_s
        self.progress.teacher_s += scored.worked_s
        return scored


def _row(shard: Shard, view: View, score_V: NDArray[np.float32], store: Store) -> Row:
    seen_VP = view.pixels if len(view.pixels) == len(view.visible) else view.pixels[view.visible]
    return Row(
        shard=shard.name,
        sample_key=view.sample_key,
        view=view.view,
        image_height=view.image_size[0],
        image_width=view.image_size[1],
        crop_top=view.box.top,
        crop_left=view.box.left,
        crop_height=view.box.height,
        crop_width=view.box.width,
        hflip=view.box.hflip,
        visible=view.visible,
        score=score_V,
        patches=seen_VP.tobytes() if store == "patches" else None,
        pixels=view.jpeg if store == "view" else None,
    )


def teacher_record(file: TeacherFile) -> TeacherRecord:
    """What tables record of their teacher."""
    return TeacherRecord(
        name=file.name,
        digest=file.digest,
        grid=file.config.grid,
        patch_size=file.config.patch_size,
        heads=file.config.heads,
        decoder_heads=file.config.decoder_heads,
        output_space=file.config.output_space,
        licence=file.licence,
    )
