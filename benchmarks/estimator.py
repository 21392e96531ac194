"""What the frozen estimator loses and saves against exact scores, on photos with a trained teacher.

For each number of tokens K, 1, 2 and 4 partitions of the grid are scored by the same masks as exact scores. They are
compared with these within a view (Kendall's tau) and, patch by patch over the whole photo (Spearman, aggregate `log`),
with an exact reference from other partitions. Cost is nominal arithmetic; speed is measured in turns, on random views.
Goals, at an agreement within 0.01 of exact scores with the same masks: a third of their FLOPs, 2.5 times their speed; a
fifth of the FLOPs that exact scores with uniform masks take for that agreement.

    python -m benchmarks.estimator photos/held-out-*.tar
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from benchmarks._common import measure, ratio, show, write_json
from benchmarks._held_out import held_out_images
from benchmarks._teachers import SIZES, random_teacher
from patchsieve.pipeline.images.masks import draw_visible
from patchsieve.pipeline.images.patches import visible_count
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.row_config import FrozenTokens, Masks, Precision
from patchsieve.pipeline.scoring.aggregate import dense_scores
from patchsieve.pipeline.scoring.cost import gflop_per_view
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.ranker.evaluate.images import EvaluationImages
from patchsieve.ranker.evaluate.partitions import mean_of
from patchsieve.ranker.learning.agreement import kendall_tau, spearman
from patchsieve.ranker.model.ranker import RankerConfig

TOKENS: tuple[FrozenTokens | None, ...] = (8, 16, 30, 59, "all", None)
COUNTS = (1, 2, 4)
REFERENCE_SEED, SEED = 1, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Benchmark of the frozen estimator on this machine's processor."""

    shards: tyro.conf.Positional[tuple[str, ...]]
    """Shards of photos that the teacher was not trained on."""
    teacher: str = "tiny"
    """Teacher of the comparison, with trained weights."""
    photos: int = 32
    """Photos."""
    reference: int = 12
    """Partitions of the exact reference."""
    sizes: tuple[Literal["tiny", "mae-base"], ...] = ("tiny", "mae-base")
    """Random teachers whose speed is measured."""
    precision: Precision = "fp32"
    """Arithmetic of the teachers."""
    batch_size: int | None = None
    """Views at once; measured by default."""
    rounds: int = 5
    """Rounds of the speed measurement; medians are reported."""
    threads: int | None = None
    """Threads of PyTorch; its own choice by default."""
    out: Path = Path("bench-out/estimator.json")
    """Results as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Partitions:
    """Scores of whole partitions: `visible` and `score` `[I, K, V]`, `views` of one partition."""

    visible: NDArray[np.int16]
    score: NDArray[np.float32]
    views: int

    def dense(self, count: int) -> NDArray[np.float32]:
        """One score per patch from the first `count` partitions, `[I, L]`."""
        taken = count * self.views
        return np.stack(
            [
                dense_scores(visible[:taken], score[:taken], 196, "log")
                for visible, score in zip(self.visible, self.score, strict=True)
            ]
        )


def score_partitions(
    scorer: Scorer, images: EvaluationImages, masks: Masks, count: int, *, seed: int, frozen: bool
) -> Partitions:
    """Score the first `count` partitions of every image."""
    grid = RankerConfig().grid
    views = -(-(grid**2) // scorer.visible)
    visible_IKV = np.stack(
        [
            [
                draw_visible(seed, key, view, grid=grid, count=scorer.visible, masks=masks, partition=True)
                for view in range(count * views)
            ]
            for key in images.keys
        ]
    )
    scores = []
    for image, (key, visible_KV) in enumerate(zip(images.keys, visible_IKV, strict=True)):
        starts = [
            KeyedRandom(seed, key, "frozen", view).uniform(scorer.visible) for view in range(len(visible_KV))
        ]
        pixels = images.patches[image].expand(len(visible_KV), -1, -1)
        scores.append(
            scorer.score(
                pixels, torch.from_numpy(visible_KV), torch.from_numpy(np.stack(starts)) if frozen else None
            ).numpy()
        )
    return Partitions(visible=visible_IKV, score=np.stack(scores), views=views)


def name_of(tokens: FrozenTokens | None) -> str:
    """A row's name in the tables."""
    return "exact" if tokens is None else f"frozen, K = {tokens}"


