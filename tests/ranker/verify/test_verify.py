"""Outputs held against what was recorded: every flipped bit is found, what is damaged is marked and made again."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from patchsieve.jobs.verify import main
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.output import owner, sealed
from patchsieve.pipeline.output.folder import OutputFolder, new_run_id
from patchsieve.pipeline.part import Part
from patchsieve.pipeline.pruned.dataset import PrunedDataset
from patchsieve.pipeline.runs.status import read_status
from patchsieve.pipeline.tables.schema import SCORES
from patchsieve.ranker.verify.config import VerifyConfig
from patchsieve.ranker.verify.report import Report, report_lines
from patchsieve.ranker.verify.run import verify
from tests.helpers.prune_runs import contents, save_small_ranker
from tests.helpers.score_runs import rows_of, save_small_teacher
from tests.ranker.verify.outputs import Run, pruned, scored, small_shards

FLIPS = 100
"""Of each of the two outputs."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, a teacher and a ranker, and what was made of them."""
    folder = tmp_path_factory.mktemp("world")
    shards = small_shards(folder / "shards")
    for run in (scores_in(folder, folder / "scored"), pruned(shards, folder / "pruned", ranker_in(folder))):
        assert run() == ["part-0.tar", "part-1.tar"]
    return folder


def shards_in(world: Path) -> list[Path]:
    return sorted((world / "shards").glob("*.tar"))


def teacher_in(world: Path) -> str:
    path = world / "small-pixels-0.safetensors"
    return str(path) if path.exists() else save_small_teacher(world)


def ranker_in(world: Path) -> str:
    path = world / "ranker-0"
    return str(path) if path.exists() else save_small_ranker(world)


def scores_in(world: Path, out: Path) -> Run:
    return scored(shards_in(world), out, teacher_in(world))


def prunes_in(world: Path, out: Path) -> Run:
    return pruned(shards_in(world), out, ranker_in(world))


def copied(world: Path, kind: str, folder: Path) -> Path:
    return Path(shutil.copytree(world / kind, folder / "out"))


def looked(out: Path, **changes) -> Report:
    return verify(VerifyConfig(out=str(out), **changes))


