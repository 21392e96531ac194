"""Sheets drawn by a teacher on a pretended GPU."""

from __future__ import annotations

import numpy as np
import torch

from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.pictures.rows import painted
from tests.helpers.photos import photo_pixels
from tests.helpers.pretended_gpu.pretend import pretend_cuda
from tests.helpers.teachers import SMALL, random_teacher


def test_reconstructions_are_those_of_a_processor() -> None:
    side = SMALL.image_size
    photos = torch.stack([torch.from_numpy(photo_pixels(seed, side, side)) for seed in range(2)])
    pixels = patchify(photos.permute(0, 3, 1, 2), SMALL.patch_size)
    visible = torch.rand(2, SMALL.positions).argsort(1)[:, :9]
    expected = painted(random_teacher(SMALL), pixels, visible)
    with pretend_cuda():
        found = painted(random_teacher(SMALL).to("cuda"), pixels, visible)
    difference = np.abs(np.stack(found).astype(int) - np.stack(expected).astype(int))
    assert difference.max() <= 1, "more than rounding"
