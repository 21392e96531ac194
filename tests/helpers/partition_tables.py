"""Tables of one fixed crop whose views are partitions of the grid: every patch of an image has a score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.row_config import Store
from tests.helpers.pixel_tables import GRID, PATCH, VISIBLE, view_jpeg, view_pixels, write_pixel_table

PARTITION = -(-(GRID**2) // VISIBLE)
"""Views that show every patch."""


def true_scores(image: int) -> NDArray[np.float32]:
    """The pseudo-score of every patch of an image, whatever view shows it: positive, in a random order."""
    return (1 + np.random.default_rng(image).permutation(GRID**2)).astype(np.float32)


def partition_row(image: int, view: int, store: Store) -> dict[str, Any]:
    """What differs from the rows of `write_pixel_table`."""
    dealt = np.random.default_rng((7, image, view // PARTITION)).permutation(GRID**2)
    filled = np.concatenate([dealt, dealt[:VISIBLE]])
    start = view % PARTITION * VISIBLE
    visible = np.sort(filled[start : start + VISIBLE]).astype(np.int16)
    # As all views of one crop are stored: the same pixels again.
    patches = patchify(view_pixels(image, 0)[None], PATCH)[0, visible.tolist()].numpy().tobytes()
    return {
        "visible": visible,
        "score": true_scores(image)[visible],
        "patches": patches if store == "patches" else None,
        "pixels": view_jpeg(image, 0) if store == "view" else None,
    }


def write_partition_table(
    path: Path,
    *,
    images: range,
    views: int = PARTITION,
    first_view: int = 0,
    store: Store = "patches",
    group_rows: int = 8,
) -> str:
    """A table of `--crop center`; row groups cut images in two where `group_rows` is no multiple of `views`."""
    numbers = [(image, first_view + view) for image in images for view in range(views)]
    changed = {
        i: {**partition_row(image, view, store), "view": view} for i, (image, view) in enumerate(numbers)
    }
    return write_pixel_table(
        path,
        images=images,
        views=views,
        store=store,
        group_rows=group_rows,
        changed=changed,
        settings={"crop": "center", "first_view": first_view},
    )
