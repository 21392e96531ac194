"""Synthetic photographs and shards: the same bytes for the same arguments, without any file or download.

Pictures are smooth gradients with textured discs and bars on them, so that some patches carry content and
others do not. Pillow encodes them: the pixels are the same everywhere, the bytes within one Pillow release.
"""

from __future__ import annotations

import functools
import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def photo_pixels(seed: int, height: int = 240, width: int = 320) -> Pixels:
    """A photo-like picture, uint8 `[height, width, 3]`; another seed gives another picture."""
    random = np.random.default_rng(seed)
    row, column = np.arange(height, dtype=np.float64)[:, None], np.arange(width, dtype=np.float64)
    y, x = row / max(height - 1, 1), column / max(width - 1, 1)
    tilt = random.uniform(-80, 80, size=(2, 3))
    picture = random.uniform(60, 190, size=3) + y[..., None] * tilt[0] + x[..., None] * tilt[1]
    for _ in range(int(random.integers(3, 7))):
        centre_y, centre_x = random.uniform(0.1, 0.9, size=2)
        half_y, half_x = random.uniform(0.05, 0.3, size=2)
        if random.random() < 0.5:
            inside = ((y - centre_y) / half_y) ** 2 + ((x - centre_x) / half_x) ** 2 <= 1
        else:
            inside = (abs(y - centre_y) <= half_y) & (abs(x - centre_x) <= half_x)
        direction = random.uniform(0, np.pi)
        distance = (row * np.sin(direction) + column * np.cos(direction))[inside]
        wave = np.sin(distance * random.uniform(0.2, 1.2))
        picture[inside] = random.uniform(20, 235, size=3) + wave[:, None] * random.uniform(5, 45)
    picture += random.normal(0, 3, size=picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def encode(pixels: Pixels, file_format: str = "JPEG", **options: Any) -> bytes:
    """The picture as a file of one of Pillow's formats; `options` go to `Image.save` (quality, exif, ...)."""
    if file_format == "JPEG":
        options = {"quality": 90, **options}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


@functools.lru_cache(maxsize=1000)
def photo(seed: int, height: int = 240, width: int = 320, *, quality: int = 90) -> bytes:
    """One photo-like JPEG of the given size."""
    return encode(photo_pixels(seed, height, width), quality=quality)


def photos(count: int, seed: int = 0, height: int = 240, width: int = 320) -> list[bytes]:
    """`count` different JPEGs; no two of them are shared with another `seed` (up to 100,000 photos each)."""
    return [photo(seed * 100_000 + number, height, width) for number in range(count)]


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> Path:
    """A WebDataset tar with members `<key>.<field>` in the order given; parent folders are made.

    A key may be given twice, and an empty key or field is written as it is: tests need bad shards too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, fields in samples:
            for field, data in fields.items():
                member = tarfile.TarInfo(f"{key}.{field}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def photo_samples(
    count: int, seed: int = 0, height: int = 240, width: int = 320
) -> list[tuple[str, dict[str, bytes]]]:
    """`count` good samples for `write_shard`, photo `jpg` and label `cls` each; other seeds, other keys."""
    return [
        (f"photo-{seed}-{number:04d}", {"jpg": data, "cls": str(number % 10).encode()})
        for number, data in enumerate(photos(count, seed, height, width))
    ]
