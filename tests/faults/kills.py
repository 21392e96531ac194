"""`make faults`: real Ray jobs, killed at random instants again and again, run to their end and compared.

    python -m tests.faults.kills --minutes 40 [--journal FILE] [--jobs score,train,prune] [--faults node,...]

A round is one output: a job is started and killed some times, then run once without a fault, and what it left must be
what an undisturbed run leaves. Every kill and every verdict is a line of the journal, to which later runs add. Jobs are
forks of this process, which has everything imported and runs nothing itself; so are the clusters that they join.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster as Nodes

from patchsieve.pipeline.score_on_ray import policy, run  # noqa: F401 -- imported before the first fork
from patchsieve.ranker.prune_on_ray import run as prune_run  # noqa: F401
from patchsieve.ranker.train import run as train_run  # noqa: F401
from tests.faults.forking import ended, fork, kill, wait
from tests.faults.jobs import Job, PruneJob, ScoreJob, TrainJob
from tests.faults.journal import JOURNAL, add, judged, read_journal, table
from tests.helpers.checkout import ROOT, python_path
from tests.helpers.forks import below
from tests.helpers.quick_start.start_zygote import start_zygote

KILLS_A_ROUND = 8
JOB_LIMIT_S = 300.0
FAULTS = {"driver": 4, "worker": 3, "node": 2, "machine": 1}
"""A job's own process; a process of its actors; the raylet of one of two nodes; all of it at once, Ray included; each
with its weight where one is drawn.
"""
HEAD: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
SECOND: dict[str, Any] = {"num_cpus": 3, "object_store_memory": 100 * 2**20}

FOLDER = Path(f"/tmp/k{os.getpid()}")
ENVIRONMENT = {
    "PYTHONPATH": python_path(ROOT),
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # On a machine that is busy with other work, Ray would give up to wait for its own processes.
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TMPDIR": str(FOLDER),
    "TMPDIR": str(FOLDER / "scratch"),
    "HF_HUB_OFFLINE": "1",
    "PATCHSIEVE_DECLARED_GPUS": "cpu",
    "PATCHSIEVE_ZYGOTE": str(FOLDER / "zygote"),
}


class Cluster:
    """A Ray of two nodes on this machine, in a fork; `address` once it is up. A second node that dies is replaced."""

    def __init__(self) -> None:
        # On a machine that is busy with other work, Ray may give up to wait for its own processes.
        for left in reversed(range(3)):
            try:
                self.process, self.address = self._begin()
                return
            except RuntimeError:
                if not left:
                    raise

    def _begin(self) -> tuple[int, str]:
        told = FOLDER / f"address-{uuid.uuid4().hex[:8]}"

        def keep() -> None:
            nodes = Nodes(initialize_head=True, head_node_args=HEAD)
            second: Any = nodes.add_node(**SECOND)
            told.with_suffix(".part").write_text(nodes.address)
            told.with_suffix(".part").rename(told)
            while True:
                second.all_processes["raylet"][0].process.wait()
                nodes.remove_node(second, allow_graceful=False)
                second = nodes.add_node(**SECOND)

        process = fork(keep, FOLDER / "cluster.log")
        limit = time.monotonic() + JOB_LIMIT_S
        while not told.exists():
            if ended(process) is not None or time.monotonic() > limit:
                raise RuntimeError(f"Ray did not start: {(FOLDER / 'cluster.log').read_text()[-2000:]}")
            time.sleep(0.05)
        return process, told.read_text()

    def second_node(self) -> psutil.Process | None:
        """The raylet of the second node; None while another one comes."""
        for process in below(self.process):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "raylet" and "--head" not in process.cmdline():
                    return process
        return None

    def workers(self, node: psutil.Process | None = None) -> list[psutil.Process]:
        """Processes that do a job's work, of one node alone where its raylet is given."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in below(node.pid if node else self.process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    title = " ".join(process.cmdline())
                    if title.startswith("ray::") and not any(name in title for name in ("IDLE", "Agent")):
                        found.append(process)
        return found

    def kill(self) -> None:
        """All of its processes at once."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in below(self.process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        kill(self.process)


class Round:
    """One output, from nothing to its verdict."""

    def __init__(
        self, job: Job, cluster: Cluster, journal: Path, draw: random.Random, faults: Sequence[str]
    ) -> None:
        self.job, self.cluster, self._journal, self._draw = job, cluster, journal, draw
        self._faults = faults
        self.id = uuid.uuid4().hex[:8]
        self._folder = FOLDER / self.id
        self._folder.mkdir()
        self._out, self._log = self._folder / "out", self._folder / "log"

    def play(self, until: float) -> None:
        """Kill it some times, and judge; `until`: when no more kills are begun."""
        process, kills = None, 0
        while kills < KILLS_A_ROUND and time.monotonic() < until:
            if process is None:
                process = self._start()
            if not self._wait_for_instant(process):
                break
            fault = self._draw.choices(self._faults, [FAULTS[name] for name in self._faults])[0]
            process = self._strike(fault, process)
            kills += 1
        if process is not None:
            self._end(process)
        self._judge(kills)

    def _start(self) -> int:
        os.environ["RAY_ADDRESS"] = self.cluster.address
        return fork(lambda: self.job.run(self._out), self._log)

    def _wait_for_instant(self, process: int) -> bool:
        """Until the instant that is drawn; False where the job ended before."""
        now = self.job.commits(self._out)
        wanted = now + self._draw.choice((0, 0, 1, 1, 2, 3))
        limit = time.monotonic() + JOB_LIMIT_S
        while self.job.commits(self._out) < min(wanted, self.job.most) and time.monotonic() < limit:
            if ended(process) is not None:
                return False
            time.sleep(0.005)
        left = time.monotonic() + self._draw.uniform(0, 3.0 if wanted == now else 0.4)
        while time.monotonic() < left:
            if ended(process) is not None:
                return False
            time.sleep(0.005)
        return True

    def _strike(self, fault: str, process: int) -> int | None:
        """Kill; the job's process where it goes on."""
        node = self.cluster.second_node() if fault == "node" else None
        workers = self.cluster.workers(node) if fault == "worker" or node else []
        if fault in ("worker", "node") and not workers:
            fault = "driver"
        commits = self.job.commits(self._out)
        if fault in ("worker", "node"):
            with contextlib.suppress(psutil.NoSuchProcess):
                (node or self._draw.choice(workers)).kill()
        else:
            kill(process)
        if fault == "machine":
            self.cluster.kill()
            self.cluster = Cluster()
        told = {"what": "kill", "round": self.id, "job": self.job.name, "fault": fault, "commits": commits}
        add(self._journal, {**told, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
        return process if fault in ("worker", "node") else None

    def _end(self, process: int) -> None:
        if wait(process, JOB_LIMIT_S) is None:
            kill(process)

    def _judge(self, kills: int) -> None:
        verdict = {"what": "verdict", "round": self.id, "job": self.job.name, "kills": kills}
        code = None
        for _ in range(2):
            # A worker that was killed at last may have cost the run its end.
            code = wait(last := self._start(), JOB_LIMIT_S)
            if code == 0:
                break
            if code is None:
                kill(last)
        if code != 0:
            add(self._journal, {**verdict, "error": f"the last run ended with {code}: {self._log}"})
            return
        told = self._folder / "differences"

        def compare() -> None:
            expected = FOLDER / "world" / "expected" / self.job.name
            told.write_text("\n".join(self.job.differences(self._out, expected)))

        code = wait(fork(compare, self._log), JOB_LIMIT_S)
        if code != 0:
            add(self._journal, {**verdict, "error": f"cannot be compared: {self._log}"})
            return
        differences = told.read_text().splitlines()
        add(self._journal, {**verdict, "differences": differences})
        if not differences:
            shutil.rmtree(self._folder)


def prepare(jobs: list[Job], cluster: Cluster) -> None:
    """Inputs of all jobs, and what undisturbed runs make of them."""
    (FOLDER / "world").mkdir()
    for job in jobs:
        log = FOLDER / f"prepare-{job.name}.log"
        code = wait(fork(job.prepare, log), JOB_LIMIT_S)
        expected = job.world / "expected" / job.name
        if code == 0 and not expected.exists():
            os.environ["RAY_ADDRESS"] = cluster.address
            code = wait(fork(lambda job=job, out=expected: job.run(out), log), JOB_LIMIT_S)  # type: ignore[misc]
        if code != 0:
            raise RuntimeError(f"{job.name} cannot be prepared: {log.read_text()[-2000:]}")


def main() -> None:
    """Rounds, until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--journal", type=Path, default=JOURNAL)
    parser.add_argument("--jobs", default="score,train,prune")
    parser.add_argument("--faults", default=",".join(FAULTS))
    asked = parser.parse_args()
    until = time.monotonic() + 60 * asked.minutes
    (FOLDER / "scratch").mkdir(parents=True)
    os.environ.update(ENVIRONMENT)
    zygote = start_zygote(ENVIRONMENT["PATCHSIEVE_ZYGOTE"])
    # The shards are small, and an actor should leave others to others.
    policy.AHEAD_S = 0.0
    kinds = {kind.name: kind(FOLDER / "world") for kind in (ScoreJob, TrainJob, PruneJob)}
    jobs = [kinds[name] for name in asked.jobs.split(",")]
    # Another seed for every run: what was tried before is in the journal.
    draw = random.Random(len(read_journal(asked.journal)))
    cluster = Cluster()
    try:
        prepare(jobs, cluster)
        number = 0
        while time.monotonic() < until:
            one = Round(jobs[number % len(jobs)], cluster, asked.journal, draw, asked.faults.split(","))
            one.play(until)
            cluster, number = one.cluster, number + 1
            kills, verdicts = judged(read_journal(asked.journal))
            print(f"{one.job.name} {one.id}: {len(kills)} kills in {len(verdicts)} rounds", flush=True)
    finally:
        cluster.kill()
        zygote.kill()
        zygote.wait()
    print(*table(read_journal(asked.journal)), sep="\n")
    bad = [
        line for line in judged(read_journal(asked.journal))[1] if line.get("error") or line["differences"]
    ]
    if not bad:
        shutil.rmtree(FOLDER)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
