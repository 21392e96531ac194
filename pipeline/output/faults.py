"""Samples that gave nothing: the errors file beside a record, written and read; reasons counted; failed shards."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import DamagedFileError
from patchsieve.pipeline.identity import canonical_json, digest_of
from patchsieve.pipeline.output.records import METADATA_KEY, verify_file
from patchsieve.pipeline.shards.feed import ShardRecord
from patchsieve.pipeline.shards.reader import Fault

_log = logging.getLogger(__name__)

MOST_REASONS = 20
_FILE_LIMIT = 2**30

ERRORS_VERSION = 1
"""Raised when columns or metadata of errors files change."""

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


def count_reasons(faults: Sequence[Fault]) -> dict[str, int]:
    """Faults by stage and reason, most frequent first; beyond the first 20 they are summed up."""
    counts = Counter(f"{fault.stage}: {fault.reason}" for fault in faults).most_common()
    shown = dict(counts[:MOST_REASONS])
    if len(counts) > MOST_REASONS:
        shown["other reasons"] = sum(count for _, count in counts[MOST_REASONS:])
    return shown


def failure_reason(
    shard: ShardRecord, rows: int, faults: Sequence[Fault], what: str = "gave a row"
) -> str | None:
    """Why a shard without rows has failed; None where it may commit. `what` none of its samples did.

    No row may be right: `--sample` can leave out every sample of a small shard.
    """
    if rows or (shard.samples and not faults):
        return None
    if not faults:
        return "it holds no samples"
    reason, count = next(iter(count_reasons(faults).items()))
    return f"none of its {shard.samples} samples {what}; {count} of {len(faults)} faults are «{reason}»"


def errors_digest(faults: Sequence[Fault]) -> str:
    """What ties an errors file to its table: a hash of its rows, "" where there are none."""
    return digest_of([dataclasses.astuple(fault) for fault in faults]) if faults else ""


def read_errors(url: str, digest: str) -> Counter[str] | None:
    """Errors of one shard by stage and reason; None where its errors file is not there, or not the one of `digest`."""
    try:
        with storage.parsing(url):
            file = pq.ParquetFile(pa.BufferReader(storage.read_bytes(url, limit=_FILE_LIMIT)))
            if json.loads(file.metadata.metadata[METADATA_KEY])["digest"] != digest:
                return None
            table = file.read(["stage", "reason"])
            stages, reasons = table.column("stage").to_pylist(), table.column("reason").to_pylist()
            return Counter(f"{stage}: {reason}" for stage, reason in zip(stages, reasons, strict=True))
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        _log.warning("%s; its reasons are not told", error)
        return None


def write_errors(local_path: Path, faults: Sequence[Fault], shard_name: str, *, run_id: str) -> None:
    """Write the errors file of one shard to a local path, and verify it."""
    columns = {
        "shard": [shard_name] * len(faults),
        **{name: [getattr(fault, name) for fault in faults] for name in ERRORS_SCHEMA.names[1:]},
    }
    metadata = {"schema_version": ERRORS_VERSION, "digest": errors_digest(faults), "run_id": run_id}
    with pq.ParquetWriter(local_path, ERRORS_SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(pa.table(columns, schema=ERRORS_SCHEMA))
        writer.add_key_value_metadata({METADATA_KEY.decode(): canonical_json(metadata)})
    verify_file(local_path, schema=ERRORS_SCHEMA, rows=len(faults), metadata=metadata)
