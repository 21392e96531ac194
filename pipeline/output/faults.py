"""Samples that gave nothing: the errors file beside a record, written and read; reasons counted; failed shards."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import DamagedFileError
from patchsieve.pipeline.identity import canonical_json
from patchsieve.pipeline.output.records import METADATA_KEY
from patchsieve.pipeline.output.sealed import finish_file
from patchsieve.pipeline.shards.feed import ShardRecord
from patchsieve.pipeline.shards.reader import Fault

_log = logging.getLogger(__name__)

MOST_REASONS = 20
_FILE_LIMIT = 2**30
_REASONS_COUNTED = 10_000
_LONGEST_COUNTED = 500
_OTHER_REASONS = "other reasons"
_GROUP_BYTES = 8 * 2**20

ERRORS_VERSION = 2
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


NO_ERRORS: dict[str, Any] = {"rows": 0, "digest": ""}
"""What a record says of a shard without faults."""


class FaultLog:
    """The faults of one shard: written to an errors file as they come, counted, and else forgotten.

    `count` of them were `add`ed; they cost `samples`, since each has one fault, but for those of single views and of
    the archive itself. `archive`: why that is damaged, "" where it is not. As a context manager it closes its file.
    """

    def __init__(self, local_path: Path, shard_name: str, *, run_id: str) -> None:
        """The file is made with the first fault."""
        self.count = self.samples = 0
        self.archive = ""
        self._path, self._shard_name, self._run_id = local_path, shard_name, run_id
        self._reasons = Counter[str]()
        self._digest = hashlib.sha256(b"[")
        self._last_scored: str | None = None
        self._waiting: list[Fault] = []
        self._waiting_bytes = 0
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def add(self, fault: Fault) -> None:
        """Take in the next fault, in the order of the shard."""
        self._digest.update(b"," if self.count else b"")
        text = canonical_json(dataclasses.astuple(fault))
        self._digest.update(text.encode())
        self.count += 1
        if fault.stage == "score":
            # Of a sample's views, which come one after the other, several may have one.
            self.samples += fault.sample_key != self._last_scored
            self._last_scored = fault.sample_key
        else:
            self.samples += fault.sample_key is not None
        if fault.stage == "archive":
            self.archive = self.archive or fault.reason
        reason = f"{fault.stage}: {fault.reason}"[:_LONGEST_COUNTED]
        known = reason in self._reasons or len(self._reasons) < _REASONS_COUNTED
        self._reasons[reason if known else _OTHER_REASONS] += 1
        self._waiting.append(fault)
        self._waiting_bytes += len(text)
        if self._waiting_bytes >= _GROUP_BYTES:
            self._flush()

    def reasons(self) -> dict[str, int]:
        """Faults by stage and reason, most frequent first; beyond the first 20 they are summed up."""
        counts = Counter(self._reasons)
        rest = counts.pop(_OTHER_REASONS, 0)
        shown = dict(counts.most_common(MOST_REASONS))
        rest += counts.total() - sum(shown.values())
        return {**shown, _OTHER_REASONS: rest} if rest else shown

    @property
    def summary(self) -> dict[str, Any]:
        """What the record of the shard says: rows of the errors file, and a hash of them that ties it to the record."""
        if not self.count:
            return NO_ERRORS
        digest = self._digest.copy()
        digest.update(b"]")
        return {"rows": self.count, "digest": digest.hexdigest()}

    def finish(self) -> Path | None:
        """Write the rest and the footer, seal and verify the file; where it lies, None where there were no faults."""
        if not self.count:
            return None
        self._flush()
        metadata = {
            "schema_version": ERRORS_VERSION,
            "digest": self.summary["digest"],
            "run_id": self._run_id,
        }
        finish_file(self._writer, self._path, schema=ERRORS_SCHEMA, rows=self.count, metadata=metadata)
        self._writer = None
        return self._path

    def _flush(self) -> None:
        if self._writer is None:
            local_path = self._path
            self._writer = pq.ParquetWriter(
                local_path, ERRORS_SCHEMA, compression="zstd", write_page_checksum=True
            )
        columns = {
            "shard": [self._shard_name] * len(self._waiting),
            **{name: [getattr(fault, name) for fault in self._waiting] for name in ERRORS_SCHEMA.names[1:]},
        }
        self._writer.write_table(pa.table(columns, schema=ERRORS_SCHEMA))
        self._waiting, self._waiting_bytes = [], 0


def failure_reason(shard: ShardRecord, rows: int, faults: FaultLog, what: str = "gave a row") -> str | None:
    """Why a shard without rows has failed; None where it may commit. `what` none of its samples did.

    No row may be right: a sound archive may be empty, and `--sample` can leave out every sample of a small shard.
    """
    if rows or not faults.count:
        return None
    reason, count = next(iter(faults.reasons().items()))
    return f"none of its {shard.samples} samples {what}; {count} of {faults.count} faults are «{reason}»"


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
