"""Views per second from shards to committed tables without Ray, over those of the teacher alone.

Job: `ShardScoring` with two shards in hand, as an actor has them: read, decoded, scored, written, committed. Teacher
alone: batches prepared before, in the same process on the same thread count. The two take turns. For machines that have
no Ray, and to tell what Ray itself costs (`score_job` is the whole). Goal: 0.95 of the teacher alone.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks._common import write_json
from benchmarks._photos import pack_shard, photo_files
from benchmarks._teacher_alone import TeacherAlone, compare, show_comparison
from benchmarks._teachers import save_random_teacher
from patchsieve.pipeline.output.folder import OutputFolder, new_run_id
from patchsieve.pipeline.row_config import DECODER, IMAGE_FIELDS, Precision, RowConfig
from patchsieve.pipeline.score.shard import ShardScoring, teacher_record
from patchsieve.pipeline.shards.specs import Shard, expand_shards
from patchsieve.pipeline.tables.schema import SCORES

SHARDS = 6
IN_HAND = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Benchmark of scoring without Ray on this machine."""

    teachers: tuple[Literal["tiny", "mae-base", "mae-large"], ...] = ("tiny", "mae-base")
    """Shapes of the teacher; its weights are random."""
    shards: tuple[str, ...] = ()
    """Shards to take photos from; synthetic photos of 500 x 375 pixels by default."""
    photos: int = 400
    """Different photos in use."""
    views: int = 4
    """Views per photo."""
    rounds: int = 3
    """Rounds; medians are reported."""
    seconds: float = 6.0
    """Time of one contender in one round, about."""
    threads: int = os.cpu_count() or 1
    """Threads of the teacher on a processor, and decoders."""
    precision: Literal["auto"] | Precision = "auto"
    """Arithmetic of the teacher; auto takes the probe's choice."""
    batch_size: int | Literal["auto"] = "auto"
    """Views scored at once; auto takes the probe's choice."""
    out: Path = Path("bench-out/score_path.json")
    """Results as JSON."""


def score_shards(scoring: ShardScoring, shards: list[Shard]) -> dict[str, float]:
    """Views per second, and the share of that time in which the teacher waited."""
    started = time.perf_counter()
    with ThreadPoolExecutor(IN_HAND) as actor:
        results = list(actor.map(scoring.score, shards))
    assert not any(result.failed for result in results), results
    seconds = time.perf_counter() - started
    return {
        "views_per_second": sum(result.rows for result in results) / seconds,
        "waited_share": scoring.progress.waited_s / seconds,
    }


def run_teacher(size: str, options: Options, folder: Path, files: list[bytes]) -> dict[str, Any]:
    """Measure with one teacher; returns what the JSON holds."""
    _, teacher = save_random_teacher(size, folder)
    rows = RowConfig(
        mask_ratio=0.9,
        first_view=0,
        views=options.views,
        crop="random",
        masks="spread",
        estimator="exact",
        removal="decoder",
        metric="l1",
        seed=0,
        size=teacher.config.image_size,
        precision="fp32",
        store="patches",
        sample=1.0,
        image_field=IMAGE_FIELDS,
        decoder=DECODER,
    )
    batch_size = None if options.batch_size == "auto" else options.batch_size
    alone = TeacherAlone(teacher, rows, options.precision, batch_size)
    chosen = alone.settings()
    decoding = alone.load(files)
    step = math.lcm(chosen["batch_size"], options.views) // options.views
    photos = step * math.ceil(alone.run(options.seconds) * options.seconds / options.views / SHARDS / step)
    urls = [
        pack_shard(folder / f"{size}-{number}.tar", files, photos, start=number * photos)
        for number in range(SHARDS)
    ]
    rows = dataclasses.replace(rows, precision=chosen["precision"])
    jobs, teachers = [], []
    for number in range(options.rounds):
        # Once before and once after, so that what changes slowly on the machine hits both alike.
        before = alone.run(options.seconds / 2)
        output = OutputFolder(str(folder / f"{size}-{number}"), SCORES, run_id=new_run_id())
        scoring = ShardScoring(
            alone.scorer, teacher_record(teacher), rows, output, provenance={}, threads=options.threads
        )
        shards = list(expand_shards(urls))
        score_shards(scoring, shards[:1])  # decoders load their libraries
        jobs.append(score_shards(scoring, shards))
        scoring.close()
        teachers.append(2 / (1 / before + 1 / alone.run(options.seconds / 2)))
    return compare(chosen, decoding, teachers, jobs)


def main(options: Options) -> None:
    """Measure, print a table, write the JSON."""
    torch.set_num_threads(options.threads)
    files = photo_files(options.shards, options.photos)
    with tempfile.TemporaryDirectory() as folder:
        results = {size: run_teacher(size, options, Path(folder), files) for size in options.teachers}
    what = f"scoring without Ray: {len(files)} photos, {options.views} views each"
    show_comparison(what, results)
    source = list(options.shards) or "synthetic photos, 500 x 375"
    write_json({"score_path": results, "photos": len(files), "source": source}, options.out)


if __name__ == "__main__":
    import tyro  # not where `gpu_check` runs this

    main(tyro.cli(Options, description=__doc__))
