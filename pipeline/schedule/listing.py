"""What `schedule list` shows of each corpus, without a cluster: its state, its last run, and its jobs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from patchsieve.pipeline.runs.status import last_run
from patchsieve.pipeline.schedule.config import ListConfig
from patchsieve.pipeline.schedule.corpora import find_corpora, survey
from patchsieve.pipeline.schedule.history import SubmittedJob, failures_alike, when
from patchsieve.pipeline.schedule.renamed import with_renamed
from patchsieve.pipeline.schedule.run import seconds
from patchsieve.pipeline.schedule.tick import Decision, Limits, decide
from patchsieve.pipeline.threads import map_threads


def list_corpora(config: ListConfig, *, now: Callable[[], float] = time.time) -> list[dict[str, Any]]:
    """What `schedule list` shows of each corpus: plain values, fit for JSON. Writes nothing, waits for nothing."""
    places = find_corpora(config.source, config.out)
    corpora = survey(places, root=config.root, min_age_s=seconds(config.min_age), watch=False, now=now)
    corpora = with_renamed(corpora, config.out)
    limits = Limits(max_failures=config.max_failures, max_age_s=seconds(config.max_age))
    return map_threads(
        _shown, decide(corpora, {}, retry_failed=False, max_jobs=len(corpora) + 1, limits=limits)
    )


def _shown(decision: Decision) -> dict[str, Any]:
    corpus = decision.corpus
    # A new corpus costs no request for its runs.
    known = corpus.done or corpus.failed or corpus.owned or corpus.dead or corpus.history
    run = last_run(corpus.out) if known and not corpus.problem else None
    return {
        "corpus": corpus.name,
        "state": decision.reason,
        "shards": corpus.shards,
        "done": corpus.done,
        "failed": len(corpus.failed),
        "problem": corpus.problem or None,
        "attention": decision.attention,
        "last_run": None if run is None else run.get("run_id"),
        "last_run_state": None if run is None else _run_state(run, alive=corpus.owned),
        "heartbeat_age": None if corpus.heartbeat_age is None else round(corpus.heartbeat_age, 1),
        "failures_alike": failures_alike(corpus.history),
        "jobs": [dataclasses.asdict(job) for job in corpus.history],
        "source": corpus.url,
        "out": corpus.out,
    }


def _run_state(run: Mapping[str, Any], *, alive: bool) -> str:
    state = str(run.get("state", ""))
    return "died without a word" if state == "running" and not alive else state


def list_lines(shown: Sequence[Mapping[str, Any]]) -> list[str]:
    """The listing as lines of text."""
    lines = [] if shown else ["no corpora"]
    for corpus in shown:
        run = f", last run {corpus['last_run']} {corpus['last_run_state']}" if corpus["last_run"] else ""
        lines.append(
            f"{corpus['corpus']}: {corpus['done']}/{corpus['shards']} shards, {corpus['state']}{run}"
        )
        if corpus["jobs"]:
            job = SubmittedJob(**corpus["jobs"][-1])
            end = "no tick has heard of its end yet" if job.end is None else job.end.text
            lines.append(f"  job {job.id}, {when(job.submitted)}, {job.shards} shards: {end}")
    return lines