def flip(path: Path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def said(path: Path) -> dict[str, Any]:
    """What a record or errors file says of itself."""
    return dict(json.loads(pq.read_metadata(path).metadata[b"patchsieve"]))


def verified(out: Path) -> list[Path]:
    """The files that digests cover."""
    return sorted(
        path for path in out.rglob("*") if path.suffix in (".parquet", ".tar") and "cache" not in path.parts
    )


@pytest.mark.parametrize("kind", ["scored", "pruned"])
def test_what_was_written_is_sound(world: Path, kind: str) -> None:
    report = looked(world / kind)
    files = verified(world / kind)
    assert len(files) == {"scored": 3, "pruned": 5}[kind]
    assert report.sound
    assert (report.files, report.bytes) == (len(files), sum(path.stat().st_size for path in files))
    assert not report.unverifiable


@pytest.mark.parametrize("kind", ["scored", "pruned"])
def test_every_flipped_bit_is_found(world: Path, kind: str, tmp_path: Path) -> None:
    out = copied(world, kind, tmp_path)
    files = verified(out)
    draw = random.Random(kind)
    for number in range(FLIPS):
        path = files[number % len(files)]
        at, bit = draw.randrange(path.stat().st_size), draw.randrange(8)
        flip(path, at, bit)
        report = looked(out)
        assert set(report.damaged) == {path.relative_to(out).as_posix()}, (path, at, bit, report)
        flip(path, at, bit)
    assert looked(out).sound


@pytest.mark.parametrize("suffix", [".parquet", ".tar"])
def test_what_is_damaged_is_marked_and_made_again(world: Path, suffix: str, tmp_path: Path) -> None:
    out = copied(world, "pruned", tmp_path)
    folder = {".parquet": "index", ".tar": "shards"}[suffix]
    path = next(path for path in verified(out) if path.parent.name == folder)
    flip(path, 700, 3)
    assert prunes_in(world, out)() == [], "a run does not see it"
    report = looked(out, fix=True)
    (index,) = report.marked
    assert index.startswith("index/part-0-")
    assert (out / "damaged" / index).exists()
    assert read_status(str(out)).missing == 1
    assert prunes_in(world, out)() == ["part-0.tar"]
    assert looked(out).sound
    assert contents(out) == contents(world / "pruned")


def test_a_table_with_a_flipped_row_is_scored_again(world: Path, tmp_path: Path) -> None:
    out = copied(world, "scored", tmp_path)
    flip(sorted((out / "scores").iterdir())[1], 500, 0)
    with pytest.raises(UserError, match="part-1-"):
        rows_of(out)
    assert len(looked(out, fix=True).marked) == 1
    assert {shard for shard, _, _ in rows_of(out)} == {str(shards_in(world)[0])}, (
        "readers go on with the rest"
    )
    assert scores_in(world, out)() == ["part-1.tar"]
    assert rows_of(out) == rows_of(world / "scored")
    assert looked(out).sound


def test_damaged_errors_are_made_again(world: Path, tmp_path: Path) -> None:
    out = copied(world, "scored", tmp_path)
    (errors,) = (out / "errors").iterdir()
    flip(errors, 300, 1)
    report = looked(out, fix=True)
    assert set(report.damaged) == {f"errors/{errors.name}"}
    assert report.marked == [f"scores/{errors.name}"]
    assert scores_in(world, out)() == ["part-0.tar"]
    errors.unlink()
    assert looked(out).damaged == {f"errors/{errors.name}": "it is gone"}


def test_a_tar_or_a_table_that_is_gone_is_missing(world: Path, tmp_path: Path) -> None:
    out = copied(world, "pruned", tmp_path)
    tar = out / "shards" / "part-1.tar"
    tar.unlink()
    name = str(shards_in(world)[1])
    status = read_status(str(out))
    assert (status.done, status.missing) == (1, 1)
    assert status.lost == looked(out).missing == {name: "shards/part-1.tar is gone"}
    tar.write_bytes(b"x")
    assert read_status(str(out)).lost[name].startswith("shards/part-1.tar has 1 bytes of ")
    assert looked(out).damaged == {}
    assert prunes_in(world, out)() == ["part-1.tar"]
    assert looked(out).sound
    next((out / "index").glob("part-0*")).unlink()
    (gone,) = looked(out).missing.values()
    assert gone.endswith(".parquet is gone, or cannot be read")


def test_rows_are_scored_again(world: Path, tmp_path: Path) -> None:
    out = copied(world, "scored", tmp_path)
    report = looked(out, sample=1.0, teacher=teacher_in(world))
    assert report.sound
    assert (report.rows, report.equal) == (12, 12)
    assert looked(out, sample=1e-9, teacher=teacher_in(world)).rows == 2, "one of each table"
    other = save_small_teacher(tmp_path, seed=1)
    with pytest.raises(UserError, match="is not the teacher of these rows"):
        looked(out, sample=1.0, teacher=other)


def test_a_score_that_was_never_right_is_found(world: Path, tmp_path: Path) -> None:
    """A table whose digest is right, of a processor that computed wrongly."""
    out = copied(world, "scored", tmp_path)
    path = sorted((out / "scores").iterdir())[1]
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[4]["score"][1] *= 1.001
    metadata = said(path)
    schema = table.schema
    with pq.ParquetWriter(path, schema) as writer:
        writer.write_table(type(table).from_pylist(rows, schema))
        sealed.finish_file(writer, path, schema=schema, rows=len(rows), metadata=metadata)
    assert looked(out).sound
    report = looked(out, sample=1.0, teacher=teacher_in(world), fix=True)
    assert report.marked == [f"scores/{path.name}"]
    assert "scored again, a score lies" in report.damaged[f"scores/{path.name}"]
    assert scores_in(world, out)() == ["part-1.tar"]
    assert rows_of(out) == rows_of(world / "scored")


def test_files_of_before_digests_are_read_and_said_to_be_unverifiable(world: Path, tmp_path: Path) -> None:
    out = copied(world, "scored", tmp_path)
    for path in verified(out):
        table = pq.read_table(path)
        metadata = {**said(path), "schema_version": 1}
        told = {"patchsieve": json.dumps(metadata)}
        pq.write_table(table.replace_schema_metadata(told), path, write_page_checksum=True)
    report = looked(out)
    assert report.sound
    assert (len(report.unverifiable), report.files) == (3, 0)
    assert rows_of(out) == rows_of(world / "scored")
    assert scores_in(world, out)() == []


def test_a_ranker_is_checked(world: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ranker_in(world), tmp_path / "ranker"))
    assert looked(folder).files == 2
    config = folder / "config.json"
    saved = config.read_text()
    config.write_text(config.read_text().replace('"temperature": 0.5', '"temperature": 0.7'))
    assert "not as it was saved" in looked(folder).damaged["."]
    with pytest.raises(UserError, match="--fix are for outputs of score and prune"):
        looked(folder, fix=True)
    told = json.loads(saved)
    del told["sha256"]
    config.write_text(json.dumps(told))
    assert "not as it was saved" in looked(folder).damaged["."]
    config.write_text(saved)
    assert looked(folder).sound
    weights = next(folder.glob("*.safetensors"))
    flip(weights, weights.stat().st_size - 9, 6)
    assert not looked(folder).sound


