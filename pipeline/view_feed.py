"""From a shard to views that are ready for the teacher, decoded on threads ahead of it."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import Tensor

from patchsieve.pipeline.config import RowConfig
from patchsieve.pipeline.errors import ContentError
from patchsieve.pipeline.images import ViewBox, apply_view, decode_image, decode_view, draw_view, encode_view
from patchsieve.pipeline.patches import draw_visible, patchify, visible_count
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.shard_feed import ShardFeed
from patchsieve.pipeline.shards import Fault, Sample, Shard, ShardReader, image_fields_of, pick_image


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


def in_share(sample_key: str, rows: RowConfig) -> bool:
    """Whether `--sample` takes this sample: a fixed share of all keys, the same ones in every run."""
    return rows.sample >= 1 or float(KeyedRandom(rows.seed, sample_key, "sample").uniform(1)[0]) < rows.sample


class ViewFeed(ShardFeed[list[View] | Fault]):
    """The views of each image of a shard that `--sample` takes, or a fault; see `ShardFeed`."""

    def __init__(self, shard: Shard, rows: RowConfig, patch_size: int, pool: ThreadPoolExecutor, ahead: int):
        wanted = set(image_fields_of(rows.image_field))
        # Other fields may be far larger than the images, and nobody here looks at them.
        reader = ShardReader(shard, keep_fields=lambda field: field.lower() in wanted)
        super().__init__(
            reader,
            lambda item: prepare(item, rows, patch_size),
            pool,
            ahead,
            takes=lambda key: in_share(key, rows),
        )


def prepare(item: Sample | Fault, rows: RowConfig, patch_size: int) -> list[View] | Fault:
    """The views of a sample, or why it gives none; a fault stays as it is."""
    if isinstance(item, Fault):
        return item
    try:
        picked = pick_image(item, rows.image_field)
    except ContentError as error:
        return Fault(item.key, None, "sample", str(error))
    if picked is None:
        fields = ", ".join(item.members) or "none"
        return Fault(item.key, None, "sample", f"no image field; fields: {fields}"[:500])
    field, data = picked
    try:
        return draw_views(item.key, decode_image(data), rows, patch_size)
    except ContentError as error:
        return Fault(item.key, item.members.get(field), "decode", str(error))
