"""What counts as done: the table under its final name, with this identity and this content, and nothing else."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.pipeline.output import done as done_check
from patchsieve.pipeline.output.done import State, compare, same_content
from patchsieve.pipeline.output.folder import FailedRecord, OutputFolder
from patchsieve.pipeline.shards.reader import Fault
from patchsieve.pipeline.shards.specs import Shard, shard_id
from patchsieve.pipeline.tables.schema import SCORES, row_identity
from tests.helpers.tables import CONFIG, TEACHER, record_of, shard_record, write_table

IDENTITY = row_identity(CONFIG, TEACHER.digest)
FAULT = Fault("photo-7", None, "decode", "truncated")


def shard_at(path: Path) -> Shard:
    """The shard of a file as it is now."""
    info = storage.stat(str(path))
    return Shard(url=info.url, name=info.url, id=shard_id(info.url), size=info.size, tag=info.tag)


@pytest.fixture
def shard_file(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "a.tar"
    path.parent.mkdir()
    path.write_bytes(b"content of a shard")
    return path


@pytest.fixture
def output(tmp_path: Path) -> OutputFolder:
    return OutputFolder(str(tmp_path / "out"), SCORES, run_id="run-1")


def commit(output: OutputFolder, path: Path, **changes) -> Shard:
    """Commit a table for the file as it is now."""
    shard = shard_at(path)
    table = path.parent / "table.parquet"
    write_table(table, shard_record(shard, path.read_bytes()), **changes)
    output.commit(shard, table, None)
    return shard


def fresh(output: OutputFolder) -> OutputFolder:
    """The folder as another run sees it."""
    return OutputFolder(output.url, SCORES, run_id="run-2")


@pytest.mark.parametrize(
    ("size", "tag", "state"),
    [
        (4, "tag-1", State.DONE),
        (None, "tag-1", State.DONE),
        (4, "tag-2", State.NEEDS_HASH),
        (None, "tag-2", State.NEEDS_HASH),
        (4, "", State.NEEDS_HASH),
        (5, "tag-1", State.CHANGED),
        (5, "tag-2", State.CHANGED),
    ],
)
def test_size_and_tag_tell_what_they_can(tmp_path: Path, size: int | None, tag: str, state: State) -> None:
    from patchsieve.pipeline.output.records import read_footer

    record = read_footer(str(write_table(tmp_path / "a.parquet", record_of(b"1234")))).record()
    shard = Shard(url="/data/a.tar", name="/data/a.tar", id="a", size=size, tag=tag)
    assert compare(shard, record) is state
    # No tag is no tag: two stores that tell none have not told the same.
    untold = dataclasses.replace(record, tag="")
    assert compare(dataclasses.replace(shard, tag=""), untold) is not State.DONE


def test_a_committed_shard_is_done(output: OutputFolder, shard_file: Path) -> None:
    assert output.check([shard_at(shard_file)], IDENTITY)[shard_at(shard_file).id].state is State.MISSING
    shard = commit(output, shard_file)
    check = output.check([shard], IDENTITY)[shard.id]
    assert check.state is State.DONE
    assert check.record is not None
    assert (check.record.rows, check.record.run_id, check.record.name) == (12, "run-1", shard.name)


def test_a_table_of_other_rows_or_another_shard_does_not_count(
    output: OutputFolder, shard_file: Path
) -> None:
    shard = commit(output, shard_file)
    assert output.check([shard], "other")[shard.id].state is State.MISSING
    renamed = dataclasses.replace(shard, name="/elsewhere/a.tar")
    assert output.check([renamed], IDENTITY)[shard.id].state is State.MISSING


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _garbage(path: Path) -> None:
    path.write_bytes(os.urandom(5000))


def _foreign_metadata(path: Path) -> None:
    write_table(path, record_of(b""), errors={})


@pytest.mark.parametrize("spoil", [_half, _empty, _garbage, _foreign_metadata])
def test_a_table_that_cannot_be_read_is_missing(
    output: OutputFolder, shard_file: Path, spoil: Callable[[Path], None]
) -> None:
    shard = commit(output, shard_file)
    spoil(Path(output.record_url(shard)))
    assert output.check([shard], IDENTITY)[shard.id].state is State.MISSING
    commit(output, shard_file)
    assert output.check([shard], IDENTITY)[shard.id].state is State.DONE


def test_a_table_of_a_newer_release_is_not_overwritten(output: OutputFolder, shard_file: Path) -> None:
    shard = commit(output, shard_file, schema_version=3)
    with pytest.raises(UserError, match="schema version 3"):
        output.check([shard], IDENTITY)


def test_a_store_that_fails_is_not_taken_for_a_missing_table(
    output: OutputFolder, shard_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = commit(output, shard_file)

    def away(*arguments: object, **options: object) -> bytes:
        raise InfrastructureError("the store is away")

    monkeypatch.setattr(storage, "read_range", away)
    with pytest.raises(InfrastructureError):
        fresh(output).check([shard], IDENTITY)


def test_a_touched_or_copied_shard_is_done_and_read_only_once(
    output: OutputFolder, shard_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = commit(output, shard_file)
    os.utime(shard_file, ns=(1, 1))
    touched = shard_at(shard_file)
    assert touched.tag != old.tag
    assert output.check([touched], IDENTITY)[touched.id].state is State.NEEDS_HASH
    plan = fresh(output).plan([touched], IDENTITY)
    assert (plan.todo, list(plan.done), plan.changed) == ([], [touched.id], [])

    def must_not_read(*arguments: object) -> bool:
        raise AssertionError("hashed again")

    monkeypatch.setattr(done_check, "same_content", must_not_read)
    assert fresh(output).plan([touched], IDENTITY).todo == []
    # Under its first tag it is still the same.
    assert fresh(output).plan([old], IDENTITY).todo == []


def test_a_shard_whose_content_changed_is_to_do(output: OutputFolder, shard_file: Path) -> None:
    commit(output, shard_file)
    shard_file.write_bytes(b"CONTENT OF A SHARD")  # as long as before
    os.utime(shard_file, ns=(1, 1))
    changed = shard_at(shard_file)
    plan = output.plan([changed], IDENTITY)
    assert (plan.todo, plan.done, plan.changed) == ([changed], {}, [changed.id])
    commit(output, shard_file)
    assert output.plan([changed], IDENTITY).todo == []
    shard_file.write_bytes(b"longer than it was before")
    longer = shard_at(shard_file)
    assert output.check([longer], IDENTITY)[longer.id].state is State.CHANGED


def test_a_shard_written_again_in_place_is_found_by_reading_it(
    output: OutputFolder, shard_file: Path
) -> None:
    shard = commit(output, shard_file)
    times = shard_file.stat()
    shard_file.write_bytes(b"CONTENT of a shard")
    os.utime(shard_file, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = shard_at(shard_file)
    assert (again.size, again.tag) == (shard.size, shard.tag), "nothing tells"
    assert fresh(output).plan([again], IDENTITY).todo == []
    plan = fresh(output).plan([again], IDENTITY, verify_content=True)
    assert (plan.todo, plan.changed) == ([again], [again.id])
    shard_file.write_bytes(b"content of a shard")
    assert fresh(output).plan([shard_at(shard_file)], IDENTITY, verify_content=True).todo == []


def test_a_shard_that_cannot_be_compared_is_left_to_do(
    output: OutputFolder, shard_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = dataclasses.replace(commit(output, shard_file), tag="another")
    shard_file.unlink()
    plan = output.plan([shard], IDENTITY)
    assert (plan.todo, plan.done, plan.changed) == ([shard], {}, [])


def test_contents_are_compared_by_all_their_bytes(
    output: OutputFolder, shard_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(done_check, "_READ_BYTES", 7)
    shard = commit(output, shard_file)
    record = output.plan([shard], IDENTITY).done[shard.id]
    assert same_content(shard, record)
    shard_file.write_bytes(shard_file.read_bytes()[:-1] + b"!")
    assert not same_content(shard, record)


def test_footers_are_read_once_until_the_table_changes(
    output: OutputFolder, shard_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = storage.read_range

    def counted(url: str, start: int, stop: int) -> bytes:
        reads.append(url)
        return read(url, start, stop)

    monkeypatch.setattr(storage, "read_range", counted)
    shard = commit(output, shard_file)
    cache = Path(output.url) / "cache" / "scores.parquet"
    first = output.plan([shard], IDENTITY)
    assert (len(reads), cache.exists()) == (1, True)
    assert fresh(output).plan([shard], IDENTITY) == first
    assert len(reads) == 1
    # A table that was replaced is another table, whatever was known of the old one.
    commit(output, shard_file, run_id="run-9")
    assert fresh(output).plan([shard], IDENTITY).done[shard.id].run_id == "run-9"
    assert len(reads) == 2
    for spoil in (_garbage, Path.unlink):
        spoil(cache)
        assert fresh(output).plan([shard], IDENTITY).todo == []
    assert len(reads) == 4
    # The cache decides nothing: without its table a shard is not done.
    Path(output.record_url(shard)).unlink()
    assert fresh(output).plan([shard], IDENTITY).todo == [shard]


def test_shards_with_errors_are_done_again_when_asked(output: OutputFolder, shard_file: Path) -> None:
    good = commit(output, shard_file)
    other = shard_file.with_name("b.tar")
    other.write_bytes(b"bad samples")
    bad = commit(output, other, faults=[FAULT])
    assert output.plan([good, bad], IDENTITY).todo == []
    plan = output.plan([good, bad], IDENTITY, redo_errors=True)
    assert (plan.todo, list(plan.done), plan.changed) == ([bad], [good.id], [])


def test_what_is_left_beside_finished_shards_is_removed(output: OutputFolder, shard_file: Path) -> None:
    shard = commit(output, shard_file)
    output.record_failed(shard, 3, "the store was away")
    errors = Path(output.errors_url(shard.id))
    errors.parent.mkdir()
    errors.write_bytes(b"of an attempt before")
    (Path(output.url) / "failed" / "odd.json").write_text("{")
    other = Shard(url="/data/other.tar", name="/data/other.tar", id="other", size=1, tag="t")
    output.record_failed(other, 3, "it holds no samples")
    output.plan([shard, other], IDENTITY)
    assert not errors.exists()
    told = FailedRecord(
        shard="/data/other.tar",
        size=1,
        tag="t",
        attempts=3,
        reason="it holds no samples",
        run_id=output.run_id,
    )
    assert output.failed() == {"other": told}, "what was given up stays told until it is done"


def test_a_run_on_many_shards_lists_once_and_reads_what_is_there(
    output: OutputFolder, shard_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = commit(output, shard_file)
    asked = [done] + [
        Shard(url=f"/data/{i}.tar", name=f"/data/{i}.tar", id=f"{i}-0", size=1, tag="t")
        for i in range(20_000)
    ]
    looked_up: list[str] = []
    monkeypatch.setattr(storage, "stat", looked_up.append)
    plan = output.plan(asked, IDENTITY)
    assert len(plan.todo) == 20_000
    assert looked_up == []
