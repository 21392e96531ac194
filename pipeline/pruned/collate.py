"""Batches of pruned samples for models: the dict that timm's NaFlexVit takes, and plain tensors of equal counts.

Shape suffixes: N samples, K tokens, P values of a patch, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import IMAGENET_MEAN, IMAGENET_STD
from patchsieve.pipeline.pruned.sample import PrunedSample


def collate_naflex(
    samples: Sequence[PrunedSample],
    *,
    patch_size: int = 16,
    length: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> dict[str, Tensor]:
    """The input of timm's NaFlexVit, for samples that keep different numbers of patches.

    `patches`: float32 `[N, K, P]`, normalised (x / 255 - mean) / std; `patch_coord`: int64 `[N, K, 2]`, (row, column);
    `patch_valid`: bool `[N, K]`, False for padding at the end. K is the longest sample's count, or `length`. A model
    must place patches by coordinate: see `place_by_coordinate`.

    NaFlexVit takes the largest coordinates for the size of the grid. A sample that keeps no patch of the last row or
    column therefore gets a padding token in that corner, and padding always stands there. Raises UserError for
    samples longer than `length`, and for patches that do not fill a block.
    """
    split = [sample.split(patch_size) for sample in samples]
    needed = [len(positions) + _needs_corner(positions, grid) for _, positions, grid in split]
    if not split or (length is not None and max(needed) > length):
        raise UserError(
            f"a batch of {len(split)} samples with up to {max(needed, default=0)} tokens, length {length}"
        )
    tokens = length or max(needed)
    pixels_NKP = torch.zeros(len(split), tokens, patch_size**2 * 3, dtype=torch.uint8)
    at_NK = torch.empty(len(split), tokens, dtype=torch.int64)
    grid_N1 = torch.tensor([[grid] for _, _, grid in split])
    at_NK[:] = grid_N1**2 - 1
    for number, (patches_KP, positions_K, _) in enumerate(split):
        pixels_NKP[number, : len(positions_K)] = patches_KP
        at_NK[number, : len(positions_K)] = positions_K
    counts_N1 = torch.tensor([[len(positions)] for _, positions, _ in split])
    valid_NK = torch.arange(tokens) < counts_N1
    return {
        "patches": _normalised(pixels_NKP, mean, std) * valid_NK[:, :, None],
        "patch_coord": torch.stack([at_NK // grid_N1, at_NK % grid_N1], dim=-1),
        "patch_valid": valid_NK,
    }


def collate_fixed(
    samples: Sequence[PrunedSample],
    *,
    patch_size: int = 16,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> dict[str, Tensor]:
    """A batch for a ViT that takes the same number of patches of every image.

    `patches`: float32 `[N, K, P]`, normalised as by `collate_naflex`; `positions`: int64 `[N, K]`, row by row. Raises
    UserError for samples that keep different numbers of patches.
    """
    split = [sample.split(patch_size) for sample in samples]
    shapes = {(len(positions), grid) for _, positions, grid in split}
    if len(shapes) != 1:
        found = ", ".join(f"{count} of {grid} x {grid}" for count, grid in sorted(shapes)[:3])
        raise UserError(
            f"samples of a batch must keep equally many patches of one grid, these have: {found or 'none'}; prune with"
            " --select topk, or take collate_naflex"
        )
    return {
        "patches": _normalised(torch.stack([patches for patches, _, _ in split]), mean, std),
        "positions": torch.stack([positions for _, positions, _ in split]),
    }


def place_by_coordinate(model: Any) -> Any:
    """The NaFlexVit `model`, set to place patches by their coordinates; needed for every batch of pruned samples.

    By default timm adds position embeddings by a token's number in the sequence, which is right for whole images only:
    pruned patches would all move to the top of the picture, without an error. Its grid-sample mode reads the
    coordinates and uses the same weights. Raises UserError for a model that cannot do so: one with rotary embeddings,
    or no NaFlexVit.
    """
    embeds: Any = getattr(model, "embeds", None)
    if not hasattr(embeds, "pos_embed_use_grid_sample"):
        raise UserError(
            f"{type(model).__name__} is no NaFlexVit of timm that can place patches by coordinate"
        )
    if getattr(model, "rope", None) is not None:
        raise UserError(
            "this NaFlexVit has rotary embeddings, which timm places by number in the sequence only"
        )
    embeds.pos_embed_use_grid_sample = True
    return model


def _needs_corner(positions_K: Tensor, grid: int) -> bool:
    """Whether the positions leave the last row or column of the grid empty."""
    reaches = bool((positions_K >= grid * (grid - 1)).any()) and bool((positions_K % grid == grid - 1).any())
    return not reaches


def _normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 `[..., P]` to float32: (x / 255 - mean) / std, channels last within a patch."""
    values = pixels.reshape(*pixels.shape[:-1], -1, 3).div(255)
    return values.sub_(torch.tensor(mean)).div_(torch.tensor(std)).flatten(-2)
