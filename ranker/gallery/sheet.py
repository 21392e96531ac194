"""A sheet of photos, heat maps and kept patches: `patchsieve sheet`, and the same for notebooks.

Shape suffixes: L patches of an image, S side of a picture in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from patchsieve.pipeline import storage
from patchsieve.pipeline.checks import configured
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.views import apply_view, center_box
from patchsieve.pipeline.pictures import sheet as drawing
from patchsieve.pipeline.pictures.contact_sheet import only_patches
from patchsieve.pipeline.pictures.rows import as_picture
from patchsieve.pipeline.pictures.sheet import (
    Pixels,
    Sheet,
    SheetColumn,
    SheetRow,
    heat_over,
    picture_file,
)
from patchsieve.pipeline.scoring.api import as_pixels
from patchsieve.pipeline.units import counted
from patchsieve.ranker.gallery.config import SheetConfig
from patchsieve.ranker.gallery.gather import gather, open_ranker
from patchsieve.ranker.gallery.photos import Photos
from patchsieve.ranker.gallery.pictured import Pictured
from patchsieve.ranker.gallery.sources import find_sources
from patchsieve.ranker.learning.agreement import Scores

SIDE = 224


def draw_sheet(path: str, *, key: str | None = None, **options: Any) -> Image.Image:
    """A picture of a table, a pruned set or shards, for notebooks; `options`: those of `patchsieve sheet`, by name.

        draw_sheet("tables/train", ranker="tiny", top=4)

    Raises UserError as the command does.
    """
    return Image.fromarray(draw(configured(SheetConfig, options, path=path, key=key)))


def draw_heat_map(image: Any, scores: Any, *, share: float = 0.6, side: int = SIDE) -> Image.Image:
    """The heat map of an image's scores laid over its centre crop, a PIL picture of `side` pixels, for notebooks.

        draw_heat_map(image, patchsieve.score_images([image])[0])             # the teacher's
        draw_heat_map(image, patchsieve.rank_images([image], ranker)[0])      # a ranker's

    `image`: what `score_images` takes; `scores`: its `ImageScores`, or an array `[L]` or `[G, G]`, NaN where nothing is
    known. `share`: how much of the colour is the map's. Raises UserError for scores of no square grid.
    """
    dense = np.asarray(scores.heat_map() if hasattr(scores, "heat_map") else scores, np.float32).reshape(-1)
    grid = math.isqrt(dense.size)
    if not dense.size or grid**2 != dense.size:
        raise UserError(f"{dense.size} scores are of no square grid of patches")
    pixels = as_pixels(image)
    crop = apply_view(pixels, center_box(pixels.shape[1], pixels.shape[2], size=side), side)
    return Image.fromarray(heat_over(as_picture(crop), dense.reshape(grid, grid), share=share))


def write_sheet(config: SheetConfig, *, run_id: str) -> list[str]:
    """Draw the sheet into `--out`; returns what to tell."""
    images, shown = _gathered(config)
    picture = drawing.draw_sheet(_sheet(images, config, shown))
    storage.commit_bytes(picture_file(picture), storage.absolute_url(config.out), run_id=run_id)
    lines = [f"written    {storage.redact(config.out)}, {picture.shape[1]} x {picture.shape[0]} px"]
    if not config.images and any(one.origin == "table" and not one.shown.all() for one in images):
        lines.append("photos     the table knows the patches that were visible: --images SHARDS shows all")
    return lines


def draw(config: SheetConfig) -> Pixels:
    """The sheet, uint8 `[H, W, 3]`; UserError where there is nothing to draw."""
    images, shown = _gathered(config)
    return drawing.draw_sheet(_sheet(images, config, shown))


def _gathered(config: SheetConfig) -> tuple[Sequence[Pictured], str]:
    """The images of the sheet, and how its source is shown."""
    source = find_sources([config.path])[0]
    if source.kind not in ("table", "pruned", "shards"):
        raise UserError(
            f"{source.shown} is a {source.kind}: a sheet takes a table, a pruned dataset or shards"
        )
    if config.images and source.kind == "shards":
        raise UserError("--images are the photos of a table or a pruned dataset: leave it out")
    if config.ranker is not None and source.kind == "pruned":
        raise UserError(
            "--ranker does nothing with a pruned dataset, which holds the scores it was pruned by"
        )
    specs = (config.path,) if source.kind == "shards" else config.images
    images = gather(
        [source],
        count=config.rows,
        ranker=None if config.ranker is None else open_ranker(config.ranker),
        photos=Photos(specs, root=config.root, unsorted=config.unsorted) if specs else None,
        key=config.key,
        order="top" if config.top else "bottom" if config.bottom else None,
    )
    if not images:
        raise UserError(f"{source.shown} holds no image that can be drawn")
    return images, source.shown


def _sheet(images: Sequence[Pictured], config: SheetConfig, shown: str) -> Sheet:
    names = [name for name in ("teacher", "ranker") if any(getattr(one, name) is not None for one in images)]
    titles = {"teacher": "Teacher's scores", "ranker": "Ranker's scores"}
    details = {"teacher": "bright: missed most when left out", "ranker": "bright: kept first"}
    stays = config.keep is None and images[0].origin == "pruned"
    ratio = config.keep or (1.0 if stays else 0.5)
    kept = [one.kept(ratio) for one in images]
    share = np.mean([keep.mean() for keep in kept])
    columns = [
        SheetColumn(title="Photo", detail="what is known of it"),
        *(SheetColumn(title=titles[name], detail=details[name]) for name in names),
        SheetColumn(
            title="What stays" if stays else f"Keep {ratio:g}",
            detail=f"{share:.1%} of the patches, by {names[-1]}",
        ),
    ]
    rows = []
    for one, keep in zip(images, kept, strict=True):
        photo = resized(one.pixels, SIDE)
        heats = [heat_over(photo, _grid_of(getattr(one, name), one), share=0.75) for name in names]
        caption = f"{one.key}  ({one.detail}{_agreement(one)})"
        rows.append(SheetRow(tiles=(photo, *heats, only_patches(photo, keep)), caption=caption))
    return Sheet(
        title="patchsieve sheet",
        subtitle=f"{counted(len(images), 'image')} of {shown}",
        columns=columns,
        rows=rows,
        scale_column=1,
        low="low score",
        high="high score",
        note="Colours: scores from the 2nd to the 98th percentile of each photo. Gray: not known, or dropped.",
    )


def _grid_of(scores_L: Scores | None, image: Pictured) -> Scores:
    """Scores `[G, G]`, NaN where an image has none."""
    known = np.full(len(image.shown), np.nan, np.float32) if scores_L is None else scores_L
    return known.reshape(image.grid, image.grid)


def _agreement(image: Pictured) -> str:
    found = image.agreement()
    return f", agreement {found:.2f}" if math.isfinite(found) else ""


def resized(pixels: Pixels, side: int) -> Pixels:
    """The picture `[S, S, 3]` at another side."""
    if len(pixels) == side:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))
