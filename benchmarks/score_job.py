"""Views per second of the whole score job against its teacher alone: what decoding, tables and Ray cost.

Job: a run on a Ray of this machine with one actor, from shards to committed tables. Teacher alone: `Scorer.score` over
batches prepared before, in another Ray actor with the same CPUs, and so the same number of threads, on views of the
same photos, at the same precision and batch size. The two take turns. Starting up is left out: the job's clock runs
from the moment when its first shard is done until the last but one is, while there is always more to decode.
Goal: the job reaches 0.95 of the teacher alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import ray
import torch
import tyro

from benchmarks._common import show, write_json
from benchmarks._photos import pack_shard, photo_files
from benchmarks._teachers import save_random_teacher
from patchrank.pipeline.config import Precision, RowConfig
from patchrank.pipeline.config_file import config_to_yaml
from patchrank.pipeline.images import DECODER
from patchrank.pipeline.job_config import ScoreConfig
from patchrank.pipeline.progress import Totals
from patchrank.pipeline.score_request import make_request
from patchrank.pipeline.score_run import score
from patchrank.pipeline.scoring import Scorer, choose_precision
from patchrank.pipeline.shards import Sample
from patchrank.pipeline.teacher.checkpoint import TeacherFile, build_teacher
from patchrank.pipeline.view_feed import View, prepare

LEAST_SHARDS = 4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
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


class TeacherAlone:
    """The process of the teacher alone: what `ScoringActor` makes of a teacher, fed from memory."""

    def __init__(self, file: TeacherFile, rows: RowConfig, precision: str, batch_size: int | None) -> None:
        model, device = build_teacher(file, device=DEVICE), torch.device(DEVICE)
        self._precision = choose_precision(model, device) if precision == "auto" else precision
        self._rows, self._patch_size = rows, file.config.patch_size
        self._scorer = Scorer(model, precision=self._precision, device=device, batch_size=batch_size)
        self._batches: list[tuple[torch.Tensor, torch.Tensor]] = []

    def settings(self) -> dict[str, Any]:
        """What was chosen."""
        return {
            "precision": self._precision,
            "batch_size": self._scorer.batch_size,
            "threads": torch.get_num_threads(),
        }

    def load(self, files: list[bytes]) -> float:
        """Prepare batches of views of these photos; returns the seconds that preparing a view takes one core."""
        samples = [
            Sample(f"{number:08d}", {"jpg": file}, {"jpg": f"{number:08d}.jpg"})
            for number, file in enumerate(files)
        ]
        prepare(samples[0], self._rows, self._patch_size)
        started = time.thread_time()
        prepared = [prepare(sample, self._rows, self._patch_size) for sample in samples]
        views = [view for item in prepared if isinstance(item, list) for view in item]
        seconds = (time.thread_time() - started) / len(views)
        size = self._scorer.batch_size
        endless: itertools.cycle[View] = itertools.cycle(views)
        for _ in range(max(2, min(32, len(views) // size))):
            batch = list(itertools.islice(endless, size))
            pixels = torch.stack([view.pixels for view in batch])
            self._batches.append(
                (pixels, torch.stack([torch.from_numpy(view.visible) for view in batch]).long())
            )
        return seconds

    def run(self, seconds: float) -> float:
        """Score for so long, a batch at the least; views per second."""
        count, started = 0, time.perf_counter()
        for pixels, visible in itertools.cycle(self._batches):
            self._scorer.score(pixels, visible)
            count += len(pixels)
            if time.perf_counter() - started >= seconds:
                break
        return count / (time.perf_counter() - started)


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


def run_teacher(size: str, options: Options, folder: Path, files: list[bytes]) -> tuple[list[str], Any]:
    """Measure with one teacher; returns a row of the table and what the JSON holds."""
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
    return report(size, chosen, decoding, jobs, teachers, options)


def report(
    size: str,
    chosen: dict[str, Any],
    decoding: float,
    jobs: list[dict[str, float]],
    teachers: list[float],
    options: Options,
) -> tuple[list[str], Any]:
    """The row and the JSON of one teacher. `decoding`: core seconds of a view until the teacher has it."""
    rates = [job["views_per_second"] for job in jobs]
    ratios = [job / teacher for job, teacher in zip(rates, teachers, strict=True)]
    alone, ratio = statistics.median(teachers), statistics.median(ratios)
    # On a processor the same cores do both; a GPU leaves them to the decoders.
    bound = 1 / (1 + alone * decoding / options.threads) if DEVICE == "cpu" else 1.0
    row = [
        size,
        chosen["precision"],
        str(chosen["batch_size"]),
        f"{alone:.2f}",
        f"{statistics.median(rates):.2f}",
        f"{ratio:.3f}",
        f"{min(ratios):.3f}-{max(ratios):.3f}",
        f"{bound:.3f}",
        f"{statistics.median(job['waited_share'] for job in jobs):.1%}",
    ]
    return row, {
        **chosen,
        "teacher_views_per_second": teachers,
        "job": jobs,
        "ratios": ratios,
        "ratio": ratio,
        "decode_core_ms_per_view": 1000 * decoding,
        "ratio_if_cores_are_shared_without_loss": bound,
    }


def main(options: Options) -> None:
    """Measure, print a table, write the JSON."""
    files = photo_files(options.shards, options.photos)
    results, rows = {}, []
    ray.init(
        num_cpus=2 * options.threads,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=2 * 2**30,
    )
    with tempfile.TemporaryDirectory() as folder:
        for size in options.teachers:
            row, results[size] = run_teacher(size, options, Path(folder), files)
            rows.append(row)
    ray.shutdown()
    show(
        f"Views per second of the teacher alone and of the job: {len(files)} photos, {options.views} views each,\n"
        f"{options.threads} threads, {DEVICE}; bound: the ratio if decoding took its own time and nothing else did",
        [
            "teacher",
            "type",
            "batch",
            "alone/s",
            "job/s",
            "ratio",
            "from-to",
            "bound",
            "waited",
        ],
        rows,
    )
    source = list(options.shards) or "synthetic photos, 500 x 375"
    write_json({"score_job": results, "photos": len(files), "source": source}, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
