"""Ranking from Python, in a notebook or a script: no shards, no table, no Ray."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.images.views import apply_view, draw_view
from patchsieve.pipeline.scoring.api import as_pixels, is_one_image
from patchsieve.ranker.model.checkpoint import LoadedRanker, load_ranker
from patchsieve.ranker.model.ranker import RankerConfig


def rank_images(
    images: Iterable[Any], ranker: LoadedRanker | str, *, batch_size: int = 32
) -> NDArray[np.float32]:
    """Scores of every patch of images, float32 `[N, L]`, row by row; higher = more of the image's content.

    `ranker`: a loaded one, or what `load_ranker` takes.
    `images`: what `score_images` takes; they may come from a generator, of which `batch_size` are held at a time. The
    ranker sees the centre crop at its own resolution, as prune and `score_images(crop="center")` do. Scores can be
    compared within an image only; they depend on the batch by float rounding alone. Raises UserError for what is no
    image.
    """
    if is_one_image(images):
        raise UserError("rank_images takes several images: put a single one into a list")
    if isinstance(ranker, str):
        ranker = load_ranker(ranker)
    if batch_size < 1:
        raise UserError(f"rank_images: a batch of {batch_size} images is none")
    results = [np.empty((0, ranker.config.positions), dtype=np.float32)]
    pending = (center_patches(as_pixels(image), ranker.config) for image in images)
    while batch := list(islice(pending, batch_size)):
        with torch.inference_mode():
            scores = ranker.model.forward_image(torch.stack(batch).to(ranker.device))
        results.append(scores.cpu().numpy())
    return np.concatenate(results)


def center_patches(image: Tensor, config: RankerConfig) -> Tensor:
    """The centre crop of an image (uint8 `[3, H, W]`) as the ranker sees it: uint8 patches `[L, P]`."""
    height, width = image.shape[1:]
    # The central crop is not drawn: seed, key and view do not matter.
    box = draw_view(0, "", 0, height=height, width=width, crop="center", size=config.image_size)
    return patchify(apply_view(image, box, config.image_size)[None], config.patch_size)[0]
