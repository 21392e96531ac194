"""Views per second of the teacher, beside the published way and as a share of what the machine can do at most.

All contenders take turns in one run on the same views. The published way is a loop over removals with masked attention,
in float32, under autocast and compiled by `torch.compile`. Then each saving of ours is undone by itself. Weights are
random: speed does not depend on them. The share is nominal: GFLOP per view as counted for plain passes over shortened
sequences, times views per second, over the rate that this run measures for matrix products; what was really executed
stands beside it. Goals on processors: 1.35 times the published way in float32 and 90 % of the rate; with AMX, in bf16,
twice the published way under autocast and half of the rate. On an H200: 60 % of the half-precision rate, three times
the published way.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks._common import measure, ratio, show, write_json
from benchmarks._executed import executed_gflop
from benchmarks._fresh_process import run_fresh
from benchmarks._published import decode, published_scores
from benchmarks._teachers import SIZES, random_teacher
from benchmarks._tricks import UNDO, giving_back, is_there
from benchmarks.limit import DTYPES, matrix_rate
from patchsieve.pipeline.compute.batch_size import choose_batch_size
from patchsieve.pipeline.compute.device import keep_freed_memory, this_device
from patchsieve.pipeline.compute.recorded import compiled as compile_whole
from patchsieve.pipeline.images.patches import visible_count
from patchsieve.pipeline.row_config import Precision, Removal
from patchsieve.pipeline.scoring.cost import gflop_per_view
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.teacher.architecture import TeacherConfig
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.pipeline.teacher.ready import choose_precision

PUBLISHED = "published way, fp32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Benchmark of the teacher on this machine's processor or GPU."""

    sizes: tuple[Literal["tiny", "mae-base", "mae-large", "mae-huge"], ...] = ("tiny", "mae-base")
    """Teachers to run."""
    removals: tuple[Removal, ...] = ("decoder", "encoder")
    """Removal modes; the published way does the first."""
    rounds: int = 5
    """Rounds; medians are reported."""
    seconds: float = 1.0
    """Work of one contender in one round, about; at least a batch."""
    threads: int | None = None
    """Threads of PyTorch; its own choice by default."""
    compiled: bool = True
    """The published way compiled, too (a minute per teacher and type), and on GPUs ours, as actors have it."""
    savings: bool = True
    """Each saving undone, too."""
    memory: bool = True
    """Peak memory of a process that scores, too (processors only)."""
    out: Path = Path("bench-out/teacher.json")
    """Results as JSON."""


