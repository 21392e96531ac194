"""timm's NaFlexVit with rotary embeddings, whose rotation follows the coordinates of tokens.

timm rotates a token by its number in the sequence, which is its place in a whole image alone, and takes no sequence
with fewer tokens than its grid has.

Shape suffixes: N samples, K tokens, H heads, R values of a rotation.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.naflexvit import NaFlexVit, calculate_naflex_grid_sizes
from torch import Tensor

from patchsieve.pipeline.errors import UserError


class PlacedNaFlexVit(NaFlexVit):
    """Takes each token's rotation from that of the whole grid, at the token's coordinates."""

    def _generate_rope_naflex(self, x: Tensor, patch_coord: Tensor) -> Tensor | list[Tensor]:
        """As timm's: `[N, 1, K, R]`, or for rotations that are learned by block a list of `[N, H, K, R]`."""
        if patch_coord.shape[-1] != 2:
            raise UserError(
                "this batch has thumbnails, and a model with rotary embeddings takes one scale: leave out background"
            )
        sizes = calculate_naflex_grid_sizes(patch_coord)
        rope: Any = self.rope
        whole = {size: rope.get_embed(shape=size, dtype=x.dtype) for size in dict.fromkeys(sizes)}
        # Of a grid's rotations, which lie row by row, those at the tokens' places.
        rotations = [
            whole[size].index_select(-2, coord_K2[:, 0].long() * size[1] + coord_K2[:, 1].long())
            for size, coord_K2 in zip(sizes, patch_coord, strict=True)
        ]
        stacked = torch.stack(rotations)
        if self.rope_is_mixed:
            return list(stacked.unbind(1))
        return stacked.unsqueeze(1)


def place_rotations(model: Any) -> None:
    """Make a NaFlexVit with rotary embeddings a `PlacedNaFlexVit`, which keeps its weights; UserError for others."""
    if isinstance(model, PlacedNaFlexVit):
        return
    if type(model) is not NaFlexVit:
        raise UserError(f"{type(model).__name__} with rotary embeddings cannot place patches by coordinate")
    model.__class__ = PlacedNaFlexVit
