"""What an output folder is said to hold, in every state that runs leave it in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.output.machine import Machine
from patchsieve.pipeline.runs.status import read_status
from patchsieve.pipeline.shards.reader import Fault
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.tables.schema import SCORES, row_fields, row_identity
from tests.helpers.tables import CONFIG, TEACHER, make_shard, shard_record, write_errors, write_table

ROWS = row_fields(CONFIG, TEACHER.digest)
IDENTITY = row_identity(CONFIG, TEACHER.digest)
FAULTS = [
    Fault("photo-7", "photo-7.jpg", "decode", "truncated"),
    Fault("photo-8", "photo-8.jpg", "decode", "truncated"),
    Fault(None, None, "archive", "cut inside a header"),
]


def commit(output: OutputFolder, scratch: Path, shard: Shard, faults: list[Fault], **changes) -> None:
    """Commit a table of three images and its errors."""
    keys = [fault.sample_key for fault in faults if fault.sample_key]
    record = shard_record(
        shard,
        b"x" * (shard.size or 0),
        samples=3 + len(keys),
        quarantined=len(keys),
        damaged=len(keys) < len(faults),
    )
    table, errors = scratch / "table.parquet", scratch / "errors.parquet"
    write_table(table, record, faults=faults, run_id=output.run_id, **changes)
    write_errors(errors, faults, shard.name, run_id="run-1")
    output.commit(shard, table, errors if faults else None)


@pytest.fixture
def shards() -> list[Shard]:
    return [make_shard(b"x" * (10 + number), f"/data/part-{number}.tar") for number in range(5)]


@pytest.fixture
def output(tmp_path: Path, shards: list[Shard]) -> OutputFolder:
    """A run asked for five shards: two done, one of them with errors, one failed, two not reached."""
    output = OutputFolder(str(tmp_path / "out"), SCORES, run_id="run-1")
    output.adopt_config(ROWS, other={})
    output.write_run({"state": "running", "started": 5}, shards=shards)
    commit(output, tmp_path, shards[0], [])
    commit(output, tmp_path, shards[1], FAULTS)
    output.record_failed(shards[2], 3, "the store was away")
    return output


def test_every_shard_is_counted_once(output: OutputFolder) -> None:
    status = read_status(output.url)
    assert (status.done, status.missing, status.failed, status.damaged) == (2, 2, 1, 1)
    assert (status.rows, status.samples, status.quarantined) == (24, 8, 2)
    assert status.errors == {"decode: truncated": 2, "archive: cut inside a header": 1}
    assert list(status.errors) == ["decode: truncated", "archive: cut inside a header"]
    assert status.failures == {"/data/part-2.tar": "the store was away"}
    assert status.last_run == {"state": "running", "started": 5, "run_id": "run-1"}
    assert status.owner is None


def test_a_table_that_is_gone_is_named(output: OutputFolder, shards: list[Shard]) -> None:
    left = [shard.name for shard in shards[3:]]
    output.write_run({"state": "incomplete", "missing": left}, shards=shards)
    assert read_status(output.url).lost == {}
    Path(output.record_url(shards[0])).unlink()
    status = read_status(output.url)
    assert (status.done, status.missing, status.failed) == (1, 3, 1)
    assert status.lost == {shards[0].name: f"scores/{shards[0].id}.parquet is gone, or cannot be read"}


def test_the_last_run_says_what_is_missing(output: OutputFolder, shards: list[Shard]) -> None:
    later = OutputFolder(output.url, SCORES, run_id="run-2")
    later.write_run({"state": "running"}, shards=shards[:4])
    later.write_run({"state": "complete"}, shards=shards[:4])
    status = read_status(output.url)
    assert (status.done, status.missing, status.failed) == (2, 1, 1)
    assert status.last_run == {"state": "complete", "run_id": "run-2"}


def test_rows_of_a_shard_that_changed_are_not_done(
    output: OutputFolder, shards: list[Shard], tmp_path: Path
) -> None:
    later = OutputFolder(output.url, SCORES, run_id="run-2")
    later.write_run({"state": "running"}, shards=shards, changed=[shards[0].id, shards[1].id])
    status = read_status(output.url)
    assert (status.done, status.missing, status.rows, status.errors) == (0, 4, 0, {})
    commit(later, tmp_path, shards[0], [])
    assert (read_status(output.url).done, read_status(output.url).missing) == (1, 3)


def test_a_failure_after_the_content_changed_counts(output: OutputFolder, shards: list[Shard]) -> None:
    output.record_failed(dataclasses.replace(shards[0], tag="another"), 3, "unreadable")
    status = read_status(output.url)
    assert (status.done, status.failed) == (1, 2)
    # One of the very content that is done decides nothing.
    output.record_failed(shards[1], 3, "the store was away")
    assert (read_status(output.url).done, read_status(output.url).failed) == (1, 2)


def test_errors_of_another_attempt_are_not_told_as_this_ones(
    output: OutputFolder, shards: list[Shard], tmp_path: Path
) -> None:
    # A run that was to redo the errors was killed between its errors file and its table.
    write_errors(tmp_path / "errors.parquet", FAULTS[:1], shards[1].name, run_id="run-1")
    output.commit_errors(shards[1], tmp_path / "errors.parquet")
    assert read_status(output.url).errors == {"errors file is of another attempt: reasons unknown": 2}
    Path(output.errors_url(shards[1].id)).unlink()
    assert read_status(output.url).errors == {"errors file is of another attempt: reasons unknown": 2}
    # An errors file beside a table without errors is not read at all.
    output.commit_errors(shards[0], tmp_path / "errors.parquet")
    assert "decode: truncated" not in read_status(output.url).errors


def test_tables_of_other_rows_are_not_counted(
    output: OutputFolder, shards: list[Shard], tmp_path: Path
) -> None:
    other = dataclasses.replace(CONFIG, seed=1)
    commit(output, tmp_path, shards[3], [], config=other)
    assert (read_status(output.url).done, read_status(output.url).missing) == (2, 2)


def test_a_run_that_is_still_at_it_is_named(output: OutputFolder) -> None:
    running = OutputFolder(output.url, SCORES, run_id="run-2", machine=Machine(host="node-7"))
    running.acquire()
    owner = read_status(output.url).owner
    assert owner is not None
    assert (owner["run_id"], owner["host"]) == ("run-2", "node-7")
    running.release()


def test_a_folder_is_looked_at_without_changing_it(output: OutputFolder) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(output.url).rglob("*")}
    read_status(output.url)
    assert {path: path.stat().st_mtime_ns for path in Path(output.url).rglob("*")} == before


@pytest.mark.parametrize("make", [False, True])
def test_what_is_no_output_folder_is_refused(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "photos"
    if make:
        folder.mkdir()
    with pytest.raises(UserError, match="photos is no output folder of patchsieve"):
        read_status(str(folder))
    assert folder.exists() == make


def test_a_run_that_has_not_resolved_its_settings_yet_has_a_status(
    tmp_path: Path, shards: list[Shard]
) -> None:
    output = OutputFolder(str(tmp_path), SCORES, run_id="run-1")
    output.write_run({"state": "running"}, shards=shards)
    status = read_status(str(tmp_path))
    assert (status.done, status.missing, status.rows) == (0, 5, 0)


def test_many_shards_make_a_small_run_record(tmp_path: Path) -> None:
    name = "s3://bucket/a/long/path/to/the/corpus/part-{:06d}.tar"
    shards = [make_shard(b"", name.format(number)) for number in range(20_000)]
    output = OutputFolder(str(tmp_path), SCORES, run_id="run-1")
    output.write_run({"state": "running"}, shards=shards)
    assert (tmp_path / "runs" / "run-1.json").stat().st_size < 400_000
    assert read_status(str(tmp_path)).missing == 20_000


@pytest.mark.parametrize(
    "names", [[], ["/data/a.tar"], ["a.tar", "b.tar"], ["/data/a.tar", "/data/a.tar.tar"]]
)
def test_shard_names_survive_their_common_prefix(tmp_path: Path, names: list[str]) -> None:
    output = OutputFolder(str(tmp_path), SCORES, run_id="run-1")
    shards = [make_shard(b"1", name) for name in names]
    output.write_run({"state": "running"}, shards=shards)
    assert read_status(str(tmp_path)).missing == len(names)
    for shard in shards:
        output.record_failed(shard, 1, "bad")
    status = read_status(str(tmp_path))
    assert (status.missing, status.failed) == (0, len(names))


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    """What prove leaves has settings, and no shards that could be missing."""
    OutputFolder(str(tmp_path), SCORES, run_id="run-1").adopt_config(ROWS, other={})
    with pytest.raises(UserError, match=r"holds no run over shards, .* runs/ is missing"):
        read_status(str(tmp_path))
