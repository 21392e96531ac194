"""Record files by themselves: the seal over all of their bytes, and what their footers must hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import DamagedFileError, InfrastructureError, UserError
from patchsieve.pipeline.output import records, sealed
from patchsieve.pipeline.output.records import Record, read_footer, read_tail, verify_file
from patchsieve.pipeline.output.sealed import check_seal, finish_file
from patchsieve.pipeline.tables.schema import SCORES
from tests.helpers.tables import record_of, write_table

SCHEMA = pa.schema([("number", pa.int64())])
SHARD = dataclasses.asdict(record_of(b"content"))
SAID: dict[str, Any] = {
    "schema_version": 2,
    "identity": "i",
    "shard": SHARD,
    "errors": {"digest": "", "rows": 0},
    "provenance": {"run_id": "run-1"},
}


def written(path: Path, *, rows: int = 3, told: int | None = None, **changes: Any) -> str:
    """A sealed file of so many rows; `told`: how many it is said to have."""
    with pq.ParquetWriter(path, SCHEMA) as writer:
        writer.write_table(pa.table({"number": list(range(rows))}, schema=SCHEMA))
        finish_file(
            writer, path, schema=SCHEMA, rows=rows if told is None else told, metadata={**SAID, **changes}
        )
    return str(path)


def unsealed(path: Path, **changes: Any) -> str:
    metadata = {"patchsieve": json.dumps({**SAID, **changes})}
    pq.write_table(pa.table({"number": [1]}, schema=SCHEMA.with_metadata(metadata)), path)
    return str(path)


@pytest.mark.parametrize("chunk", [7, 64, 2**22])
@pytest.mark.parametrize("tail", [16, 2**16])
def test_every_byte_is_under_the_seal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, tail: int
) -> None:
    """However the file falls into pieces as it is checked."""
    path = tmp_path / "a.parquet"
    url = written(path)
    data = path.read_bytes()
    monkeypatch.setattr(sealed, "_READ_BYTES", chunk)
    monkeypatch.setattr(records, "_TAIL_BYTES", tail)
    assert check_seal(url)
    with monkeypatch.context() as patched:
        patched.setattr(storage, "stat", None)  # a request that a known size saves
        assert check_seal(url, size=len(data))
    place = data.index(b"patchsieve.sha256") + len(b"patchsieve.sha256\x18\x40")
    digest = data[place : place + 64]
    assert bytes.fromhex(digest.decode()), "in hex"
    for at in (0, 4, place - 70, place - 1, place, place + 63, place + 64, len(data) - 9):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(DamagedFileError, match=r"a\.parquet"):
            check_seal(url)
    # The digest counts where it stands, not elsewhere.
    path.write_bytes(data[:place] + digest[32:] + digest[:32] + data[place + 64 :])
    with pytest.raises(DamagedFileError, match="is damaged: its bytes are not those that were written"):
        check_seal(url)


def test_a_name_that_looks_like_a_seal_is_none(tmp_path: Path) -> None:
    """Statistics of names lie in the footer, before the seal."""
    path, schema = tmp_path / "a.parquet", pa.schema([("sample_key", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        writer.write_table(pa.table({"sample_key": ["patchsieve.sha256\x18@" + 64 * "0"]}, schema=schema))
        finish_file(writer, path, schema=schema, rows=1, metadata=SAID)
    assert check_seal(str(path))
    assert path.read_bytes().count(b"patchsieve.sha256\x18@") > 1
    assert b"patchsieve.sha256\x18@" + 64 * b"0" in path.read_bytes()[-int(path.stat().st_size * 0.9) :]


def test_a_digest_is_missing_where_it_must_be_there_alone(tmp_path: Path) -> None:
    assert not check_seal(unsealed(tmp_path / "old.parquet", schema_version=1))
    for version in (2, 3):
        with pytest.raises(DamagedFileError, match=r"new\.parquet is damaged: its own digest is missing"):
            check_seal(unsealed(tmp_path / "new.parquet", schema_version=version))
    with pytest.raises(FileNotFoundError):
        check_seal(str(tmp_path / "none.parquet"))


def test_what_does_not_read_back_as_written_is_a_fault_of_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(InfrastructureError, match="does not read back as written: 3 rows of 4"):
        written(path, told=4)
    url = written(path)
    verify_file(path, schema=SCHEMA, rows=3, metadata=SAID)
    for changes in ({"schema": pa.schema([("other", pa.int64())])}, {"metadata": {**SAID, "identity": "j"}}):
        with pytest.raises(InfrastructureError, match="does not read back as written: 3 rows of 3"):
            verify_file(path, **{"schema": SCHEMA, "rows": 3, "metadata": SAID, **changes})
    Path(url).write_bytes(Path(url).read_bytes()[:-20])
    with pytest.raises(InfrastructureError, match=r"does not read back as written: .*is damaged"):
        verify_file(path, schema=SCHEMA, rows=3, metadata=SAID)


def test_a_footer_says_what_the_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = written(tmp_path / "a.parquet", output={"path": "shards/a.tar", "size": 7})
    footer = read_footer(url)
    assert (footer.url, footer.rows, footer.row_groups, footer.schema) == (url, 3, 1, SCHEMA)
    expected = Record(
        identity="i",
        **SHARD,
        rows=3,
        errors="",
        run_id="run-1",
        output="shards/a.tar",
        output_size=7,
    )
    assert footer.record() == expected
    none = read_footer(written(tmp_path / "b.parquet", errors={"digest": "d", "rows": 1})).record()
    assert (none.output, none.output_size, none.errors) == ("", -1, "d")
    # In one request where the size is known; in another one where the footer is longer than most.
    asked: list[tuple[int, int]] = []
    read = storage.read_range

    def noted(url: str, start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return read(url, start, stop)

    monkeypatch.setattr(storage, "read_range", noted)
    size = Path(url).stat().st_size
    assert read_tail(url, size=size) == (Path(url).read_bytes(), size)
    assert asked == [(0, size)]
    monkeypatch.setattr(records, "_TAIL_BYTES", 10)
    length = int.from_bytes(Path(url).read_bytes()[-8:-4], "little")
    assert read_footer(url, size=size) == footer
    assert asked[1:] == [(size - 10, size), (size - length - 8, size)]


@pytest.mark.parametrize("path", ["../a.tar", "shards/../../a.tar", "/a.tar", "a//b.tar", "./a.tar", "a/"])
def test_an_output_lies_below_its_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(DamagedFileError, match="its output lies at"):
        read_footer(written(tmp_path / "a.parquet", output={"path": path, "size": 7})).record()


def test_what_is_no_record_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"number": [1]}), path)
    with pytest.raises(DamagedFileError, match="its footer has no `patchsieve` metadata"):
        read_footer(str(path))
    whole = Path(written(path)).read_bytes()
    for data in (whole[:-1] + b"2", whole[:-8] + b"\xff\xff\xff\x0fPAR1", b"PAR1", b""):
        path.write_bytes(data)
        with pytest.raises(DamagedFileError, match=f"{path} is not a complete Parquet file"):
            read_footer(str(path))
    monkeypatch.setattr(records, "_FOOTER_LIMIT", 100)
    with pytest.raises(DamagedFileError, match="is not a complete Parquet file"):
        read_footer(written_before(path, whole))
    monkeypatch.undo()
    newer = read_footer(str(write_table(tmp_path / "n.parquet", record_of(b""), schema_version=99)))
    assert newer.metadata["schema_version"] == 99
    for newest in (98, SCORES.schema_version):
        with pytest.raises(
            UserError, match=f"schema version 99, this patchsieve reads versions up to {newest}: use"
        ):
            read_footer(newer.url, newest_schema=newest)
    assert read_footer(newer.url, newest_schema=99).metadata["schema_version"] == 99
    info = dataclasses.replace(storage.stat(newer.url), size=None)
    monkeypatch.setattr(storage, "stat", lambda url: info)
    with pytest.raises(InfrastructureError, match="the store tells no length"):
        read_footer(newer.url)


def written_before(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)
