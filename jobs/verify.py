"""`patchsieve verify`: an output held against what was recorded of it, without starting Ray."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

from patchsieve.jobs.command_line import run_job
from patchsieve.jobs.first_look import look_for
from patchsieve.pipeline.runs.waiting import doing
from patchsieve.pipeline.shown import say
from patchsieve.ranker.verify.config import VerifyConfig


def run(config: VerifyConfig) -> int:
    """Print what was found; returns 1 while something is damaged or gone."""
    look_for(config.out)
    from patchsieve.ranker.verify.report import report_lines
    from patchsieve.ranker.verify.run import verify

    with doing("reading all that the output holds"):
        report = verify(config)
    told = [json.dumps({"sound": report.sound, **dataclasses.asdict(report)})]
    say(*(told if config.json else report_lines(report)))
    return int(not report.sound)


main = partial(run_job, "verify", VerifyConfig, run)


if __name__ == "__main__":
    main()
