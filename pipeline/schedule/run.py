"""Ticks of the schedule: look, decide, submit, say; once or at the times of a cron expression."""

from __future__ import annotations

import dataclasses
import datetime
import time
import zoneinfo
from collections.abc import Callable, Collection
from typing import Any, Protocol

from cronsim import CronSim, CronSimError

from patchsieve.pipeline import storage
from patchsieve.pipeline.cluster.jobs_api import JobsApi, Submission
from patchsieve.pipeline.cluster.known_job import JobEnd, KnownJob
from patchsieve.pipeline.errors import InfrastructureError, PatchsieveError, UserError
from patchsieve.pipeline.output.folder import new_run_id
from patchsieve.pipeline.output.owner import Owner
from patchsieve.pipeline.schedule.config import OnceConfig, RunConfig, SubmitConfig
from patchsieve.pipeline.schedule.corpora import find_corpora, shard_list, survey
from patchsieve.pipeline.schedule.drift import DRIFT_PREFIX
from patchsieve.pipeline.schedule.drift_watch import DriftWatch
from patchsieve.pipeline.schedule.history import SCHEDULE_FOLDER, SubmittedJob, settled, write_job
from patchsieve.pipeline.schedule.renamed import with_renamed
from patchsieve.pipeline.schedule.tick import Corpus, Decision, Limits, decide, score_command, submission_id

_NAP_S = 60.0
_ASK_S = 5.0
"""Seconds between two questions how jobs are that are waited for."""


class Jobs(Protocol):
    """What a tick needs of the Jobs API."""

    def jobs(self) -> list[KnownJob]:
        """As `JobsApi.jobs`."""

    def submit(self, job: Submission) -> bool:
        """As `JobsApi.submit`."""


@dataclasses.dataclass
class TickedCorpus:
    """What a tick did with one corpus. `job`: the id of the one that it submitted, or has; `end`: where waited for.

    `drift`: what its drift watch says, "" for nothing.
    """

    corpus: str
    out: str
    outcome: str
    attention: bool
    drift: str = ""
    job: str | None = None
    submitted: SubmittedJob | None = None
    end: JobEnd | None = None


