"""Views per second of the teacher, against the published way (a loop over removals with masked attention).

All contenders take turns in one run on the same views, each at the batch size that it measures as its fastest. The
weights are random: speed does not depend on them. Goals: at least 1.25 times the published way in fp32; auto
precision never slower than fp32; on processors with AMX at least 3 times the published way in fp32.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from benchmarks._common import measure, ratio, show, write_json
from benchmarks._published import published_scores
from benchmarks._teachers import SIZES, random_teacher
from patchrank.pipeline.capacity import choose_batch_size
from patchrank.pipeline.patches import visible_count
from patchrank.pipeline.scoring import Scorer, choose_precision, gflop_per_view
from patchrank.pipeline.teacher.model import MaskedAutoencoder, TeacherConfig

PUBLISHED, FP32, AUTO = "published way, fp32", "patchrank, fp32", "patchrank, auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Benchmark of the teacher on this machine's processor."""

    sizes: tuple[Literal["tiny", "mae-base"], ...] = ("tiny", "mae-base")
    """Teachers to run."""
    rounds: int = 5
    """Rounds; medians are reported."""
    seconds: float = 1.0
    """Work of one contender in one round, about; more views are scored until it is reached."""
    threads: int | None = None
    """Threads of PyTorch; its own choice by default."""
    out: Path = Path("bench-out/teacher.json")
    """Results as JSON."""


def views(config: TeacherConfig, count: int, visible: int) -> tuple[Tensor, Tensor]:
    """Random pixels and masks."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, config.positions, config.patch_values)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    order = torch.rand(count, config.positions, generator=generator).argsort(1)
    return pixels, order[:, :visible].sort(1).values


def published_batch_size(model: MaskedAutoencoder, visible: int) -> int:
    """The batch size that is fastest for the published way, found as `Scorer` finds its own."""

    def seconds_per_view(count: int) -> float:
        pixels, places = views(model.config, count, visible)
        best = float("inf")
        for _ in range(2):
            started = time.perf_counter()
            published_scores(model, pixels, places)
            best = min(best, time.perf_counter() - started)
        return best / count

    return choose_batch_size(seconds_per_view, largest=16, budget=3.0)


def run_size(size: str, options: Options) -> dict[str, Any]:
    """Measure one teacher; returns what the JSON holds of it."""
    config = SIZES[size]
    model = random_teacher(size)
    visible = visible_count(config.positions, 0.9)
    precision = choose_precision(model, torch.device("cpu"))
    scorers = {FP32: Scorer(model), AUTO: Scorer(model, precision=precision)}
    batch = {name: scorer.batch_size for name, scorer in scorers.items()}
    batch = {PUBLISHED: published_batch_size(model, visible), **batch}
    pixels, places = views(config, max(batch.values()), visible)

    started = time.perf_counter()
    expected = published_scores(model, pixels, places)
    repeats = max(1, round(options.seconds / (time.perf_counter() - started)))
    error = ((scorers[FP32].score(pixels, places) - expected) / expected).abs().max()
    assert error < 1e-4, f"the two ways disagree by {error}"

    def published() -> None:
        for _ in range(repeats):
            for part, where in zip(
                pixels.split(batch[PUBLISHED]), places.split(batch[PUBLISHED]), strict=True
            ):
                published_scores(model, part, where)

    def ours(scorer: Scorer) -> Callable[[], None]:
        def run() -> None:
            for _ in range(repeats):
                scorer.score(pixels, places)

        return run

    seconds = measure(
        {PUBLISHED: published, **{name: ours(scorer) for name, scorer in scorers.items()}}, options.rounds
    )
    count, gflop = repeats * len(pixels), gflop_per_view(config, visible, "decoder")
    speed = {name: count / statistics.median(times) for name, times in seconds.items()}
    ratios = {name: ratio(seconds, name, PUBLISHED) for name in seconds}
    show(
        f"{size}: {visible} of {config.positions} patches visible, {gflop:.1f} GFLOP per view, auto is {precision}",
        ["", "batch", "views/s", "GFLOP/s", "times published"],
        [
            [
                name,
                str(batch[name]),
                f"{speed[name]:.2f}",
                f"{speed[name] * gflop:.0f}",
                f"{ratios[name]:.2f}",
            ]
            for name in seconds
        ],
    )
    return {
        "gflop_per_view": gflop,
        "auto_precision": precision,
        "batch_size": batch,
        "views_per_second": speed,
        "times_published": ratios,
        "auto_times_fp32": ratio(seconds, AUTO, FP32),
        "seconds": seconds,
        "views_per_round": count,
    }


def main(options: Options) -> None:
    """Run all sizes, print tables, write the JSON."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    results = {size: run_size(size, options) for size in options.sizes}
    write_json({"teacher": results}, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
