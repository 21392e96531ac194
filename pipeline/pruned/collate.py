"""Batches of pruned samples for models: the dict that timm's NaFlexVit takes, and plain tensors of equal counts.

Shape suffixes: N samples, K tokens, P values of a patch, C patches of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
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
    fields: Sequence[str] = (),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> dict[str, Any]:
    """The input of timm's NaFlexVit, for samples that keep different numbers of patches.

    `patches`: float32 `[N, K, P]`, normalised (x / 255 - mean) / std; `patch_coord`: int64 `[N, K, 2]`, (row, column);
    `patch_valid`: bool `[N, K]`, False for padding at the end, which attention and pooling leave out. K is the longest
    sample's count, or `length`. `fields`: others of the samples, such as `cls`, under their names: a tensor `[N, ...]`
    of numbers or tensors, else a list. A model must place patches by coordinate: see `place_by_coordinate`.

    Of samples with a thumbnail its patches come first, and `patch_coord` is float32 `[N, K, 3]`: row and column of a
    patch's centre on the grid of the fine ones, which is no whole number for a coarse one, and its scale, 0 for fine
    and 1 for coarse. Such a model needs `place_by_coordinate(model, two_scales=True)`.

    NaFlexVit takes the largest coordinates for the size of the grid. A sample that keeps no patch of the last row or
    column therefore gets a padding token in that corner, and padding always stands there. Raises UserError for
    samples longer than `length`, and for patches that do not fill a block.
    """
    split = [sample.split(patch_size) for sample in samples]
    coarse = [sample.split_background(patch_size) for sample in samples]
    needed = [
        len(patches) + len(positions) + _needs_corner(positions, grid)
        for (patches, _), (_, positions, grid) in zip(coarse, split, strict=True)
    ]
    if not split or (length is not None and max(needed) > length):
        raise UserError(
            f"a batch of {len(split)} samples with up to {max(needed, default=0)} tokens, length {length}"
        )
    tokens = length or max(needed)
    pixels_NKP = torch.zeros(len(split), tokens, patch_size**2 * 3, dtype=torch.uint8)
    at_NK = torch.empty(len(split), tokens, dtype=torch.int64)
    grid_N1 = torch.tensor([[grid] for _, _, grid in split])
    at_NK[:] = grid_N1**2 - 1
    for number, ((coarse_CP, _), (patches_KP, positions_K, _)) in enumerate(zip(coarse, split, strict=True)):
        fine = slice(len(coarse_CP), len(coarse_CP) + len(positions_K))
        pixels_NKP[number, : fine.start] = coarse_CP
        pixels_NKP[number, fine] = patches_KP
        at_NK[number, fine] = positions_K
    counts_N1 = torch.tensor(
        [
            [len(patches) + len(positions)]
            for (patches, _), (_, positions, _) in zip(coarse, split, strict=True)
        ]
    )
    valid_NK = torch.arange(tokens) < counts_N1
    coord_NK2 = torch.stack([at_NK // grid_N1, at_NK % grid_N1], dim=-1)
    sides = [(side, grid) for (_, side), (_, _, grid) in zip(coarse, split, strict=True)]
    return {
        "patches": _normalised(pixels_NKP, mean, std) * valid_NK[:, :, None],
        "patch_coord": _with_scales(coord_NK2, sides) if any(side for side, _ in sides) else coord_NK2,
        "patch_valid": valid_NK,
        **_gathered(samples, fields),
    }


def collate_fixed(
    samples: Sequence[PrunedSample],
    *,
    patch_size: int = 16,
    fields: Sequence[str] = (),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> dict[str, Any]:
    """A batch for a ViT that takes the same number of patches of every image.

    `patches`: float32 `[N, K, P]`, normalised, and `fields` as by `collate_naflex`; `positions`: int64 `[N, K]`. Where
    samples have thumbnails, `background`: their patches, float32 `[N, C, P]`, row by row. Raises UserError for samples
    that keep different numbers of patches, or thumbnails of different sizes.
    """
    split = [sample.split(patch_size) for sample in samples]
    coarse = [sample.split_background(patch_size) for sample in samples]
    shapes = {(len(positions), grid) for _, positions, grid in split}
    if len(shapes) != 1:
        found = ", ".join(f"{count} of {grid} x {grid}" for count, grid in sorted(shapes)[:3])
        raise UserError(
            f"samples of a batch must keep equally many patches of one grid, these have: {found or 'none'}; prune with"
            " --select topk, or take collate_naflex"
        )
    sides = sorted({side for _, side in coarse})
    if len(sides) != 1:
        raise UserError(
            f"thumbnails of a batch must be of one size, these have {' and '.join(map(str, sides))} patches a side"
        )
    batch = {
        "patches": _normalised(torch.stack([patches for patches, _, _ in split]), mean, std),
        "positions": torch.stack([positions for _, positions, _ in split]),
        **_gathered(samples, fields),
    }
    if sides != [0]:
        batch["background"] = _normalised(torch.stack([patches for patches, _ in coarse]), mean, std)
    return batch


def place_by_coordinate(model: Any, *, two_scales: bool = False) -> Any:
    """The NaFlexVit `model`, set to place patches by their coordinates; needed for every batch of pruned samples.

    By default timm adds position embeddings by a token's number in the sequence, which is right for whole images only:
    pruned patches would all move to the top of the picture, without an error. Its grid-sample mode reads the
    coordinates and uses the same weights; so do rotary embeddings (DINOv3, EVA, PE), of whatever kind. With
    `two_scales` the model takes samples with thumbnails too, and learns an
    embedding for coarse tokens (`embeds.scale_embed`, zeros at first): call it before an optimiser takes the
    parameters, and before weights are loaded that have it. Raises UserError for a model that cannot do so: for two
    scales one of factorised or rotary embeddings, or no NaFlexVit.
    """
    # Imported here, since reading needs no timm.
    from patchsieve.pipeline.pruned.rotary import place_rotations
    from patchsieve.pipeline.pruned.two_scales import accept_scales

    embeds: Any = getattr(model, "embeds", None)
    if not hasattr(embeds, "pos_embed_use_grid_sample"):
        raise UserError(
            f"{type(model).__name__} is no NaFlexVit of timm that can place patches by coordinate"
        )
    if getattr(model, "rope", None) is not None:
        if two_scales:
            raise UserError("this NaFlexVit has rotary embeddings, which know whole coordinates only")
        place_rotations(model)
    embeds.pos_embed_use_grid_sample = True
    accept_scales(embeds, two_scales=two_scales)
    return model


def _gathered(samples: Sequence[PrunedSample], fields: Sequence[str]) -> dict[str, Any]:
    """Values of the samples' fields by name; UserError for a field that one lacks or that the batch has already."""
    found: dict[str, Any] = {}
    for name in fields:
        if name in ("patches", "patch_coord", "patch_valid", "positions", "background"):
            raise UserError(
                f"field {name} has the name of what a batch holds already: rename it in the shards"
            )
        lacking = next((sample for sample in samples if name not in sample.fields), None)
        if lacking is not None:
            raise UserError(
                f"{lacking.shard}: {lacking.key} has no field {name}; it has {', '.join(lacking.fields)}"
            )
        values = [sample.fields[name] for sample in samples]
        if all(isinstance(value, Tensor) for value in values):
            found[name] = torch.stack(values)
        else:
            found[name] = (
                torch.tensor(values) if all(isinstance(value, Number) for value in values) else values
            )
    return found


