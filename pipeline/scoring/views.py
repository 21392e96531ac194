"""All views of one decoded image: a pure function of key, pixels and settings."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from torch import Tensor

from patchsieve.pipeline.images.masks import draw_visible
from patchsieve.pipeline.images.patches import patchify, visible_count
from patchsieve.pipeline.images.views import ViewBox, apply_view, decode_view, draw_view, encode_view
from patchsieve.pipeline.row_config import RowConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """One view, ready for the teacher: `pixels` uint8 `[L, P]`, `visible` int16 `[V]`."""

    sample_key: str
    view: int
    image_size: tuple[int, int]
    box: ViewBox
    pixels: Tensor
    visible: np.ndarray[Any, np.dtype[np.int16]]
    jpeg: bytes | None


def draw_views(sample_key: str, image: Tensor, rows: RowConfig, patch_size: int) -> list[View]:
    """All views of one decoded image (uint8 `[3, H, W]`): a pure function of key, pixels and config."""
    height, width = image.shape[1:]
    grid = rows.size // patch_size
    fixed = rows.crop == "center"
    views: list[View] = []
    for number in range(rows.first_view, rows.first_view + rows.views):
        if not (fixed and views):
            box = draw_view(
                rows.seed, sample_key, number, height=height, width=width, crop=rows.crop, size=rows.size
            )
            pixels = apply_view(image, box, rows.size)
            jpeg = encode_view(pixels) if rows.store == "view" else None
            # The row is its own evidence: the teacher sees what the table holds.
            seen = decode_view(jpeg) if jpeg is not None else pixels
            patches = patchify(seen[None], patch_size)[0]
        visible = draw_visible(
            rows.seed,
            sample_key,
            number,
            grid=grid,
            count=visible_count(grid**2, rows.mask_ratio),
            masks=rows.masks,
            partition=fixed,
        )
        views.append(
            View(
                sample_key=sample_key,
                view=number,
                image_size=(height, width),
                box=box,
                pixels=patches,
                visible=visible,
                jpeg=jpeg,
            )
        )
    return views
