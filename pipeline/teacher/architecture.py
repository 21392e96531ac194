"""What a masked autoencoder is made of, without the model itself: reading a teacher's file takes no more.

timm is not imported here: a driver that checks a teacher and leaves the work to others starts two seconds sooner.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from patchsieve.pipeline.checks import at_least_one
from patchsieve.pipeline.errors import UserError

OutputSpace = Literal["pixels", "normalised", "unknown"]
"""What the decoder predicts: `pixels` = ImageNet-normalised pixels, `normalised` = pixels of each
patch less their own mean over their own deviation, `unknown` = the file does not tell."""


MAX_GRID = 181
"""Patches along a side: positions are numbered by int16, and a fixed embedding is computed for each."""


class PatchGrid:
    """Square images cut into square patches; sides in pixels."""

    image_size: int
    patch_size: int

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def positions(self) -> int:
        """Patches of the whole grid, L."""
        return self.grid**2

    @property
    def patch_values(self) -> int:
        """Values of a patch, P = p * p * 3."""
        return self.patch_size**2 * 3

    def check_grid(self, what: str) -> None:
        """Raise UserError for an image that is no whole number of patches, or has too many."""
        if self.image_size % self.patch_size:
            raise UserError(
                f"{what}: image size {self.image_size} is not a multiple of patch size {self.patch_size}"
            )
        if self.grid > MAX_GRID:
            raise UserError(f"{what}: a grid of {self.grid} patches a side, the limit is {MAX_GRID}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig(PatchGrid):
    """Architecture of a masked autoencoder and the space it predicts in.

    Sizes are in pixels (`image_size`, `patch_size`) or channels (`*_width`).
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    output_space: OutputSpace = "unknown"

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            at_least_one(f"teacher: {name}", value)
        for name in ("mlp_ratio", "norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"teacher: {name} is {getattr(self, name)}, must be above 0")
        self.check_grid("teacher")
        for width, heads in ((self.width, self.heads), (self.decoder_width, self.decoder_heads)):
            if width % heads or width % 4:
                raise UserError(f"teacher: width {width} must divide by {heads} heads and by 4")
        if self.output_space not in get_args(OutputSpace):
            raise UserError(
                f"teacher: output space {self.output_space!r} is none of {', '.join(get_args(OutputSpace))}"
            )


def sincos_positions(width: int, grid: int) -> Tensor:
    """Fixed two-dimensional sine-cosine embeddings, float32 `[1 + grid * grid, width]`.

    The first half of the channels encodes the column, the second the row; within a half, sines come
    before cosines of the frequencies 10000^(-i / (width / 4)). Row 0 (the class token) is zero.
    Source: MAE's appendix, "sine-cosine version" of position embeddings in two dimensions.
    """
    quarter = width // 4
    # On the processor also where a model is built on the meta device, whose arithmetic loads PyTorch's compiler.
    float64: Any = {"dtype": torch.float64, "device": "cpu"}
    frequency = 10000.0 ** (-torch.arange(quarter, **float64) / quarter)
    angle = torch.arange(grid, **float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    columns = axis[None, :, :].expand(grid, grid, -1)
    rows = axis[:, None, :].expand(grid, grid, -1)
    table = torch.cat([columns, rows], dim=2).reshape(grid * grid, width)
    return torch.cat([torch.zeros(1, width, **float64), table]).float()


def parameter_shapes(config: TeacherConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters and positions by the names of its state."""

    def stack(name: str, width: int, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden = int(width * config.mlp_ratio)
        layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        layers |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
        for number in range(depth):
            for norm in ("norm1", "norm2"):
                yield f"{name}.{number}.{norm}.weight", (width,)
                yield f"{name}.{number}.{norm}.bias", (width,)
            for layer, shape in layers.items():
                yield f"{name}.{number}.{layer}.weight", shape
                yield f"{name}.{number}.{layer}.bias", shape[:1]

    width, decoder, patch = config.width, config.decoder_width, config.patch_size
    return {
        "cls_token": (1, 1, width),
        "mask_token": (1, 1, decoder),
        "pos_embed": (1, 1 + config.positions, width),
        "decoder_pos_embed": (1, 1 + config.positions, decoder),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **dict(stack("blocks", width, config.depth)),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "decoder_embed.weight": (decoder, width),
        "decoder_embed.bias": (decoder,),
        **dict(stack("decoder_blocks", decoder, config.decoder_depth)),
        "decoder_norm.weight": (decoder,),
        "decoder_norm.bias": (decoder,),
        "decoder_pred.weight": (config.patch_values, decoder),
        "decoder_pred.bias": (config.patch_values,),
    }
