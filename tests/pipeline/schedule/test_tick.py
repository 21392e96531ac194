"""What a tick decides, and when it comes: pure."""

from __future__ import annotations

import dataclasses
import datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from patchsieve.pipeline.cluster.known_job import JobEnd, why_of
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.schedule.history import SubmittedJob, failures_alike, settled
from patchsieve.pipeline.schedule.run import next_time
from patchsieve.pipeline.schedule.tick import (
    Corpus,
    Decision,
    Limits,
    decide,
    score_command,
    submission_id,
)
from patchsieve.pipeline.shards.specs import Shard, shard_id

LIMITS = Limits(max_failures=3)


def shards(*names: str) -> tuple[Shard, ...]:
    return tuple(Shard(f"/data/{name}", f"/data/{name}", shard_id(name), 10, "tag") for name in names)


def corpus(name: str = "a", **changes: Any) -> Corpus:
    return Corpus(
        **{"name": name, "url": f"/in/{name}", "out": f"/out/{name}", "todo": shards("1.tar"), **changes}
    )


def decision(found: Corpus, active: dict[str, str] | None = None, **options: Any) -> Decision:
    defaults = {"retry_failed": False, "max_jobs": 5, "limits": LIMITS}
    (made,) = decide([found], active or {}, **{**defaults, **options})
    return made


def test_a_complete_corpus_with_shards_to_score_is_submitted() -> None:
    made = decision(corpus(done=3, todo=shards("1.tar", "2.tar")))
    assert made.shards == shards("1.tar", "2.tar")
    assert made.reason == "2 of 5 shards to score"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"todo": ()}, "no shards"),
        ({"todo": (), "done": 4}, "scored"),
        ({"incomplete": "no _SUCCESS"}, "not complete: no _SUCCESS"),
        ({"owned": True}, "a run works on it"),
        ({"owned": True, "heartbeat_age": 4.2}, "a run works on it, heartbeat 4 s ago"),
        ({"problem": "listing s3://b failed"}, "listing s3://b failed"),
        (
            {"todo": (), "failed": shards("9.tar")},
            "1 given up and unchanged (--retry-failed submits them again)",
        ),
    ],
)
def test_what_is_left_alone(changes: dict[str, Any], reason: str) -> None:
    made = decision(corpus(**changes))
    assert not made.shards
    assert made.reason == reason


def test_a_corpus_that_has_a_job_is_left_alone() -> None:
    assert decision(corpus(), {"/out/a": "job-1"}).reason == "submitted as job-1"
    assert decision(corpus(), {"/out/b": "job-1"}).shards


def job(number: int, state: str = "failed", exit_code: int | None = 2, why: str = "") -> SubmittedJob:
    told = why or f"patchsieve score: /out holds rows made with other settings (run {number})"
    return SubmittedJob(
        id=f"job-{number}",
        submitted=float(number),
        shards=1,
        contents="c",
        state=state,
        exit_code=exit_code,
        why=told if state == "failed" else "",
    )


def test_a_corpus_whose_jobs_fail_alike_is_left_alone_until_asked() -> None:
    failing = corpus(history=(job(1), job(2), job(3)))
    made = decision(failing)
    assert not made.shards
    assert made.attention
    assert made.reason.startswith(
        "left alone after 3 failures alike (--retry-failed submits it again); its last job"
    )
    assert "failed with exit code 2: patchsieve score: /out holds rows" in made.reason
    assert decision(failing, retry_failed=True).shards
    for other in (
        job(9, "succeeded", 0),
        job(9, "stopped", None),
        job(9, why="another"),
        job(9, exit_code=1),
    ):
        assert decision(corpus(history=(job(1), job(2), other, job(10)))).shards
    # One that goes on has no end yet, and ends no row.
    assert failures_alike((job(1), job(2), job(3, "submitted", None))) == 2


def test_a_job_that_asked_its_user_to_act_needs_a_person_though_it_is_submitted_again() -> None:
    made = decision(corpus(history=(job(1),)))
    assert made.shards
    assert made.attention
    assert not decision(corpus(history=(job(1, exit_code=1),))).attention
    assert not decision(corpus(done=1, todo=(), history=(job(1),))).attention


@pytest.mark.parametrize(("age", "overdue"), [(None, False), (7000.0, False), (7300.0, True)])
def test_a_corpus_that_is_not_scored_in_time_is_overdue(age: float | None, overdue: bool) -> None:
    late = Limits(max_failures=3, max_age_s=7200.0)
    made = decision(corpus(age=age, incomplete="no _SUCCESS"), limits=late)
    assert made.attention == overdue
    assert ("overdue: its newest file came 2 h 01 min ago" in made.reason) == overdue
    assert not decision(corpus(age=age, done=1, todo=()), limits=late).attention


