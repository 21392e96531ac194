"""Arithmetic of the patch grid: cutting images into patches and back, gathering patches, normalising pixels.

Positions are numbered row by row from the top left. The values of a patch are row-major with channels last.

Shape suffixes: N images, L grid positions, P values of a patch (p * p * 3), S side of an image in pixels.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def visible_count(positions: int, mask_ratio: float) -> int:
    """Patches of a grid of `positions` that stay visible, V: 19 of 196 and 25 of 256 at a ratio of 0.9."""
    return int(positions * (1 - mask_ratio) + 1e-6)


def patchify(images_N3SS: Tensor, patch_size: int) -> Tensor:
    """Patches `[N, L, P]` of images `[N, 3, S, S]`, any dtype."""
    count, channels, height, width = images_N3SS.shape
    if channels != 3 or height != width or height % patch_size:
        raise ValueError(f"images {list(images_N3SS.shape)} cannot be cut into patches of {patch_size} px")
    grid = height // patch_size
    cut = images_N3SS.reshape(count, 3, grid, patch_size, grid, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(count, grid * grid, patch_size * patch_size * 3)


def unpatchify(patches_NLP: Tensor, patch_size: int) -> Tensor:
    """Images `[N, 3, S, S]` of patches `[N, L, P]`: the inverse of `patchify`."""
    count, positions, values = patches_NLP.shape
    grid = round(positions**0.5)
    if grid * grid != positions or values != patch_size**2 * 3:
        raise ValueError(f"patches {list(patches_NLP.shape)} make no square image of {patch_size} px patches")
    cut = patches_NLP.reshape(count, grid, grid, patch_size, patch_size, 3)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(count, 3, grid * patch_size, grid * patch_size)


def hidden_positions(visible_NV: Tensor, positions: int) -> Tensor:
    """The other positions of the grid, ascending, int64 `[N, H]`; `visible_NV`: any integer type.

    Raises ValueError where a position is out of range or named twice.
    """
    count, visible = visible_NV.shape
    if visible_NV.numel() and (int(visible_NV.min()) < 0 or int(visible_NV.max()) >= positions):
        raise ValueError(f"visible patches must be numbered from 0 to {positions - 1}")
    hidden = torch.ones(count, positions, dtype=torch.bool, device=visible_NV.device)
    hidden.scatter_(1, visible_NV.long(), False)
    if int(hidden.sum()) != count * (positions - visible):
        raise ValueError("a visible patch is named twice in one view")
    return hidden.nonzero()[:, 1].reshape(count, positions - visible)


def others_of(visible: int) -> Tensor:
    """Row r: the places of the visible patches without r, int64 `[V, V - 1]`."""
    everyone = torch.arange(visible)
    return torch.stack([everyone[everyone != place] for place in range(visible)])


def take_patches(patches: Tensor, positions_NK: Tensor) -> Tensor:
    """The patches `[N, K, ...]` of `[N, L, ...]` at the given positions."""
    return patches[torch.arange(len(patches), device=patches.device)[:, None], positions_NK]


def normalise(pixels: Tensor) -> Tensor:
    """ImageNet-normalised float32 values of uint8 patches `[..., P]`: (x / 255 - mean) / deviation."""
    mean, deviation = channel_constants(pixels.device)
    return pixels.reshape(*pixels.shape[:-1], -1, 3).div(255).sub_(mean).div_(deviation).flatten(-2)


def denormalise(values: Tensor) -> Tensor:
    """Patches `[..., P]` on a pixel scale from 0 to 1, not clipped: the inverse of `normalise`, over 255."""
    mean, deviation = channel_constants(values.device)
    return values.reshape(*values.shape[:-1], -1, 3).mul(deviation).add_(mean).flatten(-2)


def channel_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the channels, float32 `[3]` each; a constant for whoever compiles what calls this."""
    return _kept_constants(device)


@lru_cache(maxsize=8)
def _kept_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept, since a GPU has to finish what it is at before it takes them; for training, too, whoever asks first.
    with torch.inference_mode(False):
        return torch.tensor(IMAGENET_MEAN, device=device), torch.tensor(IMAGENET_STD, device=device)
