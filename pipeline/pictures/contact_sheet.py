"""What a teacher makes of photographs, at a glance: scores, the patches behind them, reconstructions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.pictures.sheet import (
    HIDDEN_GRAY,
    Pixels,
    Sheet,
    SheetColumn,
    SheetRow,
    colours,
    enlarge,
    stretch,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredPhoto:
    """One row of a contact sheet. S: side of the view in pixels, V: visible patches, L: patches of the grid.

    `view`: uint8 `[S, S, 3]`; `known`: bool `[L]`, patches whose pixels and scores there are; `scores`: `[S, S]`, NaN
    where there is none; `visible`: `[V]`, patches shown in one view; `reconstruction`: uint8 `[S, S, 3]`.
    """

    caption: str
    view: Pixels
    known: NDArray[np.bool_]
    scores: NDArray[np.float32]
    visible: NDArray[np.int16]
    reconstruction: Pixels


def only_patches(picture: Pixels, shown: NDArray[np.bool_]) -> Pixels:
    """The picture `[S, S, 3]` with all patches gray but those `shown`, bool `[L]`."""
    kept = enlarge(_square(shown), len(picture))[..., None]
    return np.where(kept, picture, np.uint8(HIDDEN_GRAY))


def best_half(scores: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The half of the patches, bool `[L]`, with the highest mean of the scores `[S, S]`; ties: the first ones."""
    grid = round(len(known) ** 0.5)
    side = len(scores) // grid
    cells = scores.reshape(grid, side, grid, side).mean((1, 3), dtype=np.float64).reshape(-1)
    order = np.argsort(np.where(known & ~np.isnan(cells), -cells, np.inf), kind="stable")
    best = np.zeros(len(known), dtype=bool)
    best[order[: len(known) // 2]] = True
    return best & known


def contact_sheet(photos: Sequence[ScoredPhoto], *, title: str, subtitle: str) -> Sheet:
    """A row per photo: the photo, its scores, the better half of its patches, one view, its reconstruction."""
    positions, visible = len(photos[0].known), len(photos[0].visible)
    columns = (
        SheetColumn(title="Photo", detail="the square that is scored"),
        SheetColumn(title="Scores", detail="bright: missed most when left out"),
        SheetColumn(title="Best half", detail=f"{positions // 2} of {positions} patches by score"),
        SheetColumn(title="Teacher sees", detail=f"one view: {visible} of {positions} patches"),
        SheetColumn(title="Teacher reconstructs", detail=f"from these {visible} patches"),
    )
    rows = []
    for photo in photos:
        tiles = (
            only_patches(photo.view, photo.known),
            colours(stretch(photo.scores)),
            only_patches(photo.view, best_half(photo.scores, photo.known)),
            only_patches(photo.view, _marked(photo.visible, positions)),
            photo.reconstruction,
        )
        rows.append(SheetRow(tiles=tiles, caption=photo.caption))
    return Sheet(
        title=title,
        subtitle=subtitle,
        columns=columns,
        rows=rows,
        scale_column=1,
        low="low score",
        high="high score",
        note=(
            "Colours: mean logarithm of the scores, from the 2nd to the 98th percentile of each photo. "
            "Gray: patches that are left out, or hidden from the teacher."
        ),
    )


def pool_scores(
    box: tuple[int, int, int, int],
    parts: Sequence[tuple[tuple[int, int, int, int], NDArray[np.float32]]],
    side: int,
) -> NDArray[np.float32]:
    """One map of scores from overlapping parts of a photo, float32 `[side, side]`.

    `box` (top, left, height, width) is what the map covers, `parts` are boxes with the scores `[G, G]` of their
    patches, all in pixels of the photo. A pixel of the map has the mean over the parts that know a score for its
    place, NaN where none does.
    """
    rows = box[0] + (np.arange(side) + 0.5) * box[2] / side
    columns = box[1] + (np.arange(side) + 0.5) * box[3] / side
    total, count = np.zeros((side, side)), np.zeros((side, side), dtype=np.int64)
    for (top, left, height, width), scores in parts:
        grid = len(scores)
        row = np.floor((rows - top) * grid / height).astype(np.int64)
        column = np.floor((columns - left) * grid / width).astype(np.int64)
        inside = ((row >= 0) & (row < grid))[:, None] & ((column >= 0) & (column < grid))
        here = scores[row.clip(0, grid - 1)[:, None], column.clip(0, grid - 1)]
        inside &= ~np.isnan(here)
        total[inside] += here[inside]
        count += inside
    mean = np.full((side, side), np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean.astype(np.float32)


def _square(values: NDArray[np.generic]) -> NDArray[np.generic]:
    grid = round(len(values) ** 0.5)
    return values.reshape(grid, grid)


def _marked(positions: NDArray[np.int16], count: int) -> NDArray[np.bool_]:
    marked = np.zeros(count, dtype=bool)
    marked[positions] = True
    return marked
