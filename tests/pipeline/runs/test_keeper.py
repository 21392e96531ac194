"""Records that are kept while a run goes on: whoever looks at it meanwhile reads few footers."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from patchsieve.pipeline import threads
from patchsieve.pipeline.output import done
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.output.records import read_footer
from patchsieve.pipeline.runs import keeper
from patchsieve.pipeline.runs.keeper import RecordKeeper
from patchsieve.pipeline.tables.schema import SCORES
from tests.helpers.score_processes import wait_until
from tests.helpers.tables import make_shard, shard_record, write_table

SHARDS = [make_shard(b"x" * (10 + number), f"/data/{number}.tar") for number in range(4)]


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OutputFolder:
    """Of a run that has committed all of its tables, and looks at them again and again, reading one at a time."""
    monkeypatch.setattr(keeper, "KEEP_S", 0.01)
    monkeypatch.setattr(threads, "THREADS", 1)
    made = OutputFolder(str(tmp_path / "out"), SCORES, run_id="run-1")
    for shard in SHARDS:
        write_table(tmp_path / "t.parquet", shard_record(shard, b"x" * (shard.size or 0)), images=1)
        made.commit(shard, tmp_path / "t.parquet", None)
    return made


def test_a_look_at_a_run_that_goes_on_reads_no_footer_twice(
    output: OutputFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = RecordKeeper(output, SHARDS, lambda: True)
    wait_until(lambda: Path(output.url, "cache", "scores.parquet").exists(), "records kept")
    kept.close(wait=True)
    monkeypatch.setattr(done, "read_footer", lambda *a, **k: pytest.fail("a footer is read again"))
    assert len(OutputFolder(output.url, SCORES, run_id="status").all_records()) == len(SHARDS)


def test_when_the_run_ends_no_other_footer_is_read(
    output: OutputFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    read: list[str] = []

    def slow(url: str, **options: object) -> object:
        begun.set()
        assert go_on.wait(60)
        read.append(url)
        return read_footer(url)

    monkeypatch.setattr(done, "read_footer", slow)
    kept = RecordKeeper(output, SHARDS, lambda: True)
    assert begun.wait(60)
    kept._over.set()
    go_on.set()
    kept.close(wait=True)
    assert len(read) < len(SHARDS)
    assert not Path(output.url, "cache").exists()


def test_what_is_another_runs_by_now_is_left_alone(output: OutputFolder) -> None:
    asked: list[bool] = []

    def is_ours() -> bool:
        asked.append(True)
        return False

    kept = RecordKeeper(output, SHARDS, is_ours)
    wait_until(lambda: len(asked) > 1, "looked at again")
    kept.close(wait=True)
    assert not Path(output.url, "cache").exists()
