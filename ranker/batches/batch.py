"""A batch of stored views, and its mirror image.

Shape suffixes: N views, V visible patches, L grid positions, K either of them, P values of a patch (p * p * 3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Views of a table with their pseudo-scores; `step` counts the batches of `epoch` from 0.

    `patches`: uint8 `[N, V, P]`, in the order of `positions`, or the whole view, `[N, L, P]`, for context `full`;
    `positions`: int64 `[N, V]`, ascending unless mirrored; `scores`: float32 `[N, V]`; `sample_keys` and `views` say
    which rows these are.
    """

    epoch: int
    step: int
    patches: Tensor
    positions: Tensor
    scores: Tensor
    sample_keys: tuple[str, ...]
    views: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.sample_keys)

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU fetches from while it computes."""
        pinned = {name: getattr(self, name).pin_memory() for name in ("patches", "positions", "scores")}
        return dataclasses.replace(self, **pinned)


def concatenate(parts: Sequence[Batch], *, epoch: int, step: int) -> Batch:
    """One batch of the rows of several, in order; a single part is not copied."""
    if len(parts) == 1:
        return dataclasses.replace(parts[0], epoch=epoch, step=step)
    return Batch(
        epoch=epoch,
        step=step,
        patches=torch.cat([part.patches for part in parts]),
        positions=torch.cat([part.positions for part in parts]),
        scores=torch.cat([part.scores for part in parts]),
        sample_keys=tuple(key for part in parts for key in part.sample_keys),
        views=tuple(view for part in parts for view in part.views),
    )


def mirror_positions(positions: Tensor, grid: int) -> Tensor:
    """Where patches at these positions, any shape, lie once the view is mirrored left to right."""
    return positions + (grid - 1) - 2 * (positions % grid)


def mirror_patches(patches_NKP: Tensor, patch_size: int) -> Tensor:
    """Each patch mirrored left to right in itself; its place among the K is kept."""
    cut = patches_NKP.reshape(*patches_NKP.shape[:2], patch_size, patch_size, 3)
    return cut.flip(3).reshape(patches_NKP.shape)


def mirror(batch: Batch, chosen_N: Tensor, *, grid: int, patch_size: int) -> Batch:
    """The batch with the chosen views (bool `[N]`) mirrored left to right, as if cut from the mirrored crop.

    Visible patches keep their order, so that each stays beside its score; of whole views the grid is mirrored too.
    """
    which = chosen_N.nonzero()[:, 0]
    patches, positions = batch.patches.clone(), batch.positions.clone()
    turned = mirror_patches(patches[which], patch_size)
    if patches.shape[1] == grid * grid:
        turned = turned[:, mirror_positions(torch.arange(grid * grid), grid)]
    patches[which] = turned
    positions[which] = mirror_positions(positions[which], grid)
    return dataclasses.replace(batch, patches=patches, positions=positions)
