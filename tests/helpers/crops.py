"""Crops of the photographs that come with scikit-image, as samples for `write_shard`."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from patchsieve.pipeline.pictures.demo_photos import find_photos
from tests.helpers.photos import encode

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "ihc.png")


def crop_samples(count: int, seed: int = 0) -> list[tuple[str, dict[str, bytes]]]:
    """So many crops of 240 to 400 pixels a side, each a `jpg` between a `json` and a `cls`."""
    paths = dict(find_photos(None))
    photos = [np.asarray(Image.open(paths[name]).convert("RGB")) for name in PHOTOS]
    random = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        photo = photos[number % len(photos)]
        height, width = (min(int(random.integers(240, 401)), side) for side in photo.shape[:2])
        top, left = (
            int(random.integers(0, room + 1)) for room in (photo.shape[0] - height, photo.shape[1] - width)
        )
        fields = {
            "json": json.dumps({"top": top, "left": left}).encode(),
            "jpg": encode(photo[top : top + height, left : left + width], quality=92),
            "cls": str(number % len(photos)).encode(),
        }
        samples.append((f"crop-{seed}-{number:03d}", fields))
    return samples
