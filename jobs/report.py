"""`patchsieve report`: one page of HTML about what runs left."""

from __future__ import annotations

from functools import partial

from patchsieve.jobs.command_line import run_job
from patchsieve.pipeline.runs.waiting import doing
from patchsieve.pipeline.shown import say
from patchsieve.ranker.report.config import ReportConfig


def run(config: ReportConfig) -> int:
    """Write the page; returns the exit code."""
    from patchsieve.pipeline.output.folder import new_run_id
    from patchsieve.ranker.report.page import write_page

    with doing("reading images, ranking them and drawing"):
        say(*write_page(config, run_id=new_run_id()))
    return 0


main = partial(run_job, "report", ReportConfig, run)


if __name__ == "__main__":
    main()
