"""timm's embeddings for tokens of two scales: the place of each by its coordinates, and what tells coarse from fine.

Shape suffixes: N samples, K tokens, D width of the model.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.naflexvit import NaFlexEmbeds
from torch import Tensor, nn

from patchsieve.pipeline.errors import UserError


class ScaledEmbeds(NaFlexEmbeds):
    """Takes coordinates with a scale, `[N, K, 3]`, and adds `scale_embed` to the tokens of scale 1."""

    scale_embed: nn.Parameter | None

    def forward(
        self, x: Tensor, patch_coord: Tensor | None = None, patch_valid: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """As timm's; UserError for tokens of two scales where there is no embedding of them."""
        if patch_coord is None or patch_coord.shape[-1] == 2:
            found: tuple[Tensor, Any] = super().forward(x, patch_coord, patch_valid)
            return found
        if self.scale_embed is None:
            raise UserError(
                "this batch has thumbnails, and the model takes one scale: place_by_coordinate(model, two_scales=True)"
            )
        tokens, size = super().forward(x, patch_coord[..., :2], patch_valid)
        coarse_NK1 = patch_coord[..., 2:].to(tokens.dtype)
        scale_NKD = coarse_NK1 * self.scale_embed.to(tokens.dtype)
        prefix = tokens.shape[1] - scale_NKD.shape[1]
        return tokens + nn.functional.pad(scale_NKD, (0, 0, prefix, 0)), size


def accept_scales(embeds: Any, *, two_scales: bool) -> None:
    """Make a NaFlexVit's embeddings `ScaledEmbeds`, which keep their weights; UserError for factorised ones."""
    if two_scales and embeds.pos_embed_type == "factorized":
        raise UserError(
            "this NaFlexVit has factorised position embeddings, which know whole coordinates only"
        )
    if not isinstance(embeds, ScaledEmbeds):
        embeds.__class__ = ScaledEmbeds
        embeds.register_parameter("scale_embed", None)
    if two_scales and embeds.scale_embed is None:
        weight = embeds.proj.weight
        embeds.scale_embed = nn.Parameter(
            torch.zeros(embeds.embed_dim, dtype=weight.dtype, device=weight.device)
        )
