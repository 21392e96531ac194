"""Outputs in an object store that has troubles: what they hold, what a schedule makes of them, and the pruned ones."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from patchsieve.jobs.schedule import main as schedule
from patchsieve.jobs.status import main as status
from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import InfrastructureError
from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.output.done import State
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.pruned.dataset import PrunedDataset
from patchsieve.pipeline.pruned.index import INDEX
from patchsieve.pipeline.pruned.sample import PrunedSample
from patchsieve.pipeline.runs.status import read_status
from patchsieve.pipeline.schedule.config import ListConfig, OnceConfig
from patchsieve.pipeline.schedule.listing import list_corpora
from patchsieve.pipeline.schedule.run import tick_once
from patchsieve.pipeline.shards.specs import Shard, expand_shards
from patchsieve.pipeline.tables.schema import SCORES, row_fields
from patchsieve.ranker.prune.request import make_prune_request
from tests.helpers.impatient import impatient_s3
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.prune_runs import prune_config, prune_here, save_small_ranker
from tests.helpers.servers import S3Store, Trouble
from tests.helpers.tables import CONFIG, TEACHER, make_shard, shard_record, write_table
from tests.pipeline.runs.test_status import FAULTS, ROWS, commit
from tests.pipeline.schedule.test_schedule import FakeJobs

BUSY, CUT, RESET = Trouble("status", status=503), Trouble("cut", 30), Trouble("reset", 0)
SILENT, SLOW = Trouble("stall", 10), Trouble("slow")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    with impatient_s3(monkeypatch) as store:
        yield store


def fill(url: str, scratch: Path) -> tuple[OutputFolder, list[Shard]]:
    """An output of five shards: two done, one of them with errors, one failed."""
    shards = [make_shard(b"x" * (10 + number), f"/data/part-{number}.tar") for number in range(5)]
    output = OutputFolder(url, SCORES, run_id="run-1")
    output.adopt_config(ROWS, other={})
    output.write_run({"state": "running"}, shards=shards)
    commit(output, scratch, shards[0], [])
    commit(output, scratch, shards[1], FAULTS)
    output.record_failed(shards[2], 3, "the store was away")
    return output, shards


def test_status_waits_out_what_passes(s3: S3Store, tmp_path: Path) -> None:
    output, shards = fill(s3.url("labels"), tmp_path)
    expected = read_status(fill(str(tmp_path / "labels"), tmp_path)[0].url)
    s3.troubles = [
        ("GET .*list-type.*labels%2Fscores", BUSY),
        ("GET .*list-type.*runs", CUT),
        ("GET labels/config.json", RESET),
        ("GET labels/config.json", CUT),
        ("GET labels/runs", SLOW),
        ("GET labels/scores/part-0", SILENT),
        ("GET labels/scores/part-1", CUT),
        ("GET labels/errors/part-1", RESET),
        ("GET labels/failed/part-2", BUSY),
        ("HEAD labels/owner.json", BUSY),
    ]
    assert read_status(output.url) == dataclasses.replace(expected, url=output.url)
    assert s3.troubles == []
    commit(output, tmp_path, shards[3], [])
    assert read_status(output.url).done == 3


@pytest.mark.parametrize(
    ("folder", "away", "code", "message"),
    [
        ("labels", "GET .*list-type.*labels%2Fscores", 1, "listing s3://test-bucket/labels/scores: "),
        ("labels", "GET labels/config.json", 1, "reading s3://test-bucket/labels/config.json: "),
        ("empty", "GET nothing", 2, "s3://test-bucket/empty is no output folder of patchsieve"),
    ],
)
def test_status_of_a_store_that_stays_away(
    s3: S3Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    folder: str,
    away: str,
    code: int,
    message: str,
) -> None:
    fill(s3.url("labels"), tmp_path)
    s3.forever = {away: BUSY}
    with pytest.raises(SystemExit) as ended:
        status([s3.url(folder)])
    assert ended.value.code == code
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith(f"patchsieve status: {message}")
    assert "test-secret-key" not in shown.err + shown.out


class Corpora:
    """Corpora and outputs in a store, and ticks over them in this process."""

    def __init__(self, store: S3Store, scratch: Path) -> None:
        self.store, self.scratch, self.jobs = store, scratch, FakeJobs()
        self.said: list[str] = []
        self.source = (store.url("corpora/*/"),)

    def add(self, *names: str) -> None:
        for name in names:
            storage.commit_bytes(b"x" * 10, self.store.url(f"corpora/{name}"), run_id="r")

    def tick(self, name: str, **changes: object) -> int:
        self.said.clear()
        config = OnceConfig(source=self.source, out=self.store.url("tables"))
        return tick_once(
            dataclasses.replace(config, **changes),
            self.said.append,
            tick=name,
            connect=lambda address: self.jobs,
            # Two hours from now; what was just written is that old then.
            now=lambda: time.time() + 7200,
            sleep=lambda seconds: None,
        )

    def scored(self) -> list[list[str]]:
        """Names of the shards of each job, as its list in the store says."""
        lists = [storage.read_bytes(command[2].removeprefix("@")) for command in self.jobs.commands.values()]
        return [
            [storage.split_name(shard.url)[1] for shard in expand_shards(one.decode().split())]
            for one in lists
        ]

    def finish(self, corpus: str) -> None:
        """What a job does."""
        output = OutputFolder(self.store.url(f"tables/{corpus}"), SCORES, run_id="run-1")
        output.adopt_config(row_fields(CONFIG, TEACHER.digest), other={})
        for shard in expand_shards([self.store.url(f"corpora/{corpus}")]):
            table = write_table(self.scratch / "t.parquet", shard_record(shard, b"x" * 10), run_id="run-1")
            output.commit(shard, table, None)


def test_ticks_over_a_store_see_what_came_since_the_last(s3: S3Store, tmp_path: Path) -> None:
    corpora = Corpora(s3, tmp_path)
    corpora.add("a/0.tar", "a/1.tar", "a/_SUCCESS", "b/0.tar")
    s3.troubles = [("GET .*list-type.*corpora", BUSY), ("GET .*list-type.*corpora%2Fa", RESET)]
    s3.troubles += [("PUT tables/a/schedule", BUSY)]
    assert corpora.tick("one") == 0
    assert corpora.said[1] == "b: not complete: no _SUCCESS"
    assert corpora.tick("two", min_age=1.0) == 0
    assert corpora.said[0].startswith("a: submitted as patchsieve-a-")
    assert corpora.scored() == [["0.tar", "1.tar"], ["0.tar"]]
    assert s3.troubles == []

    corpora.finish("a")
    corpora.jobs.ended = True
    corpora.add("a/2.tar", "c/0.tar")
    s3.troubles = [("GET tables/a/config.json", CUT), ("GET tables/a/scores", RESET)]
    shown = list_corpora(ListConfig(source=corpora.source, out=s3.url("tables"), min_age=0.0))
    assert [(one["corpus"], one["done"], one["shards"]) for one in shown] == [
        ("a", 2, 3),
        ("b", 0, 1),
        ("c", 0, 1),
    ]
    assert corpora.tick("three", min_age=1.0) == 0
    assert corpora.scored()[2:] == [["2.tar"], ["0.tar"], ["0.tar"]]
    assert s3.troubles == []


def test_a_corpus_whose_output_is_away_does_not_keep_the_others(
    s3: S3Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpora = Corpora(s3, tmp_path)
    corpora.add("a/0.tar", "a/_SUCCESS", "b/0.tar", "b/_SUCCESS")
    corpora.finish("a")
    s3.forever = {"GET tables/a/": BUSY}
    assert corpora.tick("one") == 1
    assert corpora.said[0].startswith("a: reading s3://test-bucket/tables/a/config.json: ")
    assert corpora.scored() == [["0.tar"]]
    s3.forever = {"GET .*list-type.*corpora": BUSY}
    with pytest.raises(SystemExit) as ended:
        schedule(["list", "--source", *corpora.source, "--out", s3.url("tables")])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("s3://test-bucket/corpora: 0/0 shards, listing s3://test-bucket/corpora")


def values(sample: PrunedSample) -> tuple[object, ...]:
    return (sample.key, sample.positions.tolist(), sample.patches.tolist(), sample.fields)


@pytest.mark.forks
def test_pruned_from_store_to_store_and_read_from_there(s3: S3Store, tmp_path: Path) -> None:
    ranker, local = save_small_ranker(tmp_path), tmp_path / "corpus"
    for number in range(2):
        name = f"{number}.tar"
        write_shard(local / name, photo_samples(4, number, height=80, width=100))
        storage.commit_file(local / name, s3.url(f"corpus/{name}"), run_id="r")
    expected, out = tmp_path / "pruned", s3.url("pruned")
    prune_here(prune_config([local], expected, ranker, root=str(local)))
    s3.troubles = [
        ("GET .*list-type.*corpus", BUSY),
        ("GET corpus/0.tar", CUT),
        ("GET corpus/1.tar", SILENT),
        ("GET corpus/1.tar", SLOW),
        ("PUT pruned/shards/0.tar", BUSY),
        ("PUT pruned/shards/1.tar", RESET),
        ("PUT pruned/index/0", BUSY),
    ]
    config = prune_config([s3.url("corpus")], out, ranker, root=s3.url("corpus"))
    results = prune_here(config)
    assert [result.failed for result in results.values()] == [None, None]
    assert s3.troubles == []
    for number in range(2):
        written = (expected / "shards" / f"{number}.tar").read_bytes()
        assert storage.read_bytes(f"{out}/shards/{number}.tar") == written
    indexes = [info.url for info in storage.list_folder(f"{out}/{INDEX.folder}")]
    assert len(indexes) == 2
    for url in indexes:
        ours = pq.read_table(pa.BufferReader(storage.read_bytes(url)))
        assert ours.equals(pq.read_table(expected / INDEX.folder / storage.split_name(url)[1]))
    request = make_prune_request(config)
    checks = OutputFolder(out, INDEX, run_id="later").check(request.shards, digest_of(request.fields))
    assert {check.state for check in checks.values()} == {State.DONE}

    here = [values(sample) for sample in PrunedDataset(str(expected / "shards"))]
    s3.troubles = [("GET pruned/shards/0.tar", one) for one in (BUSY, CUT, SILENT, SLOW)]
    dataset = PrunedDataset(f"{out}/shards")
    assert [values(sample) for sample in dataset] == here
    assert s3.troubles == []
    # Workers of a loader are forked, with the client's threads left behind.
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    assert sorted(sample.key for sample in loader) == sorted(str(sample[0]) for sample in here)

    prune_here(dataclasses.replace(config, out=s3.url("by index"), format="index"))
    s3.troubles = [("GET by index/index/0", BUSY), ("GET corpus/0.tar", RESET)]
    by_index = PrunedDataset(s3.url("corpus"), index=s3.url("by index"), root=s3.url("corpus"))
    assert [sample.key for sample in by_index] == [sample[0] for sample in here]
    assert s3.troubles == []
    s3.forever = {"GET pruned/shards/1.tar": CUT}
    with pytest.raises(InfrastructureError, match=r"reading s3://test-bucket/pruned/shards/1\.tar"):
        list(dataset)
