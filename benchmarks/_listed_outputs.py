"""Outputs on a store that lists them: what lies there after runs, made without running any."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks._listing_server import TABLE_BYTES, tag_of
from patchsieve.pipeline import storage
from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.output.done import RecordFolder, _Entry
from patchsieve.pipeline.output.faults import NO_ERRORS
from patchsieve.pipeline.output.records import METADATA_KEY, Record
from patchsieve.pipeline.tables.schema import SCORES

BUCKET = "s3://bucket"
RUN_ID = "20260301T030007.512345Z-9f2c41d7"
ROWS = {"made": "by a benchmark"}
IDENTITY = digest_of(ROWS)
CONFIG = json.dumps({"identity": IDENTITY, "rows": ROWS, "other": {}, "run_id": RUN_ID}).encode()


def record_of(shard: str, number: int) -> Record:
    """The record of a shard that is listed at this place of all keys."""
    return Record(
        identity=IDENTITY,
        name=f"{BUCKET}/{shard}",
        size=TABLE_BYTES,
        tag=tag_of(number),
        sha256=hashlib.sha256(shard.encode()).hexdigest(),
        rows=40_000,
        samples=10_000,
        quarantined=0,
        damaged=False,
        errors="",
        run_id=RUN_ID,
    )


def cache_of(shards: Mapping[str, str], places: Mapping[str, int], folder: Path) -> bytes:
    """The cache of footers that a run leaves which has read those of all tables.

    `shards`: their keys by the keys of their tables; `places`: of both among all keys.
    """
    made = RecordFolder(
        f"{BUCKET}/out/scores", str(folder / "cache.parquet"), newest_schema=SCORES.schema_version
    )
    made._entries, made._stale = {}, True
    for table, shard in shards.items():
        entry = _Entry(TABLE_BYTES, tag_of(places[table]), "", record_of(shard, places[shard]))
        made._entries[storage.split_name(table)[1]] = entry
    made.save_cache(run_id="benchmark")
    return (folder / "cache.parquet").read_bytes()


def table_of(shard: str) -> bytes:
    """A file as long as others that ends as the table of a shard does: nothing reads more of it than its footer."""
    record = record_of(shard, 0)
    told = {name: getattr(record, name) for name in ("name", "size", "tag", "sha256", "samples")}
    metadata = {
        "schema_version": SCORES.schema_version,
        "identity": IDENTITY,
        "shard": {**told, "quarantined": 0, "damaged": False},
        "errors": NO_ERRORS,
        "provenance": {"run_id": RUN_ID},
    }
    schema = pa.schema([("score", pa.float32())], metadata={METADATA_KEY: json.dumps(metadata).encode()})
    local_buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"score": [0.5]}, schema=schema), local_buffer)
    return local_buffer.getvalue().to_pybytes().rjust(TABLE_BYTES, b"\0")


def run_of(shards: list[str]) -> bytes:
    """What `runs/` holds of a run over these shards that goes on."""
    listing = {"prefix": f"{BUCKET}/", "names": shards}
    return json.dumps({"run_id": RUN_ID, "state": "running", "shards": listing, "changed": []}).encode()
