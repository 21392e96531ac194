"""The score table: schema, identity of its rows, metadata, and a writer whose memory does not grow.

One Parquet file per shard, a row per view; `table_reader.py` reads them back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from patchsieve.pipeline.config import Crop, RowConfig, Store
from patchsieve.pipeline.record_file import (
    METADATA_KEY,
    ShardRecord,
    canonical_json,
    digest_of,
    verify_file,
)
from patchsieve.pipeline.row_buffer import RowBuffer
from patchsieve.pipeline.shards import Fault

SCHEMA_VERSION = 1
"""Raised when columns or metadata change; older versions stay readable. Not part of the row identity."""

ROWS_VERSION = 1
"""Raised only when the same settings give other values in the rows. Part of the row identity."""

GROUP_BYTES = 64_000_000
"""Upper bound of a row group's uncompressed bytes, and with it of the memory of a writer."""

# A dictionary page may hold every distinct value of a row group; a column that outgrows it would fall back to
# storing the pixels of one fixed crop once per view.
_DICTIONARY_BYTES = 2 * GROUP_BYTES

# Upper bounds of what a row takes beside its lists, key and pixels, and of a list element with its levels.
_ROW_BYTES = 128
_ELEMENT_BYTES = 6

# Measured on photographs (Caltech-101 and Wikimedia Commons): what zstd leaves of the pixels of patches,
# bytes of a view as JPEG at quality 95, and compressed bytes of all that is no pixel.
_ZSTD_SHARE = 0.86
_JPEG_BYTES_PER_PIXEL = 0.44
_SMALL_BYTES = 16
_SMALL_BYTES_PER_PATCH = 4.6

