"""Training batches out of score tables: deterministic, resumable at any step, in memory that tables do not fill."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.threads import Prefetch
from patchsieve.ranker.batches.batch import Batch, concatenate, mirror
from patchsieve.ranker.batches.index import TableIndex
from patchsieve.ranker.batches.order import Piece, ReadingOrder, Window
from patchsieve.ranker.batches.rows import StoredRows, StoredWindow

WINDOW_BYTES = 256 * 2**20
"""Pixels from which batches are drawn, a few row groups of full size; twice as much is in memory."""

BATCHES_AHEAD = 2


class TableBatches:
    """The batches of one worker, `rank` of `ranks`, in an order that (seed, epoch) decides.

    The stream is a function of the index, the seed, the batch size, `window_bytes`, `flip`, rank and ranks; from a
    given (epoch, step) on it is the same whether or not it was read from the start. Every rank has
    `batches_per_epoch` batches in each epoch; fewer than `ranks * batch_size` rows are left out of an epoch, others in
    the next. Memory: two windows, `ahead` batches and what reading one row group takes.
    """

    def __init__(
        self,
        index: TableIndex,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        flip: bool = False,
        window_bytes: int = WINDOW_BYTES,
        decode_threads: int = 1,
        pinned: bool = False,
    ) -> None:
        """`batch_size`: rows per worker; `flip` mirrors half of the rows, others in every epoch.

        `decode_threads` decode views; `pinned`: batches are for a GPU (see `Batch.pin_memory`). Raises UserError where
        the tables do not fill one batch per worker.
        """
        self._index, self._flip = index, flip
        self._decode_threads, self._pinned = decode_threads, pinned
        self._order = ReadingOrder(
            rows=index.train_rows,
            sizes=index.sizes,
            seed=seed,
            rank=rank,
            ranks=ranks,
            batch_size=batch_size,
            window_bytes=window_bytes,
        )
        self.batches_per_epoch = self._order.batches
        if not self.batches_per_epoch:
            raise UserError(
                f"the tables hold {index.train_rows.sum()} rows to train on, fewer than one batch of {batch_size} for"
                f" each of {ranks} workers: score more images, or ask for smaller batches"
                + (f" (--batch-size {most})" if (most := index.train_rows.sum() // ranks) else "")
            )

    def stream(
        self, *, epoch: int = 0, step: int = 0, epochs: int | None = None, ahead: int = BATCHES_AHEAD
    ) -> Prefetch[Batch]:
        """The batches from batch `step` of `epoch` on, to the end of epoch `epochs` - 1 or without end.

        Use it as a context, so that its threads end with it. Iterating raises UserError for a damaged table,
        InfrastructureError where the store fails or a table changed.
        """
        if epoch < 0 or not 0 <= step <= self.batches_per_epoch:
            raise ValueError(
                f"there is no step {step} of epoch {epoch}: an epoch has {self.batches_per_epoch}"
            )
        return Prefetch(self._batches(epoch, step, epochs), depth=ahead, name="training batches")

    def _batches(self, epoch: int, step: int, epochs: int | None) -> Iterator[Batch]:
        size = self._order.batch_size
        with (
            Prefetch(self._windows(epoch, step, epochs), depth=1, name="table windows") as windows,
            ThreadPoolExecutor(self._decode_threads, thread_name_prefix="decode views") as pool,
        ):
            parts: list[Batch] = []
            for number, window, stored in windows:
                if number != epoch:
                    epoch, step = number, 0
                order = self._order.window_order(epoch, window)
                mirrored = self._order.mirrored(epoch, window)
                place = step * size + sum(map(len, parts)) - window.start
                end = min(window.rows, self.batches_per_epoch * size - window.start)
                while place < end:
                    stop = min(end, place + size - sum(map(len, parts)))
                    part = stored.take(order[place:stop], pool)
                    parts.append(self._turned(part, mirrored[place:stop]))
                    place = stop
                    if sum(map(len, parts)) == size:
                        batch = concatenate(parts, epoch=epoch, step=step)
                        yield batch.pin_memory() if self._pinned else batch
                        step += 1
                        parts = []
                # Else this window would stay while the one after the next is read.
                del stored

    def _turned(self, batch: Batch, mirrored: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Batch:
        if not self._flip:
            return batch
        chosen = torch.from_numpy(mirrored)
        return mirror(batch, chosen, grid=self._index.grid, patch_size=self._index.patch_size)

    def _windows(
        self, epoch: int, step: int, epochs: int | None
    ) -> Iterator[tuple[int, Window, StoredWindow]]:
        while epochs is None or epoch < epochs:
            for window in self._order.windows(epoch, step):
                parts = [self._read(epoch, piece) for piece in window.pieces]
                yield epoch, window, StoredWindow(parts)
                del parts
            epoch, step = epoch + 1, 0

    def _read(self, epoch: int, piece: Piece) -> StoredRows:
        order = self._order.slice_order(epoch, piece.slice)[piece.start : piece.stop]
        return StoredRows(self._index, piece.slice, held_out=False, order=order)
