"""Sealed files: Parquet files of ours that hold, in their footer, the SHA-256 of all of their own bytes.

Where the digest itself stands, sixty-four zeros count in its place. Files of before `SEALED_FROM` have none, and read
as ever; page checksums, which all have, cover the rows and nothing else.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import DamagedFileError
from patchsieve.pipeline.identity import canonical_json
from patchsieve.pipeline.output.records import METADATA_KEY, parse_footer, read_tail, verify_file

SEAL_KEY = "patchsieve.sha256"
SEALED_FROM = 2
"""The schema version from which on every record and errors file is sealed."""

_OPEN = b"0" * 64
# How a footer, which is Thrift's compact protocol, goes on behind a key: with a text of 64 bytes.
_BEFORE_DIGEST = SEAL_KEY.encode() + b"\x18\x40"
_READ_BYTES = 2**22


class _Readable(Protocol):
    def read(self, count: int, /) -> bytes: ...


def finish_file(
    writer: Any, local_path: Path, *, schema: pa.Schema, rows: int, metadata: dict[str, Any]
) -> None:
    """Write the footer of a `ParquetWriter` with `metadata`, seal the file, and verify it as `verify_file` does."""
    writer.add_key_value_metadata({METADATA_KEY.decode(): canonical_json(metadata), SEAL_KEY: _OPEN.decode()})
    writer.close()
    with local_path.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(-8, 2)
        start = length - 8 - int.from_bytes(file.read(4), "little")
        file.seek(start)
        place = start + file.read().rindex(_BEFORE_DIGEST) + len(_BEFORE_DIGEST)
        file.seek(0)
        digest = _digest(file, place)
    with local_path.open("r+b") as file:
        file.seek(place)
        file.write(digest.encode())
    verify_file(local_path, schema=schema, rows=rows, metadata=metadata)


def check_seal(url: str, *, size: int | None = None) -> bool:
    """Read a whole file and compare its digest; False where it is of before there were seals.

    Raises DamagedFileError for one that is not as it was written, FileNotFoundError, InfrastructureError.
    """
    tail, end = read_tail(url, size=size)
    found = tail.rfind(_BEFORE_DIGEST)
    if found < 0:
        # Which release wrote it is known only where the footer can be read.
        if parse_footer(url, pa.py_buffer(tail)).metadata["schema_version"] >= SEALED_FROM:
            raise DamagedFileError(f"{url} is damaged: its own digest is missing")
        return False
    place = end - len(tail) + found + len(_BEFORE_DIGEST)
    told = tail[found + len(_BEFORE_DIGEST) :][: len(_OPEN)]
    with storage.open_stream(url) as stream:
        if _digest(stream, place).encode() != told:
            raise DamagedFileError(f"{url} is damaged: its bytes are not those that were written")
    return True


def _digest(file: _Readable, place: int) -> str:
    """SHA-256, in hex, of a file in which zeros stand at `place`."""
    digest, at = hashlib.sha256(), 0
    while chunk := file.read(_READ_BYTES):
        first, stop = (min(max(edge - at, 0), len(chunk)) for edge in (place, place + len(_OPEN)))
        digest.update(chunk[:first] + _OPEN[: stop - first] + chunk[stop:] if first < stop else chunk)
        at += len(chunk)
    return digest.hexdigest()
