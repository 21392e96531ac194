"""A vision transformer on the tokens that are left of images, each at its own place: what both protocols run.

Shape suffixes: N images, K tokens, P values of a patch, D width, L grid positions, C classes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.data.config import resolve_model_data_config
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import IMAGENET_MEAN, IMAGENET_STD
from patchsieve.pipeline.teacher.model import MaskedAutoencoder, PatchEmbedding
from patchsieve.ranker.prove.views import View


def positions_at(table_LD: Tensor, grid: int, places: Tensor) -> Tensor:
    """Position embeddings `[..., D]` at places `[..., 2]` between those of a grid, bilinear; at its points exactly."""
    places = places.clamp(0, grid - 1)
    low = places.floor().long().clamp(max=max(0, grid - 2))
    share = places - low
    high = (low + 1).clamp(max=grid - 1)
    found = torch.zeros(*places.shape[:-1], table_LD.shape[1], device=table_LD.device)
    for row, row_share in ((low[..., 0], 1 - share[..., 0]), (high[..., 0], share[..., 0])):
        for column, column_share in ((low[..., 1], 1 - share[..., 1]), (high[..., 1], share[..., 1])):
            found += table_LD[row * grid + column] * (row_share * column_share)[..., None]
    return found


def encode_tokens(model: Any, patches_NKP: Tensor, places_NK2: Tensor, grid: int) -> Tensor:
    """The class token beside the mean of the others, `[N, 2 D]`.

    `model`: a masked autoencoder or a `TokenClassifier`; `patches_NKP`: normalised as it wants them.
    """
    x_NKD = model.patch_embed(patches_NKP)
    positions_SD = model.pos_embed[0]
    # Some ViTs have no position for the class token.
    own = len(positions_SD) - grid**2
    x_NKD = x_NKD + positions_at(positions_SD[own:], grid, places_NK2)
    first_11D = model.cls_token + positions_SD[:own].sum(dim=0)
    x = torch.cat([first_11D.expand(len(x_NKD), -1, -1), x_NKD], dim=1)
    for block in model.blocks:
        x = block(x)
    latent: Tensor = model.norm(x)
    return torch.cat([latent[:, 0], latent[:, 1:].mean(dim=1)], dim=1)


def encoder_flops(*, tokens: float, patch_values: int, width: int, depth: int, mlp_ratio: float) -> float:
    """Operations of one image of so many tokens and the class token, a product and a sum being two."""
    length = tokens + 1
    block = length * (4 + 2 * mlp_ratio) * width**2 + 2 * length**2 * width
    return 2 * (tokens * patch_values * width + depth * block)


def check_plain(vit: nn.Module, name: str, *, grid: int, patch_size: int) -> VisionTransformer:
    """The model, if tokens can be left out of it; UserError for another kind, and for another grid."""
    if type(vit) is not VisionTransformer or type(vit.patch_embed) is not PatchEmbed:
        reason = f"timm builds a {type(vit).__name__}"
    elif vit.cls_token is None or vit.reg_token is not None or vit.pos_embed is None:
        reason = "it lacks a class token or positions, or has registers"
    elif not all(isinstance(one, nn.Identity) for one in (vit.norm_pre, vit.patch_embed.norm, vit.fc_norm)):
        reason = "it has norms of its own before or after its blocks"
    elif (vit.patch_embed.grid_size, vit.patch_embed.patch_size) != ((grid, grid), (patch_size, patch_size)):
        rows, columns = vit.patch_embed.grid_size or (0, 0)
        reason = f"it sees {rows} x {columns} patches of {vit.patch_embed.patch_size[0]} px"
    else:
        return vit
    raise UserError(
        f"--backbone {name} cannot be fine-tuned on patches ({reason}): that takes a plain ViT with a class token and "
        f"{grid} x {grid} patches of {patch_size} px, such as vit_small_patch16_224"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """What is left of one image: `patches` uint8 `[K, P]`, `places` float32 `[K, 2]` (see `View`)."""

    patches: Tensor
    places: Tensor

    @classmethod
    def of(cls, view: View) -> Tokens:
        """Those of a view, without what its files and its image take."""
        return cls(view.patches, view.places)


def by_count(tokens: Sequence[Tokens], rows: Sequence[int], most: int) -> Iterator[list[int]]:
    """The rows in groups of equally many tokens, at most `most` each, so that none is padded; fewest tokens first."""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for row in rows:
        groups[len(tokens[row].patches)].append(row)
    for _, group in sorted(groups.items()):
        for start in range(0, len(group), most):
            yield group[start : start + most]


class TokenClassifier(nn.Module):
    """A transformer that is trained further, and a new linear layer from its class token and mean to classes."""

    pos_embed: Tensor

    def __init__(
        self,
        vit: MaskedAutoencoder | VisionTransformer,
        *,
        grid: int,
        patch_size: int,
        classes: int,
        seed: int,
    ) -> None:
        """Copies the transformer, of a masked autoencoder its encoder; `seed`: of the linear layer."""
        super().__init__()
        assert vit.cls_token is not None, "see check_plain"
        assert vit.pos_embed is not None, "see check_plain"
        self.grid = grid
        weight, bias = vit.patch_embed.proj.weight, vit.patch_embed.proj.bias
        self.width, self.patch_values = int(weight.shape[0]), 3 * patch_size**2
        self.patch_embed = PatchEmbedding(patch_size, self.width)
        self.patch_embed.load_state_dict({"proj.weight": weight, "proj.bias": bias})
        self.cls_token = nn.Parameter(vit.cls_token.detach().clone())
        positions = vit.pos_embed.detach().clone()
        if isinstance(vit, VisionTransformer):
            self.pos_embed = nn.Parameter(positions)
            about = resolve_model_data_config(vit)
            mean, deviation = about["mean"], about["std"]
        else:
            # Sines and cosines, which its pretraining left alone.
            self.register_buffer("pos_embed", positions)
            mean, deviation = IMAGENET_MEAN, IMAGENET_STD
        self.blocks, self.norm = copy.deepcopy(vit.blocks), copy.deepcopy(vit.norm)
        self.head = nn.Linear(2 * self.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation), persistent=False)
        self.requires_grad_(True)

    mean: Tensor
    deviation: Tensor

    def forward(self, patches_NKP: Tensor, places_NK2: Tensor) -> Tensor:
        """Logits `[N, C]` of uint8 patches at their places."""
        pixels = patches_NKP.reshape(*patches_NKP.shape[:-1], -1, 3).float() / 255
        normal_NKP = ((pixels - self.mean) / self.deviation).flatten(-2)
        logits: Tensor = self.head(encode_tokens(self, normal_NKP, places_NK2, self.grid))
        return logits

    def flops(self, tokens: float) -> float:
        """Of a forward pass of one image; calculated from the sizes, the linear layer at the end left out."""
        hidden = self.blocks[0].get_submodule("mlp.fc1").out_features
        return encoder_flops(
            tokens=tokens,
            patch_values=self.patch_values,
            width=self.width,
            depth=len(self.blocks),
            mlp_ratio=float(hidden) / self.width,  # type: ignore[arg-type]
        )

    def logits(self, tokens: Sequence[Tokens], rows: Sequence[int]) -> Tensor:
        """Of some of the images, equally many tokens each, on this model's device."""
        device = self.head.weight.device
        patches = torch.stack([tokens[row].patches for row in rows]).to(device)
        places = torch.stack([tokens[row].places for row in rows]).to(device)
        found: Tensor = self(patches, places)
        return found
