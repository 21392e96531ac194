"""`patchsieve train`: from score tables to a ranker."""

from __future__ import annotations

from functools import partial

from patchsieve.jobs.command_line import run_job
from patchsieve.pipeline.runs.waiting import doing
from patchsieve.pipeline.shown import say
from patchsieve.ranker.train.config import TrainConfig


def run(config: TrainConfig) -> int:
    """Fit the ranker, or say what that would take; returns the exit code."""
    from patchsieve.ranker.train.plan import make_plan

    with doing("reading the tables"):
        plan = make_plan(config)
    if config.dry_run or config.log_format == "text":
        say(*plan.lines())
    if config.dry_run:
        from patchsieve.pipeline.cluster.dry_run import dry_run
        from patchsieve.ranker.train.estimate import estimate_training

        with doing("measuring some steps"), dry_run() as found:
            say(*estimate_training(plan, found).lines())
        return 0
    from patchsieve.ranker.train.run import train

    with doing("training"):
        return train(plan)


main = partial(run_job, "train", TrainConfig, run)


if __name__ == "__main__":
    main()
