"""What became of the jobs of one corpus: a record for each in its output, `schedule/<submission id>.json`.

A tick writes it when it submits, and writes how the job ended when a later tick, or one that waits, hears of it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence

from patchsieve.pipeline import storage
from patchsieve.pipeline.checks import typed
from patchsieve.pipeline.cluster.known_job import JobEnd
from patchsieve.pipeline.errors import DamagedFileError
from patchsieve.pipeline.output.folder import new_run_id
from patchsieve.pipeline.threads import map_threads

SCHEDULE_FOLDER = "schedule"
"""Folder of an output with the shard list and the record of every job that a schedule submitted for it."""
KEPT = 20
"""Records that are read of one corpus, the newest."""

# The last year that is written with four digits.
_LATEST_S = 253_370_764_800.0

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubmittedJob:
    """One job. `submitted`: seconds since 1970; `shards`: how many it got; `contents`: see `contents_of`."""

    id: str
    submitted: float
    shards: int
    contents: str
    state: str = "submitted"
    exit_code: int | None = None
    why: str = ""
    ended: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.submitted < _LATEST_S:
            raise ValueError(f"submitted at {self.submitted}")

    @property
    def end(self) -> JobEnd | None:
        """How it ended, None while nobody has heard of that."""
        if self.state == "submitted":
            return None
        return JobEnd(state=self.state, exit_code=self.exit_code, why=self.why, ended=self.ended)

    def ended_as(self, end: JobEnd) -> SubmittedJob:
        """The record with its end."""
        return dataclasses.replace(self, **dataclasses.asdict(end))


def read_history(out: str) -> tuple[SubmittedJob, ...]:
    """The newest jobs of an output, the oldest of them first; what cannot be read is passed over.

    Raises InfrastructureError.
    """
    listed = storage.list_folder(storage.join(out, SCHEDULE_FOLDER), suffix=".json")
    listed.sort(key=lambda info: (info.modified or 0.0, info.url))
    found = map_threads(lambda info: _read(info.url), listed[-KEPT:])
    return tuple(sorted((job for job in found if job is not None), key=lambda job: job.submitted))


def _read(url: str) -> SubmittedJob | None:
    try:
        with storage.parsing(url):
            return typed(SubmittedJob, storage.read_object(url))
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        _log.warning("%s; it is passed over", error)
        return None


def write_job(out: str, job: SubmittedJob) -> None:
    """Write a record, or write it again."""
    data = json.dumps(dataclasses.asdict(job), indent=1).encode()
    storage.commit_bytes(data, storage.join(out, SCHEDULE_FOLDER, f"{job.id}.json"), run_id=new_run_id())


def settled(
    history: Sequence[SubmittedJob], ends: Mapping[str, JobEnd | None], *, listed_at: float
) -> tuple[SubmittedJob, ...]:
    """The jobs with how they ended. `ends`: by id what the cluster knew at `listed_at`, None for a job that goes on."""

    def end_of(job: SubmittedJob) -> JobEnd | None:
        if job.id in ends:
            return ends[job.id]
        lost = JobEnd(state="lost", why="the cluster does not know the job any more", ended=listed_at)
        return lost if job.submitted < listed_at else None

    found = [(job, None if job.end is not None else end_of(job)) for job in history]
    return tuple(job if end is None else job.ended_as(end) for job, end in found)


def failures_alike(history: Sequence[SubmittedJob]) -> int:
    """How many of the newest jobs failed one after the other, all for one reason; numbers in it may differ."""
    count, reason = 0, None
    for job in reversed(history):
        if job.end is None:
            continue
        this = (job.exit_code, re.sub(r"\d+", "0", job.why))
        if job.state != "failed" or reason not in (None, this):
            break
        count, reason = count + 1, this
    return count


def last_end(history: Sequence[SubmittedJob]) -> JobEnd | None:
    """How the newest job ended, None where none has, or one goes on."""
    return history[-1].end if history else None


def when(seconds: float) -> str:
    """A time, for people."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
