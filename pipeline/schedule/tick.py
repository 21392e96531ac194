"""What a tick of the schedule does with each corpus: pure decisions, from what was found out about them.

A corpus is submitted when it is complete, holds shards that are neither finished nor given up, nobody works on its
output (no run that owns it, no job that is already submitted for it), and its jobs did not fail alike again and again.
The owners and jobs make ticks quiet and cheap; what keeps two runs apart whatever happens is the owner record of the
output, which every run takes first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence

from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.schedule.history import SubmittedJob, failures_alike, last_end
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.units import counted, duration

_LONGEST_NAME = 60
USERS_CODE = 2
"""Exit code of a job that tells its user to act."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """One corpus as a tick finds it.

    `out`: its output folder. `todo`: shards without a finished table, those of `failed` aside: shards that were given
    up and did not change since. `incomplete`: why it has to wait, "" for a complete corpus. `owned`: a run that lives
    owns the output; `dead`: one owns it that does not live. `heartbeat_age`: seconds since the owner's last heartbeat
    by its own clock, None where that is not told. `age`: seconds since its newest file came. `problem`: why nothing
    could be found out, "" where it could. `history`: its jobs; `renamed`: the corpus whose shards it has, by name and
    size, and whose folder is gone, "" for none.
    """

    name: str
    url: str
    out: str
    done: int = 0
    todo: tuple[Shard, ...] = ()
    failed: tuple[Shard, ...] = ()
    incomplete: str = ""
    owned: bool = False
    dead: bool = False
    heartbeat_age: float | None = None
    age: float | None = None
    problem: str = ""
    history: tuple[SubmittedJob, ...] = ()
    renamed: str = ""

    @property
    def shards(self) -> int:
        """Shards in all."""
        return self.done + len(self.todo) + len(self.failed)

    @property
    def contents(self) -> str:
        """A hash of the names and sizes of the shards that are not finished, which all are in a new corpus."""
        shards = [*self.todo, *self.failed]
        return digest_of({"shards": sorted((shard.url.rpartition("/")[2], shard.size) for shard in shards)})

    @property
    def heartbeat(self) -> str:
        """How old the owner's heartbeat is, for people."""
        return (
            "" if self.heartbeat_age is None else f", heartbeat {duration(max(0.0, self.heartbeat_age))} ago"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What ticks tell a person of: `max_failures` jobs that failed alike, shards left for `max_age_s` seconds."""

    max_failures: int
    max_age_s: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens to a corpus. `shards`: those of the job to submit, empty where none is; `reason` for the user.

    `attention`: a person has to act. `tidy`: the record of a dead owner is to be removed, since no job comes to do it.
    """

    corpus: Corpus
    reason: str
    shards: tuple[Shard, ...] = ()
    attention: bool = False
    tidy: bool = False


def decide(
    corpora: Sequence[Corpus],
    active: Mapping[str, str],
    *,
    retry_failed: bool,
    max_jobs: int,
    limits: Limits,
) -> list[Decision]:
    """What to do with each corpus, in the order given.

    `active`: submission id by output folder, of jobs of schedules that have not ended. `max_jobs`: how many of them
    there may be, new ones included.
    """
    room = max_jobs - len(active)
    decisions = []
    for corpus in corpora:
        decision = _decide(corpus, active.get(corpus.out), retry_failed, limits)
        if decision.shards:
            if room <= 0:
                reason = f"left to a later tick: there are --max-jobs {max_jobs} jobs already"
                decision = Decision(corpus=corpus, reason=reason)
            room -= 1
        decisions.append(_with_alarms(decision, limits))
    return decisions


def _decide(corpus: Corpus, job: str | None, retry_failed: bool, limits: Limits) -> Decision:
    def leave(reason: str, *, attention: bool = False) -> Decision:
        return Decision(corpus=corpus, reason=reason, attention=attention, tidy=corpus.dead)

    wanted = corpus.todo + (corpus.failed if retry_failed else ())
    if corpus.problem:
        return Decision(corpus=corpus, reason=corpus.problem, attention=True)
    if not corpus.shards:
        return leave("no shards")
    if job is not None:
        return Decision(corpus=corpus, reason=f"submitted as {job}")
    if corpus.owned:
        return Decision(corpus=corpus, reason=f"a run works on it{corpus.heartbeat}")
    if not wanted:
        kept = f"{len(corpus.failed)} given up and unchanged (--retry-failed submits them again)"
        return leave(kept if corpus.failed else "scored", attention=bool(corpus.failed))
    if corpus.incomplete:
        return leave(f"not complete: {corpus.incomplete}")
    failures = failures_alike(corpus.history)
    if failures >= limits.max_failures and not retry_failed:
        told = f"left alone after {failures} failures alike (--retry-failed submits it again)"
        return leave(told, attention=True)
    renamed = f", which are those of {corpus.renamed} by name and size: renamed?" if corpus.renamed else ""
    reason = f"{len(wanted):,} of {counted(corpus.shards, 'shard')} to score{renamed}"
    return Decision(corpus=corpus, reason=reason, shards=wanted)


def _with_alarms(decision: Decision, limits: Limits) -> Decision:
    """The decision with what else a person has to know."""
    corpus = decision.corpus
    told, attention = [decision.reason], decision.attention
    if corpus.dead and not corpus.problem:
        told.append(f"the run that owned the output is dead{corpus.heartbeat}")
    end = last_end(corpus.history)
    unfinished = bool(corpus.todo or corpus.failed) and not corpus.problem
    if unfinished and end is not None and end.state in ("failed", "lost"):
        told.append(f"its last job {end.text}")
        attention = attention or end.exit_code == USERS_CODE
    if unfinished and limits.max_age_s is not None and (corpus.age or 0.0) > limits.max_age_s:
        told.append(f"overdue: its newest file came {duration(corpus.age or 0.0)} ago")
        attention = True
    return dataclasses.replace(decision, reason="; ".join(told), attention=attention)


def submission_id(corpus: Corpus, tick: str) -> str:
    """The id of a corpus's job: equal for equal corpus, output and tick, and fit for a URL."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", corpus.name)[:_LONGEST_NAME].strip("-.")
    return f"patchsieve-{name}-{hashlib.sha256(corpus.out.encode()).hexdigest()[:8]}-{tick}"


def score_command(
    corpus: Corpus, shard_list: str, options: Sequence[str], *, root: str | None, uploaded: bool
) -> list[str]:
    """The words of the job's command; `uploaded`: it runs in an uploaded checkout, not the installed package."""
    program = ["python", "-m", "patchsieve", "score"] if uploaded else ["patchsieve", "score"]
    rooted = [] if root is None else ["--root", root]
    return [*program, f"@{shard_list}", "--out", corpus.out, *rooted, *options]
