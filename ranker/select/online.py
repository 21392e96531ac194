"""Choosing patches while training reads: a loaded ranker as the `select` of `PrunedDataset`.

Shape suffixes: L grid positions, S side of an image in pixels.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.images.views import ViewBox, apply_view
from patchsieve.ranker.model.checkpoint import LoadedRanker
from patchsieve.ranker.select import regions, selection
from patchsieve.ranker.select.selection import Counts, Mask, Numbers


class Selection(Protocol):
    """Scores `[N, L]` and counts to keep masks, bool `[N, L]`."""

    def __call__(self, scores_NL: Numbers, counts: Counts) -> Mask:
        """The masks."""


@dataclasses.dataclass(frozen=True)
class KeepSelected:
    """Keeps the `ratio` of an image's patches that a selection chooses by the ranker's scores; errors tell its `name`.

    The ranker sees the image at its own resolution. It runs where it was loaded: for the workers of a DataLoader load
    it on the processor. Raises UserError for a ratio outside (0, 1], and for a selection that cannot be.
    """

    name: str
    ranker: LoadedRanker
    ratio: float
    selection: Selection

    def __post_init__(self) -> None:
        positions = self.ranker.config.positions
        self.selection(np.zeros((1, positions)), selection.keep_count(positions, self.ratio))

    def __call__(self, pixels_3SS: Tensor) -> NDArray[np.bool_]:
        """Keep mask, bool `[L]`, of an image, uint8 `[3, S, S]`.

        Raises UserError for an S that the grid does not divide, and in a worker with a ranker on a GPU.
        """
        config, device = self.ranker.config, self.ranker.device
        if device.type != "cpu" and get_worker_info() is not None:
            # A forked process cannot use the GPU of the one that it came from.
            raise UserError(
                f"{self.name}: the ranker {self.ranker.name} is on {device}, where a loader's workers cannot use it: "
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
        keep_1L = self.selection(scores_1L, selection.keep_count(config.positions, self.ratio))
        keep_L: NDArray[np.bool_] = keep_1L[0]
        return keep_L


def keep_topk(ranker: LoadedRanker, ratio: float) -> KeepSelected:
    """What `PrunedDataset(..., select=...)` calls to keep the highest scores; see `KeepSelected`, `selection.topk`."""
    return KeepSelected("keep_topk", ranker, ratio, selection.topk)


def keep_window(ranker: LoadedRanker, ratio: float, *, windows: int = 1) -> KeepSelected:
    """As `keep_topk`, but the rectangles where scores sum highest; see `regions.window`."""
    return KeepSelected("keep_window", ranker, ratio, partial(regions.window, windows=windows))


def keep_region(
    ranker: LoadedRanker, ratio: float, *, compactness: float = regions.DEFAULT_COMPACTNESS
) -> KeepSelected:
    """As `keep_topk`, but one connected region; see `regions.region`."""
    return KeepSelected("keep_region", ranker, ratio, partial(regions.region, compactness=compactness))