def tick_once(
    config: SubmitConfig,
    say: Callable[[str], None],
    *,
    tick: str | None = None,
    connect: Callable[[str | None], Jobs] = JobsApi,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """One tick; returns 1 where a person has to act, else 0.

    `tick`: its name, by default the time to the minute; two ticks of one name submit a corpus once.

    Raises UserError for what cannot work at all, InfrastructureError where the Jobs API does not answer.
    """
    jobs = connect(config.address)
    return _code(_tick(config, say, jobs, tick or tick_name(now()), now, sleep))


def run_once(
    config: OnceConfig,
    say: Callable[[str], None],
    *,
    connect: Callable[[str | None], Jobs] = JobsApi,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[int, dict[str, Any]]:
    """One tick, which waits for its jobs if asked to: exit code, and what it did for JSON. Errors as `tick_once`."""
    jobs, name = connect(config.address), config.tick or tick_name(now())
    ticked = _tick(config, say, jobs, name, now, sleep)
    if config.wait:
        _wait(ticked, lambda: connect(config.address), say, now, sleep)
    # A job that was stopped or lost did not do its work, whatever its exit code.
    ends = [one.end for one in ticked if one.end is not None and one.end.state != "succeeded"]
    code = max([_code(ticked), *(end.exit_code or 1 for end in ends)])
    corpora = [
        {
            "corpus": one.corpus,
            "out": one.out,
            "outcome": one.outcome,
            "attention": one.attention,
            "drift": one.drift or None,
            "job": one.job,
            "end": None if one.end is None else dataclasses.asdict(one.end),
        }
        for one in ticked
    ]
    return code, {"tick": name, "exit_code": code, "corpora": corpora}


def _code(ticked: Collection[TickedCorpus]) -> int:
    return int(any(one.attention for one in ticked))


def _tick(
    config: SubmitConfig,
    say: Callable[[str], None],
    jobs: Jobs,
    name: str,
    now: Callable[[], float],
    sleep: Callable[[float], None],
) -> list[TickedCorpus]:
    places = find_corpora(config.source, config.out)
    # Asked first: what a job finishes before it ends is then seen by the survey.
    listed_at, known = now(), jobs.jobs()
    active = {job.out: job.id for job in known if job.end is None and not job.id.startswith(DRIFT_PREFIX)}
    watch = DriftWatch(config, known, name)
    corpora = survey(
        places, root=config.root, min_age_s=seconds(config.min_age), busy=active, now=now, sleep=sleep
    )
    corpora = [_settle(corpus, known, listed_at, config) for corpus in corpora]
    corpora = with_renamed(corpora, config.out)
    limits = Limits(max_failures=config.max_failures, max_age_s=seconds(config.max_age))
    decisions = decide(
        corpora, active, retry_failed=config.retry_failed, max_jobs=config.max_jobs, limits=limits
    )
    ticked = []
    for decision in decisions:
        ticked.append(_carry_out(decision, jobs, config, name, now()))
        _look_at_drift(ticked[-1], watch, decision, jobs)
        told = "; ".join(filter(None, [ticked[-1].outcome, ticked[-1].drift]))
        say(f"{ticked[-1].corpus}: {told}")
    return ticked


def _settle(corpus: Corpus, known: Collection[KnownJob], listed_at: float, config: SubmitConfig) -> Corpus:
    """The corpus with what the cluster tells of its jobs' ends, which is written down."""
    ends = {job.id: job.end for job in known if job.out == corpus.out}
    history = settled(corpus.history, ends, listed_at=listed_at)
    try:
        for before, job in zip(corpus.history, history, strict=True):
            if job != before and not config.dry_run:
                write_job(corpus.out, job)
    except PatchsieveError as error:
        return dataclasses.replace(corpus, problem=str(error))
    return dataclasses.replace(corpus, history=history)


def _carry_out(decision: Decision, jobs: Jobs, config: SubmitConfig, name: str, now: float) -> TickedCorpus:
    corpus = decision.corpus
    ticked = TickedCorpus(corpus.name, corpus.out, decision.reason, decision.attention)
    try:
        if config.dry_run:
            ticked.outcome = f"would be submitted: {decision.reason}" if decision.shards else decision.reason
        elif decision.shards:
            ticked.submitted, new = _submit(decision, jobs, config, name, now)
            ticked.job = ticked.submitted.id
            ticked.outcome = f"submitted {'' if new else 'before '}as {ticked.job}: {decision.reason}"
        elif decision.tidy:
            Owner(corpus.out, new_run_id()).wait_for_none()
    except PatchsieveError as error:
        ticked.outcome, ticked.attention = str(error), True
    return ticked


def _look_at_drift(ticked: TickedCorpus, watch: DriftWatch, decision: Decision, jobs: Jobs) -> None:
    try:
        ticked.drift = watch.look(decision, jobs.submit)
    except PatchsieveError as error:
        ticked.drift, ticked.attention = f"drift: {error}", True


def _submit(
    decision: Decision, jobs: Jobs, config: SubmitConfig, tick: str, now: float
) -> tuple[SubmittedJob, bool]:
    """The job of a decision, and whether it is new."""
    corpus = decision.corpus
    key = submission_id(corpus, tick)
    listed = storage.join(corpus.out, SCHEDULE_FOLDER, f"{key}.txt")
    # Named one by one: what arrives from now on is a later tick's, and shards that were given up stay out.
    storage.commit_bytes(shard_list(decision.shards), listed, run_id=new_run_id())
    command = score_command(
        corpus, listed, config.score_options, root=config.root, uploaded=config.working_dir is not None
    )
    new = jobs.submit(Submission(id=key, command=command, out=corpus.out, working_dir=config.working_dir))
    job = SubmittedJob(id=key, submitted=now, shards=len(decision.shards), contents=corpus.contents)
    # A tick of the same name may have been killed before it came to this.
    if key not in {earlier.id for earlier in corpus.history}:
        write_job(corpus.out, job)
    return job, new


def _wait(
    ticked: Collection[TickedCorpus],
    connect: Callable[[], Jobs],
    say: Callable[[str], None],
    now: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Return when the jobs of a tick have ended. An error of the Jobs API is said once; it is asked again."""
    said = ""
    while waiting := [one for one in ticked if one.submitted is not None and one.end is None]:
        try:
            # Anew each time: clusters are started again, and tokens change.
            listed_at, ends = now(), {job.id: job.end for job in connect().jobs()}
        except InfrastructureError as error:
            if str(error) != said:
                said = str(error)
                say(f"waiting: {said}")
            sleep(_ASK_S)
            continue
        for one in waiting:
            assert one.submitted is not None
            (job,) = settled([one.submitted], ends, listed_at=listed_at)
            if job.end is not None:
                one.end = job.end
                write_job(one.out, job)
                say(f"{one.corpus}: {job.id} {job.end.text}")
        if any(one.end is None for one in waiting):
            sleep(_ASK_S)


def run_schedule(
    config: RunConfig,
    say: Callable[[str], None],
    *,
    tick: Callable[..., int] = tick_once,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Tick for ever. A tick that fails is said, and the next one comes in its time; UserError ends the loop."""
    due = next_time(config.cron, config.timezone, _aware(now()))
    if config.tick_at_start:
        due = _aware(now())
    while True:
        say(f"next tick  {due.isoformat(timespec='minutes')}")
        # In short naps: a clock may be set, and a machine may be suspended.
        while (left := due.timestamp() - now()) > 0:
            sleep(min(left, _NAP_S))
        try:
            tick(config, say, tick=tick_name(due.timestamp()))
        except UserError:
            raise
        except PatchsieveError as error:
            say(f"this tick failed: {error}")
        due = next_time(config.cron, config.timezone, _aware(max(now(), due.timestamp())))


def seconds(hours: float | None) -> float | None:
    """Hours in seconds."""
    return None if hours is None else 3600 * hours


def tick_name(seconds: float) -> str:
    """The name of a tick at a time: to the minute."""
    return time.strftime("%Y%m%dT%H%MZ", time.gmtime(seconds))


def _aware(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def next_time(cron: str, timezone: str, after: datetime.datetime) -> datetime.datetime:
    """The first time of a cron expression after a moment, both aware, the result in `timezone`.

    When clocks are put forward or back, a time of day that is skipped or told twice is met once, as Debian's cron
    does it. Raises UserError for what is no cron expression or no time zone, or never comes.
    """
    try:
        zone = zoneinfo.ZoneInfo(timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise UserError(f"--timezone is {timezone!r}, must be a name such as UTC or Europe/Berlin") from None
    if len(cron.split()) != 5:
        raise UserError(f"--cron is {cron!r}, must be five fields such as '0 3 * * *'")
    try:
        return next(CronSim(cron, after.astimezone(zone)))
    except CronSimError as error:
        raise UserError(f"--cron is {cron!r}: {str(error).lower()}") from None
    except StopIteration:
        raise UserError(f"--cron is {cron!r}: no such time in the next 50 years") from None
