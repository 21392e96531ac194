"""The index of a pruned shard: schema, metadata, and a writer whose memory does not grow.

One Parquet file per shard, a row per sample in the order of the shard; it is the record that the shard is done.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.output.records import RecordKind
from patchsieve.pipeline.output.sealed import finish_file
from patchsieve.pipeline.shards.feed import ShardRecord

INDEX = RecordKind("index", schema_version=2)
"""Its version is raised when columns or metadata change; older ones stay readable. Not part of the identity."""

SHARDS_FOLDER = "shards"
MAX_POSITIONS = 2**15 - 1
"""Positions are numbered by int16."""

GROUP_ROWS = 8192

INDEX_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("sample_key", pa.string(), nullable=False),
        *(pa.field(f"image_{name}", pa.int32()) for name in ("height", "width")),
        *(pa.field(f"crop_{name}", pa.int32()) for name in ("top", "left", "height", "width")),
        pa.field("grid", pa.int16(), nullable=False),
        pa.field("positions", pa.list_(pa.field("element", pa.int16(), nullable=False))),
        pa.field("scores", pa.list_(pa.field("element", pa.float32(), nullable=False))),
        pa.field("kept", pa.int16()),
        pa.field("bytes_before", pa.int64(), nullable=False),
        pa.field("bytes_after", pa.int64(), nullable=False),
        pa.field("image_score", pa.float64()),
        pa.field("reason", pa.string()),
    ]
)
"""A row is a sample; what makes none (a key seen before, say) is in the errors file alone. `reason` is null where it
was pruned, else why it was copied as it is or left out; then sizes, crop, positions, scores and kept are null.
`positions`: kept patches, ascending, and their `scores`. `bytes_before` and `bytes_after`: of the image, or of all
members where it was not pruned; after is 0 for the format `index`. `image_score`: the teacher's, where whole images
were chosen by it."""


@dataclasses.dataclass(slots=True, kw_only=True)
class IndexRow:
    """One sample; names as in `INDEX_SCHEMA`, boxes in decoded pixels."""

    sample_key: str
    bytes_before: int
    bytes_after: int
    image_size: tuple[int, int] | None = None
    crop: tuple[int, int, int, int] | None = None
    positions: NDArray[np.int16] | None = None
    scores: NDArray[np.float32] | None = None
    image_score: float | None = None
    reason: str | None = None

    def values(self, shard: str, grid: int) -> dict[str, Any]:
        """The row by columns."""
        height, width = self.image_size or (None, None)
        top, left, crop_height, crop_width = self.crop or (None, None, None, None)
        return {
            "shard": shard,
            "sample_key": self.sample_key,
            "image_height": height,
            "image_width": width,
            "crop_top": top,
            "crop_left": left,
            "crop_height": crop_height,
            "crop_width": crop_width,
            "grid": grid,
            "positions": self.positions,
            "scores": self.scores,
            "kept": None if self.positions is None else len(self.positions),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "image_score": self.image_score,
            "reason": self.reason,
        }


def index_metadata(
    *,
    fields: dict[str, Any],
    shard: ShardRecord,
    grid: int,
    output: dict[str, Any],
    errors: dict[str, Any],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """What an index says of itself.

    `fields`: everything that can change a pruned shard, the identity is its hash. `output`: `path` below the output
    folder, `size` and `sha256` of the tar; empty for the format `index`. `errors`: `FaultLog.summary`. `provenance`
    holds at least `run_id`.
    """
    return {
        "schema_version": INDEX.schema_version,
        "identity": digest_of(fields),
        "shard": dataclasses.asdict(shard),
        "config": fields,
        "grid": grid,
        "output": output,
        "errors": errors,
        "provenance": provenance,
    }


class IndexWriter:
    """Writes one index to a local path, row group by row group; a context manager.

    Where `close` was not reached it removes the file.
    """

    def __init__(self, local_path: Path, *, shard: str, grid: int) -> None:
        self.rows = 0
        self._local_path, self._shard, self._grid = local_path, shard, grid
        self._pending: list[dict[str, Any]] = []
        self._writer: Any = pq.ParquetWriter(
            local_path, INDEX_SCHEMA, compression="zstd", write_page_checksum=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._local_path.unlink(missing_ok=True)

    def add(self, row: IndexRow) -> None:
        """Add the next sample."""
        self._pending.append(row.values(self._shard, self._grid))
        self.rows += 1
        if len(self._pending) >= GROUP_ROWS:
            self._flush()

    def close(self, metadata: dict[str, Any]) -> None:
        """Write the rest and the footer with `metadata` (see `index_metadata`), seal and verify the file."""
        self._flush()
        finish_file(self._writer, self._local_path, schema=INDEX_SCHEMA, rows=self.rows, metadata=metadata)
        self._writer = None

    def _flush(self) -> None:
        if self._pending:
            table = pa.Table.from_pylist(self._pending, INDEX_SCHEMA)
            self._writer.write_table(table, row_group_size=len(self._pending))
            self._pending.clear()
