"""The drift watch of a tick: has a ranker evaluated on a share of each new corpus, and says what came of it."""

from __future__ import annotations

from collections.abc import Callable, Collection

from patchsieve.pipeline import storage
from patchsieve.pipeline.cluster.jobs_api import Submission
from patchsieve.pipeline.cluster.known_job import KnownJob
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.output.folder import new_run_id
from patchsieve.pipeline.schedule.config import SubmitConfig
from patchsieve.pipeline.schedule.corpora import shard_list
from patchsieve.pipeline.schedule.drift import (
    DRIFT_FOLDER,
    DRIFT_PREFIX,
    EVALUATION,
    drift_command,
    drift_line,
    read_evaluation,
    share_of,
)
from patchsieve.pipeline.schedule.history import SCHEDULE_FOLDER
from patchsieve.pipeline.schedule.tick import Decision, submission_id


class DriftWatch:
    """Of one tick. A corpus is measured once, in the tick that first has it scored, by a job of its own."""

    def __init__(self, config: SubmitConfig, known: Collection[KnownJob], tick: str) -> None:
        """`known`: the cluster's jobs. Raises UserError where there is no evaluation to hold others against."""
        self._config, self._tick = config, tick
        self._jobs = {job.out: job for job in known}
        if config.drift_reference is None:
            return
        reference = read_evaluation(config.drift_reference)
        if reference is None:
            raise UserError(
                f"--drift-reference {config.drift_reference} has no {EVALUATION}: make it with patchsieve evaluate "
                f"SHARDS --only-held-out --ranker {config.drift_ranker} --teacher ... --out {config.drift_reference}"
            )
        self._reference = reference

    def look(self, decision: Decision, submit: Callable[[Submission], bool]) -> str:
        """What is to be said of a corpus, "" for nothing; submits the job where the corpus is new.

        Raises what reading, writing and `submit` raise.
        """
        config, corpus = self._config, decision.corpus
        if config.drift is None or corpus.problem:
            return ""
        out = storage.join(corpus.out, DRIFT_FOLDER)
        found = read_evaluation(out)
        if found is not None:
            return drift_line(found, self._reference)
        job = self._jobs.get(out)
        if job is not None:
            return (
                f"its drift is measured by {job.id}" if job.end is None else f"drift: {job.id} {job.end.text}"
            )
        if not decision.shards or corpus.done or config.dry_run:
            return ""
        key = f"{DRIFT_PREFIX}{submission_id(corpus, self._tick)}"
        listed = storage.join(corpus.out, SCHEDULE_FOLDER, f"{key}.txt")
        storage.commit_bytes(shard_list(share_of(decision.shards, config.drift)), listed, run_id=new_run_id())
        command = drift_command(
            listed,
            out,
            ranker=str(config.drift_ranker),
            teacher=config.teacher,
            unsorted="--unsorted" in config.score_options,
            uploaded=config.working_dir is not None,
        )
        submit(
            Submission(
                id=key, command=command, out=out, working_dir=config.working_dir, gpus=config.drift_gpus
            )
        )
        return f"its drift is measured by {key}"
