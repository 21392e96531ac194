"""Sheets drawn by a teacher on a pretended GPU."""

from __future__ import annotations

import numpy as np
import torch

from patchsieve.pipeline.pictures.rows import reconstructed_photos
from tests.helpers.photos import photo_pixels
from tests.helpers.pretended_gpu.pretend import pretend_cuda
from tests.helpers.teachers import SMALL, random_teacher


def test_reconstructions_are_those_of_a_processor() -> None:
    photos = [torch.from_numpy(photo_pixels(seed, 60, 70)).permute(2, 0, 1) for seed in range(2)]
    expected = reconstructed_photos(random_teacher(SMALL), photos, ["a", "b"])
    with pretend_cuda():
        found = reconstructed_photos(random_teacher(SMALL).to("cuda"), photos, ["a", "b"])
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.caption == theirs.caption
        difference = np.abs(ours.reconstruction.astype(int) - theirs.reconstruction.astype(int))
        assert difference.max() <= 1, "more than rounding"
