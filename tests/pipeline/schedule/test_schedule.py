"""Ticks over real folders and real output folders; the Jobs API is a list here, and a real one in the job tests."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from patchsieve.jobs.schedule import main
from patchsieve.pipeline.cluster.jobs_api import Submission
from patchsieve.pipeline.cluster.known_job import JobEnd, KnownJob
from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.schedule.config import ListConfig, OnceConfig, RunConfig
from patchsieve.pipeline.schedule.corpora import OWNER_LOOK_S, find_corpora, shard_list
from patchsieve.pipeline.schedule.listing import list_corpora, list_lines
from patchsieve.pipeline.schedule.run import run_schedule, tick_once
from patchsieve.pipeline.shards.specs import Shard, expand_shards
from patchsieve.pipeline.tables.schema import SCORES, row_fields
from tests.helpers.tables import CONFIG, TEACHER, shard_record, write_table

NOW = 1_700_000_000.0


@dataclasses.dataclass
class FakeJobs:
    """Jobs by submission id: their command, output and end, which all have once they have `ended`."""

    commands: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    outputs: dict[str, str] = dataclasses.field(default_factory=dict)
    ends: dict[str, JobEnd] = dataclasses.field(default_factory=dict)
    ended: bool = False

    def jobs(self) -> list[KnownJob]:
        other = JobEnd(state="succeeded", exit_code=0) if self.ended else None
        return [
            KnownJob(id=key, out=output, end=self.ends.get(key, other))
            for key, output in self.outputs.items()
        ]

    def submit(self, job: Submission) -> bool:
        if job.id in self.commands:
            return False
        self.commands[job.id] = list(job.command)
        self.outputs[job.id] = job.out
        return True

    def scored(self) -> list[list[str]]:
        """Names of the shards of each job, in the order of submission."""
        lists = [Path(command[2].removeprefix("@")) for command in self.commands.values()]
        return [[Path(line).name for line in file.read_text().splitlines()] for file in lists]


@dataclasses.dataclass
class Bench:
    """Two corpora of two shards each, an hour old and marked as complete, and ticks over them."""

    folder: Path
    jobs: FakeJobs = dataclasses.field(default_factory=FakeJobs)
    naps: list[float] = dataclasses.field(default_factory=list)
    said: list[str] = dataclasses.field(default_factory=list)

    @property
    def config(self) -> OnceConfig:
        return OnceConfig(source=(f"{self.folder}/in/*/",), out=f"{self.folder}/out")

    def add(self, corpus: str, name: str, content: bytes = b"x" * 10) -> Shard:
        file = self.folder / "in" / corpus / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        os.utime(file, (NOW - 3600, NOW - 3600))
        return expand_shards([str(file)])[0]

    def output(self, corpus: str) -> OutputFolder:
        output = OutputFolder(f"{self.folder}/out/{corpus}", SCORES, run_id="run-1")
        output.adopt_config(row_fields(CONFIG, TEACHER.digest), other={})
        return output

    def finish(self, corpus: str, shard: Shard) -> None:
        """What a job does with a shard."""
        table = self.folder / "table.parquet"
        write_table(table, shard_record(shard, Path(shard.url).read_bytes()), run_id="run-1")
        self.output(corpus).commit(shard, table, None)

    def tick(self, *, meanwhile: Any = None, **changes: Any) -> int:
        self.said.clear()

        def sleep(seconds: float) -> None:
            self.naps.append(seconds)
            if meanwhile is not None:
                meanwhile()

        config = dataclasses.replace(self.config, **changes)
        return tick_once(
            config,
            self.said.append,
            connect=lambda address: self.jobs,
            now=lambda: NOW,
            sleep=sleep,
            tick=config.tick,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    for corpus in "ab":
        for name in ("0.tar", "1.tar", "_SUCCESS"):
            made.add(corpus, name)
    return made


def test_each_corpus_has_a_job_and_an_output_of_its_own(bench: Bench) -> None:
    assert bench.tick(score_options=("--teacher", "tiny")) == 0
    first, second = bench.jobs.commands.values()
    assert first[3:] == ["--out", f"{bench.folder}/out/a", "--teacher", "tiny"]
    assert second[3:5] == ["--out", f"{bench.folder}/out/b"]
    assert bench.jobs.scored() == [["0.tar", "1.tar"]] * 2
    assert [line.split(":")[0] for line in bench.said] == ["a", "b"]


def test_a_second_tick_submits_nothing_twice(bench: Bench) -> None:
    bench.tick()
    assert bench.tick(tick="later") == 0
    assert len(bench.jobs.commands) == 2
    assert all("submitted as patchsieve-" in line for line in bench.said)
    # Two ticks of one name at one moment: neither sees the other's jobs, and the ids are the same.
    bench.jobs.outputs.clear()
    assert bench.tick() == 0
    assert len(bench.jobs.commands) == 2
    assert all("submitted before as" in line for line in bench.said)


def test_only_shards_without_a_table_are_submitted(bench: Bench) -> None:
    shards = {corpus: expand_shards([f"{bench.folder}/in/{corpus}"]) for corpus in "ab"}
    bench.finish("a", shards["a"][0])
    for shard in shards["b"]:
        bench.finish("b", shard)
    bench.tick()
    assert bench.jobs.scored() == [["1.tar"]]
    assert bench.said[1] == "b: scored"
    bench.add("b", "1.tar", b"y" * 11)
    bench.add("b", "2.tar")
    bench.tick()
    assert bench.jobs.scored()[1] == ["1.tar", "2.tar"]


def test_failed_shards_wait_until_they_change_or_are_asked_for(bench: Bench) -> None:
    failed, fine = expand_shards([f"{bench.folder}/in/a"])
    bench.output("a").record_failed(failed, 3, "no sample gave a row")
    bench.finish("a", fine)
    bench.jobs.ended = True
    bench.tick(tick="one")
    assert "1 given up and unchanged" in bench.said[0]
    bench.tick(tick="two", retry_failed=True)
    assert bench.jobs.scored()[1] == ["0.tar"]
    bench.add("a", "0.tar", b"repaired")
    bench.tick(tick="three")
    assert bench.jobs.scored()[3] == ["0.tar"]


def test_a_corpus_waits_until_it_is_complete(bench: Bench) -> None:
    (bench.folder / "in/a/_SUCCESS").unlink()
    bench.tick(max_jobs=1, dry_run=True)
    assert bench.said == ["a: not complete: no _SUCCESS", "b: would be submitted: 2 of 2 shards to score"]
    bench.tick(min_age=1.5, dry_run=True)
    assert bench.said[0] == "a: not complete: no _SUCCESS, and the newest shard is 1 h 00 min old"
    bench.tick(min_age=0.5, dry_run=True)
    assert bench.said[0] == "a: would be submitted: 2 of 2 shards to score"
    assert not bench.jobs.commands
    assert not (bench.folder / "out").exists()


def test_an_owner_that_lives_keeps_a_corpus_and_one_that_is_dead_does_not(bench: Bench) -> None:
    alive, dead = (bench.folder / "out" / corpus / "owner.json" for corpus in "ab")
    for file in (alive, dead):
        file.parent.mkdir(parents=True)
        file.write_text('{"run_id": "run-1", "beats": 1}')
    bench.tick(meanwhile=lambda: alive.write_text('{"run_id": "run-1", "beats": 2}'))
    assert bench.naps == [OWNER_LOOK_S]
    assert bench.said[0] == "a: a run works on it"
    dead.write_text('{"run_id": "run-2", "beats": 1}')  # of the job that was submitted
    alive.unlink()
    bench.tick(tick="later", dry_run=True)
    assert bench.naps == [OWNER_LOOK_S]
    assert list(bench.jobs.outputs.values()) == [f"{bench.folder}/out/b"]


def test_a_corpus_that_cannot_be_looked_at_does_not_keep_the_others(bench: Bench) -> None:
    (bench.folder / "out/a").mkdir(parents=True)
    (bench.folder / "out/a/config.json").write_text("{broken")
    assert bench.tick() == 1
    assert "config.json" in bench.said[0]
    assert list(bench.jobs.outputs.values()) == [f"{bench.folder}/out/b"]


@pytest.mark.parametrize("name", ["c::d", "c\nd", "c\udcff"])
def test_a_name_that_cannot_be_opened_is_that_corpus_s_line(bench: Bench, name: str) -> None:
    for sort in ("", "z"):  # before the others and behind them
        (bench.folder / "in" / (sort + name)).mkdir()
        (bench.folder / "in" / (sort + name) / "0.tar").touch()
    assert bench.tick() == 1
    assert sorted(bench.jobs.outputs.values()) == [f"{bench.folder}/out/a", f"{bench.folder}/out/b"]
    assert sum("rename it" in line for line in bench.said) == 2
    assert len(list_corpora(ListConfig(source=bench.config.source, out="/o"))) == 4


def test_what_cannot_be_listed_is_a_line_of_its_own(bench: Bench) -> None:
    (bench.folder / "in" / "gone").symlink_to("nowhere")
    assert bench.tick() == 1
    assert len(bench.jobs.outputs) == 2
    assert any("link to nowhere" in line for line in bench.said)


def test_corpora_are_named_below_the_fixed_part_and_never_share_an_output(tmp_path: Path) -> None:
    for name in ("x/2024/may", "x/2024/june", "y/2024/may", "x/.hidden/may"):
        (tmp_path / name).mkdir(parents=True)
    found = find_corpora([f"{tmp_path}/x/*/*/"], "s3://b/out")
    assert [(place.name, place.out) for place in found] == [
        ("2024/june", "s3://b/out/2024/june"),
        ("2024/may", "s3://b/out/2024/may"),
    ]
    assert [place.name for place in find_corpora([f"{tmp_path}/x/2024/may"], "/out")] == ["may"]
    double = find_corpora([f"{tmp_path}/x/*/*/", f"{tmp_path}/y/*/*/"], "/out")
    assert ["two corpora are named so" in place.problem for place in double] == [False, True, True]
    nested = find_corpora([f"{tmp_path}/x/*/*/", f"{tmp_path}/x/*"], "/out")
    assert [place.problem.partition(";")[0] for place in nested] == [
        "",
        "its output would lie in that of 2024",
        "its output would lie in that of 2024",
    ]
    with pytest.raises(UserError, match="credentials") as refused:
        find_corpora(["https://me:secret@host/*/"], "/out")
    assert "secret" not in str(refused.value)


def test_a_name_that_would_stand_for_others_is_refused() -> None:
    plain = Shard("s3://b/a.tar", "s3://b/a.tar", "a-0", 1, "t")
    assert shard_list([plain]) == b"s3://b/a.tar\n"
    for url in ("s3://b/a[1].tar", "s3://b/{a,b}.tar", "s3://b/a.tar "):
        with pytest.raises(UserError, match="rename"):
            shard_list([dataclasses.replace(plain, url=url)])


def test_the_loop_ticks_at_its_times_and_outlives_a_tick_that_fails() -> None:
    clock, ticks, said = [NOW], list[str](), list[str]()
    config = RunConfig(source=("/in/*",), out="/out", cron="*/30 * * * *")

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    def tick(config: RunConfig, say: Any, *, tick: str) -> int:
        ticks.append(tick)
        clock[0] += 2000  # longer than the half hour: the next one is not made up for
        if len(ticks) == 1:
            raise InfrastructureError("no Jobs API at http://head:8265")
        if len(ticks) == 3:
            raise UserError("enough")
        return 0

    with pytest.raises(UserError, match="enough"):
        run_schedule(config, said.append, tick=tick, now=lambda: clock[0], sleep=sleep)
    assert ticks == ["20231114T2230Z", "20231114T2330Z", "20231115T0030Z"]
    assert said[:2] == [
        "next tick  2023-11-14T22:30+00:00",
        "this tick failed: no Jobs API at http://head:8265",
    ]


def test_a_tick_at_the_start_makes_up_for_one_that_was_missed() -> None:
    def tick(config: RunConfig, say: Any, *, tick: str) -> int:
        raise UserError(tick)

    config = RunConfig(source=("/in/*",), out="/out", cron="0 3 * * *", tick_at_start=True)
    with pytest.raises(UserError, match="20231114T2213Z"):
        run_schedule(config, lambda line: None, tick=tick, now=lambda: NOW, sleep=lambda seconds: None)


def test_the_listing_tells_state_and_last_run(bench: Bench) -> None:
    shards = expand_shards([f"{bench.folder}/in/a"])
    bench.finish("a", shards[0])
    bench.output("a").write_run({"state": "stopped by SIGTERM"}, shards=shards)
    (bench.folder / "out/b").mkdir()
    (bench.folder / "out/b/owner.json").write_text("{}")
    config = ListConfig(source=bench.config.source, out=bench.config.out)
    shown = list_corpora(config, now=lambda: NOW)
    assert list_lines(shown) == [
        "a: 1/2 shards, 1 of 2 shards to score, last run run-1 stopped by SIGTERM",
        "b: 0/2 shards, a run works on it",
    ]
    assert bench.naps == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-jobs", "0"], "--max-jobs is 0"),
        (["--tick", "a b"], "--tick is 'a b'"),
        (["--", "--out", "elsewhere"], "after -- come options of score"),
        (["--", "--config", "score.yaml"], "score.yaml"),
        (["--", "--views", "none"], "--views is 'none'"),
        (["--address", "http://127.0.0.1:9"], "no Jobs API at http://127.0.0.1:9"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["once", "--source", f"{tmp_path}/*/", "--out", f"{tmp_path}/out", *arguments])
    assert ended.value.code == (1 if "--address" in arguments else 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
