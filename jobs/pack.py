"""`patchsieve pack`: shards from a folder of photos."""

from __future__ import annotations

from functools import partial

from patchsieve.jobs.command_line import run_job
from patchsieve.pipeline.pack.config import PackConfig
from patchsieve.pipeline.runs.waiting import doing
from patchsieve.pipeline.shown import say
from patchsieve.pipeline.units import counted


def run(config: PackConfig) -> int:
    """Pack what is not packed yet; returns the exit code."""
    from patchsieve.pipeline.output.folder import new_run_id
    from patchsieve.pipeline.pack.job import pack

    with doing("listing and packing photos"):
        packed = pack(config, say, run_id=new_run_id())
    classes = f" of {len(packed.classes):,} classes" if packed.classes else ", without labels,"
    shards = counted(len(packed.shards), "shard")
    say(f"complete: {counted(packed.photos, 'photo')}{classes} in {shards}: {config.out}")
    return 0


main = partial(run_job, "pack", PackConfig, run)


if __name__ == "__main__":
    main()
