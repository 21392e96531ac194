"""How good a teacher is on photos: reconstruction beside trivial predictors, and how far its scores repeat.

    python -m benchmarks.reconstruction [SHARDS ...] [--teacher tiny] [--picture sheet.png]

Without shards it takes the photographs that scikit-image ships, which the bundled teacher never saw. Repeatability is
Spearman's rank correlation within a photo between scores of different masks, averaged over the photos: every
patch once against every patch once (one partition of the grid), and two partitions against two.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks._common import show, write_json
from benchmarks._reconstructions import reconstructed_photos, reconstruction_sheet
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.pictures.demo_photos import find_photos
from patchsieve.pipeline.pictures.sheet import draw_sheet, picture_file
from patchsieve.pipeline.pretrain.job import load_photos
from patchsieve.pipeline.pretrain.report import reconstruction_errors, teacher_prediction
from patchsieve.pipeline.row_config import Masks
from patchsieve.pipeline.scoring.aggregate import dense_scores
from patchsieve.pipeline.scoring.api import Teacher, load_teacher, score_images

PREDICTORS = {
    "teacher": "the teacher",
    "nearest_visible": "mean of the nearest visible patch",
    "mean_visible": "mean of the visible patches",
    "zero": "zero",
}
PARTITIONS = 4


def ranks(values: NDArray[Any]) -> NDArray[np.int64]:
    """Rank of each value along the last axis."""
    return values.argsort(-1, kind="stable").argsort(-1, kind="stable")


def spearman(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Spearman's rank correlation of two vectors without ties."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def repeatability(teacher: Teacher, photos: list[Tensor], masks: Masks) -> dict[str, float]:
    """Agreement of one partition with another, and of two with two."""
    positions, visible = teacher.file.config.positions, int(teacher.file.config.positions * 0.1 + 1e-6)
    views = -(-positions // visible)
    one: list[float] = []
    two: list[float] = []
    for scores in score_images(photos, teacher, views=PARTITIONS * views, masks=masks, batch_size=views):
        maps = [
            dense_scores(
                scores.visible[n * views : (n + 1) * views],
                scores.score[n * views : (n + 1) * views],
                positions,
            )
            for n in range(PARTITIONS)
        ]
        one += [spearman(a, b) for a, b in itertools.combinations(maps, 2)]
        two.append(spearman(maps[0] + maps[1], maps[2] + maps[3]))
    return {"one": float(np.mean(one)), "two": float(np.mean(two))}


def main() -> None:
    """Measure, print, write JSON and, if asked, a picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", nargs="*")
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--mask-ratio", type=float, default=0.75)
    parser.add_argument("--repeat-photos", type=int, default=8, help="photos for the repeatability of scores")
    parser.add_argument("--picture", help="PNG of reconstructions of the first photos")
    parser.add_argument("--picture-photos", type=int, default=8)
    parser.add_argument("--out", default="bench-out/reconstruction.json")
    options = parser.parse_args()
    teacher = load_teacher(options.teacher, precision="fp32")
    config = teacher.file.config
    if options.shards:
        photos = load_photos(options.shards, round(config.image_size * 8 / 7))
        names = [f"photo {number}" for number in range(len(photos))]
    else:
        found = find_photos(None)
        names, photos = [n for n, _ in found], [decode_image(path.read_bytes()) for _, path in found]
    errors = reconstruction_errors(
        photos,
        teacher_prediction(teacher.model),
        size=config.image_size,
        patch_size=config.patch_size,
        mask_ratio=options.mask_ratio,
    )
    explained = errors.explained
    rows = [
        (PREDICTORS[name], f"{getattr(errors, name):.3f}", f"{explained[name]:.0%}") for name in PREDICTORS
    ]
    title = f"{len(photos)} photos, {options.mask_ratio:.0%} hidden, centre crop, {teacher.file.name}"
    show(title, ("predictor", "squared error", "variance explained"), rows)
    repeated = {
        masks: repeatability(teacher, photos[: options.repeat_photos], masks) for masks in get_args(Masks)
    }
    lines = [(masks, f"{value['one']:.2f}", f"{value['two']:.2f}") for masks, value in repeated.items()]
    show("repeatability of scores (Spearman)", ("masks", "one partition", "two partitions"), lines)
    results = {"photos": len(photos), "errors": dataclasses.asdict(errors), "explained": explained}
    write_json({**results, "repeatability": repeated}, Path(options.out))
    if options.picture:
        chosen = slice(0, options.picture_photos)
        drawn = reconstructed_photos(
            teacher.model, photos[chosen], names[chosen], mask_ratio=options.mask_ratio
        )
        sheet = reconstruction_sheet(
            drawn,
            positions=config.positions,
            title=f"Reconstructions by {teacher.file.name}",
            subtitle="photos that were not in its training",
        )
        scratch = Path(options.picture)
        scratch.write_bytes(picture_file(draw_sheet(sheet)))
        print(f"written: {scratch}")


if __name__ == "__main__":
    main()
