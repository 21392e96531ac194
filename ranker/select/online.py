"""Choosing patches while training reads: a loaded ranker as the `select` of `PrunedDataset`.

Shape suffixes: L grid positions, S side of an image in pixels.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.images.views import ViewBox, apply_view
from patchsieve.ranker.model.checkpoint import LoadedRanker
from patchsieve.ranker.select.selection import keep_count, topk


@dataclasses.dataclass(frozen=True)
class KeepTopK:
    """Keeps the `ratio` of an image's patches that the ranker scores highest; see `keep_topk`."""

    ranker: LoadedRanker
    ratio: float

    def __post_init__(self) -> None:
        keep_count(self.ranker.config.positions, self.ratio)

    def __call__(self, pixels_3SS: Tensor) -> NDArray[np.bool_]:
        """Keep mask, bool `[L]`, of an image, uint8 `[3, S, S]`.

        Raises UserError for an S that the grid does not divide, and in a worker with a ranker on a GPU.
        """
        config, device = self.ranker.config, self.ranker.device
        if device.type != "cpu" and get_worker_info() is not None:
            # A forked process cannot use the GPU of the one that it came from.
            raise UserError(
                f"keep_topk: the ranker {self.ranker.name} is on {device}, where a loader's workers cannot use it: "
                'load it with load_ranker(..., device="cpu")'
            )
        size = pixels_3SS.shape[-1]
        if pixels_3SS.shape != (3, size, size) or size % config.grid:
            raise UserError(
                f"an image of {list(pixels_3SS.shape)} does not fit the ranker's {config.grid} x {config.grid} patches"
            )
        if size != config.image_size:
            pixels_3SS = apply_view(pixels_3SS, ViewBox(0, 0, size, size, hflip=False), config.image_size)
        with torch.inference_mode():
            patches_1LP = patchify(pixels_3SS[None], config.patch_size).to(device)
            scores_1L = self.ranker.model.forward_image(patches_1LP).cpu().numpy()
        keep_L: NDArray[np.bool_] = topk(scores_1L, keep_count(config.positions, self.ratio))[0]
        return keep_L


def keep_topk(ranker: LoadedRanker, ratio: float) -> KeepTopK:
    """What `PrunedDataset(..., select=...)` calls to keep a share of each image's patches by the ranker's scores.

    The ranker sees the image at its own resolution. It runs where it was loaded: for the workers of a DataLoader load
    it on the processor. Raises UserError for a ratio outside (0, 1].
    """
    return KeepTopK(ranker, ratio)