def _needs_corner(positions_K: Tensor, grid: int) -> bool:
    """Whether the positions leave the last row or column of the grid empty."""
    reaches = bool((positions_K >= grid * (grid - 1)).any()) and bool((positions_K % grid == grid - 1).any())
    return not reaches


def _with_scales(coord_NK2: Tensor, sides: Sequence[tuple[int, int]]) -> Tensor:
    """Coordinates with a scale, float32 `[N, K, 3]`; `sides`: patches a side of each sample's thumbnail and grid."""
    coord_NK3 = torch.cat([coord_NK2.float(), torch.zeros_like(coord_NK2[..., :1])], dim=-1)
    for coord_K3, (side, grid) in zip(coord_NK3, sides, strict=True):
        if side:
            centre = (torch.arange(side) + 0.5) * (grid / side) - 0.5
            coord_K3[: side**2, :2] = torch.cartesian_prod(centre, centre).reshape(-1, 2)
            coord_K3[: side**2, 2] = 1
    return coord_NK3


def _normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 `[..., P]` to float32: (x / 255 - mean) / std, channels last within a patch."""
    values = pixels.reshape(*pixels.shape[:-1], -1, 3).div(255)
    return values.sub_(torch.tensor(mean)).div_(torch.tensor(std)).flatten(-2)
