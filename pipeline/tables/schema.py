"""The score table: schema, identity of its rows, metadata, and its predicted size.

One Parquet file per shard, a row per view; `writer.py` writes them, `reader.py` reads them back.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.output.records import RecordKind
from patchsieve.pipeline.row_config import Crop, RowConfig, Store
from patchsieve.pipeline.shards.feed import ShardRecord

SCORES = RecordKind("scores", schema_version=2)
"""Its version is raised when columns or metadata change; older ones stay readable. Not part of the row identity."""

ROWS_VERSION = 1
"""Raised only when the same settings give other values in the rows. Part of the row identity."""


# Measured on photographs (Caltech-101 and Wikimedia Commons): what zstd leaves of the pixels of patches,
# bytes of a view as JPEG at quality 95, and compressed bytes of all that is no pixel.
_ZSTD_SHARE = 0.86
_JPEG_BYTES_PER_PIXEL = 0.44
_SMALL_BYTES = 16
_SMALL_BYTES_PER_PATCH = 4.6


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
    errors: dict[str, Any],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """What a table says of itself.

    `errors`: `FaultLog.summary`; `provenance` holds at least `run_id`, and never decides anything.
    """
    return {
        "schema_version": SCORES.schema_version,
        "rows_version": ROWS_VERSION,
        "identity": row_identity(config, teacher.digest, teacher.output_space),
        "shard": dataclasses.asdict(shard),
        "teacher": dataclasses.asdict(teacher),
        "config": dataclasses.asdict(config),
        "visible": visible,
        "errors": errors,
        "provenance": provenance,
    }


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
