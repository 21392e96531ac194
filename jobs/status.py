"""`patchsieve status`: what an output folder holds, without starting Ray."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from patchsieve.jobs.command_line import run_job
from patchsieve.pipeline.score.config import StatusConfig


def run(config: StatusConfig) -> int:
    """Print the status; returns 1 while shards are missing or failed."""
    from patchsieve.pipeline.runs.status import read_status, status_lines

    status = read_status(config.out)
    print(json.dumps(dataclasses.asdict(status)) if config.json else "\n".join(status_lines(status)))
    return int(bool(status.missing or status.failed))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_job("status", StatusConfig, run, arguments)


if __name__ == "__main__":
    main()
