"""One picture as a file of every kind that Pillow can write, and what Pillow reads in such a file."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.helpers.photos import encode, photo_pixels

PHOTO = photo_pixels(3, height=90, width=131)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")


def save(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def as_array(image: Tensor) -> np.ndarray:
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


def by_pillow(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.load()
    image.info.pop("transparency", None)
    return np.asarray(image.convert("RGB"))


def in_mode(mode: str) -> Image.Image:
    picture = Image.fromarray(PHOTO)
    if mode in ("RGBA", "LA"):
        picture = picture.convert(mode)
        picture.putalpha(Image.fromarray(PHOTO[..., 0]))
        return picture
    return picture.quantize(40) if mode == "P" else picture.convert(mode)


def with_adobe_transform(cmyk: bytes, transform: int | None) -> bytes:
    """A CMYK JPEG with another Adobe colour transform (2: YCCK), or (None) without Adobe's marker."""
    start = cmyk.index(b"\xff\xee")
    stop = start + 2 + int.from_bytes(cmyk[start + 2 : start + 4])
    if transform is None:
        return cmyk[:start] + cmyk[stop:]
    return cmyk[: stop - 1] + bytes([transform]) + cmyk[stop:]


CMYK = save(in_mode("CMYK"), "JPEG", quality=90)


def turned() -> Image.Image:
    return Image.fromarray(PHOTO[::-1].copy())


FILES = {
    "jpeg": encode(PHOTO),
    "jpeg 4:4:4": encode(PHOTO, subsampling=0),
    "jpeg progressive": encode(PHOTO, progressive=True),
    "jpeg rgb": encode(PHOTO, keep_rgb=True),
    "jpeg gray": save(in_mode("L"), "JPEG"),
    "jpeg cmyk": CMYK,
    "jpeg ycck": with_adobe_transform(CMYK, 2),
    "jpeg cmyk without adobe": with_adobe_transform(CMYK, None),
    "jpeg, then other bytes": encode(PHOTO) + b"\x00" * 100,
    "mpo": save(Image.fromarray(PHOTO), "MPO", save_all=True, append_images=[turned()]),
    "png": encode(PHOTO, "PNG"),
    "png gray": save(in_mode("L"), "PNG"),
    "png one bit": save(in_mode("1"), "PNG"),
    "png gray alpha": save(in_mode("LA"), "PNG"),
    "png alpha": save(in_mode("RGBA"), "PNG"),
    "png palette": save(in_mode("P"), "PNG"),
    "png palette, one transparent": save(in_mode("P"), "PNG", transparency=3),
    "png palette, half transparent": save(in_mode("P"), "PNG", transparency=bytes(range(40))),
    "png one transparent colour": encode(PHOTO, "PNG", transparency=tuple(PHOTO[0, 0].tolist())),
    "png animated": save(Image.fromarray(PHOTO), "PNG", save_all=True, append_images=[turned()]),
    "webp": encode(PHOTO, "WEBP"),
    "webp lossless": encode(PHOTO, "WEBP", lossless=True),
    "webp alpha": save(in_mode("RGBA"), "WEBP", lossless=True, exact=True),
    "webp animated": save(Image.fromarray(PHOTO), "WEBP", save_all=True, append_images=[turned()]),
    "gif": encode(PHOTO, "GIF"),
    "gif transparent": save(in_mode("P"), "GIF", transparency=3),
    "gif animated": save(in_mode("P"), "GIF", save_all=True, append_images=[in_mode("P").rotate(90)]),
    "bmp": encode(PHOTO, "BMP"),
    "bmp palette": save(in_mode("P"), "BMP"),
    "tiff": encode(PHOTO, "TIFF"),
    "tiff lzw": encode(PHOTO, "TIFF", compression="tiff_lzw"),
    "tiff jpeg": encode(PHOTO, "TIFF", compression="jpeg"),
    "tiff cmyk": save(in_mode("CMYK"), "TIFF"),
    "tiff alpha": save(in_mode("RGBA"), "TIFF"),
    "tiff pages": save(Image.fromarray(PHOTO), "TIFF", save_all=True, append_images=[turned()]),
    "avif": encode(PHOTO, "AVIF"),
    "jpeg 2000": encode(PHOTO, "JPEG2000"),
    "ppm": encode(PHOTO, "PPM"),
}
