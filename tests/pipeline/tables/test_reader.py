"""Reading score tables: one, several, a folder, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.output.records import read_footer
from patchsieve.pipeline.tables.reader import ScoreTables, read_scores
from patchsieve.pipeline.tables.schema import row_identity
from tests.helpers.tables import (
    CONFIG,
    TEACHER,
    record_of,
    write_table,
)


def test_a_reader_takes_a_table_several_or_a_folder(tmp_path: Path) -> None:
    first = write_table(tmp_path / "out/scores/a.parquet", record_of(b"a"))
    second = write_table(tmp_path / "out/scores/b.parquet", record_of(b"b", "/data/b.tar"))
    other = dataclasses.replace(CONFIG, first_view=4)
    third = write_table(tmp_path / "more/scores/a.parquet", record_of(b"a"), config=other)

    assert read_scores(str(first)).num_rows == 12
    assert read_scores([str(first), str(third)]).num_rows == 24
    folder = read_scores(str(tmp_path / "out"))
    assert folder.equals(read_scores(str(tmp_path / "out/scores")))
    assert folder.column("shard").to_pylist() == ["/data/a.tar"] * 12 + ["/data/b.tar"] * 12

    tables = ScoreTables([str(tmp_path / "out"), str(third)])
    assert [file.url for file in tables.files] == [str(first), str(second), str(third)]
    assert (tables.rows, tables.visible, tables.teacher["digest"]) == (36, 19, TEACHER.digest)
    assert [(file.first_view, file.last_view) for file in tables.files] == [(0, 4), (0, 4), (4, 8)]
    some = tables.read(["view", "score"])
    assert some.schema.names == ["view", "score"]
    batches = list(tables.iter_batches(["view", "score"], batch_rows=5))
    assert [len(batch) for batch in batches] == [5, 5, 2] * 3
    assert pa.Table.from_batches(batches).equals(some)


def test_reading_in_batches_takes_bounded_memory(tmp_path: Path) -> None:
    def peak(images: int) -> int:
        path = write_table(tmp_path / "a.parquet", record_of(b""), images=images, group_bytes=2)
        before, highest, rows = pa.total_allocated_bytes(), 0, 0
        for batch in ScoreTables(str(path)).iter_batches(batch_rows=16):
            rows += len(batch)
            highest = max(highest, pa.total_allocated_bytes() - before)
        assert rows == 4 * images
        return highest

    small = peak(20)
    assert peak(100) < 1.2 * small + 100_000


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teacher": dataclasses.replace(TEACHER, digest="f" * 64)}, "f" * 64),
        ({"teacher": dataclasses.replace(TEACHER, grid=16)}, "16"),
        ({"visible": 25}, "25"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(tmp_path: Path, changes: dict, told: str) -> None:
    write_table(tmp_path / "scores/a.parquet", record_of(b"a"))
    write_table(tmp_path / "scores/b.parquet", record_of(b"b", "/data/b.tar"), **changes)
    with pytest.raises(UserError) as refused:
        read_scores(str(tmp_path))
    for part in (told, str(tmp_path / "scores/a.parquet"), str(tmp_path / "scores/b.parquet")):
        assert part in str(refused.value)


def test_the_same_views_of_one_content_are_refused(tmp_path: Path) -> None:
    here = write_table(tmp_path / "one.parquet", record_of(b"same"))
    # Another name, another output: still the same bytes and an overlapping range of views.
    there = write_table(
        tmp_path / "two.parquet",
        record_of(b"same", "s3://bucket/a.tar"),
        config=dataclasses.replace(CONFIG, first_view=3, views=2),
    )
    with pytest.raises(UserError, match=r"one\.parquet and .*two\.parquet hold the same views \(3 to 3\)"):
        read_scores([str(here), str(there)])
    with pytest.raises(UserError, match="hold the same views"):
        read_scores([str(here), str(here)])
    apart = write_table(
        tmp_path / "three.parquet", record_of(b"same"), config=dataclasses.replace(CONFIG, first_view=4)
    )
    assert read_scores([str(apart), str(here)]).num_rows == 24


def test_columns_are_asked_for_by_name(tmp_path: Path) -> None:
    first = write_table(tmp_path / "a.parquet", record_of(b"a"))
    config = dataclasses.replace(CONFIG, store="none")
    second = write_table(tmp_path / "b.parquet", record_of(b"b"), config=config)
    with pytest.raises(UserError, match="no column 'scores'; it has shard, sample_key"):
        read_scores(str(first), ["scores"])
    with pytest.raises(UserError, match=r"b\.parquet has no column 'patches'"):
        read_scores([str(first), str(second)])
    assert read_scores([str(first), str(second)], ["score"]).num_rows == 24


def _no_parquet(path: Path) -> None:
    path.write_text("text")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _half_written(path: Path) -> None:
    write_table(path, record_of(b"a"))
    path.write_bytes(path.read_bytes()[:-300])


def _garbled_footer(path: Path) -> None:
    write_table(path, record_of(b"a"))
    data = bytearray(path.read_bytes())
    data[-1500:-8] = bytes(len(data[-1500:-8]))
    path.write_bytes(bytes(data))


def _foreign(path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), path)


def _other_job(path: Path) -> None:
    schema = pa.schema([("a", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        writer.add_key_value_metadata({"patchsieve": json.dumps({"schema_version": 1, "identity": "x"})})


def _newer(path: Path) -> None:
    write_table(path, record_of(b"a"), schema_version=3)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (_no_parquet, "not a complete Parquet file"),
        (_empty, "not a complete Parquet file"),
        (_half_written, "not a complete Parquet file"),
        (_garbled_footer, "is damaged"),
        (_foreign, "no `patchsieve` metadata"),
        (_other_job, "is damaged, or not what it should be: KeyError"),
        (_newer, "schema version 3, this patchsieve reads versions up to 2"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path, make, told: str) -> None:
    path = tmp_path / "scores" / "a.parquet"
    path.parent.mkdir()
    make(path)
    for source in (str(path), str(tmp_path)):
        with pytest.raises(UserError, match=told) as refused:
            read_scores(source)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("source", ["missing.parquet", "missing", "empty"])
def test_a_missing_table_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=source):
        read_scores(str(tmp_path / source))
    with pytest.raises(UserError, match="no score table given"):
        read_scores([])


def test_damage_inside_a_table_is_noticed(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", record_of(b"a"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"a\.parquet is damaged"):
        read_scores(str(path))


def test_a_long_footer_is_read_too(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, store="none")
    path = write_table(tmp_path / "a.parquet", record_of(b"a"), config=config, images=100, group_bytes=1000)
    footer = read_footer(str(path))
    assert pq.read_metadata(path).serialized_size > 2**16
    assert (footer.rows, footer.row_groups) == (400, pq.read_metadata(path).num_row_groups)
    assert footer.record().identity == row_identity(config, TEACHER.digest)
