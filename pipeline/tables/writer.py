"""Writes a score table row group by row group, in memory that does not grow with the shard."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from patchsieve.pipeline.output.sealed import finish_file
from patchsieve.pipeline.tables.row_buffer import RowBuffer
from patchsieve.pipeline.tables.schema import Row

GROUP_BYTES = 64_000_000
"""Upper bound of a row group's uncompressed bytes, and with it of the memory of a writer."""

# A dictionary page may hold every distinct value of a row group; a column that outgrows it would fall back to
# storing the pixels of one fixed crop once per view.
_DICTIONARY_BYTES = 2 * GROUP_BYTES

# Upper bounds of what a row takes beside its lists, key and pixels, and of a list element with its levels.
_ROW_BYTES = 128
_ELEMENT_BYTES = 6


class TableWriter:
    """Writes one table to a local path, row group by row group; leaves no file unless it was closed.

    As a context manager it removes the file where `close` was not reached. A row group is compressed and written on a
    thread of the writer's own, while the next one fills.
    """

    def __init__(self, local_path: Path, schema: pa.Schema, *, group_bytes: int = GROUP_BYTES) -> None:
        """`group_bytes`: uncompressed bytes that a row group may reach."""
        self.rows = 0
        self._local_path, self._schema, self._group_bytes = local_path, schema, group_bytes
        self._visible = schema.field("visible").type.list_size
        self._buffer, self._spare = RowBuffer(schema), RowBuffer(schema)
        self._buffered_bytes = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="table")
        self._writing: Future[None] | None = None
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
        self._thread.shutdown()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._local_path.unlink(missing_ok=True)

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows in their final order; `rows` itself may be freed afterwards."""
        begin = 0
        for number, row in enumerate(rows):
            size = self._size_of(row)
            if self._buffered_bytes and self._buffered_bytes + size > self._group_bytes:
                self._buffer.add(rows[begin:number])
                self._flush()
                begin = number
            self._buffered_bytes += size
        self._buffer.add(rows[begin:])
        self.rows += len(rows)

    def close(self, metadata: dict[str, Any]) -> None:
        """Write the rest and the footer with `metadata` (see `table_metadata`), seal and verify the file."""
        self._flush()
        self._wait()
        self._thread.shutdown()
        finish_file(self._writer, self._local_path, schema=self._schema, rows=self.rows, metadata=metadata)
        self._writer = None

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
        self._wait()
        if len(self._buffer):
            self._writing = self._thread.submit(self._write, self._buffer)
            self._buffer, self._spare = self._spare, self._buffer
            self._buffered_bytes = 0

    def _wait(self) -> None:
        """Until the row group before is in the file; raises what writing it raised."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write(self, group: RowBuffer) -> None:
        self._writer.write_table(group.table(), row_group_size=len(group))
        group.clear()
