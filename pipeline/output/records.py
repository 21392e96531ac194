"""Record files: the Parquet files that say what has been done with one shard, and their footers.

A record file (a score table, the index of a pruned shard) holds one JSON object under the key `patchsieve` of
its footer. Of that object, this module knows what every kind of record has in common: `schema_version`,
`identity` (a hash of everything that can change its rows), `shard`, `errors` and `provenance`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from patchsieve.pipeline import storage
from patchsieve.pipeline.checks import typed
from patchsieve.pipeline.errors import DamagedFileError, InfrastructureError, UserError
from patchsieve.pipeline.identity import canonical_json
from patchsieve.pipeline.shards.feed import ShardRecord

METADATA_KEY = b"patchsieve"

# One request fetches a footer of this length; measured ones take 2 to 8 kB.
_TAIL_BYTES = 2**16
_FOOTER_LIMIT = 2**28
_FOOTER_END_BYTES = 8
_MAGIC = b"PAR1"


@dataclasses.dataclass(frozen=True)
class RecordKind:
    """A kind of record: the folder of an output that its files lie in, and the version of their schema.

    Files of a newer `schema_version` are refused; with None files of any are read, for what all kinds have in common.
    """

    folder: str
    schema_version: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What an output folder needs to know of one record file: small, as there may be 100,000 of them.

    `errors` is the digest of the errors file that belongs to it, "" where there is none. `output` and
    `output_size`: path below the output folder and bytes of the file that was written beside it (the tar of a pruned
    shard), "" and -1 where there is none.
    """

    identity: str
    name: str
    size: int
    tag: str
    sha256: str
    rows: int
    samples: int
    quarantined: int
    damaged: bool
    errors: str
    run_id: str
    output: str = ""
    output_size: int = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordFooter:
    """The footer of one record file: `metadata` is the JSON object under `patchsieve`."""

    url: str
    rows: int
    row_groups: int
    schema: pa.Schema
    metadata: dict[str, Any]

    def record(self) -> Record:
        """The short form; raises DamagedFileError where the metadata lacks what every record has."""
        with storage.parsing(self.url):
            shard = typed(ShardRecord, self.metadata["shard"])
            output = self.metadata.get("output", {})
            path = output.get("path", "")
            if path and {"", ".", ".."} & set(path.split("/")):
                raise ValueError(f"its output lies at {path!r}")
            values = {
                "identity": self.metadata["identity"],
                "rows": self.rows,
                "errors": self.metadata["errors"]["digest"],
                "run_id": self.metadata["provenance"]["run_id"],
                "output": path,
                "output_size": output.get("size", -1),
                **dataclasses.asdict(shard),
            }
            return typed(Record, values)


def read_footer(url: str, *, size: int | None = None, newest_schema: int | None = None) -> RecordFooter:
    """Read the footer of a record file, in one request where its `size` in bytes is known.

    Raises DamagedFileError for a file that is no record, UserError for one of a schema above `newest_schema`,
    FileNotFoundError where there is none, InfrastructureError where the store fails.
    """
    return parse_footer(url, pa.py_buffer(read_tail(url, size=size)[0]), newest_schema=newest_schema)


def read_tail(url: str, *, size: int | None = None) -> tuple[bytes, int]:
    """The last bytes of a Parquet file, its footer among them, and the size of the file; errors as in `read_footer`."""
    if size is None:
        size = storage.stat(url).size
    if size is None:
        raise InfrastructureError(f"{url}: the store tells no length, which reading Parquet needs")
    tail = storage.read_range(url, max(0, size - _TAIL_BYTES), size)
    needed = int.from_bytes(tail[-_FOOTER_END_BYTES:-4], "little") + _FOOTER_END_BYTES
    if tail[-4:] != _MAGIC or needed > min(size, _FOOTER_LIMIT):
        raise DamagedFileError(f"{url} is not a complete Parquet file")
    if needed > len(tail):
        tail = storage.read_range(url, size - needed, size)
    return tail, size


def parse_footer(url: str, tail: pa.Buffer, *, newest_schema: int | None = None) -> RecordFooter:
    """The footer out of the last bytes of a record file; errors as in `read_footer`."""
    with storage.parsing(url):
        parquet = pq.read_metadata(pa.BufferReader(tail))
        schema = parquet.schema.to_arrow_schema()
        raw = (parquet.metadata or {}).get(METADATA_KEY)
        if raw is None:
            raise ValueError("its footer has no `patchsieve` metadata")
        metadata = json.loads(raw)
        version = int(metadata["schema_version"])
    if newest_schema is not None and version > newest_schema:
        raise UserError(
            f"{url} has schema version {version}, this patchsieve reads versions up to {newest_schema}: "
            "use the release that wrote it, or a newer one"
        )
    return RecordFooter(
        url=url, rows=parquet.num_rows, row_groups=parquet.num_row_groups, schema=schema, metadata=metadata
    )


def verify_file(path: Path, *, schema: pa.Schema, rows: int, metadata: dict[str, Any]) -> None:
    """Open a written file again; raises InfrastructureError where it does not hold what was written."""
    try:
        with pa.memory_map(str(path)) as file:
            footer = parse_footer(str(path), file.read_buffer())
    except DamagedFileError as error:
        raise InfrastructureError(f"{path} does not read back as written: {error}") from error
    same = footer.schema.equals(schema) and canonical_json(footer.metadata) == canonical_json(metadata)
    if footer.rows != rows or not same:
        raise InfrastructureError(f"{path} does not read back as written: {footer.rows} rows of {rows}")
