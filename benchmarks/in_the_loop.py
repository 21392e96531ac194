"""Training from a table against the published way, with the teacher in the loop: wall time and teacher FLOPs.

    python -m benchmarks.in_the_loop TRAIN_SHARDS... --held-out SHARDS --dense FOLDER [--views 1 2 4]

Both fit the same ranker by the same recipe to the same photos. In the loop, every step draws fresh views and has the
teacher score them; from a table, views are scored once and read again. `--dense`: a table of
`patchsieve score --crop center --masks spread` of the held-out photos, which both are measured against. The loop is
given our own scoring, which is faster than the published one: the comparison is of paying once with paying again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._common import show, write_json
from benchmarks._held_out import held_out_images, keyed_photos
from patchsieve.pipeline.images.masks import draw_visible
from patchsieve.pipeline.images.patches import patchify, take_patches
from patchsieve.pipeline.images.views import apply_view, draw_view
from patchsieve.pipeline.scoring.api import Teacher, load_teacher
from patchsieve.pipeline.scoring.cost import gflop_per_view
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.ranker.batches.batch import Batch
from patchsieve.ranker.evaluate.dense import DenseTeacher
from patchsieve.ranker.evaluate.dense_table import read_dense
from patchsieve.ranker.learning.agreement import spearman
from patchsieve.ranker.learning.training import Recipe, Training
from patchsieve.ranker.model.initial_weights import initial_ranker
from patchsieve.ranker.model.ranker import RankerConfig

SEED = 0
MEASURE_EVERY = 10


class Views:
    """Random views of photos in memory, scored by the teacher; counts what scoring takes."""

    def __init__(self, photos: Sequence[tuple[str, Tensor]], teacher: Teacher) -> None:
        self._photos, self._teacher = photos, teacher
        self._scorer = Scorer(
            teacher.model,
            mask_ratio=0.9,
            removal="decoder",
            metric="l1",
            precision=teacher.precision,
            device=teacher.device,
            batch_size=16,
        )
        self.count = len(photos)
        self.visible = self._scorer.visible
        self.gflop = gflop_per_view(teacher.file.config, self.visible, "decoder")

    def score(self, chosen: Sequence[tuple[int, int]]) -> Batch:
        """The views (photo, view number) as a batch of their visible patches, with scores."""
        config = self._teacher.file.config
        pixels, visible = [], []
        for photo, view in chosen:
            key, image = self._photos[photo]
            height, width = image.shape[1:]
            size = config.image_size
            box = draw_view(SEED, key, view, height=height, width=width, crop="random", size=size)
            pixels.append(patchify(apply_view(image, box, size)[None], config.patch_size)[0])
            drawn = draw_visible(
                SEED, key, view, grid=config.grid, count=self.visible, masks="spread", partition=False
            )
            visible.append(torch.from_numpy(drawn).long())
        views_NLP, visible_NV = torch.stack(pixels), torch.stack(visible)
        return Batch(
            epoch=0,
            step=0,
            patches=take_patches(views_NLP, visible_NV),
            positions=visible_NV,
            scores=self._scorer.score(views_NLP, visible_NV),
            sample_keys=tuple(self._photos[photo][0] for photo, _ in chosen),
            views=tuple(view for _, view in chosen),
        )


def shuffled(count: int, size: int) -> Iterator[tuple[int, list[int]]]:
    """Batches of `size` of `count` things, pass after pass in new orders: (pass, indices)."""
    order = np.random.default_rng(SEED)
    epoch = 0
    while True:
        indices = order.permutation(count)
        for start in range(0, count - size + 1, size):
            yield epoch, indices[start : start + size].tolist()
        epoch += 1


def in_the_loop(views: Views, size: int) -> Iterator[Batch]:
    """A fresh view of every photo in every pass."""
    for epoch, photos in shuffled(views.count, size):
        yield views.score([(photo, epoch) for photo in photos])


def from_table(views: Views, per_image: int, size: int) -> Iterator[Batch]:
    """`per_image` views of every photo, scored before the first batch is drawn."""
    table = views.score([(photo, view) for photo in range(views.count) for view in range(per_image)])
    for _, rows in shuffled(len(table), size):
        yield Batch(
            epoch=0,
            step=0,
            patches=table.patches[rows],
            positions=table.positions[rows],
            scores=table.scores[rows],
            sample_keys=(),
            views=(),
        )


def fit(batches: Iterator[Batch], dense: DenseTeacher, recipe: Recipe) -> list[tuple[int, float, float]]:
    """(step, seconds so far without measuring, agreement) along one training."""
    config = RankerConfig(model="vit_tiny_patch16_224", head="token", depth=4)
    ranker = initial_ranker(config, "teacher", teacher=load_teacher("tiny").file, seed=SEED)
    training = Training(ranker, recipe, device=torch.device("cpu"), half=torch.bfloat16, full=False)
    curve, seconds = [], 0.0
    while training.step < recipe.steps:
        started = time.perf_counter()
        training.train_step([next(batches)])
        seconds += time.perf_counter() - started
        if training.step % MEASURE_EVERY == 0:
            found = torch.cat([training.predict(part) for part in dense.patches.split(25)]).numpy()
            curve.append((training.step, seconds, float(np.nanmean(spearman(found, dense.dense)))))
    return curve


def main() -> None:
    """Train both ways and compare at equal agreement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--held-out", nargs="+", required=True)
    parser.add_argument("--dense", required=True)
    parser.add_argument("--images-per-shard", type=int, default=16)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path, default=Path("bench-out/in_the_loop.json"))
    options = parser.parse_args()
    teacher = load_teacher("tiny", precision=options.precision)
    photos = keyed_photos(options.shards, options.images_per_shard)
    views = Views([(key, image) for key, _, image in photos], teacher)
    held_out = held_out_images(options.held_out, RankerConfig())
    dense = read_dense(options.dense, held_out, digest=teacher.file.digest, aggregate="log")
    recipe = Recipe(
        loss="list_mle",
        target=None,
        base_lr=3e-4 * 256 / options.batch_size,
        weight_decay=0.05,
        beta2=0.95,
        warmup_steps=options.steps // 10,
        steps=options.steps,
        batch_size=options.batch_size,
        accumulate=1,
        clip=1.0,
    )
    runs: dict[str, Any] = {"in the loop": in_the_loop(views, options.batch_size)}
    for count in options.views:
        runs[f"table, {count} views"] = from_table(views, count, options.batch_size)
    scored = {"in the loop": options.steps * options.batch_size}
    scored |= {f"table, {count} views": count * views.count for count in options.views}
    curves = {name: fit(batches, dense, recipe) for name, batches in runs.items()}
    results = compare(curves, scored, views.gflop, options.steps * options.batch_size)
    write_json({"arms": results, "photos": views.count, "rho": dense.rho}, options.json)