def compare(options: Options) -> dict[str, Any]:
    """Agreement and cost of every number of tokens."""
    images = held_out_images(options.shards, RankerConfig())
    images = images.take(list(range(min(options.photos, len(images)))))
    model = build_teacher(read_teacher(options.teacher))

    def partitions(tokens: FrozenTokens | None, masks: Masks, count: int, seed: int) -> Partitions:
        scorer = Scorer(
            model, precision=options.precision, batch_size=options.batch_size or 11, frozen_tokens=tokens
        )
        return score_partitions(scorer, images, masks, count, seed=seed, frozen=tokens is not None)

    reference = partitions(None, "spread", options.reference, REFERENCE_SEED).dense(options.reference)
    exact = partitions(None, "spread", max(COUNTS), SEED)
    uniform = partitions(None, "uniform", max(COUNTS), SEED)
    results: dict[str, Any] = {}
    visible = visible_count(model.config.positions, 0.9)

    def add(name: str, scored: Partitions, tokens: FrozenTokens | None) -> None:
        taus = kendall_tau(scored.score.reshape(-1, visible), exact.score.reshape(-1, visible))
        results[name] = {
            "gflop_per_view": gflop_per_view(model.config, visible, "decoder", tokens),
            "agreement": {n: mean_of(spearman(scored.dense(n), reference)) for n in COUNTS},
            # Other masks are other views.
            "tau": None if scored is uniform else mean_of(taus),
        }
        print(name, results[name], flush=True)

    add("exact, uniform masks", uniform, None)
    for tokens in TOKENS:
        scored = exact if tokens is None else partitions(tokens, "spread", max(COUNTS), SEED)
        add(name_of(tokens), scored, tokens)
    return {
        "photos": len(images),
        "reference": options.reference,
        "teacher": options.teacher,
        "rows": results,
    }


def speed(size: str, options: Options) -> dict[str, dict[str, float]]:
    """How many times faster than exact scores each number of tokens is, and views per second."""
    model: MaskedAutoencoder = random_teacher(size)
    config = SIZES[size]
    visible = visible_count(config.positions, 0.9)
    generator = torch.Generator().manual_seed(0)
    scorers = {
        name_of(tokens): Scorer(
            model, precision=options.precision, batch_size=options.batch_size, frozen_tokens=tokens
        )
        for tokens in TOKENS
    }
    count = max(scorer.batch_size for scorer in scorers.values())
    shape = (count, config.positions, config.patch_values)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    shown = torch.rand(count, config.positions, generator=generator).argsort(1)[:, :visible]
    starts = torch.rand(count, visible, generator=generator, dtype=torch.float64)
    runs = {
        name: (
            lambda scorer=scorer, name=name: scorer.score(pixels, shown, None if name == "exact" else starts)
        )
        for name, scorer in scorers.items()
    }
    seconds = measure(runs, options.rounds)
    return {
        name: {
            "batch_size": scorers[name].batch_size,
            "views_per_second": count / float(np.median(times)),
            "times_exact": ratio(seconds, name, "exact"),
        }
        for name, times in seconds.items()
    }


def partitions_for(agreement: float, row: dict[str, Any]) -> float | None:
    """Partitions that reach an agreement, linear in their logarithm between those measured; None beyond them."""
    measured = [row["agreement"][n] for n in COUNTS]
    if not measured[0] <= agreement <= measured[-1]:
        return None
    return float(2 ** np.interp(agreement, measured, np.log2(COUNTS)))


def add_savings(rows: dict[str, Any]) -> None:
    """How many times more FLOPs exact scores take for the agreement that one, two and four partitions reach."""
    for row in rows.values():
        for name, other in (("same masks", "exact"), ("uniform masks", "exact, uniform masks")):
            needed = {n: partitions_for(row["agreement"][n], rows[other]) for n in COUNTS}
            row[f"savings, {name}"] = {
                n: None
                if found is None
                else found * rows[other]["gflop_per_view"] / (n * row["gflop_per_view"])
                for n, found in needed.items()
            }


def written(value: float | None, digits: int = 3) -> str:
    """A number of a table."""
    return "-" if value is None else f"{value:.{digits}f}"


def main(options: Options) -> None:
    """Compare, measure, print tables, write the JSON."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    found = compare(options)
    rows = found["rows"]
    add_savings(rows)
    show(
        f"{found['teacher']} on {found['photos']} photos, reference of {found['reference']} partitions",
        ["", "GFLOP", "tau", *(f"{n} part." for n in COUNTS), "saves, same masks", "saves, uniform"],
        [
            [
                name,
                written(row["gflop_per_view"], 2),
                written(row["tau"]),
                *(written(row["agreement"][n]) for n in COUNTS),
                *(
                    " ".join(written(row[f"savings, {masks} masks"][n], 1) for n in COUNTS)
                    for masks in ("same", "uniform")
                ),
            ]
            for name, row in rows.items()
        ],
    )
    results: dict[str, Any] = {"agreement": found, "speed": {}}
    for size in options.sizes:
        results["speed"][size] = measured = speed(size, options)
        config = SIZES[size]
        shown = visible_count(config.positions, 0.9)
        exact = gflop_per_view(config, shown, "decoder")
        costs = {name_of(tokens): gflop_per_view(config, shown, "decoder", tokens) for tokens in TOKENS}
        show(
            f"{size}: {exact:.1f} GFLOP per view for exact scores",
            ["", "batch", "GFLOP", "fewer FLOPs", "views/s", "times exact"],
            [
                [
                    name,
                    str(row["batch_size"]),
                    f"{costs[name]:.2f}",
                    f"{exact / costs[name]:.2f}",
                    f"{row['views_per_second']:.2f}",
                    f"{row['times_exact']:.2f}",
                ]
                for name, row in measured.items()
            ],
        )
    write_json({"estimator": results}, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
