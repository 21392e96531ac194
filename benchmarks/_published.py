"""The published way to leave-one-out scores, as a yardstick: a Python loop over removals and masked attention.

Every decoder pass has all tokens of the view; the removed one is taken out by an additive mask on its column and row.
Attention is written out (two matrix products and a softmax), as in the transformer blocks of that time, and all
places are predicted. The encoder runs once per batch. Removal is `decoder`, the metric `l1`. On processors and GPUs, in
float32 or under autocast, plain or compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from patchsieve.pipeline.images.patches import hidden_positions, normalise, take_patches
from patchsieve.pipeline.teacher.model import MaskedAutoencoder

Decode = Callable[[MaskedAutoencoder, Tensor, Tensor, Tensor | None], Tensor]


def attend(block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    attention = block.attn
    count, tokens, width = x.shape
    qkv = attention.qkv(x).reshape(count, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    queries, keys, values = qkv.unbind(0)
    weights = (queries @ keys.transpose(-2, -1)) * attention.scale
    if mask is not None:
        weights = weights + mask
    return attention.proj((weights.softmax(-1) @ values).transpose(1, 2).reshape(count, tokens, width))


def run_block(block: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    x = x + attend(block, block.norm1(x), mask)
    return x + block.mlp(block.norm2(x))


def encode(model: MaskedAutoencoder, patches_NVP: Tensor, visible_NV: Tensor) -> Tensor:
    x = model.patch_embed(patches_NVP) + model.pos_embed[0, 1:][visible_NV]
    x = torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
    for block in model.blocks:
        x = run_block(block, x)
    return model.norm(x)


def decode(model: MaskedAutoencoder, latent: Tensor, visible_NV: Tensor, removed_N: Tensor | None) -> Tensor:
    """Predictions of all places `[N, L, P]`, the removed position of each view masked out."""
    count, positions = len(latent), model.config.positions
    seen = model.decoder_embed(latent)
    x = model.mask_token.repeat(count, positions, 1)
    x = x.scatter(1, visible_NV[..., None].expand(-1, -1, x.shape[-1]), seen[:, 1:].to(x.dtype))
    x = torch.cat([seen[:, :1], x], dim=1) + model.decoder_pos_embed
    mask = None
    if removed_N is not None:
        rows = torch.arange(count, device=latent.device)
        mask = torch.zeros(count, 1, 1 + positions, 1 + positions, device=latent.device)
        mask[rows, 0, :, 1 + removed_N] = -1e9
        mask[rows, 0, 1 + removed_N, :] = -1e9
        mask[rows, 0, 1 + removed_N, 1 + removed_N] = 0
    for block in model.decoder_blocks:
        x = run_block(block, x, mask)
    return model.decoder_pred(model.decoder_norm(x))[:, 1:]


def published_scores(
    model: MaskedAutoencoder,
    pixels_NLP: Tensor,
    visible_NV: Tensor,
    *,
    half: torch.dtype | None = None,
    decode: Decode = decode,
) -> Tensor:
    """Scores `[N, V]` of uint8 patches `[N, L, P]` with int64 visible positions `[N, V]`, in main memory.

    `half`: the type of autocast; `decode`: `decode` itself, or compiled.
    """
    where = model.cls_token.device
    with torch.inference_mode(), torch.autocast(where.type, dtype=half, enabled=half is not None):
        pixels_NLP, visible_NV = pixels_NLP.to(where), visible_NV.to(where)
        hidden_NH = hidden_positions(visible_NV, model.config.positions)
        latent = encode(model, normalise(take_patches(pixels_NLP, visible_NV)), visible_NV)
        anchor = take_patches(decode(model, latent, visible_NV, None), hidden_NH)
        scores = []
        for place in range(visible_NV.shape[1]):
            without = decode(model, latent, visible_NV, visible_NV[:, place])
            scores.append((take_patches(without, hidden_NH) - anchor).abs().float().mean((1, 2)))
        return torch.stack(scores, dim=1).cpu()
