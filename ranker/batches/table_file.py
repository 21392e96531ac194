"""A score table as training reads it, a row group at a time: its keys, its scores, and where its pixels come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.pipeline.tables.reader import TableFile
from patchsieve.ranker.batches.order import held_out

PixelSource = Literal["patches", "pixels", "images"]
"""Where a table's pixels come from: one of its columns, or the images in its shard."""

BOX_COLUMNS = (
    *("image_height", "image_width"),
    *("crop_top", "crop_left", "crop_height", "crop_width", "hflip"),
)
"""What says, beside the key, how a view was cut."""

PIXEL_COLUMNS = {"patches": ("patches",), "pixels": ("pixels",), "images": BOX_COLUMNS}
"""What is read for the pixels of a row, by their source."""


@contextmanager
def open_table(file: TableFile, source: PixelSource) -> Iterator[Any]:
    """A table as a `pyarrow.parquet.ParquetFile`, for reading keys and what this source of pixels needs.

    Keys and stored views stay dictionaries: the views of one fixed crop share one JPEG in memory too. Raises UserError
    where the file is gone or damaged, InfrastructureError where it has other columns than it had.
    """
    try:
        with storage.parquet_source(file.url) as opened, storage.parsing(file.url):
            names = ["sample_key", *(["pixels"] if source == "pixels" else [])]
            parquet = pq.ParquetFile(opened, page_checksum_verification=True, read_dictionary=names)
            try:
                yield parquet
            except KeyError:
                raise changed(file) from None
    except FileNotFoundError:
        raise UserError(f"{file.url} is gone: it was there when training was planned") from None


def changed(file: TableFile) -> InfrastructureError:
    """The error of a table that is no longer what was indexed."""
    return InfrastructureError(f"{file.url} changed since training was planned")


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column of a row group as one array, dictionaries included."""
    return column.unify_dictionaries().combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def held_out_mask(keys: pa.DictionaryArray, share: float, seed: int) -> NDArray[np.bool_]:
    """Which rows belong to held-out images, bool `[n]`; every key is hashed once."""
    if not share:
        return np.zeros(len(keys), dtype=bool)
    sides = np.array([held_out(key, share, seed) for key in keys.dictionary.to_pylist()], dtype=bool)
    return np.asarray(sides[keys.indices.to_numpy()])
