"""`patchsieve pack`: shards from a folder of photos."""

from __future__ import annotations

from functools import partial

from patchsieve.jobs.command_line import run_job
from patchsieve.pipeline.pack.config import PackConfig
from patchsieve.pipeline.runs.waiting import doing
from patchsieve.pipeline.shown import say


def run(config: PackConfig) -> int:
    """Pack what is not packed yet; returns the exit code."""
    from patchsieve.pipeline.output.folder import new_run_id
    from patchsieve.pipeline.pack.job import pack

    with doing("listing and packing photos"):
        packed = pack(config, say, run_id=new_run_id())
    classes = f" of {len(packed.classes):,} classes" if packed.classes else ", without labels,"
    say(f"complete: {packed.photos:,} photos{classes} in {len(packed.shards):,} shards: {config.out}")
    return 0


main = partial(run_job, "pack", PackConfig, run)


if __name__ == "__main__":
    main()