def compare(
    curves: dict[str, list[tuple[int, float, float]]], scored: dict[str, int], gflop: float, samples: int
) -> dict[str, Any]:
    """Print and return what each way took, and at which step the loop had the agreement that the table ends with."""
    loop = curves["in the loop"]
    rows, results = [], {}
    for name, curve in curves.items():
        _, seconds, agreement = curve[-1]
        same = next(((s, t) for s, t, found in loop if found >= agreement - 0.02), None)
        views = scored[name]
        loop_views = samples * (same[0] if same else 0) / loop[-1][0]
        results[name] = {
            "agreement": agreement,
            "seconds": seconds,
            "teacher_views": views,
            "teacher_gflop": views * gflop,
            "loop_steps_to_within_0.02": same[0] if same else None,
            "loop_seconds_to_within_0.02": same[1] if same else None,
            "loop_gflop_to_within_0.02": loop_views * gflop,
            "curve": curve,
        }
        rows.append(
            [
                name,
                f"{agreement:.3f}",
                f"{seconds:.0f}",
                f"{views:,}",
                f"{views * gflop / 1000:,.1f}",
                f"{loop_views / views:.1f}x" if same else "not reached",
                f"{same[1] / seconds:.1f}x" if same else "not reached",
            ]
        )
    columns = [
        "training",
        "agreement",
        "seconds",
        "views scored",
        "teacher TFLOP",
        "loop's FLOP",
        "loop's time",
    ]
    show("the loop's columns: what it takes to come within 0.02 of the line's agreement", columns, rows)
    return results


if __name__ == "__main__":
    main()
