"""Schedules that run in processes of their own and are killed there, by a clock that is told and jobs that are files.

As a program (`python -m tests.pipeline.schedule.schedule_process`) it reads a `Life` per line from its standard input,
as JSON, lives it in a child and prints how the child ended.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.helpers.checkout import ROOT

if TYPE_CHECKING:
    from patchsieve.pipeline.cluster.jobs_api import Submission
    from patchsieve.pipeline.cluster.known_job import KnownJob

CRON = "0 3 * * *"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Life:
    """One `schedule run`, from `start` to `end` (seconds since 1970) unless it is killed.

    `kill`: `before` or `after` its first submission reaches the Jobs API, or while it `waits` for the second tick.
    """

    source: str
    out: str
    jobs: str
    start: float
    end: float
    kill: str = ""
    tick_at_start: bool = False


@dataclasses.dataclass(frozen=True)
class FileJobs:
    """A Jobs API that outlives the schedule: a file for every job, and one beside it once the job has ended."""

    folder: Path
    kill: str = ""

    def jobs(self) -> list[KnownJob]:
        from patchsieve.pipeline.cluster.known_job import JobEnd, KnownJob

        ended = JobEnd(state="succeeded", exit_code=0)
        return [
            KnownJob(
                id=file.stem,
                out=json.loads(file.read_text())["output"],
                end=ended if file.with_suffix(".ended").exists() else None,
            )
            for file in self.folder.glob("*.json")
        ]

    def submit(self, job: Submission) -> bool:
        if self.kill == "before":
            die()
        file = self.folder / f"{job.id}.json"
        new = not file.exists()
        if new:
            file.write_text(json.dumps({"output": job.out, "command": list(job.command)}))
        if self.kill == "after":
            die()
        return new


def die() -> None:
    """As a node that is taken away."""
    os.kill(os.getpid(), signal.SIGKILL)


def live(life: Life) -> None:
    """The schedule, until its time is over."""
    from patchsieve.pipeline.schedule.config import RunConfig
    from patchsieve.pipeline.schedule.run import run_schedule, tick_once

    clock, ticks = [life.start], list[str]()
    config = RunConfig(source=(life.source,), out=life.out, cron=CRON, tick_at_start=life.tick_at_start)

    def tick(config: RunConfig, say: object, *, tick: str) -> int:
        code = tick_once(
            config,
            lambda line: None,
            tick=tick,
            connect=lambda address: FileJobs(Path(life.jobs), life.kill),
            now=lambda: clock[0],
            sleep=lambda seconds: None,
        )
        ticks.append(tick)
        return code

    def sleep(seconds: float) -> None:
        if ticks and life.kill == "waits":
            die()
        clock[0] += seconds
        if clock[0] > life.end:
            os._exit(0)

    run_schedule(config, lambda line: None, tick=tick, now=lambda: clock[0], sleep=sleep)


class Lives:
    """The program; its imports are done once for all lives."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.pipeline.schedule.schedule_process"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def live(self, life: Life) -> int:
        """Its exit code, negative for the signal that killed it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(life)) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the program."""
        self._process.communicate()


def main() -> None:
    import patchsieve.pipeline.schedule.run  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                live(Life(**json.loads(line)))
            finally:
                os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
