"""What a model gets of an image: tokens with their places, the same as one image, and what its files take.

Pure functions of pixels; safe on many threads.

Shape suffixes: L patches of an image, P values of a patch (p * p * 3), K tokens, S side of the crop in pixels.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.patches import patchify, unpatchify
from patchsieve.pipeline.images.views import ViewBox, apply_view
from patchsieve.pipeline.pruned.codec import ImageCodec, flatten_dropped, pack_mosaic
from patchsieve.pipeline.pruned.format import PackedRecord, mosaic_columns
from patchsieve.ranker.prove.quadtree import Block

_TAR_BLOCK = 512


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """What is left of one image.

    `patches`: uint8 `[K, P]`; `places`: float32 `[K, 2]`, row and column of their middles on the grid of the whole
    crop, in patches; `image`: makes the same as one image, uint8 `[3, S, S]`; `nbytes`: of its files in a tar.
    """

    patches: Tensor
    places: Tensor
    image: Callable[[], Tensor]
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Canvas:
    """The grid of crops, and how their files are written."""

    grid: int
    patch_size: int
    codec: ImageCodec

    @property
    def size(self) -> int:
        """Side of a crop in pixels."""
        return self.grid * self.patch_size

    @property
    def places(self) -> Tensor:
        """Row and column of every patch, float32 `[L, 2]`."""
        return grid_places(self.grid, self.grid)

    def pixels(self, patches_LP: Tensor) -> Tensor:
        """A crop, uint8 `[3, S, S]`."""
        return unpatchify(patches_LP[None], self.patch_size)[0].contiguous()


def tar_bytes(files: Sequence[bytes]) -> int:
    """What files take in a tar: a header each, and filled up to whole blocks."""
    return sum(_TAR_BLOCK * (1 + -(-len(data) // _TAR_BLOCK)) for data in files)


def grid_places(side: int, grid: int) -> Tensor:
    """Middles of side x side equal parts of a crop on its grid of grid x grid patches, float32 `[side * side, 2]`."""
    middles = (torch.arange(side, dtype=torch.float32) + 0.5) * (grid / side) - 0.5
    return torch.cartesian_prod(middles, middles)


def whole_view(patches_LP: Tensor, canvas: Canvas) -> View:
    """Everything, as one file of the canvas's codec; a model sees the pixels before it."""
    pixels = canvas.pixels(patches_LP)
    return View(
        patches=patches_LP,
        places=canvas.places,
        image=lambda: pixels,
        nbytes=tar_bytes([canvas.codec.encode(pixels)]),
    )


def kept_view(patches_LP: Tensor, keep_L: NDArray[np.bool_], canvas: Canvas, *, background: int = 0) -> View:
    """The patches that `keep` leaves, as prune packs them; in the image, dropped ones have their mean colour.

    `background`: side in pixels of a thumbnail beside them, whose tokens come first; the image has it enlarged then.
    """
    pixels = canvas.pixels(patches_LP)
    thumbnail = _resized(pixels, background) if background else None
    tokens, places = [], []
    if thumbnail is not None:
        tokens.append(patchify(thumbnail[None], canvas.patch_size)[0])
        places.append(grid_places(background // canvas.patch_size, canvas.grid))
    at = torch.from_numpy(np.flatnonzero(keep_L))
    return View(
        patches=torch.cat([*tokens, patches_LP[at]]),
        places=torch.cat([*places, canvas.places[at]]),
        image=lambda: flatten_dropped(pixels, keep_L, canvas.grid, thumbnail),
        nbytes=tar_bytes(packed_files(pixels, keep_L, canvas, thumbnail)),
    )


def packed_files(
    pixels_3SS: Tensor, keep_L: NDArray[np.bool_], canvas: Canvas, thumbnail: Tensor | None = None
) -> list[bytes]:
    """The files of what `keep` leaves of a crop, as prune packs them: mosaic, JSON and thumbnail."""
    positions = np.flatnonzero(keep_L)
    record = PackedRecord(
        grid=canvas.grid,
        block=canvas.patch_size,
        positions=tuple(positions.tolist()),
        columns=mosaic_columns(len(positions), canvas.patch_size),
        original_size=(canvas.size, canvas.size),
        crop=(0, 0, canvas.size, canvas.size),
        codec=canvas.codec.name,
        background=None if thumbnail is None else thumbnail.shape[1],
    )
    files = [canvas.codec.encode(pack_mosaic(pixels_3SS, record)), record.to_json()]
    return files if thumbnail is None else [*files, canvas.codec.encode(thumbnail)]


def resized_view(patches_LP: Tensor, side: int, canvas: Canvas) -> View:
    """The whole crop at side x side patches; the image is enlarged again."""
    small = _resized(canvas.pixels(patches_LP), side * canvas.patch_size)
    return View(
        patches=patchify(small[None], canvas.patch_size)[0],
        places=grid_places(side, canvas.grid),
        image=lambda: _resized(small, canvas.size),
        nbytes=tar_bytes([canvas.codec.encode(small)]),
    )


def jpeg_view(patches_LP: Tensor, quality: int, canvas: Canvas) -> View:
    """The whole crop as a JPEG of this quality leaves it."""
    data = ImageCodec("jpeg", quality).encode(canvas.pixels(patches_LP))
    pixels = decode_image(data).contiguous()
    return View(
        patches=patchify(pixels[None], canvas.patch_size)[0],
        places=canvas.places,
        image=lambda: pixels,
        nbytes=tar_bytes([data]),
    )


def quadtree_view(patches_LP: Tensor, blocks: Sequence[Block], canvas: Canvas) -> View:
    """Blocks of several sizes, each as one token; the image has every block enlarged again.

    Its file is the row of tokens in the canvas's codec, and the blocks' places in JSON.
    """
    pixels, size = canvas.pixels(patches_LP), canvas.patch_size
    tokens, places = [], []
    image = torch.empty_like(pixels)
    levels = {side: _pooled(pixels, side, size) for side in {block[0] for block in blocks}}
    enlarged = {side: _resized(level, level.shape[1] * side) for side, level in levels.items()}
    for side, row, column in blocks:
        top, left = row // side * size, column // side * size
        tokens.append(levels[side][:, top : top + size, left : left + size])
        places.append((row + (side - 1) / 2, column + (side - 1) / 2))
        here = (
            slice(None),
            slice(row * size, (row + side) * size),
            slice(column * size, (column + side) * size),
        )
        image[here] = enlarged[side][here]
    row_of_tokens = torch.cat(tokens, dim=2)
    about = json.dumps({"sides": [block[0] for block in blocks]}, separators=(",", ":")).encode()
    return View(
        patches=torch.cat([patchify(token[None], size)[0] for token in tokens]),
        places=torch.tensor(places, dtype=torch.float32),
        image=lambda: image,
        nbytes=tar_bytes([canvas.codec.encode(row_of_tokens), about]),
    )


def _resized(pixels_3SS: Tensor, size: int) -> Tensor:
    """Antialiased bicubic, as all views."""
    side = pixels_3SS.shape[1]
    return apply_view(pixels_3SS, ViewBox(0, 0, side, side, hflip=False), size)


def _pooled(pixels_3SS: Tensor, side: int, patch_size: int) -> Tensor:
    """Means of side x side pixels, of what whole blocks of that side cover, uint8."""
    if side == 1:
        return pixels_3SS
    reach = pixels_3SS.shape[1] // (side * patch_size) * side * patch_size
    pooled = avg_pool2d(pixels_3SS[None, :, :reach, :reach].float(), side)[0]
    return pooled.round().to(torch.uint8)
