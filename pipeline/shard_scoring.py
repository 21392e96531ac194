"""One shard, end to end: stream, decode on threads, score in batches, write the table, commit.

Runs without Ray. Two shards may be in hand at once (`ShardScoring.score` on two threads): the second is read
and decoded while the first is scored, and scored while the first commits; the teacher serves one at a time.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from patchrank.pipeline.config import RowConfig
from patchrank.pipeline.output import OutputFolder
from patchrank.pipeline.score_table import Row, TableWriter, table_schema, write_errors
from patchrank.pipeline.scoring import Scorer
from patchrank.pipeline.shards import Fault, Shard
from patchrank.pipeline.view_feed import View, ViewFeed


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What became of a shard. `failed` is the reason it gave no table, None when it committed."""

    shard_id: str
    samples: int
    images: int
    rows: int
    faults: dict[str, int]
    damaged: bool
    failed: str | None
    seconds: float
    waited_s: float
    table_bytes: int


@dataclasses.dataclass
class Progress:
    """Running totals of an actor; `moved` counts every step, so that a watchdog sees life.

    `teacher_s`: seconds from the first wait for a batch to the end of the last one; `waited_s`: those of them
    in which the teacher had nothing to do.
    """

    images: int = 0
    views: int = 0
    faults: int = 0
    moved: int = 0
    teacher_s: float = 0.0
    waited_s: float = 0.0


class ShardScoring:
    """Scores shards with one teacher into one output folder; `score` may run on two threads at once."""

    def __init__(
        self,
        scorer: Scorer,
        rows: RowConfig,
        output: OutputFolder,
        *,
        metadata: dict[str, Any],
        threads: int,
    ) -> None:
        """`metadata`: what every table of this run records beside its shard. `threads`: decoders."""
        self.progress = Progress()
        self._scorer = scorer
        self._rows = rows
        self._output = output
        self._metadata = metadata
        self._teacher = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        images_per_batch = -(-scorer.batch_size // rows.views)
        # Two batches ahead, and enough to keep every decoder busy when images differ in size.
        self._ahead = 2 * images_per_batch + 2 * threads

    def score(self, shard: Shard) -> ShardResult:
        """Score one shard and commit its table.

        Raises InfrastructureError where another attempt may help; then nothing was committed.
        """
        started = time.monotonic()
        feed = ViewFeed(shard, self._rows, self._scorer.patch_size, self._pool, self._ahead)
        try:
            with TemporaryDirectory(prefix="patchrank-") as scratch:
                return self._score(shard, feed, Path(scratch), started)
        finally:
            feed.close()

    def _score(self, shard: Shard, feed: ViewFeed, scratch: Path, started: float) -> ShardResult:
        faults: list[Fault] = []
        table = scratch / "table.parquet"
        schema = table_schema(
            visible=self._scorer.visible, patch_bytes=self._scorer.patch_values, store=self._rows.store
        )
        writer = TableWriter(table, schema)
        images = 0
        with writer:
            with self._teacher:
                begun = waiting = time.monotonic()
                waited = 0.0
                for batch, images in _batches(feed, self._scorer.batch_size, faults):
                    waited += time.monotonic() - waiting
                    writer.add(self._rows_of(shard, batch, faults))
                    waiting = time.monotonic()
                    self._count(batch, images, faults)
                self.progress.waited_s += waited
                self.progress.teacher_s += time.monotonic() - begun
            writer.close(self._table_metadata(shard, feed, faults))
        failed = _failure(feed, writer.rows, faults)
        errors = None
        if faults:
            errors = scratch / "errors.parquet"
            write_errors(errors, faults, shard.name)
        if failed is None:
            self._output.commit(shard, table, errors)
        return ShardResult(
            shard_id=shard.id,
            samples=feed.samples,
            images=images,
            rows=writer.rows,
            faults=dict(Counter(f"{fault.stage}: {fault.reason}" for fault in faults)),
            damaged=feed.damaged,
            failed=failed,
            seconds=time.monotonic() - started,
            waited_s=waited,
            table_bytes=table.stat().st_size,
        )
