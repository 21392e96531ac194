"""Small score tables whose pixels are those of real views: one grid of 4 x 4 patches of 8 px, 5 of them visible."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.images.views import decode_view, encode_view
from patchsieve.pipeline.output.faults import NO_ERRORS
from patchsieve.pipeline.row_config import Store
from patchsieve.pipeline.tables.schema import Row, TeacherRecord, table_metadata, table_schema
from patchsieve.pipeline.tables.writer import TableWriter
from tests.helpers.photos import photo_pixels
from tests.helpers.tables import CONFIG, TEACHER, record_of

GRID, PATCH, VISIBLE, SIDE = 4, 8, 5, 32
PATCH_BYTES = PATCH * PATCH * 3
SMALL_TEACHER = dataclasses.replace(TEACHER, grid=GRID, patch_size=PATCH)


def view_jpeg(image: int, view: int) -> bytes:
    """The stored view of an image."""
    return encode_view(torch.from_numpy(photo_pixels(1000 * image + view, SIDE, SIDE)).permute(2, 0, 1))


def view_pixels(image: int, view: int) -> Tensor:
    """What the teacher saw of it, uint8 `[3, S, S]`."""
    return decode_view(view_jpeg(image, view))


def image_of(sample_key: str) -> int:
    """The image that a key of these tables stands for."""
    return int(sample_key.removeprefix("image-"))


def make_row(image: int, view: int, store: Store, **changes: Any) -> Row:
    """One row; its scores tell image, view and place."""
    random = np.random.default_rng((image, view))
    visible = np.sort(random.permutation(GRID**2)[:VISIBLE]).astype(np.int16)
    patches = None
    if store == "patches":
        patches = patchify(view_pixels(image, view)[None], PATCH)[0, visible.tolist()].numpy().tobytes()
    row = Row(
        shard="/data/a.tar",
        sample_key=f"image-{image:04d}",
        view=view,
        image_height=SIDE,
        image_width=SIDE,
        crop_top=0,
        crop_left=0,
        crop_height=SIDE,
        crop_width=SIDE,
        hflip=False,
        visible=visible,
        score=(image * 100 + view * 10 + np.arange(VISIBLE)).astype(np.float32),
        patches=patches,
        pixels=view_jpeg(image, view) if store == "view" else None,
    )
    return dataclasses.replace(row, **changes)


def write_pixel_table(
    path: Path,
    *,
    images: range,
    views: int = 2,
    store: Store = "patches",
    group_rows: int = 8,
    changed: dict[int, dict[str, Any]] | None = None,
    settings: dict[str, Any] | None = None,
    teacher: TeacherRecord = SMALL_TEACHER,
) -> str:
    """A table of all views of these images, in row groups of at most `group_rows`.

    `changed`: values by row number; `settings`: fields of its configuration.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = table_schema(visible=VISIBLE, patch_bytes=PATCH_BYTES, store=store)
    numbers = [(image, view) for image in images for view in range(views)]
    rows = [
        dataclasses.replace(make_row(*pair, store), **(changed or {}).get(i, {}))
        for i, pair in enumerate(numbers)
    ]
    with TableWriter(path, schema) as writer:
        for start in range(0, len(rows), group_rows):
            writer.add(rows[start : start + group_rows])
            writer._flush()
        writer.close(
            table_metadata(
                config=dataclasses.replace(
                    CONFIG, **{"views": views, "store": store, "size": SIDE, **(settings or {})}
                ),
                teacher=teacher,
                shard=record_of(path.name.encode()),
                visible=VISIBLE,
                errors=NO_ERRORS,
                provenance={"run_id": "run-1"},
            )
        )
    return str(path)
