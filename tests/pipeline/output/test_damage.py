"""Files of an output that hold anything but what was written: named in one line, made again where that can be."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchsieve.pipeline.errors import DamagedFileError
from patchsieve.pipeline.output.done import State
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.output.owner import owner_of
from patchsieve.pipeline.runs.status import read_status, status_lines
from patchsieve.pipeline.shards.reader import Fault
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.tables.reader import ScoreTables
from patchsieve.pipeline.tables.schema import SCORES, row_fields, row_identity
from tests.helpers.tables import CONFIG, TEACHER, make_shard, shard_record, write_errors, write_table

IDENTITY = row_identity(CONFIG, TEACHER.digest)
FAULT = Fault("photo-7", None, "decode", "truncated")
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.fixture
def shard() -> Shard:
    return make_shard(b"content")


@pytest.fixture
def output(tmp_path: Path, shard: Shard) -> OutputFolder:
    """A run of one shard that is done, with an errors file and a cache."""
    output = OutputFolder(str(tmp_path / "out"), SCORES, run_id="run-1")
    output.adopt_config(row_fields(CONFIG, TEACHER.digest), other={})
    output.write_run({"state": "complete"}, shards=[shard])
    table, errors = tmp_path / "table.parquet", tmp_path / "errors.parquet"
    write_table(table, shard_record(shard, b"content", samples=4, quarantined=1), faults=[FAULT])
    write_errors(errors, [FAULT], shard.name, run_id="run-1")
    output.commit(shard, table, errors)
    output.plan([shard], IDENTITY)
    return output


def _flip(old: bytes, new: bytes) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))

    return spoil


def _write(data: bytes) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.write_bytes(data)

    return spoil


def _rewrite(path: Path, table: pa.Table, metadata: dict[str, Any]) -> None:
    pq.write_table(table.replace_schema_metadata({"patchsieve": json.dumps(metadata)}), path)


def _said(path: Path) -> dict[str, Any]:
    """What a table says of itself."""
    return dict(json.loads(pq.read_metadata(path).metadata[b"patchsieve"]))


def _metadata(**changes: Any) -> Callable[[Path], None]:
    """The table with other values in its metadata."""
    return lambda path: _rewrite(path, pq.read_table(path), {**_said(path), **changes})


def _nulls(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(
        pa.table({name: pa.nulls(len(table), table.schema.field(name).type) for name in table.schema.names}),
        path,
    )


RECORDS = {
    "a column name that is not UTF-8": _flip(b"crop_top", b"crop_to\xff"),
    "a length beyond the file": lambda path: path.write_bytes(
        path.read_bytes()[:-8] + b"\xff\xff\xff\x7fPAR1"
    ),
    "text": _write(b"no Parquet file" * 10),
    "a size that is text": _metadata(shard={**shard_record(make_shard(b""), b"").__dict__, "size": "7"}),
    "a shard that is a list": _metadata(shard=[]),
    "a run that is a number": _metadata(provenance={"run_id": 7}),
    "a version that is a list": _metadata(schema_version=[1]),
    "an infinite version": _metadata(schema_version=float("inf")),
}


@pytest.mark.parametrize("spoil", RECORDS.values(), ids=RECORDS)
def test_a_damaged_record_is_missing_and_made_again(
    output: OutputFolder, shard: Shard, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(Path(output.record_url(shard)))
    later = OutputFolder(output.url, SCORES, run_id="run-2")
    with caplog.at_level(logging.WARNING, "patchsieve"):
        assert later.check([shard], IDENTITY)[shard.id].state is State.MISSING
    (line,) = [record.getMessage() for record in caplog.records]
    assert shard.id in line
    assert "\n" not in line
    plan = later.plan([shard], IDENTITY)
    assert plan.todo == [shard]
    assert read_status(output.url).missing == 1
    with pytest.raises(DamagedFileError, match=shard.id):
        ScoreTables(output.url)


@pytest.mark.parametrize("spoil", [_nulls, _write(b"x"), _flip(b"identity", b"identit\xff")])
def test_a_damaged_cache_is_made_again(
    output: OutputFolder, shard: Shard, spoil: Callable[[Path], None]
) -> None:
    cache = Path(output.url) / "cache" / "scores.parquet"
    spoil(cache)
    assert OutputFolder(output.url, SCORES, run_id="run-2").plan([shard], IDENTITY).todo == []
    assert read_status(output.url).done == 1
    assert pq.read_table(cache)["identity"].to_pylist() == [IDENTITY]


@pytest.mark.parametrize(
    "data", [b"{}", b"[]", b"null", b"\xff", DEEP, b'{"run_id": 1, "shards": {}, "changed": 3}']
)
def test_what_decides_nothing_is_passed_over(
    output: OutputFolder, shard: Shard, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    out = Path(output.url)
    (out / "failed").mkdir()
    for name in ("runs/run-9.json", "failed/x.json", "owner.json"):
        (out / name).write_bytes(data)
    (out / "errors" / f"{shard.id}.parquet").write_bytes(data)
    with caplog.at_level(logging.WARNING, "patchsieve"):
        status = read_status(output.url)
    assert (status.done, status.failed, status.last_run and status.last_run["run_id"]) == (1, 0, "run-1")
    told = " ".join(record.getMessage() for record in caplog.records)
    assert all(name in told for name in ("run-9.json", "x.json", f"errors/{shard.id}.parquet"))
    assert status_lines(status)
    assert owner_of(output.url) is not None


def test_a_table_whose_columns_are_not_what_it_says_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", shard_record(make_shard(b""), b""))
    table = pq.read_table(path)
    other = table["visible"].cast(pa.list_(pa.int32(), 19))
    _rewrite(path, table.set_column(table.schema.names.index("visible"), "visible", other), _said(path))
    with pytest.raises(DamagedFileError, match="column visible is"):
        ScoreTables(str(path))
