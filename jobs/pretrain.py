"""`patchsieve pretrain`: a small masked autoencoder from photos in shards."""

from __future__ import annotations

from functools import partial

from patchsieve.jobs.command_line import run_job
from patchsieve.pipeline.pretrain.config import PretrainConfig
from patchsieve.pipeline.runs.waiting import doing
from patchsieve.pipeline.shown import say


def run(config: PretrainConfig) -> int:
    """Train to the last step, write the teacher and measure it; returns the exit code."""
    from patchsieve.pipeline.compute.device import keep_freed_memory
    from patchsieve.pipeline.pretrain.job import pretrain

    keep_freed_memory()
    with doing("reading the photos; then training"):
        pretrain(config, say)
    return 0


main = partial(run_job, "pretrain", PretrainConfig, run)


if __name__ == "__main__":
    main()
