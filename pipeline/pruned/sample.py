"""One sample of a pruned dataset: kept patches, where they belong, and the way back to the original image.

Shape suffixes: K kept patches, P values of a patch (side * side * 3), S side of the crop in pixels, T of a thumbnail,
C patches of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import patchify, unpatchify
from patchsieve.pipeline.pruned.codec import enlarged
from patchsieve.pipeline.pruned.progress import Place

IMAGENET_GRAY = (124, 116, 104)
"""ImageNet's mean colour, which a model sees as zeros."""

_ROW = ("shard", "key", "patches", "positions", "grid", "block", "original_size", "crop", "background")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PrunedSample:
    """The kept patches of one image.

    `patches`: uint8 `[K, P]`, each patch row by row with channels last (as `patchify` and NaFlexVit have them);
    `positions`: int64 `[K]`, ascending, on a grid of `grid` x `grid` patches of `block` x `block` pixels, numbered row
    by row. `original_size` = (height, width) and `crop` = (top, left, height, width) in pixels of the upright original,
    both None where the user's own augmentation made the image. `fields`: the sample's other fields by extension, bytes
    unless a decoder was given. `background`: a thumbnail of the whole crop, uint8 `[3, T, T]`, None where there is
    none. `place`: where it lies in its dataset, None for a sample that was read from none.
    """

    shard: str
    key: str
    patches: Tensor
    positions: Tensor
    grid: int
    block: int
    original_size: tuple[int, int] | None
    crop: tuple[int, int, int, int] | None
    fields: dict[str, Any]
    background: Tensor | None = None
    place: Place | None = None

    @property
    def size(self) -> int:
        """Side of the whole crop in pixels, S."""
        return self.grid * self.block

    def split(self, patch_size: int) -> tuple[Tensor, Tensor, int]:
        """(patches `[K, P]`, positions `[K]`, grid) with every block cut into patches of `patch_size` pixels.

        Blocks are larger than patches where the dataset was pruned at a multiple of the ranker's resolution. Positions
        are ascending on the finer grid. Raises UserError where the patches do not fill a block.
        """
        if patch_size < 1 or self.block % patch_size:
            raise UserError(
                f"patches of {patch_size} px do not fill the blocks of {self.block} px that {self.shard} keeps"
            )
        parts = self.block // patch_size
        if parts == 1:
            return self.patches, self.positions, self.grid
        count, grid = len(self.positions), self.grid * parts
        cut = self.patches.reshape(count, parts, patch_size, parts, patch_size * 3).transpose(2, 3)
        row, column = self.positions // self.grid, self.positions % self.grid
        inner = torch.arange(parts)
        fine = (row[:, None] * parts + inner)[:, :, None] * grid + (column[:, None] * parts + inner)[:, None]
        order = fine.flatten().argsort()
        return cut.reshape(count * parts**2, -1)[order], fine.flatten()[order], grid

    def split_background(self, patch_size: int) -> tuple[Tensor, int]:
        """(patches `[C, P]`, patches along each side) of the thumbnail; none of it without one.

        Raises UserError where patches of this size do not fill it.
        """
        if self.background is None:
            return torch.zeros(0, patch_size**2 * 3, dtype=torch.uint8), 0
        side = self.background.shape[1]
        if patch_size < 1 or side % patch_size:
            raise UserError(
                f"patches of {patch_size} px do not fill the thumbnails of {side} px of {self.shard}"
            )
        return patchify(self.background[None], patch_size)[0], side // patch_size

    def to_image(self, fill: int | tuple[int, int, int] | None = None) -> Tensor:
        """The crop, uint8 `[3, S, S]`, with `fill` (0 to 255, gray or RGB) where patches were dropped.

        By default the enlarged thumbnail is there, and IMAGENET_GRAY without one.
        """
        if fill is None and self.background is not None:
            canvas = patchify(enlarged(self.background, self.size)[None], self.block)[0]
            canvas[self.positions] = self.patches
            return unpatchify(canvas[None], self.block)[0]
        fill = IMAGENET_GRAY if fill is None else fill
        colour = torch.tensor([fill] * 3 if isinstance(fill, int) else fill)
        if colour.shape != (3,) or bool(((colour < 0) | (colour > 255)).any()):
            raise UserError(f"fill is {fill!r}, must be a value or an RGB colour of 0 to 255")
        canvas = colour.to(torch.uint8).repeat(self.grid**2, self.block**2)
        canvas[self.positions] = self.patches
        return unpatchify(canvas[None], self.block)[0]

    def to_original(self, xy: Any) -> NDArray[np.float64]:
        """Points of the crop as points of the original image, float64 `[..., 2]`, (x, y) in pixels.

        Coordinates are continuous: the top left pixel covers 0 to 1 in both, its centre is (0.5, 0.5). Raises UserError
        where the crop is not known.
        """
        corner, scale = self._frame()
        return np.asarray(xy, np.float64) * scale + corner

    def from_original(self, xy: Any) -> NDArray[np.float64]:
        """Points of the original image, such as the corners of boxes, as points of the crop; see `to_original`."""
        corner, scale = self._frame()
        return (np.asarray(xy, np.float64) - corner) / scale

    def to_row(self) -> dict[str, Any]:
        """The sample as a row of arrays and plain values, one column per field, for Ray Data; see `from_row`.

        Raises UserError for a field that has the name of a column.
        """
        clash = [field for field in self.fields if field in _ROW]
        if clash:
            raise UserError(f"{self.shard}: field {clash[0]!r} of {self.key} has the name of a column")
        row = {name: getattr(self, name) for name in _ROW}
        row |= {"patches": self.patches.numpy(), "positions": self.positions.numpy()}
        row["background"] = None if self.background is None else self.background.numpy()
        known = {name: value for name, value in row.items() if value is not None}
        return {**known, **self.fields}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> PrunedSample:
        """The sample that gave this row."""

        def sizes(name: str) -> Any:
            return tuple(int(value) for value in row[name]) if row.get(name) is not None else None

        return cls(
            shard=str(row["shard"]),
            key=str(row["key"]),
            # Copies, since arrays from a store are read-only and torch has no such tensors.
            patches=torch.from_numpy(np.array(row["patches"], np.uint8)),
            positions=torch.from_numpy(np.array(row["positions"], np.int64)),
            grid=int(row["grid"]),
            block=int(row["block"]),
            original_size=sizes("original_size"),
            crop=sizes("crop"),
            background=None
            if row.get("background") is None
            else torch.from_numpy(np.array(row["background"], np.uint8)),
            fields={name: value for name, value in row.items() if name not in _ROW},
        )

    def _frame(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Corner (x, y) of the crop in the original, and pixels of the original per pixel of the crop."""
        if self.crop is None:
            raise UserError(
                f"{self.key}: a transform of your own made this image, its place in the original is not known"
            )
        top, left, height, width = self.crop
        return np.array([left, top], np.float64), np.array([width, height], np.float64) / self.size


def gather_patches(pixels_3SS: Tensor, positions: Tensor, block: int) -> Tensor:
    """The patches at `positions` (int64 `[K]`) of a crop, uint8 `[K, P]` from uint8 `[3, S, S]`."""
    return patchify(pixels_3SS[None], block)[0][positions]
