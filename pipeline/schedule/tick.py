"""What a tick of the schedule does with each corpus: pure decisions, from what was found out about them.

A corpus is submitted when it is complete, holds shards that are neither finished nor given up, and nobody works on
its output: no run that owns it, no job that is already submitted for it. The last two make ticks quiet and cheap; what
keeps two runs apart whatever happens is the owner record of the output, which every run takes first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence

from patchsieve.pipeline.shards.specs import Shard

_LONGEST_NAME = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """One corpus as a tick finds it.

    `out`: its output folder. `todo`: shards without a finished table, those of `failed` aside: shards that were given
    up and did not change since. `incomplete`: why it has to wait, "" for a complete corpus. `owned`: a run that lives
    owns the output. `problem`: why nothing could be found out, "" where it could.
    """

    name: str
    url: str
    out: str
    done: int = 0
    todo: tuple[Shard, ...] = ()
    failed: tuple[Shard, ...] = ()
    incomplete: str = ""
    owned: bool = False
    problem: str = ""

    @property
    def shards(self) -> int:
        """Shards in all."""
        return self.done + len(self.todo) + len(self.failed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens to a corpus. `shards`: those of the job to submit, empty where none is; `reason` for the user."""

    corpus: Corpus
    reason: str
    shards: tuple[Shard, ...] = ()


def decide(
    corpora: Sequence[Corpus], active: Mapping[str, str], *, retry_failed: bool, max_jobs: int
) -> list[Decision]:
    """What to do with each corpus, in the order given.

    `active`: submission id by output folder, of jobs of schedules that have not ended. `max_jobs`: how many of them
    there may be, new ones included.
    """
    room = max_jobs - len(active)
    decisions = []
    for corpus in corpora:
        decision = _decide(corpus, active.get(corpus.out), retry_failed=retry_failed)
        if decision.shards:
            if room <= 0:
                reason = f"left to a later tick: there are --max-jobs {max_jobs} jobs already"
                decision = Decision(corpus=corpus, reason=reason)
            room -= 1
        decisions.append(decision)
    return decisions


def _decide(corpus: Corpus, job: str | None, *, retry_failed: bool) -> Decision:
    def leave(reason: str) -> Decision:
        return Decision(corpus=corpus, reason=reason)

    wanted = corpus.todo + (corpus.failed if retry_failed else ())
    if corpus.problem:
        return leave(corpus.problem)
    if not corpus.shards:
        return leave("no shards")
    if job is not None:
        return leave(f"submitted as {job}")
    if corpus.owned:
        return leave("a run works on it")
    if not wanted:
        kept = f"{len(corpus.failed)} given up and unchanged (--retry-failed submits them again)"
        return leave(kept if corpus.failed else "scored")
    if corpus.incomplete:
        return leave(f"not complete: {corpus.incomplete}")
    return Decision(corpus=corpus, reason=f"{len(wanted)} of {corpus.shards} shards to score", shards=wanted)


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
