"""The ranker: a vision transformer that scores patches, from some of them or from the whole image.

A plain ViT of timm over explicit lists of patches, as in "Learning to Rank Patches for Unbiased Image Redundancy
Reduction" (Luo et al., CVPR 2024, arXiv 2404.00680). Sequences are gathered: it sees the patches it is given, each
with the fixed embedding of its place, in any order. Scores of one view can be compared with each other only.

Shape suffixes: N views, L grid positions, V patches given, P values of a patch (p * p * 3), T tokens (class token,
registers if the model has any, patches), D width.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import normalise
from patchsieve.pipeline.teacher.architecture import PatchGrid, sincos_positions
from patchsieve.ranker.model.backbone import build_backbone

Head = Literal["cls", "token"]
"""Where scores come from: `cls` = one linear layer from the class token to all positions (the paper's), `token` = one
linear layer from each patch's token to its score."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankerConfig(PatchGrid):
    """Architecture of a ranker: a timm name, sizes in pixels, the head.

    `image_size` and `patch_size` are those of the table and overrule what `model` says. `depth`: only the first
    blocks of the model, None for all.
    """

    model: str = "vit_small_patch16_224"
    head: Head = "cls"
    image_size: int = 224
    patch_size: int = 16
    depth: int | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "depth"):
            value = getattr(self, name)
            if not (name == "depth" and value is None) and (type(value) is not int or value < 1):
                raise UserError(f"ranker: {name} is {value!r}, must be a whole number of at least 1")
        self.check_grid("ranker")
        if self.head not in get_args(Head):
            raise UserError(f"ranker: head {self.head!r} is none of {', '.join(get_args(Head))}")
        if not isinstance(self.model, str):
            raise UserError(f"ranker: model is {self.model!r}, must be a name that timm knows")


class Ranker(nn.Module):
    """Scores of patches, higher = more of the image's content; a parallel wrapper calls `forward`.

    Patches are uint8 in the layout of `patchify`, or floating, then ImageNet-normalised already. Parameters stay
    float32, half precision comes from autocast; the head computes in float32 all the same, since scores that are
    close must not become ties.
    """

    position_embedding: Tensor

    def __init__(self, config: RankerConfig, *, weights: str | None = None, drawn: bool = True) -> None:
        """Random weights from torch's global generator, or the transformer's from `weights` (see `build_backbone`).

        Without `drawn` they are left as they come, for those that are loaded next.

        Raises UserError for a model that cannot rank and for weights that do not fit.
        """
        super().__init__()
        self.config = config
        self.backbone = build_backbone(
            config.model,
            image_size=config.image_size,
            patch_size=config.patch_size,
            depth=config.depth,
            weights=weights,
            drawn=drawn,
        )
        width = self.backbone.embed_dim
        with torch.device("cpu"):  # values, where weights are shapes alone
            positions = sincos_positions(width, config.grid)[1:]
        self.register_buffer("position_embedding", positions, persistent=False)
        self.head = nn.Linear(width, config.positions if config.head == "cls" else 1)
        if drawn:
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, patches: Tensor, positions_NV: Tensor | None = None) -> Tensor:
        """`forward_visible`, or `forward_image` where no positions are given."""
        if positions_NV is None:
            return self.forward_image(patches)
        return self.forward_visible(patches, positions_NV)

    def forward_visible(self, patches_NVP: Tensor, positions_NV: Tensor) -> Tensor:
        """Scores float32 `[N, V]` of the patches `[N, V, P]` that stand at `positions_NV` (any integer type).

        The ranker sees these patches alone; their order does not matter to the score of each. Raises ValueError for
        shapes that do not belong together.
        """
        if patches_NVP.shape != (*positions_NV.shape, self.config.patch_values):
            raise ValueError(
                f"patches {list(patches_NVP.shape)} at positions {list(positions_NV.shape)}: a ranker of "
                f"{self.config.patch_size} px patches needs [N, V, {self.config.patch_values}] and [N, V]"
            )
        at_NV = positions_NV.long()
        x_NTD = self._encode(patches_NVP, self.position_embedding[at_NV])
        if self.config.head == "cls":
            return self._score(x_NTD[:, 0]).gather(1, at_NV)
        return self._score(x_NTD[:, -at_NV.shape[1] :]).squeeze(-1)

    def forward_image(self, patches_NLP: Tensor) -> Tensor:
        """Scores float32 `[N, L]` of whole images, as patches `[N, L, P]` row by row.

        Raises ValueError for another grid than the ranker's.
        """
        if patches_NLP.shape[1:] != (self.config.positions, self.config.patch_values):
            raise ValueError(
                f"patches {list(patches_NLP.shape)}: this ranker sees images of "
                f"[N, {self.config.positions}, {self.config.patch_values}]"
            )
        every = torch.arange(self.config.positions, device=patches_NLP.device)
        return self.forward_visible(patches_NLP, every.expand(len(patches_NLP), -1))

    def _encode(self, patches_NVP: Tensor, positions_NVD: Tensor) -> Tensor:
        """The last block's tokens `[N, T, D]`, before the final norm."""
        values_NVP = normalise(patches_NVP) if patches_NVP.dtype == torch.uint8 else patches_NVP
        embed = self.backbone.patch_embed
        # With stride p, the convolution is one matrix product.
        weight = embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
        x_NVD = embed.norm(nn.functional.linear(values_NVP, weight, embed.proj.bias)) + positions_NVD
        prefix = [t for t in (self.backbone.cls_token, self.backbone.reg_token) if t is not None]
        tokens = [token.expand(len(x_NVD), -1, -1).to(x_NVD.dtype) for token in prefix]
        x: Tensor = self.backbone.norm_pre(torch.cat([*tokens, x_NVD], dim=1))
        for block in self.backbone.blocks:
            x = block(x)
        return x

    def _score(self, tokens: Tensor) -> Tensor:
        """The head on the normalised tokens that it reads; of timm's two final norms one does nothing."""
        with torch.autocast(tokens.device.type, enabled=False):
            scores: Tensor = self.head(self.backbone.fc_norm(self.backbone.norm(tokens.float())))
        return scores
