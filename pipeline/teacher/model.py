"""The masked autoencoder (MAE) whose reconstructions are the teacher signal.

Encoder and decoder are stacks of timm's pre-norm transformer blocks, after "Masked Autoencoders
Are Scalable Vision Learners" (He et al., CVPR 2022, arXiv 2111.06377). Sequences are *gathered*,
never masked: the encoder sees only the patches it is given, the decoder only the tokens it is given,
so that leaving a patch out costs less, not more.

Shape suffixes: N images, L grid positions, V visible, H hidden, P values of a patch (p * p * 3),
D encoder width, E decoder width.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from patchsieve.pipeline.compute.layers import InferenceBlock
from patchsieve.pipeline.teacher.architecture import TeacherConfig, sincos_positions


class PatchEmbedding(nn.Module):
    """Linear projection of patches; its parameters are a convolution's, as in the widespread checkpoints."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, patches_NVP: Tensor) -> Tensor:
        """Project `[N, V, P]` to `[N, V, D]`: with stride p, the convolution is one matrix product."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return nn.functional.linear(patches_NVP, weight, self.proj.bias)


class MaskedAutoencoder(nn.Module):
    """MAE encoder and decoder over explicit lists of patches.

    Parameter names are those of the widespread MAE checkpoints, so these load without renaming.
    """

    def __init__(self, config: TeacherConfig, *, drawn: bool = True) -> None:
        """`drawn`: weights are drawn at random, as for training from nothing; else they are to be loaded."""
        super().__init__()
        self.config = config
        norm: Any = partial(nn.LayerNorm, eps=config.norm_eps)
        block = partial(Block, mlp_ratio=config.mlp_ratio, qkv_bias=True, norm_layer=norm)
        self.patch_embed = PatchEmbedding(config.patch_size, config.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.register_buffer("pos_embed", sincos_positions(config.width, config.grid)[None])
        self.blocks = nn.ModuleList(block(config.width, config.heads) for _ in range(config.depth))
        self.norm = norm(config.width)
        self.decoder_embed = nn.Linear(config.width, config.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_width))
        decoder_positions = sincos_positions(config.decoder_width, config.grid)
        self.register_buffer("decoder_pos_embed", decoder_positions[None])
        self.decoder_blocks = nn.ModuleList(
            block(config.decoder_width, config.decoder_heads) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = norm(config.decoder_width)
        self.decoder_pred = nn.Linear(config.decoder_width, config.patch_values)
        if drawn:
            self._initialise()

    pos_embed: Tensor
    decoder_pos_embed: Tensor

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.config.width, -1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def encode(self, patches_NVP: Tensor, visible_NV: Tensor) -> Tensor:
        """Latents of the class token and of the given patches, `[N, 1 + V, D]`.

        `patches_NVP`: ImageNet-normalised pixels, each patch row-major with channels last.
        `visible_NV`: int64 grid positions of those patches, in any order.
        """
        x_NVD: Tensor = self.patch_embed(patches_NVP)
        x_NVD = x_NVD + self.pos_embed[0, 1:][visible_NV]
        cls_N1D = (self.cls_token + self.pos_embed[:, :1]).expand(len(x_NVD), -1, -1)
        x = torch.cat([cls_N1D.to(x_NVD.dtype), x_NVD], dim=1)
        for block in self.blocks:
            x = block(x)
        latent: Tensor = self.norm(x)
        return latent

    def decoder_tokens(self, latent: Tensor, visible_NV: Tensor, hidden_NH: Tensor) -> Tensor:
        """What the decoder's first block gets, `[N, H + 1 + V, E]`: hidden patches, class token, visible ones."""
        seen_NSE = self.decoder_embed(latent)
        positions = self.decoder_pos_embed[0]
        cls_N1E = seen_NSE[:, :1] + positions[0]
        visible_NVE = seen_NSE[:, 1:] + positions[1:][visible_NV]
        hidden_NHE = (self.mask_token + positions[1:][hidden_NH]).to(seen_NSE.dtype)
        return torch.cat([hidden_NHE, cls_N1E, visible_NVE], dim=1)

    def decode(self, latent: Tensor, visible_NV: Tensor, hidden_NH: Tensor, read: int) -> Tensor:
        """Predicted patches at the first `read` of the hidden positions, `[N, read, P]`.

        `latent` `[N, 1 + V, D]` from `encode`, `visible_NV` its positions, `hidden_NH` the positions
        that get a mask token. Positions in neither list do not take part. The prediction is in the
        teacher's output space.
        """
        x = self.decoder_tokens(latent, visible_NV, hidden_NH)
        return self.finish_decoding(x, self.decoder_blocks, read)

    def finish_decoding(self, x: Tensor, blocks: Iterable[nn.Module], read: int) -> Tensor:
        """Run what is left of the decoder's blocks; predicted patches of the first `read` tokens, `[N, read, P]`."""
        ordered = list(blocks)
        for block in ordered[:-1]:
            x = block(x)
        for last in ordered[-1:]:
            # Nothing but the tokens that are read has to leave it.
            x = last(x, read=read) if isinstance(last, InferenceBlock) else last(x)
        predicted: Tensor = self.decoder_pred(self.decoder_norm(x[:, :read]))
        return predicted
