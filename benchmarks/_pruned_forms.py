"""Ways to store a photo's crop, with the bytes and the errors of each; for `benchmarks/prune.py`.

Shape suffixes: L grid positions, P values of a patch, S side of the crop, H and W of a picture.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.images.views import ViewBox, apply_view
from patchsieve.pipeline.pruned.codec import ImageCodec, pack_mosaic, unpack_mosaic
from patchsieve.pipeline.pruned.format import PackedRecord

Columns = Callable[[int, int], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photo:
    """One image: bytes of its file, its size, its crop (uint8 `[3, S, S]`) and which patches stay (bool `[L]`)."""

    file_bytes: int
    image_size: tuple[int, int]
    crop: tuple[int, int, int, int]
    pixels: Tensor
    keep: NDArray[np.bool_]


@dataclasses.dataclass
class Form:
    """Sums over all images of one way to store them."""

    image_bytes: int = 0
    tar_bytes: int = 0
    kept_error: list[float] = dataclasses.field(default_factory=list)
    whole_error: list[float] = dataclasses.field(default_factory=list)

    def add(self, *members: bytes) -> None:
        """Count the files of one image."""
        self.image_bytes += sum(map(len, members))
        self.tar_bytes += sum(512 + -(-len(member) // 512) * 512 for member in members)


def record_of(photo: Photo, grid: int, block: int, columns: Columns) -> PackedRecord:
    """The record of the packed form with so many blocks in a row."""
    positions = np.flatnonzero(photo.keep).tolist()
    return PackedRecord(
        grid=grid,
        block=block,
        positions=tuple(positions),
        columns=columns(len(positions), block),
        original_size=photo.image_size,
        crop=photo.crop,
        codec="jpeg",
    )


def packed(photos: Sequence[Photo], grid: int, block: int, columns: Columns, encode: Any) -> Form:
    """All photos in the packed format."""
    form = Form()
    for photo in photos:
        record = record_of(photo, grid, block, columns)
        data = encode(pack_mosaic(photo.pixels, record))
        form.add(data, record.to_json())
        at = list(record.positions)
        kept = patchify(unpack_mosaic(decode_image(data), record), block)[:, 0]
        form.kept_error.append(error_of(kept, patchify(photo.pixels[None], block)[0][at]))
    return form


def whole(
    photos: Sequence[Photo], block: int, encode: Any, change: Any = None, side: int | None = None
) -> Form:
    """All photos as one picture each, after `change` or at `side` pixels."""
    form = Form()
    for photo in photos:
        size = photo.pixels.shape[1]
        stored = change(photo) if change else photo.pixels
        if side is not None:
            stored = apply_view(stored, ViewBox(0, 0, size, size, hflip=False), side)
        data = encode(stored)
        form.add(data)
        seen = decode_image(data)
        if side is not None:
            seen = apply_view(seen, ViewBox(0, 0, side, side, hflip=False), size)
        seen_LP, true_LP = patchify(torch.stack([seen, photo.pixels]), block)
        form.kept_error.append(error_of(seen_LP[photo.keep], true_LP[photo.keep]))
        form.whole_error.append(error_of(seen_LP, true_LP))
    return form


def quality_of_bytes(photos: Sequence[Photo], limit: int) -> int:
    """The highest JPEG quality at which the whole crops take at most `limit` bytes; 1 where none does."""
    low, high = 1, 100
    while low < high:
        middle = (low + high + 1) // 2
        codec = ImageCodec("jpeg", middle)
        fits = sum(len(codec.encode(photo.pixels)) for photo in photos) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def progressive(quality: int) -> Callable[[Tensor], bytes]:
    """JPEG as the job writes it, but progressive."""

    def encode(pixels_3HW: Tensor) -> bytes:
        buffer = io.BytesIO()
        picture = Image.fromarray(pixels_3HW.permute(1, 2, 0).contiguous().numpy())
        picture.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", optimize=True, progressive=True)
        return buffer.getvalue()

    return encode


def error_of(found: Tensor, expected: Tensor) -> float:
    """Mean squared error of two uint8 tensors."""
    return float((found.double() - expected.double()).square().mean())


def psnr(errors: Sequence[float]) -> float:
    """Decibels of the mean of mean squared errors."""
    return 10 * math.log10(255**2 / max(float(np.mean(errors)), 1e-12))
