"""What a training run must know of its tables before it reads them: rows by slice, and that scores are sound.

A slice is what is read at once: a row group, or, where views come from images, as many of its rows as images take
`SLICE_BYTES`.

Shape suffix: S slices of all tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from patchsieve.pipeline.errors import DamagedFileError, UserError
from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.tables.reader import ScoreTables, TableFile
from patchsieve.pipeline.threads import map_threads
from patchsieve.ranker.batches.image_shards import ImageShard, ShardImages, find_shards
from patchsieve.ranker.batches.shard_bytes import key_digest
from patchsieve.ranker.batches.table_file import (
    BOX_COLUMNS,
    PIXEL_COLUMNS,
    PixelSource,
    held_out_mask,
    one_chunk,
    open_table,
)

Context = Literal["visible", "full"]
SLICE_BYTES = 64 * 2**20
"""Image files that a slice may hold, by the mean size of a sample of its shard."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TableIndex:
    """The slices of all tables, in the order of the tables: some numbers each, whatever the rows hold.

    `file_of` and `row_group_of`: place in `files` and row group within that file; `first_of` and `rows_of`: first row
    in the row group and number of rows; `train_rows` and `held_out_rows`: rows of either side; `sizes`: bytes of pixels
    in memory, as stored; `read_bytes`: what reading the slice takes; each int64 `[S]`. `source_of`: where pixels come
    from, by file; `images` reads those that come from shards. `grid`, `patch_size` and `visible` (V) are those of the
    tables.
    """

    context: Context
    held_out_share: float
    seed: int
    grid: int
    patch_size: int
    visible: int
    files: tuple[TableFile, ...]
    source_of: tuple[PixelSource, ...]
    images: ShardImages
    file_of: NDArray[np.int64]
    row_group_of: NDArray[np.int64]
    first_of: NDArray[np.int64]
    rows_of: NDArray[np.int64]
    train_rows: NDArray[np.int64]
    held_out_rows: NDArray[np.int64]
    sizes: NDArray[np.int64]
    read_bytes: NDArray[np.int64]

    def side(self, *, held_out: bool) -> NDArray[np.int64]:
        """Rows by slice of the images that are held out, or of those to train on."""
        return self.held_out_rows if held_out else self.train_rows

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the order of rows: a position in another index means other rows."""
        contents = [(file.sha256, file.first_view, file.last_view, file.rows) for file in self.files]
        slices = [self.train_rows.tolist(), self.held_out_rows.tolist(), self.sizes.tolist()]
        return digest_of([self.context, self.held_out_share, self.seed, contents, slices])


def index_tables(
    tables: ScoreTables,
    *,
    context: Context,
    held_out_share: float = 0.0,
    seed: int = 0,
    shards: Sequence[Shard] = (),
    unsorted: bool = False,
    slice_bytes: int = SLICE_BYTES,
) -> TableIndex:
    """Read the keys and scores of all tables, a row group at a time, and nothing else.

    `context`: `visible` takes the patches of a table, or cuts them out of its stored views; `full` takes its stored
    views. A table that has neither needs its shard among `shards` (see `expand_shards`), from whose images the views
    are made again; `unsorted`: as it was scored. The result may be sent to other processes. Raises UserError for tables
    without rows, a score that is not finite (file and row are named), a table whose pixels cannot be had, one that is
    damaged, and shards that no table needs.
    """
    if not 0 <= held_out_share < 1:
        raise ValueError(f"a share of {held_out_share} cannot be held out")
    if not tables.rows:
        first, others = tables.files[0].url, len(tables.files) - 1
        raise UserError(f"no rows to train on: {first}{f' and {others} more are' if others else ' is'} empty")
    sources = tuple(_pixel_source(file, context, replay=bool(shards)) for file in tables.files)
    replayed = [number for number, source in enumerate(sources) if source == "images"]
    if shards and not replayed:
        raise UserError(f"every table holds the pixels of context {context} itself: leave --images out")
    found = dict(
        zip(
            replayed,
            find_shards([tables.files[n] for n in replayed], shards, unsorted=unsorted),
            strict=True,
        )
        if replayed
        else ()
    )

    def scan(number: int) -> NDArray[np.int64]:
        file, source = tables.files[number], sources[number]
        return _scan(file, source, held_out_share, seed, found.get(number), slice_bytes)

    slices = map_threads(scan, range(len(sources)))
    numbers = np.concatenate(slices)
    file_of = np.repeat(np.arange(len(slices)), [len(part) for part in slices])
    of_images = [number for number in range(len(numbers)) if int(file_of[number]) in found]
    return TableIndex(
        context=context,
        held_out_share=held_out_share,
        seed=seed,
        grid=tables.teacher["grid"],
        patch_size=tables.teacher["patch_size"],
        visible=tables.visible,
        files=tuple(tables.files),
        source_of=sources,
        images=ShardImages(
            {number: found[int(file_of[number])] for number in of_images},
            {number: (int(numbers[number, 7]), int(numbers[number, 8])) for number in of_images},
        ),
        file_of=file_of,
        row_group_of=numbers[:, 0],
        first_of=numbers[:, 1],
        rows_of=numbers[:, 2],
        train_rows=numbers[:, 3],
        held_out_rows=numbers[:, 4],
        sizes=numbers[:, 5],
        read_bytes=numbers[:, 6],
    )


def _pixel_source(file: TableFile, context: Context, *, replay: bool) -> PixelSource:
    for name in ("sample_key", "view", "visible", "score"):
        if name not in file.columns:
            raise UserError(f"{file.url} is no table of views: it has no column `{name}`")
    wanted: tuple[PixelSource, ...] = ("patches", "pixels") if context == "visible" else ("pixels",)
    for name in wanted:
        if name in file.columns:
            return name
    if replay and set(BOX_COLUMNS) <= set(file.columns):
        return "images"
    missing = " or ".join(f"`{name}`" for name in wanted)
    store = "patches or --store view" if context == "visible" else "view"
    raise UserError(
        f"{file.url} has no column {missing}: context {context} needs a table of score --store {store}, or the "
        "shards that were scored (--images)"
    )


def _scan(
    file: TableFile, source: PixelSource, share: float, seed: int, shard: ImageShard | None, slice_bytes: int
) -> NDArray[np.int64]:
    """Numbers of each slice, int64 `[S, 9]`.

    Row group, first row, rows, rows to train on, rows held out, bytes in memory, bytes read, digests of the first and
    last key.
    """
    found: list[tuple[int, ...]] = []
    row = 0
    with open_table(file, source) as parquet:
        # Lists are leaves of their own, one each, so that leaves count as columns do.
        names = ["sample_key", "view", "visible", "score", *PIXEL_COLUMNS[source]]
        leaves = [parquet.schema_arrow.names.index(name) for name in names]
        for row_group in range(file.row_groups):
            table = parquet.read_row_group(row_group, columns=["sample_key", "score"], use_threads=False)
            _check_scores(table, file, row)
            keys = one_chunk(table["sample_key"])
            outside = held_out_mask(keys, share, seed)
            chunks = [parquet.metadata.row_group(row_group).column(leaf) for leaf in leaves]
            stored = sum(chunk.total_compressed_size for chunk in chunks)
            if shard is None:
                cuts, sizes = [0, len(table)], [chunks[-1].total_uncompressed_size]
            else:
                cuts, sizes = _image_slices(keys, shard.sample_bytes, slice_bytes)
            for first, stop, size in zip(cuts[:-1], cuts[1:], sizes, strict=True):
                held = int(outside[first:stop].sum())
                ends = (
                    (0, 0) if shard is None else tuple(key_digest(keys[i].as_py()) for i in (first, stop - 1))
                )
                read = stored + (0 if shard is None else size)
                found.append((row_group, first, stop - first, stop - first - held, held, size, read, *ends))
            row += len(table)
    return np.array(found, dtype=np.int64).reshape(-1, 9)


def _image_slices(
    keys: pa.DictionaryArray, sample_bytes: float, slice_bytes: int
) -> tuple[list[int], list[int]]:
    """Cuts between rows, from 0 to their number, and bytes of the images between them; no image lies on a cut."""
    codes = keys.indices.to_numpy()
    if not len(codes):
        return [0], []
    # Rows of one image lie together, in the order of the shard.
    starts = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1])
    each = max(1, int(slice_bytes / max(1.0, sample_bytes)))
    cuts = [*starts[::each].tolist(), len(codes)]
    counts = [min(each, len(starts) - first) for first in range(0, len(starts), each)]
    return cuts, [round(count * sample_bytes) for count in counts]


def _check_scores(table: pa.Table, file: TableFile, row: int) -> None:
    """Refuse scores that are not finite; `row`: rows of the file before this table."""
    scores = one_chunk(table["score"]).flatten().to_numpy().reshape(len(table), -1)
    sound = np.isfinite(scores).all(axis=1)
    if not sound.all():
        bad = int(np.argmin(sound))
        raise DamagedFileError(
            f"{file.url} row {row + bad} has a score that is not a finite number"
            f" ({scores[bad][~np.isfinite(scores[bad])][0]}): score that shard again"
        )
