"""Score jobs through `ray job submit` and through the schedule, on a real cluster of two nodes with its dashboard."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from patchsieve.jobs.schedule import main as schedule
from patchsieve.pipeline.cluster.jobs_api import JobsApi, Submission
from tests.helpers.checkout import ROOT, python_path
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.score_processes import leftovers, wait_until
from tests.helpers.score_runs import rows_of, save_small_teacher, score_config, score_here
from tests.pipeline.cluster.jobs_cluster import jobs_cluster


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with jobs_cluster() as url:
        yield url


def options(teacher: str) -> list[str]:
    """What `score_config` asks, on the command line."""
    return [
        *("--teacher", teacher, "--views", "2", "--batch-size", "4", "--precision", "fp32"),
        *("--gpus-per-actor", "0", "--cpus-per-actor", "1", "--max-actors", "1"),
    ]


def submit(address: str, *command: str, key: str) -> subprocess.CompletedProcess[str]:
    ray = Path(sys.executable).with_name("ray")
    return subprocess.run(
        [
            ray,
            "job",
            "submit",
            "--address",
            address,
            "--submission-id",
            key,
            "--working-dir",
            ".",
            "--",
            *command,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


class _JobsServer(BaseHTTPRequestHandler):
    """As much of the Jobs API as submitting takes; `packages` are the archives that it was sent."""

    packages: list[bytes]

    def do_GET(self) -> None:
        known = self.path == "/api/version"
        self._answer(200 if known else 404, {"version": "4", "ray_version": ray.__version__} if known else {})

    def do_PUT(self) -> None:
        self.packages.append(self._body())
        self._answer(200, {})

    def do_POST(self) -> None:
        key = json.loads(self._body())["submission_id"]
        self._answer(200, {"job_id": key, "submission_id": key})

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_what_is_uploaded_is_the_code_of_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    packages: list[bytes] = []
    monkeypatch.setattr(_JobsServer, "packages", packages, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), _JobsServer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        jobs = JobsApi(f"http://127.0.0.1:{server.server_port}")
        assert jobs.submit(Submission(id="one", command=["true"], out="out", working_dir=str(ROOT)))
        server.shutdown()
    (package,) = packages
    uploaded = set(zipfile.ZipFile(io.BytesIO(package)).namelist())
    folders = ("jobs", "pipeline", "ranker")
    files = [p.relative_to(ROOT) for folder in folders for p in (ROOT / folder).rglob("*.py")]
    code = {f"patchsieve/{file.as_posix()}" for file in files}
    code |= {f"patchsieve/{p.name}" for p in (ROOT / "patchsieve").glob("*.py")}
    assert {name for name in uploaded if name.endswith(".py")} == code
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    data = {
        file.relative_to(ROOT).as_posix()
        for package, patterns in setup["package-data"].items()
        for pattern in patterns
        for file in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert uploaded - code == data
    assert len({(ROOT / name).resolve() for name in uploaded}) == len(uploaded), "Ray follows links"


@pytest.mark.ray
@pytest.mark.slow
def test_lines_and_exit_codes_arrive(tmp_path: Path, address: str) -> None:
    teacher, out = save_small_teacher(tmp_path), tmp_path / "out"
    shards = [str(write_shard(tmp_path / f"{n}.tar", photo_samples(4, n, 64, 64))) for n in range(2)]
    score = ["python", "-m", "patchsieve", "score", *shards, "--out", str(out), *options(teacher)]
    done = submit(address, *score, key="score-1")
    assert done.returncode == 0, done.stdout + done.stderr
    client = JobSubmissionClient(address)
    log = client.get_job_logs("score-1")
    assert re.search(r"^\d\d:\d\d:\d\d  shards \d/2  images \d", log, re.MULTILINE)
    assert re.search(r"^complete: 2 of 2 shards done", log, re.MULTILINE)
    assert "\x1b" not in log
    assert "\r" not in log
    assert rows_of(out)
    refused = submit(address, *score, "--views", "3", key="score-2")
    assert refused.returncode == 1
    assert client.get_job_info("score-2").driver_exit_code == 2
    (line,) = [
        line for line in client.get_job_logs("score-2").splitlines() if line.startswith("patchsieve score:")
    ]
    assert "views" in line


@pytest.mark.ray
@pytest.mark.slow
def test_ticks_submit_once_and_a_stopped_job_is_taken_up_again(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = save_small_teacher(tmp_path)
    corpus, out = tmp_path / "in" / "may", tmp_path / "out" / "may"
    corpus.mkdir(parents=True)
    shards = [write_shard(corpus / f"{n}.tar", photo_samples(60, n, 64, 64)) for n in range(6)]
    (corpus / "_SUCCESS").touch()
    client = JobSubmissionClient(address)

    def tick(name: str) -> str:
        arguments = ["--source", f"{tmp_path}/in/*/", "--out", f"{tmp_path}/out", "--address", address]
        with pytest.raises(SystemExit) as ended:
            schedule(
                ["once", *arguments, "--working-dir", str(ROOT), "--tick", name, "--", *options(teacher)]
            )
        assert ended.value.code == 0
        return capsys.readouterr().out.strip()

    first = tick("one")
    key = first.removeprefix("may: submitted as ").partition(":")[0]
    assert key.endswith("-one")
    assert first.endswith("6 of 6 shards to score")
    assert tick("two") == f"may: submitted as {key}"
    wait_until(lambda: any((out / "scores").glob("*.parquet")), "the first table")
    client.stop_job(key)
    wait_until(lambda: client.get_job_status(key).is_terminal(), "the job has stopped")
    assert client.get_job_status(key) == JobStatus.STOPPED
    assert leftovers(out) == []
    finished = len(list((out / "scores").glob("*.parquet")))
    assert 0 < finished < 6, client.get_job_logs(key)

    second = tick("three")
    assert second.endswith(f"{6 - finished} of 6 shards to score")
    key = second.removeprefix("may: submitted as ").partition(":")[0]
    wait_until(lambda: client.get_job_status(key).is_terminal(), "the second job has ended")
    assert client.get_job_status(key) == JobStatus.SUCCEEDED, client.get_job_logs(key)
    assert tick("four") == "may: scored"
    score_here(score_config(shards, tmp_path / "expected", teacher))
    assert rows_of(out) == rows_of(tmp_path / "expected")
    assert last_state(out)["state"] == "complete"


def last_state(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(sorted((out / "runs").glob("*.json"))[-1].read_text())
    return content
