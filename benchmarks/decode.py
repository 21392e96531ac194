"""Images per second and core from a file's bytes to views: ours against a Pillow pipeline, on one thread.

Both decode once per image, cut the same random crops and resize them with antialiased bicubic filtering; contenders
take turns in one run. Goal: at least 1.5 times Pillow at one view of a 500 x 375 JPEG.
"""

from __future__ import annotations

import dataclasses
import io
import statistics
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks._common import measure, ratio, show, write_json
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.views import ViewBox, apply_view, draw_view
from patchsieve.pipeline.row_config import IMAGE_FIELDS
from patchsieve.pipeline.shards.reader import Sample, ShardReader, pick_image
from patchsieve.pipeline.shards.specs import expand_shards
from tests.helpers.photos import photo

Boxes = list[list[ViewBox]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Benchmark of decoding and cropping on one core."""

    shards: tuple[str, ...] = ()
    """Shards to take images from; synthetic photos of 500 x 375 pixels by default."""
    images: int = 100
    """Images per round."""
    views: tuple[int, ...] = (1, 4)
    """Views per image, a measurement each."""
    size: int = 224
    """Side of a view in pixels."""
    rounds: int = 7
    """Rounds; medians are reported."""
    out: Path = Path("bench-out/decode.json")
    """Results as JSON."""


def files_of(options: Options) -> list[bytes]:
    """The image files to decode."""
    if not options.shards:
        return [photo(number, 375, 500) for number in range(options.images)]
    files: list[bytes] = []
    for shard in expand_shards(options.shards):
        with ShardReader(shard) as reader:
            samples = (item for item in reader if isinstance(item, Sample))
            picked = (pick_image(sample, IMAGE_FIELDS) for sample in samples)
            files += islice((found[1] for found in picked if found), options.images - len(files))
        if len(files) >= options.images:
            break
    return files


def boxes_of(files: list[bytes], options: Options) -> Boxes:
    """The crops of each image, drawn as the score job draws them."""
    sizes = [decode_image(data).shape[1:] for data in files]
    return [
        [
            draw_view(0, str(number), view, height=height, width=width, crop="random", size=options.size)
            for view in range(max(options.views))
        ]
        for number, (height, width) in enumerate(sizes)
    ]


def by_pillow(data: bytes, boxes: list[ViewBox], size: int) -> list[NDArray[np.uint8]]:
    """The usual pipeline: RGB image, resize with a box, array."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    views = []
    for box in boxes:
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        view = image.resize((size, size), Image.Resampling.BICUBIC, box=corners)
        if box.hflip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        views.append(np.asarray(view))
    return views


def by_us(data: bytes, boxes: list[ViewBox], size: int) -> list[Tensor]:
    """What the score job does."""
    image = decode_image(data)
    return [apply_view(image, box, size) for box in boxes]


def compare(
    title: str, ours: Callable[[], None], pillow: Callable[[], None], options: Options, images: int
) -> Any:
    """Measure two ways in turns; returns a row of the table and what the JSON holds."""
    seconds = measure({"Pillow": pillow, "patchsieve": ours}, options.rounds)
    milliseconds = {name: 1000 * statistics.median(times) / images for name, times in seconds.items()}
    factor = ratio(seconds, "patchsieve", "Pillow")
    row = [
        title,
        *(f"{milliseconds[name]:.2f}" for name in seconds),
        *(f"{1000 / milliseconds[name]:.0f}" for name in seconds),
        f"{factor:.2f}",
    ]
    return row, {"milliseconds_per_image": milliseconds, "times_pillow": factor, "seconds": seconds}


def main(options: Options) -> None:
    """Measure, print a table, write the JSON."""
    torch.set_num_threads(1)
    files = files_of(options)
    boxes = boxes_of(files, options)
    results, rows = {}, []

    def every(way: Callable[[bytes, list[ViewBox], int], object], views: int) -> Callable[[], None]:
        def run() -> None:
            for data, drawn in zip(files, boxes, strict=True):
                way(data, drawn[:views], options.size)

        return run

    for views in (0, *options.views):
        title = f"decode and {views} view{'s' * (views != 1)}" if views else "decode alone"
        row, results[title] = compare(
            title, every(by_us, views), every(by_pillow, views), options, len(files)
        )
        rows.append(row)
    size = sum(map(len, files)) / len(files) / 1000
    show(
        f"{len(files)} images of {size:.0f} kB, views of {options.size} x {options.size}, one thread",
        ["", "Pillow ms", "ours ms", "Pillow/s", "ours/s", "times Pillow"],
        rows,
    )
    source = list(options.shards) or "synthetic photos, 500 x 375"
    write_json({"decode": results, "images": len(files), "source": source}, options.out)


if __name__ == "__main__":
    import tyro  # not where `gpu_check` runs this

    main(tyro.cli(Options, description=__doc__))