def views(config: TeacherConfig, count: int, visible: int) -> tuple[Tensor, Tensor]:
    """Random pixels and masks."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, config.positions, config.patch_values)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    order = torch.rand(count, config.positions, generator=generator).argsort(1)
    return pixels, order[:, :visible].sort(1).values


Score = Callable[[Tensor, Tensor], Tensor]


def published_batch(score: Score, model: MaskedAutoencoder, visible: int) -> int:
    """The batch size that is fastest for the published way, found as `Scorer` finds its own."""

    def seconds_per_view(count: int) -> float:
        pixels, places = views(model.config, count, visible)
        best = float("inf")
        for _ in range(2):
            started = time.perf_counter()
            score(pixels, places)
            best = min(best, time.perf_counter() - started)
        return best / count

    largest = 16 if model.cls_token.device.type == "cpu" else 256
    return choose_batch_size(seconds_per_view, largest=largest, budget=3.0)


def published(
    model: MaskedAutoencoder, visible: int, half: str, compiled: bool
) -> dict[str, tuple[Score, int]]:
    """The published ways and their batch sizes."""
    halves = {PUBLISHED: None, f"published way, autocast {half}": DTYPES[half]}
    found: dict[str, tuple[Score, int]] = {}
    for name, dtype in halves.items():
        score = partial(published_scores, model, half=dtype)
        found[name] = (score, published_batch(score, model, visible))
    if compiled:
        fast = compile_whole(decode)
        for name, dtype in halves.items():
            score = partial(published_scores, model, half=dtype, decode=fast)
            found[f"{name}, compiled"] = (score, found[name][1])
    return {name: (giving_back(score), batch) for name, (score, batch) in found.items()}


def ours(
    model: MaskedAutoencoder, where: torch.device, removal: Removal, options: Options, chosen: Precision
) -> dict[str, tuple[Score, int]]:
    """Our scorers and their batch sizes: fp32 and what `auto` takes, as they are, compiled, and with savings undone."""
    make = partial(Scorer, model, removal=removal, device=where)
    found: dict[str, Scorer] = {}
    for precision in dict.fromkeys(("fp32", chosen)):
        name = f"patchsieve, {precision}"
        found[name] = make(precision=precision)
        remake = partial(make, precision=precision, batch_size=found[name].batch_size)
        if options.compiled and where.type == "cuda":
            found[f"{name}, compiled"] = remake(compile=True)
        if options.savings and removal == "decoder":
            for saving, undo in UNDO.items():
                if is_there(saving, precision, where):
                    found[f"{name}, not: {saving}"] = undo(remake)
    return {name: (scorer.score, scorer.batch_size) for name, scorer in found.items()}


def run_size(size: str, removal: Removal, options: Options) -> dict[str, Any]:
    """Measure one teacher; returns what the JSON holds of it."""
    where, config = this_device(), SIZES[size]
    model = random_teacher(size).to(where)
    visible = visible_count(config.positions, 0.9)
    chosen = choose_precision(model, where)
    half = "bf16" if where.type == "cpu" else "fp16"
    contenders = published(model, visible, half, options.compiled) if removal == "decoder" else {}
    contenders |= ours(model, where, removal, options, chosen)
    pixels, places = views(config, max(batch for _, batch in contenders.values()), visible)
    if removal == "decoder":
        expected = contenders[PUBLISHED][0](pixels, places)
        error = ((contenders["patchsieve, fp32"][0](pixels, places) - expected) / expected).abs().max()
        assert error < 1e-4, f"the two ways disagree by {error}"
    reference = next(iter(contenders.values()))[0]
    started = time.perf_counter()
    reference(pixels, places)
    repeats = max(1, round(options.seconds / (time.perf_counter() - started)))

    def work(score: Score, batch: int) -> None:
        for _ in range(repeats):
            for part, place in zip(pixels.split(batch), places.split(batch), strict=True):
                score(part, place)

    runs = {name: partial(work, score, batch) for name, (score, batch) in contenders.items()}
    seconds = measure(runs, options.rounds)
    rates = {name: matrix_rate(name, where) for name in dict.fromkeys(("fp32", half, chosen))}
    count, gflop = repeats * len(pixels), gflop_per_view(config, visible, removal)
    speed = {name: count / statistics.median(times) for name, times in seconds.items()}
    share = {name: value * gflop / rates[precision_of(name)] for name, value in speed.items()}
    executed = {
        name: executed_gflop(score, pixels[:batch], places[:batch])
        for name, (score, batch) in contenders.items()
        if "compiled" not in name
    }
    base = PUBLISHED if PUBLISHED in seconds else "patchsieve, fp32"
    ratios = {name: ratio(seconds, name, base) for name in seconds}
    show(
        f"{size}, removal {removal}: {visible} of {config.positions} patches visible, {gflop:.1f} GFLOP per view; "
        + ", ".join(f"{name} {rate:,.0f} GFLOP/s" for name, rate in rates.items()),
        ["", "batch", "views/s", "nominal GFLOP/s", "of the rate", "executed GFLOP/s", f"times {base}"],
        [
            [
                name,
                str(contenders[name][1]),
                f"{speed[name]:.2f}",
                f"{speed[name] * gflop:,.0f}",
                f"{share[name]:.0%}",
                f"{speed[name] * executed[name]:,.0f}" if name in executed else "-",
                f"{ratios[name]:.2f}",
            ]
            for name in seconds
        ],
    )
    memory = None
    if options.memory and where.type == "cpu":
        batch = contenders["patchsieve, fp32"][1]
        memory = run_fresh("score_views", {"size": size, "precision": "fp32", "batch_size": batch})
        print(f"peak memory of a process that scores {batch} views at once: {memory['peak'] / 1e6:,.0f} MB")
    return {
        "device": str(where),
        "gflop_per_view": gflop,
        "gflop_per_second": rates,
        "auto_precision": chosen,
        "batch_size": {name: batch for name, (_, batch) in contenders.items()},
        "views_per_second": speed,
        "share_of_rate": share,
        "executed_gflop_per_view": executed,
        "base": base,
        "times_base": ratios,
        "seconds": seconds,
        "views_per_round": count,
        "memory": memory,
    }


def precision_of(name: str) -> str:
    """The type that a contender's name holds."""
    return next(precision for precision in DTYPES if precision in name)


def main(options: Options) -> None:
    """Run all sizes, print tables, write the JSON."""
    keep_freed_memory()  # as actors do; the published ways do not
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    results = {}
    for size in options.sizes:
        for removal in options.removals:
            results[f"{size}, {removal}"] = run_size(size, removal, options)
            write_json({"teacher": results}, options.out)  # what is there, should time run out


if __name__ == "__main__":
    import tyro  # not where `gpu_check` runs this

    main(tyro.cli(Options, description=__doc__))
