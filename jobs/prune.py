"""`patchsieve prune`: from shards to smaller shards."""

from __future__ import annotations

from functools import partial

from patchsieve.jobs.command_line import run_job
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.runs.waiting import doing
from patchsieve.pipeline.shown import say
from patchsieve.ranker.prune.config import PruneConfig


def run(config: PruneConfig) -> int:
    """Prune, or say what pruning would give; returns the exit code."""
    from patchsieve.ranker.prune.request import make_prune_request

    with doing("looking at the shards and the ranker"):
        request = make_prune_request(config)
    if config.dry_run:
        from patchsieve.ranker.prune.estimate import estimate_pruning

        with doing("ranking and encoding a sample"):
            say(*estimate_pruning(request).lines(request))
        return 0
    from patchsieve.pipeline.runs.progress import make_display
    from patchsieve.ranker.prune_on_ray.run import prune

    with doing("looking at what is done; waiting for the first shard"):
        summary = prune(request, make_display(config.log_format), settings=config_to_yaml(config))
    if config.log_format == "text":
        say(*summary.lines(config.out))
    if config.sheet is not None and summary.done and summary.exit_code < 128:
        from patchsieve.ranker.gallery.config import SheetConfig
        from patchsieve.ranker.gallery.sheet import write_sheet

        sheet = SheetConfig(
            path=config.out,
            images=config.shards,
            unsorted=config.unsorted,
            root=config.root,
            out=config.sheet,
        )
        with doing("drawing the sheet"):
            drawn = write_sheet(sheet, run_id=summary.run_id)
        if config.log_format == "text":
            say(*drawn)
    return summary.exit_code


main = partial(run_job, "prune", PruneConfig, run)


if __name__ == "__main__":
    main()
