"""All views of one decoded image: a pure function of key, pixels and settings."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.images.masks import draw_masks
from patchsieve.pipeline.images.patches import patchify, visible_count
from patchsieve.pipeline.images.views import ViewBox, apply_view, decode_view, draw_view, encode_view
from patchsieve.pipeline.row_config import RowConfig
from patchsieve.pipeline.scoring.changes import compares_whole_images


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """One view, ready for the teacher: `visible` int16 `[V]`, ascending.

    `pixels`: uint8 patches, the visible ones alone, `[V, P]`; all of them, `[L, P]`, for metrics of whole images.
    """

    sample_key: str
    view: int
    image_size: tuple[int, int]
    box: ViewBox
    pixels: NDArray[np.uint8]
    visible: NDArray[np.int16]
    jpeg: bytes | None


def draw_views(sample_key: str, image: Tensor, rows: RowConfig, patch_size: int) -> list[View]:
    """All views of one decoded image (uint8 `[3, H, W]`): a pure function of key, pixels and config."""
    height, width = image.shape[1:]
    grid = rows.size // patch_size
    fixed = rows.crop == "center"
    views: list[View] = []
    numbers = range(rows.first_view, rows.first_view + rows.views)
    masks_NV = draw_masks(
        rows.seed,
        sample_key,
        numbers,
        grid=grid,
        count=visible_count(grid**2, rows.mask_ratio),
        masks=rows.masks,
        partition=fixed,
    )
    for number, visible in zip(numbers, masks_NV, strict=True):
        if not (fixed and views):
            box = draw_view(
                rows.seed, sample_key, number, height=height, width=width, crop=rows.crop, size=rows.size
            )
            pixels = apply_view(image, box, rows.size)
            jpeg = encode_view(pixels) if rows.store == "view" else None
            # The row is its own evidence: the teacher sees what the table holds.
            seen = decode_view(jpeg) if jpeg is not None else pixels
            patches_LP: NDArray[np.uint8] = patchify(seen[None], patch_size)[0].numpy()
        views.append(
            View(
                sample_key=sample_key,
                view=number,
                image_size=(height, width),
                box=box,
                pixels=patches_LP if compares_whole_images(rows.metric) else patches_LP[visible],
                visible=visible,
                jpeg=jpeg,
            )
        )
    return views
