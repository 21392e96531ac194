"""What deciding which shards are done costs on an object store: listings, and the footers of tables that are new."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import _listing_server
from benchmarks._fresh_process import decide
from benchmarks._listed_outputs import BUCKET
from benchmarks._listed_outputs import IDENTITY as LISTED
from benchmarks._listing_server import serve_listing
from benchmarks.done import cache_of, keys_of
from patchsieve.pipeline import storage
from patchsieve.pipeline.output.done import State
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.pipeline.tables.schema import SCORES
from tests.helpers.servers import S3Store, s3_leads_to
from tests.helpers.tables import shard_record, write_table
from tests.pipeline.output.test_done_check import IDENTITY

CONTENT = b"content of a shard"
SHARDS = 8


def requests(store: S3Store, shards_done: int) -> tuple[int, int]:
    """Footers that a new process reads to decide on all shards, and requests in all; it keeps what it read."""
    store.asked.clear()
    shards = expand_shards([store.url("corpus")])
    output = OutputFolder(store.url("out"), SCORES, run_id="run-2")
    checks = output.check(shards, IDENTITY)
    assert [check.state for check in checks.values()].count(State.DONE) == shards_done
    asked = (store.count("GET out/scores/"), len(store.asked))
    output.keep_records(shards)
    return asked


def test_footers_are_read_once(s3: S3Store, tmp_path: Path) -> None:
    def score(number: int) -> None:
        (shard,) = expand_shards([s3.url(f"corpus/{number:02d}.tar")])
        table = write_table(tmp_path / "t.parquet", shard_record(shard, CONTENT), images=1 + number % 2)
        OutputFolder(s3.url("out"), SCORES, run_id="run-1").commit(shard, table, None)

    for number in range(SHARDS):
        storage.commit_bytes(CONTENT, s3.url(f"corpus/{number:02d}.tar"), run_id="r")
        if number < SHARDS - 1:
            score(number)
    assert requests(s3, SHARDS - 1)[0] == SHARDS - 1
    # What keeping them read again is nothing, too.
    assert s3.count("GET out/scores/") == SHARDS - 1
    footers, in_all = requests(s3, SHARDS - 1)
    assert footers == 0
    assert in_all < SHARDS
    # One that is new, and a cache that is gone.
    score(SHARDS - 1)
    assert requests(s3, SHARDS)[0] == 1
    storage.remove(s3.url("out/cache/scores.parquet"))
    assert requests(s3, SHARDS)[0] == SHARDS


def test_many_shards_take_a_listing_each_of_corpus_and_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_listing_server, "PAGE", 100)
    keys = keys_of(300)
    with (
        serve_listing(keys, {"out/cache/scores.parquet": cache_of(keys, tmp_path)}) as server,
        s3_leads_to(server.environment, monkeypatch),
    ):
        found = decide([f"{BUCKET}/corpus"], f"{BUCKET}/out", LISTED)
    assert found["states"] == {"done": 300}
    # A request per page of names, of either.
    assert server.requests < 2 * 3 + 8
