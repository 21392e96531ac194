"""One shard pruned: ranked, selected from, encoded on threads, written as tar and index, committed.

The tar is committed first, then the errors, last the index, which is the record.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

from patchsieve.pipeline import storage
from patchsieve.pipeline.pruned.index import INDEX, IndexWriter, index_metadata
from patchsieve.pipeline.shards.feed import MAX_BYTES
from patchsieve.pipeline.shards.writer import PrunedTar
from patchsieve.ranker.prune.ranking import PruneResult, RankedImage, RankedShard, ShardWork, keep_masks
from patchsieve.ranker.prune.sample import Left, Prepared, Written, copy_left, encode_image

WHOLE_IMAGES = 8
"""Images of a shard that are also encoded whole, to tell what dropping patches saves beside encoding alone."""


class ShardPruning(ShardWork):
    """Prunes shards into an output folder."""

    kind = INDEX

    def _write(self, ranked: RankedShard, scratch: Path) -> PruneResult:
        index, archive = scratch / "index.parquet", scratch / "shard.tar"
        path = self._request.paths[ranked.shard.id]
        with IndexWriter(index, shard=ranked.shard.name, grid=self._spec.grid) as writer:
            with PrunedTar(archive) if self._spec.codec is not None else contextlib.nullcontext() as tar:
                pruned = _Pruned(tar, writer, self.moved)
                self._fill(ranked, pruned)
            record = ranked.record()
            writer.close(
                index_metadata(
                    fields=self._request.fields,
                    shard=record,
                    grid=self._spec.grid,
                    output={} if tar is None else {"path": path, "size": tar.size, "sha256": tar.sha256},
                    errors=ranked.faults.summary,
                    provenance=self._provenance,
                )
            )
        failed = ranked.why_failed(record, salvage=self._request.config.salvage)
        errors = ranked.faults.finish()
        if failed is None:
            if tar is not None:
                target = storage.join(self._output.url, *path.split("/"))
                storage.commit_file(archive, target, run_id=self._output.run_id)
            self._output.commit(ranked.shard, index, errors)
        elif errors is not None:
            self._output.commit_errors(ranked.shard, errors)
        return self._result(
            ranked,
            record,
            failed,
            kept=pruned.kept,
            coarse=ranked.images * self._spec.coarse,
            tar_bytes=0 if tar is None else tar.size,
            image_bytes_before=pruned.bytes_before,
            image_bytes_after=pruned.bytes_after,
            grown=pruned.grown,
            whole_bytes=pruned.whole_bytes,
            whole_bytes_pruned=pruned.whole_bytes_pruned,
        )

    def _fill(self, ranked: RankedShard, pruned: _Pruned) -> None:
        """Select, encode and write everything in order; encoding runs ahead of writing, within bounds."""
        encoding: deque[tuple[Future[Written], int]] = deque()
        held = 0
        wholes = itertools.repeat(True, WHOLE_IMAGES)
        for batch in ranked:
            for item, future in self._encode(batch, wholes):
                while encoding and (len(encoding) >= self._ahead or held + item.nbytes > MAX_BYTES):
                    held -= encoding[0][1]
                    pruned.add(encoding.popleft()[0].result())
                encoding.append((future, item.nbytes))
                held += item.nbytes
        for future, _ in encoding:
            pruned.add(future.result())

    def _encode(
        self, batch: list[RankedImage | Left], wholes: Iterator[bool]
    ) -> Iterator[tuple[Prepared | Left, Future[Written]]]:
        """What each item becomes, begun on the pool as it is asked for; `wholes`: whether its whole crop counts."""
        images = [item for item in batch if not isinstance(item, Left)]
        masks = iter(keep_masks(self._request.selector, images) if images else ())
        for item in batch:
            if isinstance(item, Left):
                yield item, self._pool.submit(copy_left, item, self._spec)
            else:
                image, scores_L = item
                yield (
                    image,
                    self._pool.submit(
                        encode_image, image, scores_L, next(masks), self._spec, whole=next(wholes, False)
                    ),
                )


class _Pruned:
    """The tar and the index of one shard while they are written, and counts of the images in them."""

    def __init__(self, tar: PrunedTar | None, writer: IndexWriter, moved: Callable[[], None]) -> None:
        self._tar, self._writer, self._moved = tar, writer, moved
        self.kept = self.bytes_before = self.bytes_after = self.grown = 0
        self.whole_bytes = self.whole_bytes_pruned = 0

    def add(self, written: Written) -> None:
        """The next sample, in the order of the shard."""
        self._moved()
        if self._tar is not None:
            for name, data in written.members:
                self._tar.add(name, data)
        row = written.row
        if row is not None:
            self._writer.add(row)
            if row.positions is not None:
                self.kept += len(row.positions)
                self.bytes_before += row.bytes_before
                self.bytes_after += row.bytes_after
                self.grown += row.bytes_after > row.bytes_before
                if written.whole_bytes is not None:
                    self.whole_bytes += written.whole_bytes
                    self.whole_bytes_pruned += row.bytes_after
