"""What a schedule makes of jobs that failed, died or vanished, and of corpora that are not what they were."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from patchsieve.jobs import schedule as schedule_job
from patchsieve.pipeline.cluster.jobs_api import JobsApi, Submission
from patchsieve.pipeline.cluster.known_job import JobEnd, KnownJob
from patchsieve.pipeline.errors import InfrastructureError
from patchsieve.pipeline.output.machine import process_space
from patchsieve.pipeline.schedule.config import ListConfig, OnceConfig
from patchsieve.pipeline.schedule.history import read_history
from patchsieve.pipeline.schedule.listing import list_corpora, list_lines
from patchsieve.pipeline.schedule.run import run_once
from patchsieve.pipeline.shards.specs import expand_shards
from tests.pipeline.schedule.test_schedule import NOW, Bench, FakeJobs

REFUSED = JobEnd(state="failed", exit_code=2, why="patchsieve score: other rows", ended=NOW)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    for name in ("0.tar", "1.tar", "_SUCCESS"):
        made.add("a", name)
    return made


def shown(bench: Bench, **changes: Any) -> list[dict[str, Any]]:
    config = ListConfig(source=bench.config.source, out=bench.config.out, **changes)
    return list_corpora(config, now=lambda: NOW)


def test_times_that_no_clock_shows_stop_no_corpus(bench: Bench) -> None:
    bench.add("b", "0.tar")
    out = Path(bench.config.out) / "a"
    (out / "schedule").mkdir(parents=True)
    for number, told in enumerate(("1e300", "NaN", "-1.0")):
        record = f'{{"id": "x", "submitted": {told}, "shards": 1, "contents": ""}}'
        (out / "schedule" / f"{number}.json").write_text(record)
    (out / "owner.json").write_text(json.dumps({"run_id": "x", "heartbeat": 10**400}))
    listed = shown(bench)
    assert [(one["corpus"], one["heartbeat_age"], one["jobs"]) for one in listed] == [
        ("a", None, []),
        ("b", None, []),
    ]
    assert list_lines(listed)


def test_a_failing_corpus_is_seen_and_left_alone(bench: Bench) -> None:
    assert bench.tick(tick="t1") == 0
    for number in (2, 3):
        bench.jobs.ends |= dict.fromkeys(bench.jobs.commands, REFUSED)
        assert bench.tick(tick=f"t{number}") == 1
        assert "its last job failed with exit code 2: patchsieve score: other rows" in bench.said[0]
    bench.jobs.ends |= dict.fromkeys(bench.jobs.commands, REFUSED)
    assert bench.tick(tick="t4") == 1
    assert bench.said[0].startswith("a: left alone after 3 failures alike")
    assert len(bench.jobs.commands) == 3
    (listed,) = shown(bench)
    assert listed["attention"]
    assert listed["failures_alike"] == 3
    assert [job["state"] for job in listed["jobs"]] == ["failed"] * 3
    assert list_lines([listed])[1].endswith("2 shards: failed with exit code 2: patchsieve score: other rows")
    assert bench.tick(tick="t5", retry_failed=True) == 1
    assert len(bench.jobs.commands) == 4


def test_a_dry_run_writes_down_no_end(bench: Bench) -> None:
    bench.tick()
    bench.jobs.ends = dict.fromkeys(bench.jobs.commands, REFUSED)
    assert bench.tick(dry_run=True) == 1
    assert [job.end for job in read_history(f"{bench.folder}/out/a")] == [None]


def test_a_record_that_is_damaged_is_passed_over(bench: Bench) -> None:
    bench.tick()
    (bench.folder / "out/a/schedule/x.json").write_text('{"id": 5}')
    assert len(read_history(f"{bench.folder}/out/a")) == 1


@dataclasses.dataclass
class EndingJobs(FakeJobs):
    """Jobs that have ended the third time that somebody asks; the second time the API is away."""

    asked: int = 0

    def jobs(self) -> list[KnownJob]:
        self.asked += 1
        if self.asked == 2:
            raise InfrastructureError("jobs cannot be listed: Authentication failed")
        self.ends = {key: REFUSED if "-a-" in key else self.fine for key in self.commands if self.asked > 3}
        return super().jobs()

    fine = JobEnd(state="succeeded", exit_code=0)


def test_a_tick_that_waits_ends_as_its_jobs_do(bench: Bench) -> None:
    for name in ("0.tar", "_SUCCESS"):
        bench.add("b", name)
    jobs, naps = EndingJobs(), list[float]()
    config = OnceConfig(source=bench.config.source, out=bench.config.out, wait=True, tick="t1")
    code, told = run_once(
        config, bench.said.append, connect=lambda address: jobs, now=lambda: NOW, sleep=naps.append
    )
    assert code == 2 == told["exit_code"]
    assert [corpus["end"]["state"] for corpus in told["corpora"]] == ["failed", "succeeded"]
    assert len(naps) == 2
    assert any("Authentication failed" in line for line in bench.said)
    assert [job.state for job in read_history(f"{bench.folder}/out/a")] == ["failed"]
    json.dumps(told)


def test_once_prints_one_object(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "patchsieve.pipeline.schedule.run.run_once.__kwdefaults__",
        {"connect": lambda address: bench.jobs, "now": lambda: NOW, "sleep": bench.naps.append},
    )
    with pytest.raises(SystemExit) as ended:
        schedule_job.main(["once", "--source", *bench.config.source, "--out", bench.config.out, "--json"])
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    (corpus,) = told["corpora"]
    assert corpus["job"] in bench.jobs.commands


def test_a_pattern_that_matches_nothing_is_an_error(bench: Bench) -> None:
    nothing = f"{bench.folder}/elsewhere/*/"
    assert bench.tick(source=(*bench.config.source, nothing)) == 1
    assert sum(f"nothing matches --source {nothing}" in line for line in bench.said) == 1
    assert len(bench.jobs.commands) == 1


def test_a_renamed_corpus_is_said_to_be_one(bench: Bench) -> None:
    bench.tick()
    (bench.folder / "in/a").rename(bench.folder / "in/z")
    assert (
        "2 of 2 shards to score, which are those of a by name and size: renamed?" in shown(bench)[0]["state"]
    )
    bench.add("z", "1.tar", b"other")
    assert "renamed" not in shown(bench)[0]["state"]


def test_names_that_begin_alike_do_not_disturb_each_other(bench: Bench) -> None:
    for corpus in ("ab", "a-b", "a.b"):
        for name in ("0.tar", "_SUCCESS"):
            bench.add(corpus, name)
    bench.finish("a", expand_shards([f"{bench.folder}/in/a/0.tar"])[0])
    assert bench.tick() == 0
    assert sorted(bench.jobs.outputs.values()) == [
        f"{bench.folder}/out/{name}" for name in ("a", "a-b", "a.b", "ab")
    ]
    assert bench.jobs.scored()[0] == ["1.tar"]
    assert [len(one["jobs"]) for one in shown(bench)] == [1, 1, 1, 1]


def test_a_dead_owner_is_seen_by_its_heartbeat_and_its_record_goes(bench: Bench) -> None:
    for shard in expand_shards([f"{bench.folder}/in/a"]):
        bench.finish("a", shard)
    bench.output("a").write_run({"state": "running"}, shards=[])
    ended = subprocess.Popen(["true"])
    ended.wait()
    owner = bench.folder / "out/a/owner.json"
    here = {"run_id": "run-1", "host": platform.node(), "space": process_space(), "pid": ended.pid}
    owner.write_text(json.dumps({**here, "process_start": "1", "heartbeat": NOW - 7200}))
    (listed,) = shown(bench)
    assert listed["state"] == "scored; the run that owned the output is dead, heartbeat 2 h 00 min ago"
    assert listed["last_run_state"] == "died without a word"
    assert listed["heartbeat_age"] == 7200.0
    assert bench.tick() == 0
    assert not owner.exists()
    owner.write_text(json.dumps({**here, "pid": os.getpid(), "heartbeat": NOW - 5}))
    assert shown(bench)[0]["state"] == "a run works on it, heartbeat 5 s ago"


class _Refusing(BaseHTTPRequestHandler):
    """A Jobs API that refuses with a status, and explains itself in several lines."""

    status = 200

    def do_GET(self) -> None:
        fine = json.dumps({"ray_version": "2.60.0"} if self.path == "/api/version" else [])
        body = (fine if self.status == 200 else "no\nbecause\n").encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize("status", [401, 403, 500])
def test_errors_of_the_jobs_api_are_one_line_each(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        jobs = JobsApi(address)
        assert jobs.jobs() == []
        monkeypatch.setattr(_Refusing, "status", status)
        job = Submission(id="x", command=["y"], out="o", working_dir=None)
        for call in (lambda: JobsApi(address), jobs.jobs, lambda: jobs.submit(job)):
            with pytest.raises(InfrastructureError) as refused:
                call()
            (line,) = str(refused.value).splitlines()
            assert status == 500 or ("Authentication" in line and "RAY_AUTH_TOKEN" in line)
        server.shutdown()
    with pytest.raises(InfrastructureError, match="jobs cannot be listed"):
        jobs.jobs()
