"""`schedule run` killed and started again, and ticks at one moment: nothing submitted twice, nothing forgotten."""

from __future__ import annotations

import dataclasses
import datetime
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from patchsieve.pipeline.cluster.jobs_api import Submission
from patchsieve.pipeline.cluster.known_job import KnownJob
from patchsieve.pipeline.shards.specs import expand_shards
from tests.pipeline.schedule.schedule_process import Life, Lives
from tests.pipeline.schedule.test_schedule import Bench, FakeJobs

DAY = 86400.0
# Three in the morning, when the schedule ticks.
THREE = datetime.datetime(2023, 11, 15, 3, tzinfo=datetime.UTC).timestamp()


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    made = Lives()
    yield made
    made.close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    for corpus in "ab":
        for name in ("0.tar", "1.tar", "_SUCCESS"):
            made.add(corpus, name)
    (tmp_path / "jobs").mkdir()
    return made


def life(bench: Bench, start: float, end: float, kill: str = "", *, tick_at_start: bool = False) -> Life:
    return Life(
        source=bench.config.source[0],
        out=bench.config.out,
        jobs=str(bench.folder / "jobs"),
        start=start,
        end=end,
        kill=kill,
        tick_at_start=tick_at_start,
    )


def submitted(bench: Bench) -> dict[str, tuple[str, list[str]]]:
    """Corpus and names of the shards of every job, by the tick that submitted it and the corpus."""
    found = {}
    for file in sorted((bench.folder / "jobs").glob("*.json")):
        job = json.loads(file.read_text())
        listed = Path(job["command"][2].removeprefix("@")).read_text().splitlines()
        corpus = Path(job["output"]).name
        found[f"{file.stem.rpartition('-')[2]} {corpus}"] = (corpus, [Path(line).name for line in listed])
    return found


BOTH = ["0.tar", "1.tar"]


@pytest.mark.parametrize("tick_at_start", [False, True])
@pytest.mark.parametrize("kill", ["before", "after", "waits"])
def test_killed_anywhere_and_started_again(
    bench: Bench, lives: Lives, kill: str, tick_at_start: bool
) -> None:
    assert lives.live(life(bench, THREE - 3600, THREE + DAY / 2, kill)) == -9
    before = {"before": [], "after": ["a"], "waits": ["a", "b"]}[kill]
    assert [corpus for corpus, _ in submitted(bench).values()] == before
    # It comes back at once, within the minute of its tick, and lives through the next one.
    back = life(bench, THREE + 30, THREE + 1.5 * DAY, tick_at_start=tick_at_start)
    assert lives.live(back) == 0
    assert sorted(submitted(bench).values()) == [("a", BOTH), ("b", BOTH)]
    made_up = "20231115T0300Z" if tick_at_start else "20231116T0300Z"
    assert {name.split()[0] for name in submitted(bench)} <= {"20231115T0300Z", made_up}


def test_down_when_it_should_have_ticked(bench: Bench, lives: Lives) -> None:
    assert lives.live(life(bench, THREE + 600, THREE + 0.9 * DAY)) == 0
    assert submitted(bench) == {}
    assert lives.live(life(bench, THREE + 600, THREE + 0.9 * DAY, tick_at_start=True)) == 0
    assert list(submitted(bench)) == ["20231115T0310Z a", "20231115T0310Z b"]


def test_what_the_jobs_did_meanwhile_is_seen(bench: Bench, lives: Lives) -> None:
    assert lives.live(life(bench, THREE - 60, THREE + DAY / 2, "waits")) == -9
    # Job a scores all, job b dies after one shard; then a shard comes to each.
    shards = {corpus: expand_shards([f"{bench.folder}/in/{corpus}"]) for corpus in "ab"}
    for corpus, shard in (("a", shards["a"][0]), ("a", shards["a"][1]), ("b", shards["b"][0])):
        bench.finish(corpus, shard)
    for job in (bench.folder / "jobs").glob("*.json"):
        job.with_suffix(".ended").touch()
    for corpus in "ab":
        bench.add(corpus, "2.tar")
    # Two more days: the jobs of the second tick are still there at the third.
    assert lives.live(life(bench, THREE + DAY / 2, THREE + 2.5 * DAY)) == 0
    later = {name: job for name, job in submitted(bench).items() if not name.startswith("20231115")}
    assert later == {
        "20231116T0300Z a": ("a", ["2.tar"]),
        "20231116T0300Z b": ("b", ["1.tar", "2.tar"]),
    }


@dataclasses.dataclass
class MeetingJobs(FakeJobs):
    """Both ticks are told of no job before either submits one; ids are taken once, as by Ray's Jobs API."""

    barrier: threading.Barrier = dataclasses.field(default_factory=lambda: threading.Barrier(2))
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def jobs(self) -> list[KnownJob]:
        found = super().jobs()
        self.barrier.wait(60)
        return found

    def submit(self, job: Submission) -> bool:
        with self.lock:
            return super().submit(job)


def test_two_ticks_at_once(bench: Bench) -> None:
    bench.jobs = MeetingJobs()
    ticks = [Bench(bench.folder, jobs=bench.jobs) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda one: one.tick(tick="20231115T0300Z"), ticks))
    assert codes == [0, 0]
    assert bench.jobs.scored() == [BOTH, BOTH]
    told = sorted(line.split(": ")[1].split(" as ")[0] for one in ticks for line in one.said)
    assert told == ["submitted"] * 2 + ["submitted before"] * 2
