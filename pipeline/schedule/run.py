"""Ticks of the schedule: look, decide, submit, say; once or at the times of a cron expression."""

from __future__ import annotations

import datetime
import time
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from cronsim import CronSim, CronSimError

from patchsieve.pipeline import storage
from patchsieve.pipeline.cluster.jobs_api import JobsApi, Submission
from patchsieve.pipeline.errors import PatchsieveError, UserError
from patchsieve.pipeline.output.folder import new_run_id
from patchsieve.pipeline.runs.status import last_run
from patchsieve.pipeline.schedule.config import ListConfig, RunConfig, SubmitConfig
from patchsieve.pipeline.schedule.corpora import CorpusPlace, find_corpora, has_owner, shard_list, survey
from patchsieve.pipeline.schedule.tick import Corpus, Decision, decide, score_command, submission_id

LISTS_FOLDER = "schedule"
"""Folder of an output with the shard list of every job that a schedule submitted for it."""

_NAP_S = 60.0


class Jobs(Protocol):
    """What a tick needs of the Jobs API."""

    def active(self) -> dict[str, str]:
        """As `JobsApi.active`."""

    def submit(self, job: Submission) -> bool:
        """As `JobsApi.submit`."""


def tick_once(
    config: SubmitConfig,
    say: Callable[[str], None],
    *,
    tick: str | None = None,
    connect: Callable[[str | None], Jobs] = JobsApi,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """One tick; returns 1 where a corpus could not be looked at or submitted, else 0.

    `tick`: its name, by default the time to the minute; two ticks of one name submit a corpus once.

    Raises UserError for what cannot work at all, InfrastructureError where the Jobs API does not answer.
    """
    places = find_corpora(config.source, config.out)
    jobs = connect(config.address)
    # Asked first: what a job finishes before it ends is then seen by the survey.
    active = jobs.active()
    corpora = survey(
        places, root=config.root, min_age_s=_seconds(config.min_age), busy=active, now=now, sleep=sleep
    )
    decisions = decide(corpora, active, retry_failed=config.retry_failed, max_jobs=config.max_jobs)
    name, code = tick or _tick_name(now()), 0
    if not places:
        say(f"no corpora: nothing matches {' '.join(map(storage.redact, config.source))}")
    for decision in decisions:
        outcome, failed = decision.reason, bool(decision.corpus.problem)
        if decision.shards and not config.dry_run:
            try:
                outcome = f"{_submit(decision, jobs, config, name)}: {decision.reason}"
            except PatchsieveError as error:
                outcome, failed = str(error), True
        elif decision.shards:
            outcome = f"would be submitted: {decision.reason}"
        code = code or int(failed)
        say(f"{decision.corpus.name}: {outcome}")
    return code


def _submit(decision: Decision, jobs: Jobs, config: SubmitConfig, tick: str) -> str:
    corpus = decision.corpus
    key = submission_id(corpus, tick)
    listed = storage.join(corpus.out, LISTS_FOLDER, f"{key}.txt")
    # Named one by one: what arrives from now on is a later tick's, and shards that were given up stay out.
    storage.commit_bytes(shard_list(decision.shards), listed, run_id=new_run_id())
    command = score_command(
        corpus, listed, config.score_options, root=config.root, uploaded=config.working_dir is not None
    )
    job = Submission(id=key, command=command, out=corpus.out, working_dir=config.working_dir)
    new = jobs.submit(job)
    return f"submitted as {key}" if new else f"submitted before as {key}"


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
            tick(config, say, tick=_tick_name(due.timestamp()))
        except UserError:
            raise
        except PatchsieveError as error:
            say(f"this tick failed: {error}")
        due = next_time(config.cron, config.timezone, _aware(max(now(), due.timestamp())))


def list_corpora(config: ListConfig, *, now: Callable[[], float] = time.time) -> list[dict[str, Any]]:
    """What `schedule list` shows of each corpus: plain values, fit for JSON. Writes nothing, waits for nothing."""
    places = find_corpora(config.source, config.out)
    corpora = survey(
        places, root=config.root, min_age_s=_seconds(config.min_age), now=now, sleep=lambda seconds: None
    )
    decisions = decide(corpora, {}, retry_failed=False, max_jobs=len(corpora) + 1)
    return [
        _shown(place, corpus, decision)
        for place, corpus, decision in zip(places, corpora, decisions, strict=True)
    ]


def _shown(place: CorpusPlace, corpus: Corpus, decision: Decision) -> dict[str, Any]:
    run = None if corpus.problem else last_run(corpus.out)
    owned = has_owner(place)
    return {
        "corpus": corpus.name,
        "state": "a run owns the output" if owned and not corpus.problem else decision.reason,
        "shards": corpus.shards,
        "done": corpus.done,
        "failed": len(corpus.failed),
        "problem": corpus.problem or None,
        "last_run": None if run is None else run.get("run_id"),
        "last_run_state": None if run is None else run.get("state"),
        "source": corpus.url,
        "out": corpus.out,
    }


def list_lines(shown: Sequence[Mapping[str, Any]]) -> list[str]:
    """The listing as lines of text."""
    lines = [] if shown else ["no corpora"]
    for corpus in shown:
        run = f", last run {corpus['last_run']} {corpus['last_run_state']}" if corpus["last_run"] else ""
        lines.append(
            f"{corpus['corpus']}: {corpus['done']}/{corpus['shards']} shards, {corpus['state']}{run}"
        )
    return lines


def _seconds(hours: float | None) -> float | None:
    return None if hours is None else 3600 * hours


def _tick_name(seconds: float) -> str:
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
