"""What the contact sheet shows: a score table read back, and the teacher run once more on single views."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import unpatchify
from patchsieve.pipeline.pictures.contact_sheet import ScoredPhoto, pool_scores
from patchsieve.pipeline.pictures.demo_photos import PackedPhoto
from patchsieve.pipeline.pictures.sheet import Pixels
from patchsieve.pipeline.scoring.aggregate import dense_scores
from patchsieve.pipeline.scoring.changes import whole_images
from patchsieve.pipeline.scoring.scorer import reconstruct
from patchsieve.pipeline.tables.reader import ScoreTables
from patchsieve.pipeline.teacher.model import MaskedAutoencoder

_BOX = ("crop_top", "crop_left", "crop_height", "crop_width")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredSample:
    """A sample's rows, K views of one crop. `box` (top, left, height, width) is that crop on the sample.

    `visible`: int16 `[K, V]`; `score`: float32 `[K, V]`; `patches`: uint8 `[L, P]`, zero where `known`, bool `[L]`,
    says that no view showed them.
    """

    box: tuple[int, int, int, int]
    visible: NDArray[np.int16]
    score: NDArray[np.float32]
    patches: NDArray[np.uint8]
    known: NDArray[np.bool_]

    def score_map(self) -> NDArray[np.float32]:
        """Mean log score of each patch, float32 `[G, G]`, NaN where it was never visible."""
        grid = round(len(self.known) ** 0.5)
        return dense_scores(self.visible, self.score, grid**2).reshape(grid, grid)


def read_samples(tables: ScoreTables, keys: Collection[str]) -> dict[str, ScoredSample]:
    """The samples of these keys, from tables that store patches; a key that has no rows is left out.

    Raises UserError for views of different crops, or where the tables store no patches.
    """
    columns = ["sample_key", "view", *_BOX, "visible", "score", "patches"]
    wanted = pa.array(sorted(keys))
    batches = (
        batch.filter(pc.is_in(batch.column("sample_key"), wanted)) for batch in tables.iter_batches(columns)
    )
    rows: dict[str, list[dict[str, Any]]] = {}
    for batch in batches:
        for row in batch.to_pylist():
            rows.setdefault(row["sample_key"], []).append(row)
    shape = (tables.teacher["grid"] ** 2, tables.teacher["patch_size"] ** 2 * 3)
    return {key: _sample(key, rows[key], shape) for key in keys if key in rows}


def _sample(key: str, rows: list[dict[str, Any]], shape: tuple[int, int]) -> ScoredSample:
    rows.sort(key=lambda row: row["view"])
    crops = {name: {int(row[name]) for row in rows} for name in _BOX}
    if any(len(values) > 1 for values in crops.values()):
        raise UserError(f"the views of {key} show different crops; a map of scores takes --crop center")
    top, left, height, width = (values.pop() for values in crops.values())
    patches, known = np.zeros(shape, dtype=np.uint8), np.zeros(shape[0], dtype=bool)
    for row in rows:
        patches[row["visible"]] = np.frombuffer(row["patches"], dtype=np.uint8).reshape(-1, shape[1])
        known[row["visible"]] = True
    return ScoredSample(
        box=(top, left, height, width),
        visible=np.array([row["visible"] for row in rows], dtype=np.int16),
        score=np.array([row["score"] for row in rows], dtype=np.float32),
        patches=patches,
        known=known,
    )


def scored_photo(
    photo: PackedPhoto, samples: dict[str, ScoredSample], model: MaskedAutoencoder
) -> ScoredPhoto:
    """A photo's row: first view of the whole photo, scores pooled over all its samples."""
    whole = samples[photo.parts[0].sample_key]
    parts = []
    for part in photo.parts:
        if part.sample_key in samples:
            top, left, height, width = samples[part.sample_key].box
            box = (part.top + top, part.left + left, height, width)
            parts.append((box, samples[part.sample_key].score_map()))
    views = sum(len(samples[part.sample_key].visible) for part in photo.parts if part.sample_key in samples)
    visible = whole.visible[0]
    pixels = torch.from_numpy(whole.patches)[None]
    size = model.config.image_size
    return ScoredPhoto(
        caption=f"{photo.name}  (scores: mean over {views} views of {len(parts)} overlapping crops)",
        view=as_picture(unpatchify(pixels, model.config.patch_size)),
        known=whole.known,
        scores=pool_scores(whole.box, parts, size),
        visible=visible,
        reconstruction=painted(model, pixels, torch.from_numpy(visible)[None])[0],
    )


def painted(model: MaskedAutoencoder, pixels: Tensor, visible: Tensor) -> list[Pixels]:
    """Views with what the teacher makes of their hidden patches, each uint8 `[S, S, 3]`.

    `pixels`: uint8 patches `[N, L, P]`; `visible`: positions `[N, V]`, whose patches stay as they are.
    """
    pixels, visible = pixels.to(model.cls_token.device), visible.to(model.cls_token.device)
    prediction, hidden = reconstruct(model, pixels, visible)
    images = whole_images(prediction, pixels, hidden, model.config)
    return [as_picture(image) for image in (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()]


def as_picture(image: Tensor) -> Pixels:
    """uint8 `[3, S, S]`, or `[1, 3, S, S]`, as `[S, S, 3]`."""
    picture: Pixels = image.reshape(image.shape[-3:]).permute(1, 2, 0).contiguous().numpy()
    return picture
