"""Rows of row groups in memory, as the table stores them; what a batch takes is decoded only then.

Shape suffixes: N views, V visible patches, L grid positions, P values of a patch (p * p * 3), S side of a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchrank.pipeline.errors import ContentError, UserError
from patchrank.pipeline.images import decode_view
from patchrank.pipeline.patches import patchify, take_patches
from patchrank.ranker.table_index import TableIndex, changed, held_out_mask, one_chunk, open_table
from patchrank.ranker.training_batch import Batch

Rows = NDArray[np.int64]


class StoredRows:
    """Rows of one row group: those of one side (held out or not), or those of them that `order` numbers, in its order.

    Raises UserError for a damaged table, InfrastructureError for one that is no longer what was indexed.
    """

    def __init__(self, index: TableIndex, group: int, *, held_out: bool, order: Rows | None = None) -> None:
        self._index = index
        number = int(index.number_of[group])
        file = index.files[index.file_of[group]]
        column = index.column_of[index.file_of[group]]
        self._url = file.url
        with open_table(file, column) as parquet:
            if number >= parquet.num_row_groups:
                raise changed(file)
            before = [parquet.metadata.row_group(i).num_rows for i in range(number)]
            # One column holds nearly all bytes: threads would gain nothing.
            names = ["sample_key", "view", "visible", "score", column]
            table = parquet.read_row_group(number, columns=names, use_threads=False)
        outside = held_out_mask(one_chunk(table["sample_key"]), index.held_out_share, index.seed)
        rows = np.flatnonzero(outside == held_out)
        if len(rows) != index.side(held_out=held_out)[group]:
            raise changed(file)
        self._first_row = sum(before)
        self._rows = rows if order is None else rows[order]
        self._keys = one_chunk(table["sample_key"])
        self._views = one_chunk(table["view"]).to_numpy()
        self._visible = one_chunk(table["visible"]).flatten().to_numpy().reshape(-1, index.visible)
        self._scores = one_chunk(table["score"]).flatten().to_numpy().reshape(-1, index.visible)
        self._pixels = one_chunk(table[column])
        self._stored_views = column == "pixels"

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, numbers: Rows, pool: ThreadPoolExecutor) -> Batch:
        """The rows of these numbers, in order; stored views are decoded on the pool."""
        rows = self._rows[numbers]
        positions = torch.from_numpy(self._visible[rows].astype(np.int64))
        if self._stored_views:
            patches = self._decoded(rows, pool)
            if self._index.context == "visible":
                patches = take_patches(patches, positions)
        else:
            patches = torch.from_numpy(self._patches()[rows])
        return Batch(
            epoch=0,
            step=0,
            patches=patches,
            positions=positions,
            scores=torch.from_numpy(self._scores[rows]),
            sample_keys=tuple(self._keys.take(pa.array(rows)).to_pylist()),
            views=tuple(self._views[rows].tolist()),
        )

    def _patches(self) -> NDArray[np.uint8]:
        """The pixels of the whole group where Arrow holds them, uint8 `[rows, V, P]`."""
        values = np.frombuffer(self._pixels.buffers()[1], dtype=np.uint8)
        width = self._pixels.type.byte_width
        start = self._pixels.offset * width
        return values[start : start + len(self._pixels) * width].reshape(
            len(self._pixels), self._index.visible, -1
        )

    def _decoded(self, rows: Rows, pool: ThreadPoolExecutor) -> Tensor:
        """The patches of whole views, uint8 `[N, L, P]`; views of one fixed crop are decoded once."""
        codes = self._pixels.indices.to_numpy()[rows]
        order = np.argsort(codes, kind="stable")
        places = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
        grid, patch_size = self._index.grid, self._index.patch_size
        decoded = torch.empty(len(rows), grid**2, patch_size**2 * 3, dtype=torch.uint8)

        def decode(place: Rows) -> None:
            view = self._view(int(codes[place[0]]), int(rows[place[0]]))
            decoded[torch.from_numpy(place)] = patchify(view[None], patch_size)

        # The list is read for what a decoder raises.
        list(pool.map(decode, places))
        return decoded

    def _view(self, code: int, row: int) -> Tensor:
        side = self._index.grid * self._index.patch_size
        try:
            view = decode_view(self._pixels.dictionary[code].as_py())
            if view.shape != (3, side, side):
                raise ContentError(f"{view.shape[2]} x {view.shape[1]} pixels instead of {side} x {side}")
        except ContentError as error:
            told = f"{self._url} row {self._first_row + row}: its stored view cannot be used"
            raise UserError(f"{told}: {error}") from error
        return view


class StoredWindow:
    """Several of them as one sequence of rows."""

    def __init__(self, parts: Sequence[StoredRows]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def take(self, numbers: Rows, pool: ThreadPoolExecutor) -> Batch:
        """The rows of these numbers, in order."""
        part_of = np.searchsorted(self._ends, numbers, "right")
        taken: list[Batch] = []
        places: list[Rows] = []
        for number in np.unique(part_of):
            places.append(np.flatnonzero(part_of == number))
            start = self._ends[number] - len(self._parts[number])
            taken.append(self._parts[number].take(numbers[places[-1]] - start, pool))
        return _interleave(taken, places)


def _interleave(parts: Sequence[Batch], places: Sequence[Rows]) -> Batch:
    """One batch in which the rows of each part lie at the given places."""
    if len(parts) == 1:
        return parts[0]
    count = sum(len(part) for part in parts)
    first = parts[0]

    def lay(values: Sequence[Tensor]) -> Tensor:
        laid = values[0].new_empty((count, *values[0].shape[1:]))
        for value, place in zip(values, places, strict=True):
            laid[torch.from_numpy(place)] = value
        return laid

    back = np.argsort(np.concatenate(places))
    keys = [key for part in parts for key in part.sample_keys]
    views = [view for part in parts for view in part.views]
    return Batch(
        epoch=first.epoch,
        step=first.step,
        patches=lay([part.patches for part in parts]),
        positions=lay([part.positions for part in parts]),
        scores=lay([part.scores for part in parts]),
        sample_keys=tuple(keys[i] for i in back),
        views=tuple(views[i] for i in back),
    )
