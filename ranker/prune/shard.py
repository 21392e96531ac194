"""One shard, end to end: stream, decode on threads, rank in batches, encode on threads, write tar and index, commit.

Runs without Ray. The tar is committed first, then the errors, last the index, which is the record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline import storage
from patchsieve.pipeline.output.faults import count_reasons, failure_reason, write_errors
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.pruned.index import IndexWriter, index_metadata
from patchsieve.pipeline.shards.feed import MAX_BYTES, ShardRecord
from patchsieve.pipeline.shards.reader import Fault
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.shards.writer import PrunedTar
from patchsieve.pipeline.storage import scratch_folder
from patchsieve.ranker.prune.encode import Written, encode
from patchsieve.ranker.prune.feed import Item, Left, PruneSpec, Ranked, batches, feed_of, rank, weight_of
from patchsieve.ranker.select.image_choice import ImageChoice, ShardChoice
from patchsieve.ranker.select.patch_scorer import PatchScorer
from patchsieve.ranker.select.selection import Mask
from patchsieve.ranker.select.selector import Selector


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneResult:
    """What became of a shard. `failed` is the reason it gave no output, None when it committed.

    `kept` of `patches` stay, of `images` pruned ones; `dropped` images went whole for their score, `unscored` ones were
    pruned although the tables have no score of them; bytes of whole shards and of the pruned images alone; times in
    seconds, `waited_s`: in which no batch was there to rank.
    """

    shard_id: str
    samples: int
    quarantined: int
    images: int
    kept: int
    patches: int
    shard_bytes: int
    tar_bytes: int
    image_bytes_before: int
    image_bytes_after: int
    faults: dict[str, int]
    damaged: bool
    failed: str | None
    seconds: float
    waited_s: float
    dropped: int = 0
    unscored: int = 0


@dataclasses.dataclass
class _Tally:
    images: int = 0
    kept: int = 0
    dropped: int = 0
    unscored: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    waited_s: float = 0.0
    faults: list[Fault] = dataclasses.field(default_factory=list)


class ShardPruning:
    """Prunes shards, one after the other, with one ranker into one output folder."""

    def __init__(
        self,
        scorer: PatchScorer,
        selector: Selector,
        spec: PruneSpec,
        output: OutputFolder,
        *,
        choice: ImageChoice | None,
        fields: dict[str, Any],
        provenance: dict[str, Any],
        threads: int,
        salvage: bool,
    ) -> None:
        """`choice`: which images stay, None for all. `fields`: everything that can change a pruned shard. `threads`:
        those that decode and encode.
        """
        self._choice = choice
        self._scorer, self._selector, self._spec, self._output = scorer, selector, spec, output
        self._fields, self._provenance, self._salvage = fields, provenance, salvage
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
        # Two batches ahead, and enough to keep every thread busy when images differ in size.
        self._ahead = 2 * scorer.batch_size + 2 * threads

    def prune(self, shard: Shard, path: str) -> PruneResult:
        """Prune one shard to `path`, relative to the output folder, and commit it.

        Raises InfrastructureError where another attempt may help; then nothing was committed but perhaps the tar.
        """
        started = time.monotonic()
        with scratch_folder() as scratch:
            result = self._prune(shard, path, scratch)
        return dataclasses.replace(result, seconds=time.monotonic() - started)

    def _prune(self, shard: Shard, path: str, scratch: Path) -> PruneResult:
        index, errors, archive = scratch / "index.parquet", scratch / "errors.parquet", scratch / "shard.tar"
        tally = _Tally()
        choice = None if self._choice is None else self._choice.of(shard)
        feed = feed_of(shard, self._spec, self._pool, self._ahead, choice)
        with IndexWriter(index, shard=shard.name, grid=self._spec.grid) as writer:
            with contextlib.ExitStack() as stack:
                stack.callback(feed.close)
                tar = stack.enter_context(PrunedTar(archive)) if self._spec.codec is not None else None
                self._fill(batches(feed, self._scorer.batch_size), tar, writer, tally)
            record = feed.record(tally.faults)
            told = {} if tar is None else {"path": path, "size": tar.size, "sha256": tar.sha256}
            writer.close(
                index_metadata(
                    fields=self._fields,
                    shard=record,
                    grid=self._spec.grid,
                    output=told,
                    faults=tally.faults,
                    provenance=self._provenance,
                )
            )
        failed = why_failed(
            record, tally.images + tally.dropped, tally.faults, salvage=self._salvage, choice=choice
        )
        if tally.faults:
            write_errors(errors, tally.faults, shard.name, run_id=self._output.run_id)
        if failed is None:
            if tar is not None:
                target = storage.join(self._output.url, *path.split("/"))
                storage.commit_file(archive, target, run_id=self._output.run_id)
            self._output.commit(shard, index, errors if tally.faults else None)
        elif tally.faults:
            self._output.commit_errors(shard, errors)
        return PruneResult(
            shard_id=shard.id,
            samples=record.samples,
            quarantined=record.quarantined,
            images=tally.images,
            kept=tally.kept,
            patches=tally.images * self._selector.positions,
            shard_bytes=record.size,
            tar_bytes=0 if tar is None else tar.size,
            image_bytes_before=tally.bytes_before,
            image_bytes_after=tally.bytes_after,
            faults=count_reasons(tally.faults),
            damaged=record.damaged,
            failed=failed,
            seconds=0.0,
            waited_s=tally.waited_s,
            dropped=tally.dropped,
            unscored=0 if choice is None else tally.unscored,
        )

    def _fill(
        self, ready: Iterable[list[Item]], tar: PrunedTar | None, writer: IndexWriter, tally: _Tally
    ) -> None:
        """Rank, select, encode and write everything in order; encoding runs ahead of writing, within bounds."""
        encoding: deque[tuple[Future[Written], int]] = deque()
        held = 0
        waiting = time.monotonic()
        for batch in ready:
            tally.waited_s += time.monotonic() - waiting
            for item, keep_L in self._select(rank(batch, self._scorer)):
                weight = weight_of(item if isinstance(item, Left) else item[0])
                while encoding and (len(encoding) >= self._ahead or held + weight > MAX_BYTES):
                    held -= encoding[0][1]
                    _write(encoding.popleft()[0].result(), tar, writer, tally)
                encoding.append((self._pool.submit(encode, item, keep_L, self._spec), weight))
                held += weight
            waiting = time.monotonic()
        tally.waited_s += time.monotonic() - waiting
        for future, _ in encoding:
            _write(future.result(), tar, writer, tally)

    def _select(self, ranked: list[Ranked]) -> list[tuple[Ranked, NDArray[np.bool_] | None]]:
        images = [item for item in ranked if not isinstance(item, Left)]
        if not images:
            return [(item, None) for item in ranked]
        masks: Mask = self._selector.masks(
            np.stack([scores_L for _, scores_L in images]),
            [image.patches for image, _ in images],
            [image.sample.key for image, _ in images],
        )
        following = iter(masks)
        return [(item, None if isinstance(item, Left) else next(following)) for item in ranked]


def why_failed(
    shard: ShardRecord,
    images: int,
    faults: Sequence[Fault],
    *,
    salvage: bool,
    choice: ShardChoice | None,
) -> str | None:
    """Why a shard that was read to its end gives no output; None where it does. `images`: dropped ones with them."""
    if choice is not None and choice.sha256 not in ("", shard.sha256):
        return "it is not the shard that its score tables were made from: score it again"
    if shard.damaged and not salvage:
        reason = next(fault.reason for fault in faults if fault.stage == "archive")
        return f"damaged archive: {reason}; --salvage prunes what it gave"
    return failure_reason(shard, images, faults, "could be pruned")


def _write(written: Written, tar: PrunedTar | None, writer: IndexWriter, tally: _Tally) -> None:
    if tar is not None:
        for name, data in written.members:
            tar.add(name, data)
    row = written.row
    if row is not None:
        writer.add(row)
        if row.positions is None:
            tally.dropped += row.image_score is not None
        else:
            tally.images += 1
            tally.unscored += row.image_score is None
            tally.kept += len(row.positions)
            tally.bytes_before += row.bytes_before
            tally.bytes_after += row.bytes_after
    if written.fault is not None:
        tally.faults.append(written.fault)
