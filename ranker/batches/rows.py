"""Rows of slices in memory, pixels as they are stored; what a batch takes is decoded only then.

Shape suffixes: N views, V visible patches, L grid positions, P values of a patch (p * p * 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.errors import ContentError, DamagedFileError, UserError
from patchsieve.pipeline.images.patches import patchify, take_patches
from patchsieve.pipeline.images.views import decode_view
from patchsieve.ranker.batches.batch import Batch
from patchsieve.ranker.batches.image_views import ReplayedViews
from patchsieve.ranker.batches.index import TableIndex
from patchsieve.ranker.batches.table_file import PIXEL_COLUMNS, changed, held_out_mask, one_chunk, open_table

Rows = NDArray[np.int64]


class PixelReader(Protocol):
    """Where the pixels of a slice's rows come from."""

    def take(self, rows: Rows, positions_NV: Tensor, pool: ThreadPoolExecutor) -> Tensor:
        """Patches of these rows, counted in the slice, uint8: `[N, V, P]` at the positions, or `[N, L, P]`."""


class StoredRows:
    """Rows of one slice: those of one side (held out or not), or those of them that `order` numbers, in its order.

    Raises UserError for a damaged table or a shard that is not the scored one, InfrastructureError for one that is no
    longer what was indexed, and where the store fails.
    """

    def __init__(self, index: TableIndex, number: int, *, held_out: bool, order: Rows | None = None) -> None:
        """`number`: of the slice."""
        row_group, first = int(index.row_group_of[number]), int(index.first_of[number])
        file = index.files[index.file_of[number]]
        source = index.source_of[index.file_of[number]]
        with open_table(file, source) as parquet:
            if row_group >= parquet.num_row_groups:
                raise changed(file)
            before = [parquet.metadata.row_group(i).num_rows for i in range(row_group)]
            # One column holds nearly all bytes: threads would gain nothing.
            names = ["sample_key", "view", "visible", "score", *PIXEL_COLUMNS[source]]
            table = parquet.read_row_group(row_group, columns=names, use_threads=False)
        table = table.slice(first, int(index.rows_of[number]))
        self._keys = one_chunk(table["sample_key"])
        outside = held_out_mask(self._keys, index.held_out_share, index.seed)
        rows = np.flatnonzero(outside == held_out)
        if len(rows) != index.side(held_out=held_out)[number]:
            raise changed(file)
        self._rows = rows if order is None else rows[order]
        self._views = one_chunk(table["view"]).to_numpy()
        self._visible = one_chunk(table["visible"]).flatten().to_numpy().reshape(-1, index.visible)
        _check_positions(self._visible, index.grid**2, file.url, sum(before) + first)
        self._scores = one_chunk(table["score"]).flatten().to_numpy().reshape(-1, index.visible)
        whole = index.context == "full"
        grid, patch_size = index.grid, index.patch_size
        self._pixels: PixelReader
        if source == "patches":
            self._pixels = StoredPatches(one_chunk(table["patches"]), index.visible)
        elif source == "pixels":
            self._pixels = StoredViews(
                one_chunk(table["pixels"]),
                grid,
                patch_size,
                whole=whole,
                url=file.url,
                first_row=sum(before),
            )
        else:
            self._pixels = ReplayedViews(
                table,
                self._keys,
                self._rows,
                index.images,
                number,
                grid=grid,
                patch_size=patch_size,
                whole=whole,
            )

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, numbers: Rows, pool: ThreadPoolExecutor) -> Batch:
        """The rows of these numbers, in order; views are decoded on the pool."""
        rows = self._rows[numbers]
        positions = torch.from_numpy(self._visible[rows].astype(np.int64))
        return Batch(
            epoch=0,
            step=0,
            patches=self._pixels.take(rows, positions, pool),
            positions=positions,
            scores=torch.from_numpy(self._scores[rows]),
            sample_keys=tuple(self._keys.take(pa.array(rows)).to_pylist()),
            views=tuple(self._views[rows].tolist()),
        )


def _check_positions(visible_NV: NDArray[np.int16], positions: int, url: str, first_row: int) -> None:
    """Raise DamagedFileError for places that are not ascending places of the grid."""
    inside = (visible_NV >= 0) & (visible_NV < positions)
    sound = inside.all(axis=1) & (np.diff(visible_NV.astype(np.int64), axis=1) > 0).all(axis=1)
    if not sound.all():
        row = int(np.argmin(sound))
        raise DamagedFileError(
            f"{url} row {first_row + row} names patches that are no ascending places of a grid of {positions}: "
            "score that shard again"
        )


def held_out_batches(
    index: TableIndex, number: int, *, batch_size: int, decode_threads: int = 1
) -> Iterator[Batch]:
    """The held-out rows of a slice in the order of the table; the last batch may be short. Raises as `StoredRows`."""
    stored = StoredRows(index, number, held_out=True)
    with ThreadPoolExecutor(decode_threads, thread_name_prefix="decode views") as pool:
        for start in range(0, len(stored), batch_size):
            yield stored.take(np.arange(start, min(start + batch_size, len(stored))), pool)


class StoredPatches:
    """The visible patches as a table holds them."""

    def __init__(self, column: pa.Array, visible: int) -> None:
        """`column`: fixed-size binary, the patches of a row behind one another."""
        # Where Arrow holds them, without a copy.
        values = np.frombuffer(column.buffers()[1], dtype=np.uint8)
        width = column.type.byte_width
        start = column.offset * width
        self._patches = values[start : start + len(column) * width].reshape(len(column), visible, -1)

    def take(self, rows: Rows, positions_NV: Tensor, pool: ThreadPoolExecutor) -> Tensor:
        """Patches of these rows, uint8 `[N, V, P]`."""
        return torch.from_numpy(self._patches[rows])


class StoredViews:
    """Whole views as a table holds them, JPEGs; those of one fixed crop are decoded once per batch."""

    def __init__(
        self,
        column: pa.DictionaryArray,
        grid: int,
        patch_size: int,
        *,
        whole: bool,
        url: str,
        first_row: int,
    ) -> None:
        """`url` and `first_row`: the table, and where in it these rows begin, for the error of a damaged view."""
        self._column, self._grid, self._patch_size = column, grid, patch_size
        self._whole, self._url, self._first_row = whole, url, first_row

    def take(self, rows: Rows, positions_NV: Tensor, pool: ThreadPoolExecutor) -> Tensor:
        """Patches of these rows, uint8 `[N, L, P]`, or `[N, V, P]` at the positions."""
        codes = self._column.indices.to_numpy()[rows]
        order = np.argsort(codes, kind="stable")
        places = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
        decoded = torch.empty(len(rows), self._grid**2, self._patch_size**2 * 3, dtype=torch.uint8)

        def decode(place: Rows) -> None:
            view = self._view(int(codes[place[0]]), int(rows[place[0]]))
            decoded[torch.from_numpy(place)] = patchify(view[None], self._patch_size)

        # The list is read for what a decoder raises.
        list(pool.map(decode, places))
        return decoded if self._whole else take_patches(decoded, positions_NV)

    def _view(self, code: int, row: int) -> Tensor:
        side = self._grid * self._patch_size
        try:
            view = decode_view(self._column.dictionary[code].as_py())
            if view.shape != (3, side, side):
                raise ContentError(f"{view.shape[2]} x {view.shape[1]} pixels instead of {side} x {side}")
        except ContentError as error:
            where = f"{self._url} row {self._first_row + row}"
            raise UserError(f"{where}: its stored view cannot be used: {error}") from error
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