def test_a_run_at_work_keeps_its_records(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copied(world, "scored", tmp_path)
    flip(next((out / "scores").iterdir()), 500, 0)
    running = OutputFolder(str(out), SCORES, run_id="run-2")
    # Whoever waits for a sign of life gets one soon.
    monkeypatch.setattr(owner, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(owner, "_POLL_S", 0.01)
    running.acquire()
    try:
        assert looked(out).owner == "run-2"
        with pytest.raises(UserError, match="is in use by run run-2"):
            looked(out, fix=True)
    finally:
        running.release()
    assert not (out / "damaged").exists()


def test_an_output_in_parts_is_owned_whole(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copied(world, "scored", tmp_path)
    flip(next((out / "scores").iterdir()), 500, 0)
    monkeypatch.setattr(owner, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(owner, "_POLL_S", 0.01)
    running = OutputFolder(str(out), SCORES, run_id=new_run_id(Part(2, 2)))
    running.acquire()
    try:
        assert looked(out).owner == running.run_id
        with pytest.raises(UserError, match=f"is in use by run {running.run_id}"):
            looked(out, fix=True)
        assert not (out / "owner.json").exists()
    finally:
        running.release()
    assert len(looked(out, fix=True).marked) == 1
    assert not list(out.rglob("owner.json"))


def test_a_reader_goes_on_where_an_index_is_damaged(world: Path, tmp_path: Path) -> None:
    out = copied(world, "pruned", tmp_path)
    index = sorted((out / "index").iterdir())[0]
    index.write_bytes(index.read_bytes()[:-9])
    told: list[Exception] = []

    def handler(error: Exception) -> bool:
        told.append(error)
        return True

    urls = [str(path) for path in shards_in(world)]
    keys = [sample.key for sample in PrunedDataset(urls, index=str(out), handler=handler)]
    assert len(keys) == 3
    (error,) = told
    assert index.name in str(error)
    with pytest.raises(UserError, match=index.name):
        list(PrunedDataset(urls, index=str(out)))


def test_the_command_says_so(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = copied(world, "pruned", tmp_path)
    (out / "shards" / "part-0.tar").unlink()
    flip(out / "shards" / "part-1.tar", 9, 0)
    for arguments in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main([str(out), *arguments])
        assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    told = json.loads(lines.pop())
    assert not told["sound"]
    assert list(told["damaged"]) == ["shards/part-1.tar"]
    assert lines == report_lines(looked(out))
    assert lines[0].startswith("NOT SOUND: 3 files of ")
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "nothing")])
    assert ended.value.code == 2
