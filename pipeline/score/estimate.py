"""What a score run would cost: counted on the first samples, and measured for a few seconds as an actor would work."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from patchsieve.pipeline.cluster.capacity import capacity_for
from patchsieve.pipeline.cluster.dry_run import DryRun
from patchsieve.pipeline.compute.device import short_name
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
class Probed:
    """What an actor measured. `read`: bytes of shards that held as many `samples`; `device`: its name."""

    rows: RowConfig
    samples: int
    read: int
    views_per_s: float
    device: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Predictions for a run. `where`: what measured the speed; `held`: actors that the cluster holds at most."""

    shards: int
    shard_bytes: int
    samples: int
    views: int
    precision: str
    views_per_s: float
    where: str
    gflop_per_view: float
    table_bytes: int
    actors: int
    held: int
    seconds: float

    def lines(self, request: ScoreRequest) -> list[str]:
        """What the dry run prints."""
        config, teacher = request.config, request.teacher
        shape = teacher.config
        per_shard = self.seconds * self.actors / max(1, self.shards)
        actors = f"{self.actors} actor{'' if self.actors == 1 else 's'}"
        if self.actors > self.held:
            actors += f" (there is room for {self.held})"
        lines = [
            f"shards    {self.shards:,}, {byte_size(self.shard_bytes)}",
            f"samples   about {self.samples:,}"
            + (f" ({config.sample:g} of all)" if config.sample < 1 else ""),
            f"teacher   {teacher.name} ({shape.depth} x {shape.width} + {shape.decoder_depth} x "
            f"{shape.decoder_width}, {shape.image_size} px, predicts {shape.output_space})",
            f"views     about {self.views:,}, {request.visible} of {shape.positions} patches visible, "
            f"{self.gflop_per_view:.3g} GFLOP each, {self.gflop_per_view * self.views:,.4g} GFLOP in all",
            f"table     about {byte_size(self.table_bytes)} beside {byte_size(self.shard_bytes)} of shards",
            f"speed     {self.views_per_s:.1f} views/s per actor in {self.precision}, on {self.where}",
            f"time      about {duration(self.seconds)} with {actors}, {duration(per_shard)} per shard",
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


def estimate(request: ScoreRequest, run: DryRun) -> Estimate:
    """Count, and measure where `run` says; nothing is written."""
    config = request.config
    if not request.shards:
        raise UserError(f"--part {config.part} has no shard: there is nothing to measure")
    capacity = capacity_for(config, run.nodes, autoscaler_gpus=run.autoscaler.gpus)
    probed, place = run.measure(
        partial(probe, request=request, decode_threads=capacity.size.cpus),
        capacity.size,
        not_on=capacity.not_on,
    )
    rows, total = probed.rows, sum(shard.size or 0 for shard in request.shards)
    counted = round(total / max(1, probed.read) * probed.samples * rows.sample)
    held = max(1, capacity.slots, capacity.coming)
    actors = min(config.max_actors or held, len(request.shards))
    views = counted * rows.views
    return Estimate(
        shards=len(request.shards),
        shard_bytes=total,
        samples=counted,
        views=views,
        precision=rows.precision,
        views_per_s=probed.views_per_s,
        where=f"{probed.device} of {place}",
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
        held=held,
        seconds=views / probed.views_per_s / actors,
    )


def probe(device: torch.device, *, request: ScoreRequest, decode_threads: int) -> Probed:
    """Score the first samples for some seconds, as an actor with this device and these threads does."""
    model = build_teacher(request.teacher, device=str(device))
    rows = request.known_rows(None) or request.rows(choose_precision(model, device))
    samples, found, read = _first_samples(request.shards, rows.image_field, unsorted=request.config.unsorted)
    decode = _prepared(samples, request, decode_threads)
    if not decode.views:
        raise UserError(f"none of the first {len(samples)} samples of {request.shards[0].name} gives a view")
    scorer = Scorer.for_rows(
        model, rows, device=device, batch_size=request.config.known_batch_size, compile=request.config.compile
    )
    teacher_rate = _teacher_rate(scorer, decode.views, rows)
    # On a processor decoding and scoring share the cores.
    shared = 1 / (1 / teacher_rate + 1 / decode.views_per_s)
    on_gpu = device.type == "cuda"
    return Probed(
        rows=rows,
        samples=found,
        read=read,
        views_per_s=min(teacher_rate, decode.views_per_s) if on_gpu else shared,
        device=short_name(device),
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


def _prepared(samples: Sequence[Sample], request: ScoreRequest, threads: int) -> _Prepared:
    rows = dataclasses.replace(request.rows("fp32"), sample=1.0)
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
