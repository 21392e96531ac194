"""What a score run would cost: counted on the first samples and measured for a few seconds on this machine."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from patchsieve.pipeline.compute.device import this_device
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.row_config import RowConfig
from patchsieve.pipeline.score.request import ScoreRequest
from patchsieve.pipeline.score.view_feed import prepare_views, views_here
from patchsieve.pipeline.scoring.batch import batch_of
from patchsieve.pipeline.scoring.cost import gflop_per_view
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.scoring.views import View
from patchsieve.pipeline.shards.reader import Sample, ShardReader, image_fields_of
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.tables.schema import predicted_bytes
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.ready import choose_precision
from patchsieve.pipeline.units import byte_size, duration

PROBED_SAMPLES = 64
PROBE_S = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Predictions for a run; `seconds` is None where no actor could be counted."""

    shards: int
    shard_bytes: int
    samples: int
    views: int
    precision: str
    views_per_s: float
    gflop_per_view: float
    table_bytes: int
    actors: int
    seconds: float

    def lines(self, request: ScoreRequest) -> list[str]:
        """What the dry run prints."""
        config, teacher = request.config, request.teacher
        shape = teacher.config
        per_shard = self.seconds * self.actors / max(1, self.shards)
        actors = "actor" if self.actors == 1 else "actors"
        lines = [
            f"shards    {self.shards:,}, {byte_size(self.shard_bytes)}",
            f"samples   about {self.samples:,}"
            + (f" ({config.sample:g} of all)" if config.sample < 1 else ""),
            f"teacher   {teacher.name} ({shape.depth} x {shape.width} + {shape.decoder_depth} x "
            f"{shape.decoder_width}, {shape.image_size} px, predicts {shape.output_space})",
            f"views     about {self.views:,}, {request.visible} of {shape.positions} patches visible, "
            f"{self.gflop_per_view:.3g} GFLOP each, {self.gflop_per_view * self.views:,.4g} GFLOP in all",
            f"table     about {byte_size(self.table_bytes)} beside {byte_size(self.shard_bytes)} of shards",
            f"speed     {self.views_per_s:.1f} views/s per actor in {self.precision}, on {_device_name()} here",
            f"time      about {duration(self.seconds)} with {self.actors} {actors}, {duration(per_shard)} per shard",
        ]
        if config.price_per_hour is not None:
            hours = self.seconds * self.actors / 3600
            lines.append(f"price     about {hours * config.price_per_hour:.2f} for {hours:.2f} actor hours")
        plain = config.estimator == "exact" and config.removal == "decoder" and config.metric in ("l1", "l2")
        if plain and config.crop == "random":
            lines.append(
                "cheaper   --estimator frozen, for a table to train on: 0.3 of the FLOPs, a ranker as good"
            )
        return [*lines, *request.notes]


def estimate(request: ScoreRequest) -> Estimate:
    """Count and measure; nothing is written and Ray is not started."""
    if not request.shards:
        raise UserError(f"--part {request.config.part} has no shard: there is nothing to measure")
    device = this_device()
    model = build_teacher(request.teacher, device=str(device))
    rows = request.known_rows(None) or request.rows(choose_precision(model, device))
    samples, found, read = _first_samples(request.shards, rows.image_field, unsorted=request.config.unsorted)
    total = sum(shard.size or 0 for shard in request.shards)
    counted = round(total / max(1, read) * found * rows.sample)
    decode = _prepared(samples, request, device)
    if not decode.views:
        raise UserError(f"none of the first {len(samples)} samples of {request.shards[0].name} gives a view")
    scorer = Scorer.for_rows(
        model, rows, device=device, batch_size=request.config.known_batch_size, compile=request.config.compile
    )
    teacher_rate = _teacher_rate(scorer, decode.views, rows)
    rate = (
        min(teacher_rate, decode.views_per_s)
        if device.type == "cuda"
        else 1
        / (
            # On a processor decoding and scoring share the cores.
            1 / teacher_rate + 1 / decode.views_per_s
        )
    )
    actors = request.config.max_actors or max(1, torch.cuda.device_count())
    views = counted * rows.views
    return Estimate(
        shards=len(request.shards),
        shard_bytes=total,
        samples=counted,
        views=views,
        precision=rows.precision,
        views_per_s=rate,
        gflop_per_view=gflop_per_view(
            request.teacher.config, request.visible, rows.removal, rows.frozen_tokens
        ),
        table_bytes=predicted_bytes(
            images=counted,
            views=rows.views,
            visible=request.visible,
            patch_size=request.teacher.config.patch_size,
            size=rows.size,
            crop=rows.crop,
            store=rows.store,
        ),
        actors=actors,
        seconds=views / rate / actors,
    )


@dataclasses.dataclass(frozen=True)
class _Prepared:
    views: list[View]
    views_per_s: float


def _first_samples(
    shards: Sequence[Shard], image_fields: str, *, unsorted: bool
) -> tuple[list[Sample], int, int]:
    """The first samples of the corpus, without fields that are no images; how many lie in how many bytes of archive."""
    wanted = set(image_fields_of(image_fields))
    samples: list[Sample] = []
    found = read = 0
    for shard in shards:
        with ShardReader(
            shard, keep_fields=lambda field: field.lower() in wanted, unsorted=unsorted
        ) as reader:
            items = (item for item in reader if isinstance(item, Sample))
            here = list(itertools.islice(items, PROBED_SAMPLES - len(samples)))
            samples += here
            # Of an unsorted shard all was read for the first one.
            found += len(here) + (sum(1 for _ in items) if unsorted else 0)
            read += reader.position
        if len(samples) == PROBED_SAMPLES:
            break
    return samples, found, read


def _prepared(samples: Sequence[Sample], request: ScoreRequest, device: torch.device) -> _Prepared:
    rows = dataclasses.replace(request.rows("fp32"), sample=1.0)
    threads = (os.cpu_count() or 1) // max(1, torch.cuda.device_count())
    views_of = views_here(rows, request.teacher.config.patch_size)
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        items = list(pool.map(lambda sample: prepare_views(sample, rows.image_field, views_of), samples))
    seconds = time.perf_counter() - started
    views = [view for item in items if isinstance(item, list) for view in item]
    return _Prepared(views, len(views) / seconds)


def _teacher_rate(scorer: Scorer, views: Sequence[View], rows: RowConfig) -> float:
    batch = list(itertools.islice(itertools.cycle(views), scorer.batch_size))
    arguments = batch_of(batch, rows)
    scorer.score(*arguments)
    count, started = 0, time.perf_counter()
    while not count or time.perf_counter() - started < PROBE_S:
        scorer.score(*arguments)
        count += len(batch)
    return count / (time.perf_counter() - started)


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads"
