"""What a training run must know of its tables before it reads them: rows per row group, and that scores are sound."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from patchrank.pipeline import storage
from patchrank.pipeline.errors import InfrastructureError, UserError
from patchrank.pipeline.record_file import digest_of, map_threads
from patchrank.pipeline.table_reader import ScoreTables, TableFile
from patchrank.ranker.reading_order import held_out

Context = Literal["visible", "full"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TableIndex:
    """The row groups of all tables, in the order of the tables: some numbers each, whatever the rows hold.

    `file_of` and `number_of`: place in `files` and number within that file; `train_rows` and `held_out_rows`: rows of
    either side; `sizes`: bytes of the pixel column in memory; each int64 `[G]`. `column_of`: the pixel column that is
    read, by file. `grid`, `patch_size` and `visible` (V) are those of the tables.
    """

    context: Context
    held_out_share: float
    seed: int
    grid: int
    patch_size: int
    visible: int
    files: tuple[TableFile, ...]
    column_of: tuple[str, ...]
    file_of: NDArray[np.int64]
    number_of: NDArray[np.int64]
    train_rows: NDArray[np.int64]
    held_out_rows: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def side(self, *, held_out: bool) -> NDArray[np.int64]:
        """Rows by group of the images that are held out, or of those to train on."""
        return self.held_out_rows if held_out else self.train_rows

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the order of rows: a position in another index means other rows."""
        contents = [(file.sha256, file.first_view, file.last_view, file.rows) for file in self.files]
        groups = [self.train_rows.tolist(), self.held_out_rows.tolist(), self.sizes.tolist()]
        return digest_of([self.context, self.held_out_share, self.seed, contents, groups])


def index_tables(
    tables: ScoreTables, *, context: Context, held_out_share: float = 0.0, seed: int = 0
) -> TableIndex:
    """Read the keys and scores of all tables, a row group at a time, and nothing else.

    `context`: `visible` reads the patches of a table, or cuts them out of its stored views; `full` needs stored views.
    The result may be sent to other processes. Raises UserError for tables without rows, a score that is not finite
    (file and row are named), a table without the pixels asked for, or one that is damaged.
    """
    if not 0 <= held_out_share < 1:
        raise ValueError(f"a share of {held_out_share} cannot be held out")
    if not tables.rows:
        first, others = tables.files[0].url, len(tables.files) - 1
        raise UserError(f"no rows to train on: {first}{f' and {others} more are' if others else ' is'} empty")
    columns = tuple(_pixel_column(file, context) for file in tables.files)

    def scan(entry: tuple[TableFile, str]) -> NDArray[np.int64]:
        return _scan(*entry, held_out_share, seed)

    groups = map_threads(scan, zip(tables.files, columns, strict=True))
    numbers = np.concatenate(groups)
    return TableIndex(
        context=context,
        held_out_share=held_out_share,
        seed=seed,
        grid=tables.teacher["grid"],
        patch_size=tables.teacher["patch_size"],
        visible=tables.visible,
        files=tuple(tables.files),
        column_of=columns,
        file_of=np.repeat(np.arange(len(groups)), [len(group) for group in groups]),
        number_of=np.concatenate([np.arange(len(group)) for group in groups]),
        train_rows=numbers[:, 0],
        held_out_rows=numbers[:, 1],
        sizes=numbers[:, 2],
    )


@contextmanager
def open_table(file: TableFile, column: str) -> Iterator[Any]:
    """A table as a `pyarrow.parquet.ParquetFile`, for reading this pixel column among others.

    Keys and stored views stay dictionaries: the views of one fixed crop share one JPEG in memory too. Raises UserError
    where the file is gone or damaged, InfrastructureError where it has other columns than it had.
    """
    try:
        with storage.parquet_source(file.url) as source:
            names = [name for name in ("sample_key", column) if name != "patches"]
            parquet = pq.ParquetFile(source, page_checksum_verification=True, read_dictionary=names)
            yield parquet
    except KeyError:
        raise changed(file) from None
    except FileNotFoundError:
        raise UserError(f"{file.url} is gone: it was there when training was planned") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file.url} is damaged: {storage.describe_error(error)}") from error


def changed(file: TableFile) -> InfrastructureError:
    """The error of a table that is no longer what was indexed."""
    return InfrastructureError(f"{file.url} changed since training was planned")


def held_out_mask(keys: pa.DictionaryArray, share: float, seed: int) -> NDArray[np.bool_]:
    """Which rows belong to held-out images, bool `[n]`; every key is hashed once."""
    if not share:
        return np.zeros(len(keys), dtype=bool)
    sides = np.array([held_out(key, share, seed) for key in keys.dictionary.to_pylist()], dtype=bool)
    return np.asarray(sides[keys.indices.to_numpy()])


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column of a row group as one array, dictionaries included."""
    return column.unify_dictionaries().combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _pixel_column(file: TableFile, context: Context) -> str:
    for name in ("sample_key", "view", "visible", "score"):
        if name not in file.columns:
            raise UserError(f"{file.url} is no table of views: it has no column `{name}`")
    wanted = ("patches", "pixels") if context == "visible" else ("pixels",)
    for name in wanted:
        if name in file.columns:
            return name
    missing = " or ".join(f"`{name}`" for name in wanted)
    store = "patches or --store view" if context == "visible" else "view"
    raise UserError(
        f"{file.url} has no column {missing}: context {context} needs a table of score --store {store}"
    )


def _scan(file: TableFile, column: str, share: float, seed: int) -> NDArray[np.int64]:
    """Rows to train on, rows held out and bytes of the pixel column, by row group: int64 `[G, 3]`."""
    found = np.zeros((file.row_groups, 3), dtype=np.int64)
    row = 0
    with open_table(file, column) as parquet:
        place = parquet.schema_arrow.names.index(column)
        # Lists are leaves of their own, one each, so that leaves count as columns do.
        for number in range(file.row_groups):
            table = parquet.read_row_group(number, columns=["sample_key", "score"], use_threads=False)
            scores = one_chunk(table["score"]).flatten().to_numpy().reshape(len(table), -1)
            sound = np.isfinite(scores).all(axis=1)
            if not sound.all():
                bad = int(np.argmin(sound))
                raise UserError(
                    f"{file.url} row {row + bad} has a score that is not a finite number"
                    f" ({scores[bad][~np.isfinite(scores[bad])][0]}): score that shard again"
                )
            outside = int(held_out_mask(one_chunk(table["sample_key"]), share, seed).sum())
            size = parquet.metadata.row_group(number).column(place).total_uncompressed_size
            found[number] = len(table) - outside, outside, size
            row += len(table)
    return found
