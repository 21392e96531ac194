"""`patchsieve status`: what an output folder holds, without starting Ray."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

from patchsieve.jobs.command_line import run_job
from patchsieve.pipeline.runs.status import StatusConfig, read_status, status_lines
from patchsieve.pipeline.runs.waiting import doing
from patchsieve.pipeline.shown import say


def run(config: StatusConfig) -> int:
    """Print the status; returns 1 while shards are missing or failed."""
    with doing("listing the output"):
        status = read_status(config.out)
    say(*([json.dumps(dataclasses.asdict(status))] if config.json else status_lines(status)))
    return int(not status.complete)


main = partial(run_job, "status", StatusConfig, run)


if __name__ == "__main__":
    main()
