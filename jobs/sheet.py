"""`patchsieve sheet`: photos, their scores and the patches that stay, as one picture."""

from __future__ import annotations

from functools import partial

from patchsieve.jobs.command_line import run_job
from patchsieve.pipeline.runs.waiting import doing
from patchsieve.pipeline.shown import say
from patchsieve.ranker.gallery.config import SheetConfig


def run(config: SheetConfig) -> int:
    """Draw and write the sheet; returns the exit code."""
    from patchsieve.pipeline.output.folder import new_run_id
    from patchsieve.ranker.gallery.sheet import write_sheet

    with doing("reading images and drawing"):
        say(*write_sheet(config, run_id=new_run_id()))
    return 0


main = partial(run_job, "sheet", SheetConfig, run)


if __name__ == "__main__":
    main()
