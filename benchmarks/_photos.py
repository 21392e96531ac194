"""Photos for benchmarks: files taken from shards, or synthetic ones, packed into shards of any length."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from patchsieve.pipeline.row_config import IMAGE_FIELDS
from patchsieve.pipeline.shards.reader import Sample, ShardReader, pick_image
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.pipeline.shards.writer import ShardWriter


def synthetic_photo(seed: int, height: int = 375, width: int = 500) -> bytes:
    """A JPEG of quality 90 that compresses as photographs do: noise whose spectrum falls with its frequency."""
    random = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / width) ** 1.6
    waves = random.standard_normal((3, height, width // 2 + 1)) + 1j * random.standard_normal(
        (3, height, width // 2 + 1)
    )
    picture = np.fft.irfft2(waves * amplitude, s=(height, width)).transpose(1, 2, 0)
    pixels = np.clip(128 + 50 * picture / picture.std(), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def photo_files(shards: Sequence[str], count: int) -> list[bytes]:
    """At most `count` image files of the shards, as many from each; without shards synthetic photos."""
    if not shards:
        return [synthetic_photo(seed) for seed in range(count)]
    found = expand_shards(shards)
    return [
        file for shard in found for file in itertools.islice(_images(str(shard.url)), -(-count // len(found)))
    ][:count]


def _images(url: str) -> Iterator[bytes]:
    with ShardReader(expand_shards([url])[0]) as reader:
        for item in reader:
            picked = pick_image(item, IMAGE_FIELDS) if isinstance(item, Sample) else None
            if picked is not None:
                yield picked[1]


def pack_shard(path: Path, files: Sequence[bytes], count: int, *, start: int = 0) -> str:
    """A shard of `count` samples, the files over and over from number `start` on, with keys of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ShardWriter(path) as writer:
        for number in range(start, start + count):
            writer.add(f"{number:08d}", {"jpg": files[number % len(files)]})
    return str(path)