def test_a_dead_owner_is_told_and_its_record_removed_where_no_job_does_that() -> None:
    dead = corpus(dead=True, heartbeat_age=7200.0)
    assert decision(dead).shards
    assert not decision(dead).tidy
    scored = decision(dataclasses.replace(dead, done=1, todo=()))
    assert scored.tidy
    assert scored.reason == "scored; the run that owned the output is dead, heartbeat 2 h 00 min ago"


def test_ends_are_those_that_the_cluster_tells() -> None:
    history = (job(1, "submitted", None), job(2, "submitted", None), job(30, "submitted", None))
    end = JobEnd(state="failed", exit_code=2, why="no", ended=9.0)
    found = settled(history, {"job-1": end}, listed_at=10.0)
    assert [one.state for one in found] == ["failed", "lost", "submitted"]
    assert found[0].end == end
    assert settled(found, {"job-1": None}, listed_at=99.0)[:2] == found[:2]


def test_what_ended_a_job_is_the_line_that_says_most() -> None:
    message = "Job entrypoint command failed with exit code 2, last available logs:\n"
    assert why_of(message + "a line\npatchsieve score: no such shard: x\n/usr/lib/warnings") == (
        "patchsieve score: no such shard: x"
    )
    assert why_of(message + "incomplete: 1 of 2 shards done\nmissing: x") == "incomplete: 1 of 2 shards done"
    assert why_of("killed") == "killed"
    assert why_of("") == ""


def test_shards_that_were_given_up_are_submitted_only_when_asked() -> None:
    found = corpus(todo=shards("1.tar"), failed=shards("9.tar"))
    assert decision(found).shards == shards("1.tar")
    assert decision(found, retry_failed=True).shards == shards("1.tar", "9.tar")


def test_what_is_beyond_the_limit_of_jobs_waits_and_what_is_left_alone_takes_no_place() -> None:
    found = [corpus("a"), corpus("b", done=1, todo=()), corpus("c"), corpus("d")]
    made = decide(found, {"/out/x": "job-1"}, retry_failed=False, max_jobs=3, limits=LIMITS)
    assert [bool(one.shards) for one in made] == [True, False, True, False]
    assert made[3].reason == "left to a later tick: there are --max-jobs 3 jobs already"


def test_ids_name_corpus_output_and_tick() -> None:
    first = submission_id(corpus("2024/May photos"), "20240501T0300Z")
    assert first.startswith("patchsieve-2024-May-photos-")
    assert first.endswith("-20240501T0300Z")
    assert first == submission_id(corpus("2024/May photos"), "20240501T0300Z")
    assert first != submission_id(corpus("2024/May photos", out="/elsewhere"), "20240501T0300Z")
    assert first != submission_id(corpus("2024/May photos"), "20240502T0300Z")


def test_the_command_of_a_job() -> None:
    options = ["--teacher", "tiny"]
    assert score_command(corpus(), "/l.txt", options, root=None, uploaded=False) == [
        *("patchsieve", "score", "@/l.txt", "--out", "/out/a", "--teacher", "tiny")
    ]
    uploaded = score_command(corpus(), "/l.txt", [], root="/in", uploaded=True)
    assert uploaded == ["python", "-m", "patchsieve", "score", "@/l.txt", "--out", "/out/a", "--root", "/in"]


def utc(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC)


def test_times_are_those_of_the_time_zone() -> None:
    due = next_time("0 3 * * *", "Europe/Berlin", utc("2024-01-10T12:00"))
    assert due == datetime.datetime(2024, 1, 11, 3, tzinfo=ZoneInfo("Europe/Berlin"))
    assert due.astimezone(datetime.UTC) == utc("2024-01-11T02:00")
    assert next_time("0 3 * * *", "UTC", utc("2024-01-10T03:00")) == utc("2024-01-11T03:00")


@pytest.mark.parametrize("year_and_day", ["2024-03-29", "2024-10-25"])
def test_every_night_has_one_tick_when_clocks_change(year_and_day: str) -> None:
    """Half past two is skipped in Berlin on 2024-03-31 and told twice on 2024-10-27."""
    due, nights = utc(f"{year_and_day}T00:00"), []
    for _ in range(5):
        due = next_time("30 2 * * *", "Europe/Berlin", due)
        nights.append(due)
    assert [after.date() - before.date() for before, after in pairwise(nights)] == [datetime.timedelta(1)] * 4
    assert len({night.astimezone(datetime.UTC) for night in nights}) == 5


@pytest.mark.parametrize(
    ("cron", "timezone", "message"),
    [
        ("0 3 * *", "UTC", "five fields"),
        ("0 25 * * *", "UTC", "bad hour"),
        ("0 0 30 2 *", "UTC", "--cron"),
        ("0 3 * * *", "Berlin/Europe", "--timezone is 'Berlin/Europe'"),
        ("0 3 * * *", "../etc", "--timezone"),
    ],
)
def test_what_is_no_time_is_refused(cron: str, timezone: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        next_time(cron, timezone, utc("2024-01-01T00:00"))
