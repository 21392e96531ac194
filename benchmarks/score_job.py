"""Views per second of the whole score job against its teacher alone: what decoding, tables and Ray cost.

Job: a run on a Ray of this machine with one actor, from shards to committed tables. Teacher alone: `Scorer.score` over
batches prepared before, in another Ray actor with the same CPUs, and so the same number of threads, on views of the
same photos, at the same precision and batch size. The two take turns. Starting up is left out: the job's clock runs
from the moment when its first shard is done until the last but one is, while there is always more to decode.
Goal: the job reaches 0.95 of the teacher alone.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import ray
import tyro

from benchmarks._common import write_json
from benchmarks._photos import pack_shard, photo_files
from benchmarks._teacher_alone import DEVICE, TeacherAlone, compare, show_comparison
from benchmarks._teachers import save_random_teacher
from patchsieve.pipeline.row_config import DECODER, Precision
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.runs.progress import Totals
from patchsieve.pipeline.score.config import ScoreConfig
from patchsieve.pipeline.score.request import make_request
from patchsieve.pipeline.score_on_ray.run import score

LEAST_SHARDS = 4
# Two actors on one machine: the job's, and the teacher alone, which rests meanwhile.
GPUS = 0.5 if DEVICE == "cuda" else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Benchmark of the whole score job on this machine."""

    teachers: tuple[Literal["tiny", "mae-base"], ...] = ("tiny", "mae-base")
    """Shapes of the teacher; its weights are random."""
    shards: tuple[str, ...] = ()
    """Shards to take photos from; synthetic photos of 500 x 375 pixels by default."""
    photos: int = 400
    """Different photos in use."""
    views: int = 4
    """Views per photo."""
    shard_photos: int | None = None
    """Photos in a shard: a few of them show what commits of small shards cost; by default four shards fill the time."""
    rounds: int = 5
    """Rounds; medians are reported."""
    seconds: float = 6.0
    """Time of one contender in one round, about; the job's starting up comes on top."""
    threads: int = os.cpu_count() or 1
    """CPUs of the actors: threads of the teacher, and of decoders."""
    precision: Literal["auto"] | Precision = "auto"
    """Arithmetic of the teacher; auto takes the probe's choice."""
    batch_size: int | Literal["auto"] = "auto"
    """Views scored at once; auto takes the probe's choice."""
    out: Path = Path("bench-out/score_job.json")
    """Results as JSON."""


class ShardClock:
    """A display that notes when each shard was done."""

    def __init__(self) -> None:
        self.done_at: list[float] = []
        self.waited_share = 0.0

    def __enter__(self) -> ShardClock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to put back."""

    def update(self, totals: Totals) -> None:
        """Called whenever the run's loop has worked on answers of its actors."""
        new = totals.done - len(self.done_at)
        self.done_at += [time.perf_counter()] * new
        self.waited_share = totals.waited_share


def run_job(config: ScoreConfig, shard_views: int) -> dict[str, float]:
    """One run into a new folder: views per second between the first shard's end and the last but one's."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        clock = ShardClock()
        config = dataclasses.replace(config, out=folder)
        summary = score(make_request(config), clock, settings=config_to_yaml(config))
    assert summary.exit_code == 0, summary.lines(folder)
    seconds = clock.done_at[-2] - clock.done_at[0]
    return {
        "views_per_second": shard_views * (len(config.shards) - 2) / seconds,
        "first_shard_done_after": clock.done_at[0] - started,
        "waited_share": clock.waited_share,
    }


def run_teacher(size: str, options: Options, folder: Path, files: list[bytes]) -> dict[str, Any]:
    """Measure with one teacher; returns what the JSON holds."""
    path, teacher = save_random_teacher(size, folder)
    asked = ScoreConfig(
        shards=("none yet",),
        out="none yet",
        teacher=path,
        views=str(options.views),
        gpus_per_actor=GPUS,
        cpus_per_actor=options.threads,
        max_actors=1,
    )
    rows = asked.rows(size=teacher.config.image_size, precision="fp32", decoder=DECODER)
    actor: Any = ray.remote(num_cpus=options.threads, num_gpus=GPUS)(TeacherAlone)
    batch_size = None if options.batch_size == "auto" else options.batch_size
    alone = actor.remote(teacher, rows, options.precision, batch_size)
    chosen = ray.get(alone.settings.remote())
    decoding = ray.get(alone.load.remote(files))
    expected = ray.get(alone.run.remote(options.seconds))
    # Whole batches, as nearly all are in shards of usual length.
    step = math.lcm(chosen["batch_size"], options.views) // options.views
    wanted = expected * options.seconds / options.views
    photos = options.shard_photos or step * max(1, math.ceil(wanted / (LEAST_SHARDS - 2) / step))
    count = max(LEAST_SHARDS, 2 + math.ceil(wanted / photos))
    shards = [
        pack_shard(folder / f"{size}-{number}.tar", files, photos, start=number * photos)
        for number in range(count)
    ]
    config = dataclasses.replace(
        asked, shards=tuple(shards), batch_size=chosen["batch_size"], precision=chosen["precision"]
    )
    jobs, teachers = [], []
    for _ in range(options.rounds):
        # Once before and once after, so that what changes slowly on the machine hits both alike.
        before = ray.get(alone.run.remote(options.seconds / 2))
        jobs.append(run_job(config, photos * options.views))
        teachers.append(2 / (1 / before + 1 / ray.get(alone.run.remote(options.seconds / 2))))
    ray.kill(alone)
    return compare(chosen, decoding, teachers, jobs)


def main(options: Options) -> None:
    """Measure, print a table, write the JSON."""
    files = photo_files(options.shards, options.photos)
    results = {}
    ray.init(
        num_cpus=2 * options.threads,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=2 * 2**30,
    )
    with tempfile.TemporaryDirectory() as folder:
        for size in options.teachers:
            results[size] = run_teacher(size, options, Path(folder), files)
    ray.shutdown()
    show_comparison(f"the job: {len(files)} photos, {options.views} views each", results)
    source = list(options.shards) or "synthetic photos, 500 x 375"
    write_json({"score_job": results, "photos": len(files), "source": source}, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
