"""Pixels of pruned images: cutting out the kept blocks, putting them back, and the image files between.

Shape suffixes: L grid positions, K kept ones, S side of the crop in pixels, B side of a block, H and W of the mosaic,
T side of a thumbnail.
"""

from __future__ import annotations

import dataclasses
import io
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from patchsieve.pipeline.errors import ContentError, UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.header import read_header
from patchsieve.pipeline.images.views import ViewBox, apply_view
from patchsieve.pipeline.pruned.format import BACKGROUND_FIELD, EXTENSIONS, CodecName, PackedRecord

DEFAULT_QUALITY = 90


@dataclasses.dataclass(frozen=True)
class ImageCodec:
    """How pruned images are written: `jpeg` (4:2:0), `webp` (of quality 100: exact) or `png` (exact, no quality).

    The same pixels give the same bytes within one Pillow release. Raises UserError for other names and for a quality
    outside 1 to 100.
    """

    name: CodecName
    quality: int = DEFAULT_QUALITY

    def __post_init__(self) -> None:
        if self.name not in get_args(CodecName):
            raise UserError(f"codec is {self.name!r}, must be one of {', '.join(get_args(CodecName))}")
        if type(self.quality) is not int or not 1 <= self.quality <= 100:
            raise UserError(f"quality is {self.quality!r}, must be a whole number from 1 to 100")

    @property
    def extension(self) -> str:
        """Of the files' names, without a dot."""
        return EXTENSIONS[self.name]

    @property
    def lossless(self) -> bool:
        """Whether decoding gives the very pixels back."""
        return self.name == "png" or (self.name == "webp" and self.quality == 100)

    def encode(self, pixels_3HW: Tensor) -> bytes:
        """An image, uint8 `[3, H, W]`, as a file."""
        image = Image.fromarray(pixels_3HW.permute(1, 2, 0).contiguous().cpu().numpy())
        buffer = io.BytesIO()
        image.save(buffer, **self._options())
        return buffer.getvalue()

    def _options(self) -> dict[str, Any]:
        if self.name == "jpeg":
            # Huffman tables of its own are worth 5 % of a small file.
            return {"format": "JPEG", "quality": self.quality, "subsampling": "4:2:0", "optimize": True}
        if self.name == "png":
            return {"format": "PNG"}
        if self.lossless:
            # Here quality is the effort, which beyond this takes long for next to nothing.
            return {"format": "WEBP", "lossless": True, "quality": 50, "method": 3}
        return {"format": "WEBP", "quality": self.quality, "method": 4}


def pack_mosaic(pixels_3SS: Tensor, record: PackedRecord) -> Tensor:
    """The mosaic of the kept blocks of a crop, uint8 `[3, H, W]` from uint8 `[3, S, S]`.

    Places that are left in the last row are filled with the last block's mean colour. Raises ValueError for a crop of
    another size than the record's.
    """
    kept_K3BB = _blocks(pixels_3SS, record.grid, record.block)[list(record.positions)]
    height, width = record.mosaic_size
    spare = height * width // record.block**2 - len(kept_K3BB)
    if spare:
        kept_K3BB = torch.cat([kept_K3BB, _flat(kept_K3BB[-1:]).expand(spare, *kept_K3BB.shape[1:])])
    rows = kept_K3BB.reshape(-1, record.columns, 3, record.block, record.block)
    return rows.permute(2, 0, 3, 1, 4).reshape(3, height, width)


def unpack_mosaic(mosaic_3HW: Tensor, record: PackedRecord) -> Tensor:
    """The kept blocks of a mosaic, uint8 `[K, 3, B, B]` from uint8 `[3, H, W]`: the inverse of `pack_mosaic`."""
    if mosaic_3HW.shape != (3, *record.mosaic_size):
        raise ValueError(f"a mosaic of {list(mosaic_3HW.shape)} for a record of {record.mosaic_size}")
    block = record.block
    cut = mosaic_3HW.reshape(3, -1, block, record.columns, block).permute(1, 3, 0, 2, 4)
    return cut.reshape(-1, 3, block, block)[: len(record.positions)]


def decode_mosaic(data: bytes, record: PackedRecord) -> Tensor:
    """The mosaic in an image file, uint8 `[3, H, W]`.

    Raises ContentError for a file that is damaged, or whose header tells another format or size than the record; then
    no pixel is decoded.
    """
    return _decode_expected(data, record.image_field, record.codec, record.mosaic_size)


def decode_background(data: bytes, record: PackedRecord) -> Tensor:
    """The thumbnail in a file, uint8 `[3, T, T]`, of a record that has one; errors as `decode_mosaic`."""
    assert record.background is not None
    return _decode_expected(data, BACKGROUND_FIELD, "jpeg", (record.background, record.background))


def _decode_expected(data: bytes, field: str, codec: CodecName, size: tuple[int, int]) -> Tensor:
    header = read_header(data)
    if header is None or header.format != codec:
        raise ContentError(f"{field} is {header.format if header else 'another kind of file'}, not {codec}")
    if (header.height, header.width) != size or header.orientation != 1:
        raise ContentError(
            f"{field} has {header.height} x {header.width} pixels where its record says {size[0]} x {size[1]}"
        )
    return decode_image(data, max_pixels=header.height * header.width)


def enlarged(thumbnail_3TT: Tensor, size: int) -> Tensor:
    """A thumbnail at the size of its crop, uint8 `[3, S, S]`, S = `size` in pixels, by bicubic interpolation."""
    side = thumbnail_3TT.shape[1]
    return apply_view(thumbnail_3TT, ViewBox(0, 0, side, side, hflip=False), size)


def flatten_dropped(
    pixels_3SS: Tensor, keep_L: NDArray[np.bool_], grid: int, thumbnail_3TT: Tensor | None = None
) -> Tensor:
    """The crop, uint8 `[3, S, S]`, with every block that `keep_L` (bool `[L]`) leaves out in its own mean colour, or as
    the enlarged thumbnail has it.

    Raises ValueError for sizes that do not fit.
    """
    size = pixels_3SS.shape[1]
    if np.shape(keep_L) != (grid * grid,) or size % grid:
        raise ValueError(f"a mask of {list(np.shape(keep_L))} for {grid} x {grid} blocks of {size} px")
    block = size // grid
    blocks_L3BB = _blocks(pixels_3SS, grid, block)
    keep_L111 = torch.from_numpy(np.asarray(keep_L, np.bool_))[:, None, None, None]
    small = thumbnail_3TT
    under_L3BB = _flat(blocks_L3BB) if small is None else _blocks(enlarged(small, size), grid, block)
    cut = torch.where(keep_L111, blocks_L3BB, under_L3BB).reshape(grid, grid, 3, block, block)
    return cut.permute(2, 0, 3, 1, 4).reshape(3, size, size)


def _blocks(pixels_3SS: Tensor, grid: int, block: int) -> Tensor:
    """All blocks of a crop, `[L, 3, B, B]`."""
    size = grid * block
    if pixels_3SS.shape != (3, size, size):
        raise ValueError(f"pixels {list(pixels_3SS.shape)} for a crop of {size} px")
    cut = pixels_3SS.reshape(3, grid, block, grid, block).permute(1, 3, 0, 2, 4)
    return cut.reshape(-1, 3, block, block)


def _flat(blocks: Tensor) -> Tensor:
    """The mean colour of each block, uint8 `[N, 3, 1, 1]`."""
    return blocks.double().mean(dim=(2, 3), keepdim=True).round().to(torch.uint8)