ERRORS_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("sample_key", pa.string()),
        pa.field("member", pa.string()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""A row is a sample that gave no rows; `sample_key` is null where the archive itself is at fault."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherRecord:
    """The teacher of a table: `grid` patches along a side, `patch_size` in pixels, heads of attention."""

    name: str
    digest: str
    grid: int
    patch_size: int
    heads: int
    decoder_heads: int
    output_space: str
    licence: str | None


@dataclasses.dataclass(slots=True, kw_only=True)
class Row:
    """One view. `visible`: int16 `[V]`, ascending; `score`: float32 `[V]`; the box is in decoded pixels.

    `patches`: uint8 RGB of the visible patches, V * p * p * 3 bytes (store `patches`); `pixels`: the view as
    a JPEG (store `view`); each None otherwise.
    """

    shard: str
    sample_key: str
    view: int
    image_height: int
    image_width: int
    crop_top: int
    crop_left: int
    crop_height: int
    crop_width: int
    hflip: bool
    visible: NDArray[np.int16]
    score: NDArray[np.float32]
    patches: bytes | None
    pixels: bytes | None


def row_fields(config: RowConfig, teacher_digest: str, output_space: str = "unknown") -> dict[str, Any]:
    """Everything that can change a row, by name: what the row identity hashes and `config.json` compares.

    The teacher's output space is one of them where the metric compares images. A setting added later stays out of this
    dict while it has the value that older rows were made with.
    """
    fields = {**dataclasses.asdict(config), "teacher": teacher_digest, "rows_version": ROWS_VERSION}
    if config.frozen_tokens is None:
        del fields["frozen_tokens"]
    return {**fields, "output_space": output_space} if config.metric in ("ssim", "psnr") else fields


def row_identity(config: RowConfig, teacher_digest: str, output_space: str = "unknown") -> str:
    """SHA-256, in hex, of everything that can change a row."""
    return digest_of(row_fields(config, teacher_digest, output_space))


def table_schema(*, visible: int, patch_bytes: int, store: Store) -> pa.Schema:
    """Columns of a table with `visible` (V) patches per view; `patch_bytes` = p * p * 3."""

    def field(name: str, kind: pa.DataType) -> pa.Field:
        return pa.field(name, kind, nullable=False)

    def vector(kind: pa.DataType) -> pa.DataType:
        return pa.list_(field("element", kind), visible)

    columns = [
        field("shard", pa.dictionary(pa.int32(), pa.string())),
        field("sample_key", pa.string()),
        field("view", pa.int16()),
        *(field(name, pa.int32()) for name in ("image_height", "image_width")),
        *(field(f"crop_{name}", pa.int32()) for name in ("top", "left", "height", "width")),
        field("hflip", pa.bool_()),
        field("visible", vector(pa.int16())),
        field("score", vector(pa.float32())),
    ]
    if store == "patches":
        columns.append(field("patches", pa.binary(visible * patch_bytes)))
    elif store == "view":
        columns.append(field("pixels", pa.binary()))
    return pa.schema(columns)


def table_metadata(
    *,
    config: RowConfig,
    teacher: TeacherRecord,
    shard: ShardRecord,
    visible: int,
    faults: Sequence[Fault],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """What a table says of itself; `provenance` holds at least `run_id`, and never decides anything."""
    return {
        "schema_version": SCHEMA_VERSION,
        "rows_version": ROWS_VERSION,
        "identity": row_identity(config, teacher.digest, teacher.output_space),
        "shard": dataclasses.asdict(shard),
        "teacher": dataclasses.asdict(teacher),
        "config": dataclasses.asdict(config),
        "visible": visible,
        "errors": {"rows": len(faults), "digest": errors_digest(faults)},
        "provenance": provenance,
    }


class TableWriter:
    """Writes one table to a local path, row group by row group; leaves no file unless it was closed.

    As a context manager it removes the file where `close` was not reached.
    """

    def __init__(self, local_path: Path, schema: pa.Schema, *, group_bytes: int = GROUP_BYTES) -> None:
        """`group_bytes`: uncompressed bytes that a row group may reach."""
        self.rows = 0
        self._local_path, self._schema, self._group_bytes = local_path, schema, group_bytes
        self._visible = schema.field("visible").type.list_size
        self._buffer = RowBuffer(schema)
        self._buffered_bytes = 0
        # `score` and `patches` hardly ever repeat: a dictionary of them would only be built and dropped
        # again.
        repeating = [
            f"{name}.list.element" if name == "visible" else name
            for name in schema.names
            if name not in ("score", "patches", "hflip")
        ]
        self._writer: Any = pq.ParquetWriter(
            local_path,
            schema,
            compression="zstd",
            use_dictionary=repeating,
            dictionary_pagesize_limit=_DICTIONARY_BYTES,
            write_page_checksum=True,
        )

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._local_path.unlink(missing_ok=True)

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows in their final order; `rows` itself may be freed afterwards."""
        for row in rows:
            size = self._size_of(row)
            if len(self._buffer) and self._buffered_bytes + size > self._group_bytes:
                self._flush()
            self._buffer.add(row)
            self._buffered_bytes += size
            self.rows += 1

    def close(self, metadata: dict[str, Any]) -> None:
        """Write the rest and the footer with `metadata` (see `table_metadata`), and verify the file."""
        self._flush()
        self._writer.add_key_value_metadata({METADATA_KEY.decode(): canonical_json(metadata)})
        self._writer.close()
        self._writer = None
        verify_file(self._local_path, schema=self._schema, rows=self.rows, metadata=metadata)

    def _size_of(self, row: Row) -> int:
        visible: int = self._visible
        return (
            _ROW_BYTES
            + 2 * _ELEMENT_BYTES * visible
            + len(row.shard)
            + len(row.sample_key) * 4
            + len(row.patches or b"")
            + len(row.pixels or b"")
        )

    def _flush(self) -> None:
        if len(self._buffer):
            self._writer.write_table(self._buffer.table(), row_group_size=len(self._buffer))
            self._buffer.clear()
            self._buffered_bytes = 0


def predicted_bytes(
    *, images: int, views: int, visible: int, patch_size: int, size: int, crop: Crop, store: Store
) -> int:
    """Bytes of the tables of `images` images, for a dry run: right to about a fifth on photographs."""
    pixels = 0.0
    if store == "patches":
        pixels = views * visible * patch_size**2 * 3 * _ZSTD_SHARE
    elif store == "view":
        # The views of one fixed crop are one JPEG, stored once.
        pixels = (1 if crop == "center" else views) * size**2 * _JPEG_BYTES_PER_PIXEL
    return round(images * (pixels + views * (_SMALL_BYTES + visible * _SMALL_BYTES_PER_PATCH)))


def errors_digest(faults: Sequence[Fault]) -> str:
    """What ties an errors file to its table: a hash of its rows, "" where there are none."""
    return digest_of([dataclasses.astuple(fault) for fault in faults]) if faults else ""


def write_errors(local_path: Path, faults: Sequence[Fault], shard_name: str, *, run_id: str) -> None:
    """Write the errors file of one shard to a local path, and verify it."""
    columns = {
        "shard": [shard_name] * len(faults),
        **{name: [getattr(fault, name) for fault in faults] for name in ERRORS_SCHEMA.names[1:]},
    }
    metadata = {"schema_version": SCHEMA_VERSION, "digest": errors_digest(faults), "run_id": run_id}
    with pq.ParquetWriter(local_path, ERRORS_SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(pa.table(columns, schema=ERRORS_SCHEMA))
        writer.add_key_value_metadata({METADATA_KEY.decode(): canonical_json(metadata)})
    verify_file(local_path, schema=ERRORS_SCHEMA, rows=len(faults), metadata=metadata)
