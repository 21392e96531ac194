"""The contact sheet of a prune's dry run: photos, their scores, and the patches that stay.

Shape suffixes: L patches of an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.images.patches import unpatchify
from patchsieve.pipeline.pictures.contact_sheet import only_patches
from patchsieve.pipeline.pictures.sheet import (
    Pixels,
    Sheet,
    SheetColumn,
    SheetRow,
    colours,
    draw_sheet,
    enlarge,
    stretch,
)
from patchsieve.pipeline.pruned.codec import enlarged
from patchsieve.ranker.prune.ranking import RankedImage
from patchsieve.ranker.prune.request import PruneRequest
from patchsieve.ranker.prune.sample import Prepared
from patchsieve.ranker.select.selection import Mask

SHEET_PHOTOS = 8


def draw_choices(
    request: PruneRequest,
    images: Sequence[RankedImage],
    masks: Mapping[str, Mask],
) -> NDArray[np.uint8]:
    """A picture, uint8 `[H, W, 3]`: a row for each of the first photos, with the patches of every way to prune."""
    grid, size = request.spec.grid, request.source.image_size
    columns = [
        SheetColumn(title="Photo", detail=f"the {request.spec.crop} crop"),
        SheetColumn(title="Scores", detail=f"of {request.source.name}"),
        *(
            SheetColumn(title=f"Keep {label}", detail=f"{keep.mean():.1%} of the patches")
            for label, keep in masks.items()
        ),
    ]
    rows = []
    for number, (image, scores_L) in enumerate(images[:SHEET_PHOTOS]):
        pixels = unpatchify(image.patches[None], request.spec.patch_size)[0]
        photo = pixels.permute(1, 2, 0).numpy()
        heat = colours(enlarge(stretch(scores_L.reshape(grid, grid)), size))
        kept = [_shown(photo, image, keep_NL[number]) for keep_NL in masks.values()]
        rows.append(SheetRow(tiles=(photo, heat, *kept), caption=image.sample.key))
    return draw_sheet(
        Sheet(
            title="patchsieve prune",
            subtitle=f"{request.selector.way}, {request.source.name}",
            columns=columns,
            rows=rows,
            scale_column=1,
            low="low score",
            high="high score",
            note="Colours: scores from the 2nd to the 98th percentile of each photo. "
            + (
                "Gray: patches"
                if request.spec.background is None
                else "Blurred: what the thumbnail has of patches"
            )
            + " that are dropped.",
        )
    )


def _shown(photo: Pixels, image: Prepared, keep_L: NDArray[np.bool_]) -> Pixels:
    """The photo `[S, S, 3]` as it stays: kept patches, over the thumbnail if it has one."""
    if image.background is None:
        return only_patches(photo, keep_L)
    under = enlarged(image.background, len(photo)).permute(1, 2, 0).numpy()
    grid = math.isqrt(len(keep_L))
    return np.where(enlarge(keep_L.reshape(grid, grid), len(photo))[..., None], photo, under)
